"""Stage 5: the numbers are those of the predictions, and the words are honest."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from jsonschema import Draft202012Validator, ValidationError

from fakes_report import (
    BASE,
    QUICK,
    TUNED,
    Habits,
    fewer_draws,
    numbers_of,
    predictions,
    report,
    run_folder,
    two_runs,
)
from radistill import scoring
from radistill.errors import RunFolderError
from radistill.files import write_json
from radistill.metrics.bleu import BLEU
from radistill.report import schema
from radistill.runs import RunFolder
from radistill.tables import read_predictions, write_predictions
from radistill.tasks.translation import Translation


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    with fewer_draws():
        yield


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[RunFolder], Path]:
    return two_runs(tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="module")
def numbers(two: tuple[list[RunFolder], Path]) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((two[1] / "report.json").read_text(encoding="utf-8"))
    return loaded


# report.json


def strict(part: Any) -> Any:
    """The schema with every unknown key refused: readers must bear new keys, but we must publish ours."""
    if isinstance(part, list):
        return [strict(p) for p in part]
    if not isinstance(part, dict):
        return part
    closed = {k: strict(v) for k, v in part.items()}
    return {**closed, "additionalProperties": False} if isinstance(part.get("properties"), dict) else closed


def test_report_json_follows_the_published_schema(numbers: dict[str, Any]) -> None:
    Draft202012Validator.check_schema(schema())
    Draft202012Validator(schema()).validate({**numbers, "added_later": 1})
    Draft202012Validator(strict(schema())).validate(numbers)
    with pytest.raises(ValidationError):
        Draft202012Validator(strict(schema())).validate({**numbers, "added_later": 1})
    for broken in (
        {**numbers, "schema": 2},
        {**numbers, "runs": [{k: v for k, v in numbers["runs"][0].items() if k != "retention"}]},
    ):
        with pytest.raises(ValidationError):
            Draft202012Validator(schema()).validate(broken)


def test_the_untouched_model_is_the_run_named_base(numbers: dict[str, Any]) -> None:
    found = [(run["name"], run["method"], run["ours"]) for run in numbers["runs"]]
    assert found == [
        ("base", "untouched", False),
        ("alma-radis", "radis", True),
        ("alma-vanilla", "vanilla", False),
    ]
    assert numbers["baseline"] == "base"
    assert all(
        run["general"] is None and run["retention"] is None and run["abilities"] == {} for run in numbers["runs"]
    )


def test_the_numbers_are_those_of_the_stored_predictions(
    two: tuple[list[RunFolder], Path], numbers: dict[str, Any]
) -> None:
    rows = list(read_predictions(two[0][0].predictions("translation")))
    scored = scoring.score(rows, Translation(), "translation", seed=0)
    for system, run in (("base", numbers["runs"][0]), ("alma-radis", numbers["runs"][1])):
        wanted = scored.find(system=system, metric="bleu")
        assert wanted is not None
        assert run["new_skill"] == {
            "metric": "bleu", "value": wanted.value, "low": wanted.low, "high": wanted.high, "n": 60,
        }  # fmt: skip
        assert set(run["signatures"]) == {s.signature for s in scored.scores if s.system == system}
    compared = {(c.metric, c.group): c for c in scoring.compare(scored, system="alma-radis")}
    told = [d for d in numbers["differences"] if d["system"] == "alma-radis"]
    assert len(told) == len(compared) == 16
    for d in told:
        c = compared[d["metric"], d["group"]]
        assert (d["value"], d["low"], d["high"], d["p_holm"]) == (c.difference, c.low, c.high, c.p_holm)


def test_costs_are_those_of_the_manifest(numbers: dict[str, Any]) -> None:
    base, radis, vanilla = numbers["runs"]
    assert (base["tokens_trained"], base["tokens_processed"], base["seconds"]) == (0, 0, {})
    assert (radis["tokens_trained"], radis["tokens_processed"]) == (278_142, 366_352)
    assert radis["seconds"] == {"generate": 841.2, "assemble": 3.9, "train": 1620.5, "evaluate": 95.25}
    assert "generate" not in vanilla["seconds"]


def test_scores_are_computed_again_and_not_read(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "r")
    write_json(run.scores, {"scores": "nonsense"})
    before = numbers_of(run)
    rows = [
        replace(p, raw="x", answer="x") if p.system == "r" else p
        for p in read_predictions(run.predictions("translation"))
    ]
    write_predictions(run.predictions("translation"), rows)
    after = numbers_of(run)
    assert before["runs"][0] == after["runs"][0]
    assert before["runs"][1]["new_skill"]["value"] > 30 > 5 > after["runs"][1]["new_skill"]["value"]


# Honest words


@pytest.mark.parametrize(
    ("base", "tuned", "said"),
    [
        (BASE, TUNED, "it has improved. One by one: better in de-en, en-de and zh-en."),
        (TUNED, BASE, "it got worse. One by one: worse in de-en, en-de and zh-en."),
        (TUNED, replace(TUNED, explains=0.9), "neither a gain nor a loss is shown"),
    ],
)
def test_the_summary_says_what_the_numbers_say(tmp_path: Path, base: Habits, tuned: Habits, said: str) -> None:
    # The third model writes the same answers and explains more: whole replies get worse, answers do not.
    rows = [
        *predictions("base", base),
        *(replace(p, system="r") for p in predictions("base" if said[0] == "n" else "r", tuned)),
    ]
    numbers = numbers_of(run_folder(tmp_path / "r", answers=rows))
    assert said in numbers["summary"][0]
    assert "says nothing about what was kept or forgotten" in numbers["summary"][-1]


def test_a_loss_in_one_direction_is_not_hidden_by_the_mean(tmp_path: Path) -> None:
    rows = predictions("base", BASE)
    rows += [
        replace(p, system="r", raw="nothing of this", answer="nothing of this") if p.tags["pair"] == "zh-en" else p
        for p in predictions("r", Habits(swaps=0.0, explains=0.0))
    ]
    numbers = numbers_of(run_folder(tmp_path / "r", answers=rows))
    assert "better in de-en and en-de; worse in zh-en" in numbers["summary"][0]


def test_predictions_that_could_not_be_had_are_announced(tmp_path: Path) -> None:
    rows = [*predictions("base", BASE), *predictions("r", TUNED)]
    rows[-1] = replace(rows[-1], finish_reason="error", raw="", answer="", labels=())
    numbers, page, _ = report([run_folder(tmp_path / "r", answers=rows)], tmp_path / "out")
    assert numbers["notes"] == [
        "translation: 1 of 60 predictions of r could not be had; they are scored as empty answers."
    ]
    assert numbers["notes"][0] in page.text


class Ability(Translation):
    """Something that could be lost."""

    kind: ClassVar[Literal["skill", "ability"]] = "ability"


def test_abilities_have_retention_and_a_verdict(tmp_path: Path) -> None:
    good, bad = Habits(swaps=0.0, explains=0.0), Habits(swaps=0.6, explains=0.0)
    run = run_folder(tmp_path / "r")
    answers = {
        "kept": [*predictions("base", good), *predictions("r", good)],
        "lost": [*predictions("base", good), *predictions("r", bad)],
        "never": [
            replace(p, raw="x", answer="x") for s in ("base", "r") for p in predictions(s, good)
        ],
    }  # fmt: skip
    for name, rows in answers.items():
        write_predictions(run.predictions(name), rows)
    tasks = {**QUICK, **{name: Ability(metrics=(BLEU(),)) for name in answers}}
    numbers, page, _ = report([run], tmp_path / "out", tasks=tasks, examples=0)
    base, tuned = numbers["runs"]
    assert {name: a["verdict"] for name, a in tuned["abilities"].items()} == {
        "kept": "inconclusive", "lost": "lost", "never": "not measurable",
    }  # fmt: skip
    lost = tuned["abilities"]["lost"]
    assert lost["retention"] == pytest.approx(lost["value"] / base["abilities"]["lost"]["value"])
    assert tuned["abilities"]["never"]["retention"] is None
    # What cannot be measured is in neither mean.
    assert tuned["general"]["value"] == pytest.approx((100 + lost["value"]) / 2)
    assert tuned["general"]["n"] == 120
    assert tuned["retention"]["value"] == pytest.approx((1 + lost["retention"]) / 2)
    assert base["general"]["value"] == pytest.approx(100)
    assert base["retention"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert "least is left of lost" in numbers["summary"][-1]
    assert "not measurable" in page.text


# Several runs


def test_runs_on_other_test_items_are_not_laid_side_by_side(tmp_path: Path) -> None:
    one = run_folder(tmp_path / "one")
    rows = [*predictions("base", BASE, pairs=["de-en"]), *predictions("two", TUNED, pairs=["de-en"])]
    other = run_folder(tmp_path / "two", answers=rows)
    with pytest.raises(RunFolderError, match=r"two: the tuned model answered other items .* 40 missing of 60"):
        report([one, other], tmp_path / "out")


def test_what_differs_between_the_runs_baselines_is_said(tmp_path: Path) -> None:
    one = run_folder(tmp_path / "one")
    rows = [*predictions("base", BASE, seed=7), *predictions("two", TUNED)]
    other = run_folder(tmp_path / "two", answers=rows)
    other.config.write_text(other.config.read_text().replace("Mistral-7B-Instruct-v0.2", "Other-7B"))
    numbers = numbers_of(one, other)
    models, baseline = numbers["notes"]
    assert "two with mistralai/Other-7B" in models.replace("began ", "")
    assert re.search(r"the untouched model in two answered \d+ of 60 items otherwise", baseline)
    assert numbers["runs"][0] == numbers_of(one)["runs"][0]


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    runs = [run_folder(tmp_path / "a" / "r"), run_folder(tmp_path / "b" / "r", tuned=BASE)]
    numbers = numbers_of(*runs)
    assert [run["name"] for run in numbers["runs"]] == ["base", "r", "r (2)"]
    assert numbers["runs"][1]["new_skill"] != numbers["runs"][2]["new_skill"]


# What is missing


def test_an_unfinished_run_is_reported_as_far_as_it_went(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "r")
    for path in (run.manifest, run.summary, run.records, run.train_log):
        path.unlink()
    numbers, page, _ = report([run], tmp_path / "out")
    assert numbers["runs"][1]["tokens_trained"] is None
    assert numbers["runs"][1]["new_skill"]["n"] == 60
    assert "not recorded" in page.text
    assert "No training log" in page.text


def test_a_run_without_predictions_claims_nothing(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "r")
    run.predictions("translation").unlink()
    numbers, page, _ = report([run], tmp_path / "out")
    assert [r["new_skill"] for r in numbers["runs"]] == [None, None]
    assert numbers["summary"][0].startswith("No skill was evaluated")
    assert "Rows trained on" in page.text


def test_a_run_without_the_untouched_model_is_not_compared(tmp_path: Path) -> None:
    numbers, _, _ = report([run_folder(tmp_path / "r", answers=predictions("r", TUNED))], tmp_path / "out")
    assert numbers["differences"] == []
    assert numbers["runs"][0]["new_skill"] is None
    assert "no untouched model to compare with" in numbers["summary"][0]
    assert "the untouched model was not evaluated" in numbers["notes"][0]


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"is not a run folder: it holds neither config\.yaml nor manifest\.json"):
        report([RunFolder(tmp_path)], tmp_path / "out")
    with pytest.raises(RunFolderError, match="no run folder was named"):
        report([], tmp_path / "out")
