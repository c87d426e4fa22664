"""Every prediction side by side: all are there, all can be found, and none of it is more than text."""

import base64
import hashlib
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fakes_report import BASE, QUICK, TUNED, Page, fewer_draws, hostile, predictions, run_folder
from fakes_report_kept import answers, quiz, quizzed
from radistill import report_answers
from radistill.records import Prediction
from radistill.report import write_report
from radistill.report_answers import Everything, every
from radistill.report_data import Evaluation
from radistill.report_scores import Result, results
from radistill.runs import RunFolder
from radistill.tables import read_predictions

HOSTILE = "</p></details><script>alert(1)</script><img src=x onerror=alert(2)> {{ 7*7 }} \u202etxt"


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    with fewer_draws():
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[RunFolder], Path]:
    root = tmp_path_factory.mktemp("answers")
    runs, tasks = quizzed(root, {"one": {"a": 12}, "two": {"a": 20}}, {"a": quiz()})
    write_report(runs, root / "out", margin=0.02, seed=0, tasks=tasks, examples=0)
    return runs, root / "out"


def page_of(folder: Path) -> tuple[str, Page]:
    html = (folder / "predictions.html").read_text(encoding="utf-8")
    return html, Page(html)


def articles(html: str) -> list[tuple[str, Page]]:
    """The classes of each item, and what it holds."""
    found = re.findall(r'<article(?: class="([^"]*)")?>(.*?)</article>', html, re.DOTALL)
    return [(classes, Page(inside)) for classes, inside in found]


def scored(*rows: Prediction) -> list[Result]:
    return results([Evaluation(name="a", task=quiz(), predictions=rows)], seed=0)


def looks(*rows: Prediction) -> list[set[str]]:
    return [set(item.looks) for group in every(scored(*rows), title="t").groups for item in group.items]


# All of it


def test_every_system_answers_every_item_on_the_page(made: tuple[list[RunFolder], Path]) -> None:
    html, page = page_of(made[1])
    found = articles(html)
    assert len(found) == 60 + 20
    for task in ("translation", "a"):
        rows = [p for run in made[0] for p in read_predictions(run.predictions(task))]
        by_item = {p.example_id: [q for q in rows if q.example_id == p.example_id] for p in rows}
        for example_id, mine in by_item.items():
            (item,) = [p for _, p in found if f"item {example_id[:8]}" in p.text]
            assert mine[0].source in item.text
            assert mine[0].reference in item.text
            for p in mine:
                assert p.system in item.text
                assert p.answer in item.text
                assert p.raw[len(p.answer) :].strip() in item.text
    assert "240 answers to 80 test items" in page.text
    assert page.open == []


def test_the_report_leads_to_the_page_and_the_page_back(made: tuple[list[RunFolder], Path]) -> None:
    report = Page((made[1] / "report.html").read_text(encoding="utf-8"))
    assert {"href": "predictions.html"} in report.all("a")
    assert page_of(made[1])[1].all("a") == [{"href": "report.html"}]
    assert "(predictions.html)" in (made[1] / "report.md").read_text(encoding="utf-8")


def test_a_report_without_predictions_leads_nowhere(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "r")
    run.predictions("translation").unlink()
    written = write_report([run], tmp_path / "out", margin=0.02, seed=0, tasks=QUICK)
    assert tmp_path / "out/predictions.html" not in written
    assert not (tmp_path / "out/predictions.html").exists()
    assert "predictions.html" not in (tmp_path / "out/report.html").read_text(encoding="utf-8")


def test_the_report_stage_records_the_page(tmp_path: Path) -> None:
    from radistill import pipeline
    from radistill.config import load_config

    run = run_folder(tmp_path / "r")
    record = pipeline.report(load_config(run.config), run)
    assert record is not None
    assert {"report.html", "predictions.html"} <= set(record.outputs)


# To be found


def test_items_are_marked_by_what_became_of_them() -> None:
    base, lost = answers("a", "base", 10), answers("a", "one", 5)
    marked = looks(*base, *lost)
    assert marked == [set()] * 5 + [{"differs", "lost"}] * 5 + [set()] * 10
    assert looks(*answers("a", "base", 5), *answers("a", "one", 10))[5:10] == [{"differs", "gained"}] * 5
    two = looks(*base, *answers("a", "one", 12), *answers("a", "two", 8))
    assert two[7:13] == [set(), *[{"differs", "lost"}] * 2, *[{"differs", "gained"}] * 2, set()]


