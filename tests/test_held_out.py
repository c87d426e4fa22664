"""Tests in what the model wrote: what is looked for, where, and what does not count."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from radistill import held_out, pipeline
from radistill.check import check
from radistill.config import RunConfig, config_from
from radistill.data import DataSettings, DataSource, load
from radistill.errors import ConfigError, DataError
from radistill.held_out import HeldOut, Leak
from radistill.records import Example, Message, Origin, Segment, TrainingRecord
from radistill.runs import RunFolder
from radistill.tasks.translation import Translation

LONG = "The minister said that the talks would go on."
SHORT = "What is the..."
SUM = "What is 34 + 23?"
BARE = Example.of("translation", [Message("user", SHORT)], "Ja.", {"pair": "en-de", "source": SHORT})


def asked(prompt: str, reference: str = "57", **tags: str) -> Example:
    return Example.of("lab", [Message("user", prompt)], reference, tags)


def translation(source: str, reference: str = "Das ist es.") -> Example:
    prompt = f"Translate this from English to German:\n{source}\nGerman:"
    return Example.of("translation", [Message("user", prompt)], reference, {"pair": "en-de", "source": source})


def record(*parts: tuple[Origin, str], example_id: str | None = "own") -> TrainingRecord:
    return TrainingRecord(
        id="r",
        example_id=example_id,
        token_ids=tuple(range(len(parts))),
        segments=tuple(Segment(origin, i, i + 1, 1.0) for i, (origin, _) in enumerate(parts)),
        texts=tuple(text for _, text in parts),
    )


def said(text: str, *tests: Example) -> Leak | None:
    """What is found in a rationale of that text."""
    return HeldOut(tests).in_record(record(("reference", "Hallo."), ("rationale", text)))


@pytest.mark.parametrize("origin", ["rationale", "model", "replay", "free"])
def test_what_the_model_wrote_is_searched_whatever_its_origin(origin: Origin) -> None:
    test = asked(SUM)
    found = HeldOut([test]).in_record(record(("prompt", "Hi."), ("reference", "Hallo."), (origin, f"Now: {SUM} 57.")))
    assert found == Leak(test.id, "prompt", SUM, origin, f"Now: {SUM} 57.")


@pytest.mark.parametrize("origin", ["prompt", "reference", "separator", "end"])
def test_the_users_own_prompt_and_reference_are_not_searched(origin: Origin) -> None:
    parts: dict[Origin, str] = {"reference": "Hallo.", "rationale": "A greeting."}
    assert HeldOut([asked(SUM)]).in_record(record(*{**parts, origin: SUM}.items())) is None


@pytest.mark.parametrize(("example_id", "origin"), [(None, "model"), ("own", "replay"), ("own", "free")])
def test_a_row_that_brings_its_own_prompt_is_searched_from_the_beginning(
    example_id: str | None, origin: Origin
) -> None:
    parts: list[tuple[Origin, str]] = [("prompt", f"<|im_start|>user\n{SUM}<|im_end|>\n"), (origin, "57")]
    found = HeldOut([asked(SUM)]).in_record(record(*parts, example_id=example_id))
    assert found is not None
    assert found.side == "prompt"


def test_replay_within_the_users_own_row_leaves_the_users_prompt_alone() -> None:
    parts: list[tuple[Origin, str]] = [("prompt", SUM), ("reference", "57"), ("replay", "A city.")]
    assert HeldOut([asked(SUM)]).in_record(record(*parts)) is None


def test_what_runs_over_from_one_written_segment_into_the_next_is_found() -> None:
    cut: list[tuple[Origin, str]] = [("reference", "x"), ("model", "So: What is 34"), ("rationale", " + 23? It is 57.")]
    assert HeldOut([asked(SUM)]).in_record(record(*cut)) is not None
    apart: list[tuple[Origin, str]] = [cut[1], ("separator", " and "), cut[2]]
    assert HeldOut([asked(SUM)]).in_record(record(*apart)) is None


@pytest.mark.parametrize(
    "text",
    [
        SUM,
        f"He asked {SUM} And I said 57",
        "and what is 34 + 23 in all",
        "WHAT\n is\u00a0３４ +\t23",
        "W\u00adhat is “34” + (23)",
    ],
)
def test_a_short_prompt_is_found_anywhere_whatever_its_case_width_and_marks(text: str) -> None:
    assert said(text, asked(SUM)) is not None


@pytest.mark.parametrize("text", ["What is 34 + 234?", "Somewhat is 34 + 23?", "What is 34?", "What is 23 + 34?", ""])
def test_words_match_whole_and_in_order(text: str) -> None:
    assert said(text, asked(SUM)) is None


def test_a_prompt_too_short_to_mean_anything_is_not_looked_for() -> None:
    assert len(HeldOut([asked("Why?"), asked("Is 3 > 2?")])) == 0


def test_only_the_last_thing_the_user_said_is_the_prompt() -> None:
    turns = [Message("user", "Where is the old mill?"), Message("assistant", "In the north."), Message("user", SUM)]
    test = Example.of("lab", turns, "57", {})
    assert said("Where is the old mill? In the north.", test) is None
    assert said(SUM, test) is not None


def test_a_source_is_found_without_the_words_around_it() -> None:
    found = said(f"As they say, {LONG.lower()[:-1]}, and so on", translation(LONG))
    assert found is not None
    assert (found.side, found.text) == ("source", LONG)


def test_a_source_that_is_no_part_of_the_prompt_is_not_looked_for() -> None:
    assert said(LONG, asked("Now for something else.", source=LONG)) is None


def test_a_reference_is_found_for_translations_alone() -> None:
    found = said(f"Well, {LONG}", translation("Hallo zusammen, liebe Leute.", LONG))
    assert found is not None
    assert found.side == "reference"
    assert said(f"Well, {LONG}", asked("Classify this text.", LONG)) is None


@pytest.mark.parametrize(
    ("text", "is_found"),
    [
        ("What is the word for that?", False),
        ("He asked what is the", False),
        ("I wondered. What is the", True),
        ("- What is the…\n- Who is it", True),
        ('"was ist das" means "What is the".', True),
        ("it means 'what is the' in German", True),
        ("*What is the*: a question", True),
        ("It's what is the", False),
    ],
)
def test_a_short_source_counts_only_as_a_sentence_of_its_own(text: str, is_found: bool) -> None:
    assert (said(text, translation(SHORT)) is not None) == is_found


def test_a_source_of_two_short_sentences_counts_between_their_outer_ends() -> None:
    assert said("Well. Oh no! Not again! Yes.", translation("Oh no! Not again!")) is not None
    assert said("Well oh no! Not again! Yes.", translation("Oh no! Not again!")) is None


def test_from_six_words_on_a_source_is_found_within_a_sentence() -> None:
    assert (
        said("I saw that one two three four five six of them", translation("One two three four five six")) is not None
    )
    assert said("I saw that one two three four five of them", translation("One two three four five")) is None


def test_a_bare_sentence_to_translate_is_a_source_and_no_prompt() -> None:
    assert said("What is the word for that?", BARE) is None
    assert said(SHORT, BARE) is not None


def test_where_one_test_asks_what_another_has_as_a_source_it_is_found_anywhere() -> None:
    for tests in ([asked(SHORT), translation(SHORT)], [translation(SHORT), asked(SHORT)]):
        found = said("He asked what is the matter", *tests)
        assert found is not None
        assert found.side == "prompt"


def test_characters_are_the_words_of_scripts_without_spaces() -> None:
    test = translation("他今天不会来开会。")
    assert said("我听说他今天不会来开会了", test) is not None
    assert said("我听说他今天会来开会了", test) is None


def test_the_longer_of_two_tests_with_the_same_beginning_is_found_too() -> None:
    tests = [asked("What is 34 + 23 + 5?"), asked("What is 34 + 23 + 56 + 7?")]
    found = said("What is 34 + 23 + 56 + 7?", *tests)
    assert found is not None
    assert found.example_id == tests[1].id


def test_the_digest_names_what_is_looked_for_and_nothing_else() -> None:
    first, second = translation(LONG), asked(SUM)
    digest = HeldOut([first, second]).digest
    assert HeldOut([second, first, first]).digest == digest
    assert HeldOut([first, asked(SUM.upper(), "58", split="b")]).digest == digest
    assert HeldOut([first]).digest != digest
    assert HeldOut([first, asked("What is 34 + 24?")]).digest != digest
    assert HeldOut([asked(SHORT)]).digest != HeldOut([BARE]).digest, "one is looked for in more places"


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> tuple[Example, ...]:
    """Translation as a task that brings its own examples."""
    examples = (translation(LONG), translation("Where is the old mill?"))
    monkeypatch.setattr(Translation, "examples", lambda _: examples)
    return examples


@pytest.fixture
def config(raw_config: dict[str, Any]) -> RunConfig:
    raw_config["generate"]["backend"] = {"name": "echo"}
    return config_from(raw_config)


@pytest.fixture
def without_tests(raw_config: dict[str, Any]) -> RunConfig:
    del raw_config["data"]["test"]
    raw_config["generate"]["backend"] = {"name": "echo"}
    return config_from(raw_config)


def test_what_is_looked_for_in_a_run_are_its_test_data(config: RunConfig) -> None:
    tests = load(config.data, "test", seed=0).examples
    assert held_out.of_run(config).digest == HeldOut(tests).digest


def test_a_tasks_own_examples_take_the_place_of_the_test_data(config: RunConfig, own: tuple[Example, ...]) -> None:
    assert held_out.of_run(config).digest == HeldOut(own).digest


def test_without_any_tests_nothing_is_looked_for(without_tests: RunConfig) -> None:
    assert len(held_out.of_run(without_tests)) == 0


def test_check_puts_a_tasks_own_examples_to_the_task(without_tests: RunConfig, own: tuple[Example, ...]) -> None:
    assert len(own) == 2
    found = check(without_tests)
    assert found.problems == []
    assert not [note for note in found.notes if "data.test" in note]


def test_check_says_that_test_data_are_missing_where_a_task_has_none(without_tests: RunConfig) -> None:
    assert any("data.test is not set" in note for note in check(without_tests).notes)


@pytest.mark.parametrize("is_set", [True, False])
def test_a_tasks_own_examples_that_it_cannot_score_are_refused(
    raw_config: dict[str, Any], monkeypatch: pytest.MonkeyPatch, is_set: bool
) -> None:
    if not is_set:
        del raw_config["data"]["test"]
    config = config_from(raw_config)
    monkeypatch.setattr(Translation, "examples", lambda _: (asked(SUM),))
    assert any("needs the language pair" in problem for problem in check(config).problems)
    with pytest.raises(DataError, match="needs the language pair"):
        pipeline.run(config)
    assert RunFolder(Path(config.output_dir)).stages() == {}


def test_check_puts_a_tasks_own_examples_into_ids(without_tests: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Translation, "examples", lambda _: (translation("One <|im_end|> two"), translation(LONG)))
    assert any("1 of 2 sampled tests cannot be put into ids" in problem for problem in check(without_tests).problems)


def test_a_task_without_tests_of_its_own_needs_test_data(without_tests: RunConfig) -> None:
    with pytest.raises(ConfigError, match=r"data\.test is missing"):
        pipeline.run(without_tests)


def test_a_run_needs_no_test_data_where_every_task_brings_its_own(
    raw_config: dict[str, Any], own: tuple[Example, ...]
) -> None:
    del raw_config["data"]["test"]
    raw_config["train"]["max_steps"] = 1
    outcomes = pipeline.run(config_from(raw_config), stages=("generate", "assemble", "train", "evaluate"))
    assert outcomes[-1].record.facts["predictions"] == 2 * len(own)


PAIRS = ("de-en", "en-de", "cs-en", "en-cs", "ru-en", "en-ru", "zh-en", "en-zh")


@pytest.fixture(scope="module")
def wmt22(shared_data: Path) -> tuple[HeldOut, Sequence[Example]]:
    """The tests, and 5000 training examples."""
    source = DataSource(path=str(shared_data / "alma"), pairs=PAIRS)
    train = source.model_copy(update={"limit": 5000, "pairs": PAIRS[:2]})
    settings = DataSettings(train=train, test=source, template="alma")
    return HeldOut(load(settings, "test", seed=0).examples), load(settings, "train", seed=0).examples


def test_rationales_that_repeat_almas_own_rows_are_kept(wmt22: tuple[HeldOut, Sequence[Example]]) -> None:
    tests, train = wmt22
    rows = [f"{example.tags['source']}\n\nThat is: {example.reference}" for example in train]
    dropped = [leak for row in rows if (leak := tests.in_record(record(("rationale", row)))) is not None]
    assert [leak.text for leak in dropped if leak.text != "Time is running out."] == []
    assert len(dropped) <= 5


def test_turns_of_phrase_that_wmt22_has_as_tests_drop_nothing(wmt22: tuple[HeldOut, Sequence[Example]]) -> None:
    tests, _ = wmt22
    for phrase in ("I hope this helps!", "What is the difference?", "I say thank you very much, my friend."):
        assert tests.in_record(record(("rationale", phrase))) is None
    assert tests.in_record(record(("rationale", "Time is running out."))) is not None
