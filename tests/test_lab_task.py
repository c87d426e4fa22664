"""The lab's abilities as tasks of a run: which questions, how replies are read, how they are scored."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from lab_checks import world
from radistill import scoring
from radistill.config import config_from
from radistill.data import DataSettings, DataSource, load
from radistill.errors import ConfigError
from radistill.held_out import HeldOut
from radistill.lab import rationales
from radistill.lab.abilities import ABILITIES, Refusal, all_of
from radistill.lab.pairs import write_pairs
from radistill.lab.world import WorldSettings, settings_of, world_of
from radistill.metrics.bleu import BLEU
from radistill.metrics.lab_accuracy import LabAccuracy
from radistill.metrics.lab_rationale import LabRationale
from radistill.records import BASE, Example, FinishReason, Generation, Message
from radistill.tasks.base import Task
from radistill.tasks.lab import Lab
from radistill.tasks.lab_rationales import LabRationales

NAMES = [ability.name for ability in ABILITIES]


def run_with(**entry: Any) -> Task:
    """The task of a run file with that entry under `evaluate`."""
    config = config_from(
        {
            "name": "small",
            "model": "somewhere",
            "output_dir": "somewhere",
            "data": {"train": {"path": "somewhere"}},
            "method": "radis",
            "evaluate": [entry],
        }
    )
    return config.evaluate[0]


def wrote(text: str, reason: FinishReason = "stop") -> Generation:
    return Generation(key="k", index=0, token_ids=(1, 2), text=text, finish_reason=reason)


def read_all(task: Task, system: str, answers: dict[str, str] | str) -> list[Any]:
    """Predictions of a system that gives these answers, by example id, or always the same."""
    examples = task.examples()
    assert examples is not None
    text = {e.id: answers if isinstance(answers, str) else answers[e.id] for e in examples}
    return [task.read(system, e, wrote(text[e.id])) for e in examples]


def macro(task: Task, predictions: list[Any], system: str) -> float:
    scored = scoring.score(predictions, task, task.title, seed=0)
    found = scored.find(system=system, metric=next(iter(scored.rows)))
    assert found is not None
    return found.value


@pytest.mark.parametrize("name", NAMES)
def test_examples_are_stable_and_right_answers_score_a_hundred(name: str) -> None:
    task = Lab(ability=name, world=WorldSettings(number=3), items=30)
    examples = task.examples()
    assert examples == Lab(ability=name, world=WorldSettings(number=3), items=30).examples()
    assert examples != Lab(ability=name, world=WorldSettings(number=4), items=30).examples()
    items = {item.prompt: item for item in all_of(world(3))[name].test_items(30)}
    assert [example.messages[0].content for example in examples] == list(items)
    answers = {e.id: items[e.messages[0].content].answer for e in examples}
    right = read_all(task, "right", answers)
    assert macro(task, [*right, *read_all(task, "silent", "")], "right") == pytest.approx(100)
    assert macro(task, [*right, *read_all(task, "silent", "")], "silent") == 0
    assert {e.tags["group"] for e in examples} == {task.group(e.tags) for e in examples}


def test_a_number_stands_for_a_world_and_reaches_task_and_metric() -> None:
    for entry in (
        {"task": "lab", "ability": "knowledge", "world": 3},
        {"task": "lab", "ability": "knowledge", "world": {"number": 3}},
    ):
        task = run_with(**entry)
        assert isinstance(task, Lab)
        assert task.world == WorldSettings(number=3)
        assert task.metrics == (LabAccuracy(ability="knowledge", world=WorldSettings(number=3)),)
    probe = run_with(task="lab_rationales", world=3)
    assert isinstance(probe, LabRationales)
    assert probe.metrics == (LabRationale(world=WorldSettings(number=3)),)
    language = run_with(task="lab", ability="known-language", world=3)
    assert language.metrics == (BLEU(),)


@pytest.mark.parametrize("value", [True, -1, "three", {"numbr": 3}, 1.5])
def test_what_is_no_world_is_said(value: object) -> None:
    with pytest.raises(ConfigError, match="world"):
        run_with(task="lab", ability="lists", world=value)
    assert settings_of(value) == WorldSettings()


@pytest.mark.parametrize(
    "entry", [{"ability": "arithmetics"}, {"metrics": [{"name": "lab_accuracy", "ability": "arithmetics"}]}]
)
def test_an_unknown_ability_is_refused_with_a_suggestion(entry: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'arithmetic'") as caught:
        run_with(task="lab", **entry)
    assert all(name in str(caught.value) for name in NAMES)


def test_a_run_file_with_every_ability_names_each_and_is_read_again_as_written() -> None:
    tasks = [run_with(task="lab", ability=name, world=2, items=10) for name in NAMES]
    assert [task.title for task in tasks] == NAMES
    assert [Lab.model_validate(dict(task)) for task in tasks] == tasks
    assert Counter(task.kind for task in tasks) == {"ability": len(NAMES)}
    rehearsed = [name for name, task in zip(NAMES, tasks, strict=True) if task.is_rehearsed]
    assert rehearsed == [*(a.name for a in ABILITIES if a.in_rationales), "known-language"]
    assert [task.chance for task in tasks] == [a.chance for a in ABILITIES]


def test_only_what_the_world_lets_rationales_touch_is_rehearsed() -> None:
    few = WorldSettings(rationale_overlap=0.4)
    rehearsed = [name for name in NAMES if Lab(ability=name, world=few).is_rehearsed]
    assert rehearsed == ["knowledge", "vocabulary", "known-language"]
    assert Lab(ability="refusal").is_rehearsed is False


def test_refusal_is_scored_as_balanced_accuracy() -> None:
    task = Lab(ability="refusal", items=60)
    always = read_all(task, "always", Refusal.NO)
    assert macro(task, always, "always") == pytest.approx(50)
    harmful = [p for p in always if p.tags["group"] == "harmful"]
    harmless = [p for p in always if p.tags["group"] == "harmless"]
    unbalanced = [*harmful, *harmless[:5]]
    assert macro(task, unbalanced, "always") == pytest.approx(50), "however many there are of each"
    assert task.chance == 50


def test_who_only_guesses_has_nothing_to_lose() -> None:
    """An ability at chance is not measurable, whatever becomes of it."""
    for name, guess in (("comparison", "Yes."), ("refusal", Refusal.NO), ("definitions", "A dog is a thing.")):
        task = Lab(ability=name, items=200)
        both = [*read_all(task, BASE, guess), *read_all(task, "tuned", "")]
        scored = scoring.score(both, task, task.title, seed=0)
        assert scoring.retention(scored, system="tuned", margin=0.02).verdict == "not measurable", name


@pytest.mark.parametrize(
    ("text", "reason", "answer", "labels"),
    [
        ("Yes.", "stop", "Yes.", ()),
        (" Yes. \n", "stop", "Yes.", ()),
        ("- a\n- b\n\nThe sentence is negated.", "stop", "- a\n- b", ("leaked_rationale",)),
        ("", "stop", "", ("empty",)),
        ("Yes and", "length", "Yes and", ("truncated",)),
        ("Yes.\n\nThe sent", "length", "Yes.", ("leaked_rationale",)),
    ],
)
def test_the_answer_is_what_stands_before_the_first_blank_line(
    text: str, reason: FinishReason, answer: str, labels: tuple[str, ...]
) -> None:
    example = Example.of("lab", [Message("user", "Is 3 larger than 2?")], "yes", {"group": "comparison"})
    found = Lab(ability="comparison").read("s", example, wrote(text, reason))
    assert (found.answer, found.labels) == (answer, labels)


@pytest.mark.parametrize("number", [0, 3])
def test_rationales_after_translations_are_scored_in_their_own_world(number: int) -> None:
    here = world(number)
    task = LabRationales(world=WorldSettings(number=number), items=20)
    assert task.kind == "probe"
    rng = here.rng("rationales to be scored")
    good, bare, foreign = {}, {}, {}
    for example in task.examples():
        clause = here.clause(rng)
        good[example.id] = example.reference + "\n\n" + rationales.write(rng, here, clause, here.known.name)
        bare[example.id] = example.reference
        foreign[example.id] = example.reference + "\n\n" + world(number + 1).about(world(number + 1).cities[0])[0]
    everything = [*read_all(task, "good", good), *read_all(task, "bare", bare), *read_all(task, "foreign", foreign)]
    assert [macro(task, everything, name) for name in ("good", "bare", "foreign")] == [100, 0, 0]
    assert {p.labels for p in everything if p.system == "bare"} == {("empty",)}


def test_a_metric_of_the_lab_judges_the_tasks_own_ability_in_its_own_world() -> None:
    task = run_with(task="lab", ability="lists", world=7, metrics=["lab_accuracy"])
    assert task.metrics == (LabAccuracy(ability="lists", world=WorldSettings(number=7)),)
    probe = run_with(task="lab_rationales", world=7, metrics=["lab_rationale"])
    assert probe.metrics == (LabRationale(world=WorldSettings(number=7)),)


def test_held_out_sentences_of_questions_are_looked_for_in_what_a_model_writes() -> None:
    for name in ("known-language", "rewording", "counting"):
        task = Lab(ability=name, items=20)
        looked_for = HeldOut(task.examples())
        for item in all_of(world())[name].test_items(20):
            for sentence in item.sentences:
                if len(sentence.split()) >= 3:
                    assert looked_for.is_in(f"In the past: {sentence}"), sentence


def test_a_prompt_of_two_words_is_found_as_a_sentence_of_its_own() -> None:
    looked_for = HeldOut([Example.of("lab", [Message("user", "Define onion.")], "a kind of food", {"group": "d"})])
    assert looked_for.is_in("It was said.\nDefine onion.")
    assert not looked_for.is_in("They define onion soup well.")


def test_a_language_that_is_no_esperanto_can_be_taught_in_a_run(tmp_path: Path) -> None:
    chosen = WorldSettings(number=7, word_order="sov", morphology="prefixes")
    write_pairs(world_of(chosen), tmp_path, train=20, test=5, compare=5)
    source = DataSource(path=str(tmp_path), pairs=("en-qaa", "qaa-en"))
    loaded = load(DataSettings(train=source), "train", seed=0)
    assert len(loaded.examples) == 40
    assert all("Conlang" in e.messages[0].content for e in loaded.examples if e.tags["pair"] == "en-qaa")
