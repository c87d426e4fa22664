"""The answer is read off the reply by one rule, and what is wrong with it is said."""

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from radistill import pathologies
from radistill.errors import DataError
from radistill.languages import base_code, canonical, guess, has_spaces, script_share, scripts
from radistill.metrics.bleu import BLEU
from radistill.metrics.chrf import ChrF
from radistill.pathologies import is_copied, is_empty, is_loop, is_off_target
from radistill.records import Example, FinishReason, Generation, Message, Prediction
from radistill.tasks.translation import Translation, source_of

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
needs_data = pytest.mark.skipif(not (DATA / "alma_outputs").exists(), reason="no ../shared/data/alma_outputs here")

SOURCE = "Er kommt morgen mit dem Zug aus Berlin."
ANSWER = "He is coming from Berlin by train tomorrow."
NOTE = "Note: “kommt” is in the present tense, which German uses for the near future."


def read(
    reply: str,
    *,
    source: str = SOURCE,
    reference: str = ANSWER,
    pair: str = "de-en",
    reason: FinishReason = "stop",
    task: Translation | None = None,
) -> Prediction:
    prompt = f"Translate this:\n{source}"
    example = Example.of("translation", [Message("user", prompt)], reference, {"pair": pair, "source": source})
    generation = Generation(key="k", index=0, token_ids=(1, 2), text=reply, finish_reason=reason)
    return (task or Translation()).read("tuned", example, generation)


# What the answer is


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        (ANSWER, ANSWER),
        (f"  {ANSWER}\n", ANSWER),
        (f"{ANSWER}\n\n{NOTE}", ANSWER),
        (f"{ANSWER}\n \t \n\n{NOTE}\n\nMore.", ANSWER),
        (f"{ANSWER}\r\n\r\n{NOTE}", ANSWER),
        (f"\n\n{ANSWER}\n\n{NOTE}", ANSWER),
        (f"Here is the translation:\n\n{ANSWER}\n\n{NOTE}", ANSWER),
        (f"译文如下：\n\n{ANSWER}", ANSWER),
        (f"**Translation:**\n\n{ANSWER}", ANSWER),
        (f"{ANSWER}\n{NOTE}", f"{ANSWER}\n{NOTE}"),
        ("It is here:", "It is here:"),
        (f"Translation:\n\n \n\n{ANSWER}", ANSWER),
        ("", ""),
        (" \n\n ", ""),
    ],
)
def test_the_answer_is_the_first_paragraph_that_is_no_preamble(reply: str, answer: str) -> None:
    assert read(reply).answer == answer
    assert read(reply).raw == reply


def test_as_many_paragraphs_are_kept_as_the_source_has() -> None:
    found = read("One.\n\nTwo.\n\nNote.", source="Eins.\n \nZwei.")
    assert found.answer == "One.\n\nTwo."
    assert read("Translation:\n\nOne.\n\nTwo.\n\nNote.", source="Eins.\n\nZwei.").answer == "One.\n\nTwo."


def test_a_colon_is_no_preamble_where_the_source_has_one_too() -> None:
    assert read("We need:\n\nBread.\n\nNote.", source="Wir brauchen:\n\nBrot.").answer == "We need:\n\nBread."
    assert read("We need:\n\nNote.", source="Wir brauchen：").answer == "We need:"


def test_the_separator_can_be_set() -> None:
    lines = Translation(cut_at="\n")
    assert read(f"{ANSWER}\n{NOTE}", task=lines).answer == ANSWER
    marks = Translation(cut_at="###")
    assert read(f"A.\n\nB. ### {NOTE}", task=marks).answer == "A.\n\nB."
    whole = Translation(cut_at="")
    assert read(f"{ANSWER}\n\n{NOTE}", task=whole).answer == f"{ANSWER}\n\n{NOTE}"


def test_every_system_is_read_alike() -> None:
    generation = Generation(key="k", index=0, token_ids=(1,), text=f"{ANSWER}\n\n{NOTE}", finish_reason="stop")
    example = Example.of("translation", [Message("user", SOURCE)], ANSWER, {"pair": "de-en"})
    of_base, of_tuned = (Translation().read(system, example, generation) for system in ("base", "tuned"))
    assert (of_base.answer, of_base.labels) == (of_tuned.answer, of_tuned.labels)


