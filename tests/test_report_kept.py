"""What was kept: retention against the new skill, apart by what rationales touch, and what is only shown."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator, ValidationError

from fakes_report import Page, fewer_draws, report
from fakes_report_kept import Exact, Probe, answers, quiz, quizzed
from radistill import report_text
from radistill.report import schema
from radistill.tables import write_predictions

RIGHT = {
    "one": {"a": 18, "b": 16, "c": 10, "d": 4, "notes": 1},
    "two": {"a": 20, "b": 20, "c": 20, "d": 10, "notes": 20},
}
TASKS = {"a": quiz(True), "b": quiz(True), "c": quiz(False), "d": quiz(), "notes": Probe(metrics=(Exact(),))}


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    with fewer_draws():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kept")


@pytest.fixture(scope="module")
def made(folder: Path) -> tuple[dict[str, Any], Page, str]:
    runs, tasks = quizzed(folder, RIGHT, TASKS)
    return report(runs, folder / "out", tasks=tasks, examples=12)


def cells(markdown: str, first: str) -> list[list[str]]:
    """Rows of Markdown tables that begin with that cell."""
    lines = [line.strip("| ").split(" | ") for line in markdown.splitlines() if line.startswith(f"| {first} |")]
    return [[cell.replace("\\", "") for cell in line] for line in lines]


# Touched and untouched apart


def test_retention_is_told_apart_by_what_rationales_touch(made: tuple[dict[str, Any], Page, str]) -> None:
    numbers, _, markdown = made
    base, one, two = numbers["runs"]
    assert one["retention"]["value"] == pytest.approx((0.9 + 0.8 + 0.5 + 0.2) / 4)
    assert one["retention_rehearsed"]["value"] == pytest.approx(0.85)
    assert one["retention_not_rehearsed"]["value"] == pytest.approx(0.5)
    assert (one["retention_rehearsed"]["n_abilities"], one["retention_not_rehearsed"]["n_abilities"]) == (2, 1)
    assert one["retention_rehearsed"]["low"] < 0.85 < one["retention_rehearsed"]["high"]
    assert two["retention_not_rehearsed"] == {"value": 1.0, "low": 1.0, "high": 1.0, "n_abilities": 1}
    assert base["retention_rehearsed"]["value"] == 1.0
    assert {name: a["rehearsed"] for name, a in one["abilities"].items()} == {
        "a": True,
        "b": True,
        "c": False,
        "d": None,
    }
    told = {row[1]: row for row in cells(markdown, "one") if row[1] in ("all", "touched", "not touched")}
    for name, key in (
        ("all", "retention"),
        ("touched", "retention_rehearsed"),
        ("not touched", "retention_not_rehearsed"),
    ):
        m = one[key]
        assert told[name][2:4] == [f"{m['value']:.3f}", report_text.interval(m["low"], m["high"], 3)]
    assert (told["all"][6], told["touched"][6], told["not touched"][6]) == ("d 0.200", "b 0.800", "c 0.500")


def test_the_summary_says_it_in_words(made: tuple[dict[str, Any], Page, str]) -> None:
    sentence = next(s for s in made[0]["summary"] if s.startswith("one retains"))
    apart = re.sub(r" \[[^]]*\]", "", sentence.partition("That is ")[2])
    assert apart == "0.850 of the 2 that rationales touch and 0.500 of the one that rationales do not touch."
    assert len(re.findall(r"\[[^]]*\]", sentence)) == 3


def test_where_it_is_not_known_nothing_is_said_about_it(tmp_path: Path) -> None:
    runs, tasks = quizzed(tmp_path, {"one": {"a": 18, "d": 4}}, {"a": quiz(), "d": quiz()})
    numbers, page, markdown = report(runs, tmp_path / "out", tasks=tasks, examples=0)
    assert numbers["runs"][1]["retention_rehearsed"] is None
    assert numbers["runs"][1]["retention_not_rehearsed"] is None
    assert numbers["runs"][1]["retention"]["value"] == pytest.approx(0.55)
    assert "rationales touch" not in " ".join(numbers["summary"])
    assert [row[1] for row in cells(markdown, "one") if row[1] in ("all", "touched", "not touched")] == ["all"]
    assert "Abilities that rationales" not in page.text


# What enters nothing


def test_a_probe_is_shown_and_enters_neither_retention_nor_general(made: tuple[dict[str, Any], Page, str]) -> None:
    numbers, page, markdown = made
    base, one, two = numbers["runs"]
    assert "notes" not in one["abilities"]
    assert one["general"]["value"] == pytest.approx((90 + 80 + 50 + 20) / 4)
    assert one["general"]["n"] == 80
    assert base["probes"]["notes"]["difference"] is None
    assert {k: v for k, v in one["probes"]["notes"].items() if k in ("value", "n")} == {"value": 5.0, "n": 20}
    assert one["probes"]["notes"]["difference"]["value"] == pytest.approx(-95.0)
    assert two["probes"]["notes"]["difference"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    rows = {row[1]: row[3:] for row in cells(markdown, "notes") if len(row) == 8}
    assert rows["base"][:1] == ["100.0"]
    assert (rows["one"][0], rows["one"][2]) == ("5.0", "−95.0")
    assert "no mean, no retention and no verdict" in page.text
    assert "notes" not in " ".join(numbers["summary"])


def test_a_run_with_a_probe_alone_says_nothing_about_what_was_kept(tmp_path: Path) -> None:
    runs, tasks = quizzed(tmp_path, {"one": {"notes": 3}}, {"notes": TASKS["notes"]})
    numbers, page, _ = report(runs, tmp_path / "out", tasks=tasks, examples=0)
    assert numbers["runs"][1]["retention"] is None
    assert "says nothing about what was kept" in numbers["summary"][-1]
    assert "Shown, not counted" in page.text
    assert "New skill against retention" not in page.text


def test_the_schema_refuses_a_probe_or_a_subset_without_its_numbers(made: tuple[dict[str, Any], Page, str]) -> None:
    numbers = made[0]
    validator = Draft202012Validator(schema())
    for key, broken in (
        ("probes", {"notes": {"metric": "exact", "value": 1.0}}),
        ("retention_rehearsed", {"value": 1.0}),
        ("retention_not_rehearsed", 1.0),
    ):
        with pytest.raises(ValidationError):
            validator.validate({**numbers, "runs": [{**numbers["runs"][0], key: broken}]})
    # Reports written before these keys were known stay valid.
    older = {k: v for k, v in numbers["runs"][1].items() if k not in ("probes", "retention_rehearsed")}
    validator.validate({**numbers, "runs": [older]})


# New skill against retention


def test_the_map_shows_each_run_and_the_untouched_model(made: tuple[dict[str, Any], Page, str], folder: Path) -> None:
    numbers, _, markdown = made
    svg = (folder / "out/figures/skill-and-retention.svg").read_text(encoding="utf-8")
    rows = {row[0]: row for name in ("base", "one", "two") for row in cells(markdown, name) if len(row) == 9}
    for run in numbers["runs"]:
        skill, kept, general = run["new_skill"], run["retention"], run["general"]
        assert f"{kept['value']:.3f} [{kept['low']:.3f}, {kept['high']:.3f}]" in svg
        assert f"{skill['value']:.1f} [{skill['low']:.1f}, {skill['high']:.1f}]" in svg
        row = rows[run["name"]]
        assert row[1] == f"{skill['value']:.1f}"
        assert row[3] == f"{kept['value']:.3f}"
        assert row[6] == f"{general['value']:.1f}"
        assert row[8] == "4"
    assert rows["base"][3:6] == ["1.000", "by definition", "–"]
    assert rows["one"][5] == "100.0"


def test_without_a_skill_there_is_no_map_but_the_general_score(tmp_path: Path) -> None:
    runs, tasks = quizzed(tmp_path, {"one": {"a": 18}}, {"a": quiz()})
    runs[0].predictions("translation").unlink()
    _, page, markdown = report(runs, tmp_path / "out", tasks=tasks, examples=0)
    assert not (tmp_path / "out/figures/skill-and-retention.svg").exists()
    assert "General score and retention" in page.text
    assert next(row[:2] for row in cells(markdown, "one") if len(row) == 7) == ["one", "0.900"]


def test_what_cannot_be_measured_has_no_retention_and_no_place_on_the_map(tmp_path: Path) -> None:
    runs, tasks = quizzed(tmp_path, {"one": {"a": 18}}, {"a": quiz(guess=95.0)})
    numbers, page, _ = report(runs, tmp_path / "out", tasks=tasks, examples=0)
    assert numbers["runs"][1]["abilities"]["a"]["verdict"] == "not measurable"
    assert numbers["runs"][1]["abilities"]["a"]["retention_low"] is None
    assert not (tmp_path / "out/figures/skill-and-retention.svg").exists()
    assert "not measurable" in page.text


# Many abilities


def test_each_ability_has_a_verdict_for_each_run(made: tuple[dict[str, Any], Page, str]) -> None:
    numbers, _, markdown = made
    for ability in "abcd":
        row = next(row for row in cells(markdown, ability) if len(row) == 4)
        for run, cell in zip(numbers["runs"][1:], row[2:], strict=True):
            found = run["abilities"][ability]
            bounds = report_text.interval(found["retention_low"], found["retention_high"], 2)
            assert cell == f"{found['verdict']} {found['retention']:.2f} {bounds}"


def many(folder: Path, count: int) -> tuple[dict[str, Any], Page, str]:
    names = [f"ability{i}" for i in range(count)]
    right = {run: dict.fromkeys(names, some) for run, some in (("one", 12), ("two", 18))}
    runs, tasks = quizzed(folder, right, {name: quiz(i % 2 == 0) for i, name in enumerate(names)})
    for run in runs:
        run.train_log.unlink()
        run.summary.unlink()
    return report(runs, folder / "out", tasks=tasks, examples=26)


@pytest.fixture(scope="module")
def dozen(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return many(tmp_path_factory.mktemp("dozen"), 13)[1]


def test_a_dozen_abilities_add_rows_and_no_headings_and_no_figures(tmp_path: Path, dozen: Page) -> None:
    few = many(tmp_path, 2)[1]
    for tag in ("h2", "h3", "svg", "table"):
        assert len(dozen.all(tag)) == len(few.all(tag)), tag
    assert "260 of 13 abilities" in dozen.text
    assert {f"ability{i}" for i in range(13)} <= set(re.findall(r"ability\d+", dozen.text))


def test_the_sample_of_answers_is_shared_by_all_other_tests(dozen: Page) -> None:
    items = [attrs for attrs in dozen.all("article") if attrs.get("aria-label", "").startswith("item ")]
    assert len(items) == 26 + 13 * 2
    assert "26 of 60 items of translation and 2 items of each of 13 other tests" in dozen.text


def test_rates_of_abilities_stand_in_one_table_with_their_mean(tmp_path: Path) -> None:
    runs, tasks = quizzed(tmp_path, {"one": {"a": 18, "b": 18}}, {"a": quiz(), "b": quiz()})
    rows = answers("a", "one", 20)
    empty = [replace(p, labels=("empty",)) for p in rows[:10]]
    write_predictions(runs[0].predictions("a"), [*answers("a", "base", 20), *empty, *rows[10:]])
    numbers, page, markdown = report(runs, tmp_path / "out", tasks=tasks, examples=0)
    score = next(s for s in numbers["scores"] if (s["task"], s["system"], s["metric"]) == ("a", "one", "rate_empty"))
    of_each = next(row for row in cells(markdown, "a") if row[1] == "one" and len(row) == 5)
    assert of_each[2] == f"50.0 {report_text.interval(score['low'], score['high'])}"
    mean = next(row for row in cells(markdown, "empty") if len(row) == 3)
    assert mean[1].startswith("0.0 [")
    assert mean[2].startswith("25.0 [")
    assert not (tmp_path / "out/figures/a-rates.svg").exists()
    assert "exact" in page.text