def test_right_and_wrong_are_said_only_where_answers_are_one_or_the_other(
    made: tuple[list[RunFolder], Path],
) -> None:
    found = articles(page_of(made[1])[0])
    for classes, item in found:
        chips = [attrs["class"] for tag, attrs in item.tags if "chip right" in attrs.get("class", "")]
        chips += [attrs["class"] for tag, attrs in item.tags if "chip wrong" in attrs.get("class", "")]
        is_quiz = "question" in item.text
        assert len(chips) == (3 if is_quiz else 0)
        if is_quiz:
            assert ("chip wrong" in chips) == ("lost" in classes)


def test_an_answer_that_could_not_be_had_is_not_called_wrong() -> None:
    rows = answers("a", "one", 20)
    rows[0] = replace(rows[0], finish_reason="error", raw="", answer="")
    (group,) = every(scored(*answers("a", "base", 20), *rows), title="t").groups
    assert [a.mark for a in group.items[0].answers] == ["right", ""]
    assert "lost" not in group.items[0].looks


def test_the_script_finds_what_it_looks_for(made: tuple[list[RunFolder], Path]) -> None:
    html, page = page_of(made[1])
    script = html[html.index("<script>") : html.index("</script>")]
    named = set(re.findall(r'"(find|words|task|look|said)"', script))
    ids = {attrs["id"] for _, attrs in page.tags if "id" in attrs}
    assert named == ids == {"find", "words", "task", "look", "said"}
    # Without the script the boxes can be opened by hand, and no dead control is shown.
    assert "hidden" in next(attrs for attrs in page.all("div") if attrs.get("id") == "find")
    assert [attrs["data-task"] for attrs in page.all("details")] == ["translation"] * 3 + ["a"]
    options = {attrs.get("value") for attrs in page.all("option")} - {None, ""}
    classes = {c for classes, _ in articles(html) for c in classes.split()}
    assert classes <= options == {"differs", "lost", "gained"}


# Nothing but text


def test_only_our_own_script_may_run(made: tuple[list[RunFolder], Path]) -> None:
    html, page = page_of(made[1])
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = next(a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{allowed}'"
    assert not re.search(r"fetch|XMLHttp|innerHTML|eval|import|//", script)
    for tag, attrs in page.tags:
        assert not any(name.startswith("on") or "//" in value for name, value in attrs.items()), tag
        assert tag not in ("link", "img", "iframe", "form", "object", "base")


def test_what_a_model_wrote_is_text_on_this_page_too(made: tuple[list[RunFolder], Path], tmp_path: Path) -> None:
    rows = [hostile(p, HOSTILE) for p in [*predictions("base", BASE), *predictions("r", TUNED)]]
    run = run_folder(tmp_path / "r", answers=rows)
    write_report([run], tmp_path / "out", margin=0.02, seed=0, tasks=QUICK, title=HOSTILE, examples=0)
    html, page = page_of(tmp_path / "out")
    assert {tag for tag, _ in page.tags} <= {tag for tag, _ in page_of(made[1])[1].tags} | {"small"}
    assert page.open == []
    assert len(page.all("script")) == 1
    assert "\u202e" not in html
    assert page.text.count("<script>alert(1)</script>") > 6 * 60


def test_the_page_has_the_same_bytes_each_time(made: tuple[list[RunFolder], Path], tmp_path: Path) -> None:
    tasks = {**QUICK, "a": quiz()}
    write_report(made[0], tmp_path, margin=0.02, seed=0, tasks=tasks, examples=0)
    assert page_of(tmp_path)[0] == page_of(made[1])[0]


# Its size


def long(count: int) -> Everything:
    rows = [*answers("a", "base", 0, wrong="x" * count), *answers("a", "one", 0, wrong="y" * count)]
    return every(scored(*rows), title="t")


def test_texts_are_shortened_only_when_the_page_would_grow_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not long(5000).is_shortened
    monkeypatch.setattr(report_answers, "PAGE_BYTES", 120_000)
    page = long(5000)
    assert page.is_shortened
    assert page.limit == 2000
    assert len(page.groups[0].items) == 20
    assert page.groups[0].items[0].answers[0].pieces[0].text == "x" * 2000 + " … [3,000 more characters]"
    assert not long(500).is_shortened
    monkeypatch.setattr(report_answers, "PAGE_BYTES", 1)
    assert long(5000).limit == 400


def test_a_page_of_a_thousand_items_and_four_systems_stays_small(tmp_path: Path) -> None:
    from radistill.report import _predictions

    rows = [
        replace(p, example_id=f"{i:04d}{p.example_id}", raw=p.raw * 10)
        for system in ("base", "one", "two", "three")
        for i in range(50)
        for p in answers("a", system, 20)
    ]
    html = _predictions(every(scored(*rows), title="t"))
    assert html.count("<article") == 1000
    # 2,600 items, as in the lab's demo, are then far below ten megabytes.
    assert len(html.encode()) < 1_600_000