def test_the_source_is_the_tag_only_if_the_prompt_holds_it() -> None:
    def example(tags: dict[str, str]) -> Example:
        turns = [Message("user", "Hello"), Message("assistant", "Hi"), Message("user", f"Translate: {SOURCE}")]
        return Example.of("translation", turns, ANSWER, tags)

    assert source_of(example({"source": SOURCE})) == SOURCE
    assert source_of(example({"source": "wmt22.json"})) == f"Translate: {SOURCE}"
    assert source_of(example({})) == f"Translate: {SOURCE}"


# What is wrong with it


def test_a_good_answer_has_no_labels() -> None:
    assert read(ANSWER).labels == ()


def test_an_empty_reply_is_labelled_empty() -> None:
    assert read(" \n").labels == ("empty",)


def test_what_is_cut_after_the_answer_is_a_leaked_rationale() -> None:
    assert read(f"{ANSWER}\n\n{NOTE}").labels == ("leaked_rationale",)
    assert read(f"Translation:\n\n{ANSWER}").labels == ()
    assert read(f"{ANSWER}\n\n").labels == ()


@pytest.mark.parametrize(
    ("reply", "is_truncated"),
    [
        (ANSWER[:20], True),
        (f"{ANSWER}\n\n{NOTE[:20]}", False),
        (f"{ANSWER}\n\n", False),
        (f"Translation:\n\n{ANSWER[:20]}", True),
        ("", True),
    ],
)
def test_an_answer_is_truncated_only_if_the_answer_itself_was_cut_short(reply: str, is_truncated: bool) -> None:
    assert ("truncated" in read(reply, reason="length").labels) is is_truncated
    assert "truncated" not in read(reply, reason="stop").labels


def test_an_answer_that_lacks_paragraphs_of_the_source_is_truncated_when_the_reply_was() -> None:
    assert "truncated" in read("One.\n\n", source="Eins.\n\nZwei.", reason="length").labels


def test_an_untranslated_source_is_copied_and_off_target() -> None:
    assert read(SOURCE).labels == ("copied", "off_target")


def test_what_the_reference_leaves_as_it_is_may_be_copied() -> None:
    assert read("Teath-In.", source="Teath-In.", reference="Teath-In.").labels == ()
    assert read("Tap Settings", source="Tap Settings", reference="Tippen Sie", pair="en-de").labels == ("copied",)


def test_copying_ignores_case_width_and_white_space() -> None:
    assert is_copied("ＡＢＣ  def\n", "abc DEF")
    assert not is_copied("abc deg", "abc def")
    assert not is_copied("", "")


def test_a_script_that_is_not_the_target_languages_is_off_target() -> None:
    assert is_off_target(SOURCE, "ru")
    assert is_off_target("Он приедет завтра на поезде из Берлина.", "en")
    assert not is_off_target("Он приедет завтра на поезде из Берлина.", "ru")
    assert not is_off_target("明日、彼はベルリンから電車で来ますので、駅で待ちましょう。", "ja")


def test_a_language_in_the_same_script_is_told_apart() -> None:
    assert is_off_target(SOURCE, "en")
    assert not is_off_target(SOURCE, "de")
    assert is_off_target("Li venos morgaŭ per la trajno el Berlino kun siaj amikoj.", "en")
    assert not is_off_target("Li venos morgaŭ per la trajno el Berlino kun siaj amikoj.", "eo")


def test_short_texts_and_unknown_languages_are_not_judged() -> None:
    assert not is_off_target("Er kommt morgen.", "en")
    assert not is_off_target("12345 67890 12345 67890", "zh")
    assert not is_off_target("Patum velo karin tosu meli nak.", "qaa")


def test_a_language_only_its_script_of_which_is_known_is_judged_by_that(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pathologies, "can_guess", lambda _language: False)
    assert is_off_target(SOURCE, "ru")
    assert not is_off_target(SOURCE, "en")


def test_varieties_of_one_language_are_not_off_target() -> None:
    assert canonical("nb") == canonical("nn") == "no"
    assert canonical("yue") == canonical("zh-Hant") == "zh"
    assert base_code("pt_BR") == "pt"
    assert scripts("zh-Hans") == {"CJK"}
    assert not has_spaces("zh-Hans")
    assert guess("Jeg vet ikke hva jeg skal gjøre med denne boken i morgen.").code == "no"


