"""Each filter by itself: what it finds, and what it leaves alone."""

import pytest
from pydantic import ValidationError

from fakes_rationales import BAD, DE, EN, GOOD, ZH, Fake
from radistill import filters
from radistill.filters import OFF, FilterSettings

PROMPT = "Translate the following text from German into English.\n\n{source}"
LANGUAGES = ("en", "de", "zh", "ru")
RETRANSLATION = 60.0


def fails(name: str, fake: Fake) -> bool:
    about = f"{PROMPT.format(source=fake.source)}\n{fake.reference}"
    lines = filters.instruction_lines([PROMPT.format(source=fake.source)], fake.source)
    languages = ["en", "de"] if name == "language" else LANGUAGES
    found = {
        "broken": lambda: filters.is_broken(fake.text, is_cut=False),
        "degenerate": lambda: filters.is_degenerate(fake.text, fake.reference),
        "language": lambda: filters.is_in_other_language(fake.text, languages),
        "retranslation": lambda: filters.likeness(fake.text, fake.reference) >= RETRANSLATION,
        "refusal": lambda: filters.refuses(fake.text, about),
        "leaked_template": lambda: filters.leaks_template(fake.text, lines, about),
        "new_turn": lambda: filters.opens_turn(fake.text, about),
    }
    return found[name]()


CASES = [(name, what) for name, of in BAD.items() for what in of]


@pytest.mark.parametrize(("name", "what"), CASES, ids=[f"{name}: {what}" for name, what in CASES])
def test_a_filter_finds_what_it_is_for(name: str, what: str) -> None:
    assert fails(name, BAD[name][what])


@pytest.mark.parametrize("name", ["broken", *BAD])
@pytest.mark.parametrize("what", GOOD)
def test_no_filter_takes_a_good_rationale(name: str, what: str) -> None:
    is_elsewhere = name == "language" and what in ("notes in Chinese", "notes in Russian")
    assert fails(name, GOOD[what]) == is_elsewhere


ENDED = [
    "It is a noun.", "Really?", "So!", "And so on…", '"It is done."', "(It is done.)", "**It is done.**",
    "„So ist es.“", "«C'est ça.»", "「そうです。」", "这是一个名词。", "真的吗？", "हाँ।", "نعم؟", "እሺ።", "យល់ព្រម។",
    "Այո։", "It was in 1999.", "`x = 1.`", "| a | b |", "```python\nx = 1\n```", "- ferry: Fähre\n- guest: Gast\n",
    "done.  \n", "# Title\n\n- word\n",
]  # fmt: skip
UNENDED = [
    "It is a", "It is a noun,", "这是一个名词，因为", "- ferry: Fähre\n- gue", "- ferry: Fähre\n-", "1. ferry.\n2.",
    "```python\nx = 1.", "```\nThat is all.\n", "The following:\n", "such as e.g.", "translated by Dr.", "z. B.",
    "| a | b", "The word “ferry", "", "  \n", "हाँ यह", "a\ufffd",
]  # fmt: skip


@pytest.mark.parametrize("text", ENDED)
def test_a_text_that_was_cut_after_a_sentence_is_whole(text: str) -> None:
    assert not filters.is_broken(text, is_cut=True)


@pytest.mark.parametrize("text", UNENDED)
def test_a_text_that_was_cut_within_a_sentence_is_broken(text: str) -> None:
    assert filters.is_broken(text, is_cut=True)
    assert filters.is_broken(text, is_cut=False) == (not text.strip()), "one that ended by itself is as it should be"


def test_what_the_reference_repeats_may_be_repeated() -> None:
    song = "La, la, la, la. " * 12
    assert filters.is_degenerate(song)
    assert not filters.is_degenerate(song, song)


def test_rules_and_filled_columns_are_no_loop() -> None:
    table = "| a    | b    |\n" + "|------" * 20 + "|\n" + "| one" + " " * 60 + "| two" + " " * 60 + "|\n"
    assert not filters.is_degenerate(f"Title\n{'=' * 80}\n\n{table}\n{'-' * 100}\n")
    assert filters.is_degenerate("=" * 400)


def test_short_texts_code_and_quotations_say_nothing_about_the_language() -> None:
    assert not filters.is_in_other_language("Très bien.", ["en"])
    assert not filters.is_in_other_language(f'The source says "{DE}" and nothing more than that.', ["en"])
    assert not filters.is_in_other_language(f"```\n{DE}\n```", ["en"])
    assert filters.is_in_other_language(DE, ["en", "fr"])
    assert not filters.is_in_other_language(DE, ["en", "de"])


def test_a_text_that_holds_the_reference_and_more_or_a_part_of_it_is_no_copy() -> None:
    notes = GOOD["notes with headings"].text
    assert filters.likeness(EN, EN) == pytest.approx(100)
    assert filters.likeness(f"{EN}\n\n{notes}", EN) < 40
    assert filters.likeness(" ".join(EN.split()[:5]), EN) < 40
    assert filters.likeness(f"Translation: {EN}", EN) > 75
    assert filters.likeness(notes, EN) < 30
    assert filters.likeness(EN.upper(), EN) < RETRANSLATION < filters.likeness(ZH.replace("老", ""), ZH)
    assert filters.likeness(EN, ZH) == filters.likeness(ZH, EN)


def test_a_refusal_counts_at_the_beginning_alone() -> None:
    refusal = BAD["refusal"]["English"].text
    assert filters.refuses(f"Note: {refusal}")
    assert not filters.refuses("The sentence is about a ferry. " * 10 + refusal)
    assert not filters.refuses("I cannot tell whether the ferryman is meant literally, but the reading is natural.")
    assert not filters.refuses("Unfortunately the pun cannot be kept in English.")


def test_markup_of_the_source_may_be_spoken_of() -> None:
    assert filters.leaks_template("The tag <|user|> opens a turn.")
    assert not filters.leaks_template("The tag <|user|> opens a turn.", about="What does <|user|> mean?")
    assert not filters.leaks_template("In HTML, <b>bold</b> and <strong> look alike; 3 < 4 | 5 > 4.")


def test_lines_of_the_instruction_are_those_around_the_source() -> None:
    prompt = f"Translate this from German into English:\nGerman: {DE}\nEnglish:"
    assert filters.instruction_lines([prompt], DE) == {"translate this from german into english:"}
    assert filters.instruction_lines([DE], DE) == frozenset()
    assert filters.instruction_lines(["You are a helpful translator.", prompt], DE) >= {"you are a helpful translator."}


def test_two_filters_are_on_by_default_and_none_is_plain_nothing() -> None:
    assert FilterSettings().active == ("broken", "degenerate")
    assert OFF.active == ()
    assert OFF.plain() == {}
    assert FilterSettings(broken=False, max_tokens=5).plain() == {"degenerate": True, "max_tokens": 5}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"language": "tlh"}, "'tlh' is no language that can be told"),
        ({"language": []}, "names no language"),
        ({"min_tokens": 9, "max_tokens": 3}, "nothing lies between"),
        ({"min_perplexity": 9, "max_perplexity": 3.5}, "min_perplexity is 9 and max_perplexity 3.5"),
        ({"near_duplicates": 0.2}, "greater than or equal to 0.5"),
        ({"custom": "no colon"}, "match pattern"),
        ({"select": {"tokens": 0}}, "greater than or equal to 1"),
        ({"select": {"tokens": 9, "by": "length"}}, "'coverage' or 'random'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        FilterSettings.model_validate(settings)