def test_an_unknown_script_has_no_share() -> None:
    assert script_share("text", "qaa") is None
    assert script_share("123", "en") is None
    assert script_share("aб", "en") == 0.5


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("I do not know " * 4, "en"),
        ("It is: " + "go go go " * 6, "en"),
        ("no " * 16, "en"),
        ("I think that he will surely come home. " * 4, "en"),
        ("我不知道" * 4, "zh"),
        ("好的，" * 8, "zh"),
        (" ".join(f"The {n}th of them is as long as all the others." for n in range(40)), "en"),
    ],
)
def test_saying_it_over_and_over_is_a_loop(text: str, language: str) -> None:
    assert is_loop(text, language)


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("I do not know " * 3, "en"),
        ("no " * 15, "en"),
        ("Bye, bye, bye, bye!", "en"),
        ("我不知道我不知道我不知道", "zh"),
        ("哈哈哈哈哈哈", "zh"),
        ("She came, she saw, she won; she came back, she saw it again, and she won again.", "en"),
        ("", "en"),
    ],
)
def test_saying_it_a_few_times_is_none(text: str, language: str) -> None:
    assert not is_loop(text, language)


def test_a_source_that_loops_may_be_rendered_so() -> None:
    assert "loop" in read("I do not know " * 4).labels
    assert "loop" not in read("I do not know " * 4, source="Ich weiß es nicht " * 4).labels


def test_a_long_reply_is_judged_in_reasonable_time() -> None:
    import time

    started = time.perf_counter()
    assert is_loop("a b c d " * 5000, "en")
    assert not is_loop(" ".join(f"w{(n * n) % 9973}" for n in range(4000)), "en")
    assert time.perf_counter() - started < 5


@needs_data
@pytest.mark.parametrize(("pair", "system"), [("zh-en", "ALMA-13B-R"), ("cs-en", "WMT_Winners")])
def test_labels_of_true_outputs(pair: str, system: str) -> None:
    source, target = pair.split("-")
    rows = [row["translation"] for row in json.loads((DATA / f"alma/{source}en/test.{pair}.json").read_text("utf-8"))]
    file = DATA / f"alma_outputs/wmt22_outputs/{system}/{source}{target}/test.{pair}.{target}"
    answers = file.read_text(encoding="utf-8").split("\n")[:-1]
    table = (DATA / "alma_outputs/anchors_sacrebleu_2.6.0.tsv").read_text(encoding="utf-8").splitlines()
    anchor = next(line.split("\t") for line in table if line.split("\t")[1:3] == [system, pair])
    found = [read(a, source=r[source], reference=r[target], pair=pair) for a, r in zip(answers, rows, strict=True)]
    assert sum(is_empty(p.answer) for p in found) == int(anchor[6])
    assert sum(is_copied(p.answer, p.source) for p in found) == int(anchor[7])
    assert sum("off_target" in p.labels for p in found) <= 0.0025 * len(found)
    # ALMA-13B-R repeats "Learn, Sing, and Play 24 Solar Terms" in line 992 and "500ml Grain Whisky" in line 1756.
    assert [at for at, p in enumerate(found, 1) if "loop" in p.labels] == ([992, 1756] if pair == "zh-en" else [])
    untranslated = [r[source] for r in rows if len(r[source]) >= 20]
    assert sum(is_off_target(text, target) for text in untranslated) > 0.92 * len(untranslated)


# Settings and groups


def test_the_default_metrics_are_bleu_and_chrf_and_their_settings_are_told() -> None:
    assert Translation().metrics == (BLEU(), ChrF())
    assert Translation(metrics=(ChrF(word_order=2),)).model_dump(mode="json")["metrics"] == [{"word_order": 2}]


def test_a_metric_listed_twice_is_refused() -> None:
    with pytest.raises(ValidationError, match="listed twice"):
        Translation(metrics=(BLEU(), BLEU()))
    Translation(metrics=(ChrF(), ChrF(word_order=2)))


def test_groups_are_pairs_and_their_language_is_the_target() -> None:
    task = Translation()
    assert task.group({"pair": "de-en"}) == "de-en"
    assert task.language("de-en") == "en"
    assert task.language("en-zh-Hans") == "zh-Hans"
    with pytest.raises(DataError, match="language pair of every test example"):
        task.group({"split": "test"})


def test_decoding_is_greedy_and_bounded() -> None:
    sampling = Translation(max_new_tokens=7).sampling()
    assert (sampling.temperature, sampling.max_new_tokens, sampling.n) == (0.0, 7, 1)
