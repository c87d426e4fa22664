"""The report as a page: it reaches for nothing, everybody can read it, and other people's text stays text."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from fakes_report import (
    BASE,
    QUICK,
    TUNED,
    Page,
    fewer_draws,
    hostile,
    predictions,
    run_folder,
    two_runs,
)
from radistill import report_data, report_text
from radistill.files import write_json
from radistill.records import Prediction
from radistill.report import write_report
from radistill.report_answers import pieces
from radistill.report_data import Evaluation, read_run, sampled_items, trained_rows
from radistill.report_view import curves
from radistill.runs import RunFolder
from radistill.tables import read_predictions, read_records, write_jsonl, write_records
from radistill.tasks.translation import Translation


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    with fewer_draws():
        yield


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[RunFolder], Path]:
    return two_runs(tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="module")
def page(two: tuple[list[RunFolder], Path]) -> Page:
    return Page((two[1] / "report.html").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def numbers(two: tuple[list[RunFolder], Path]) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((two[1] / "report.json").read_text(encoding="utf-8"))
    return loaded


# The page


def test_all_files_are_written_and_named(two: tuple[list[RunFolder], Path], tmp_path: Path) -> None:
    written = write_report(two[0][:1], tmp_path, margin=0.02, seed=0, tasks=QUICK)
    names = {path.relative_to(tmp_path).as_posix() for path in written}
    figures = {f"figures/{name}.svg" for name in ("translation-bleu", "translation-rates", "loss", "shares")}
    assert names == {"report.html", "report.md", "report.json", "predictions.html", *figures}
    assert {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()} == names


def test_the_page_reaches_for_nothing_outside_itself(two: tuple[list[RunFolder], Path], page: Page) -> None:
    assert {"script", "link", "iframe", "img", "object", "form", "base", "a"} & {tag for tag, _ in page.tags} == {"a"}
    for tag, attrs in page.tags:
        for name, value in attrs.items():
            assert not name.startswith("on"), (tag, name)
            assert "//" not in value, (tag, name, value)
            if name in ("href", "xlink:href", "src"):
                # The one other file lies beside the page and is written with it.
                assert value.startswith("#") or value == "predictions.html", (tag, value)
    html = (two[1] / "report.html").read_text(encoding="utf-8")
    css = html[html.index("<style>") : html.index("</style>")]
    assert "@import" not in css
    assert "url(" not in css
    assert "default-src 'none'" in html


def test_the_page_can_be_read_without_eyes(page: Page) -> None:
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert len(page.all("caption")) == len(page.all("table")) > 5
    assert all("scope" in th for th in page.all("th"))
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    targets = {attrs["href"][1:] for attrs in page.all("a") if attrs["href"].startswith("#")}
    named = {word for _, attrs in page.tags for word in attrs.get("aria-labelledby", "").split()}
    assert targets | named <= set(ids)
    assert all(svg["role"] == "img" and len(svg["aria-labelledby"].split()) == 2 for svg in page.all("svg"))
    headings = {attrs.get("id") for attrs in page.all("h2")}
    assert {section["aria-labelledby"] for section in page.all("section")} == headings
    assert page.all("html") == [{"lang": "en"}]
    assert page.open == []


def test_html_and_markdown_hold_the_numbers_of_the_json(two: tuple[list[RunFolder], Path], page: Page) -> None:
    markdown = (two[1] / "report.md").read_text(encoding="utf-8")
    numbers = json.loads((two[1] / "report.json").read_text(encoding="utf-8"))
    rows = [re.split(r"(?<!\\) \| ", line.strip("| ")) for line in markdown.splitlines() if line.startswith("| ")]
    for score in numbers["scores"]:
        group = "mean" if score["group"] == "macro" else score["group"]
        value, bounds = f"{score['value']:.1f}", f"[{score['low']:.1f}, {score['high']:.1f}]"
        if score["metric"] in ("bleu", "chrf"):
            assert any(row[:4] == [group, score["system"], value, bounds] for row in rows), score
        elif score["metric"].startswith("rate_"):
            label = score["metric"].removeprefix("rate_").replace("_", " ")
            assert any(row[:2] == [label, score["system"]] and f"{value} {bounds}" in row for row in rows), score
        assert value in page.text
        assert bounds in page.text
    for d in (d for d in numbers["differences"] if d["metric"] in ("bleu", "chrf")):
        group = "mean" if d["group"] == "macro" else d["group"]
        bounds = report_text.interval(d["low"], d["high"], difference=True)
        told = [report_text.signed(d["value"]), bounds, report_text.markdown(report_text.p_value(d["p_holm"]))]
        assert any(row[:2] == [group, d["system"]] and row[4:7] == told for row in rows), d
    for score in numbers["scores"]:
        if "_raw" not in score["metric"] and score["metric"] in ("bleu", "chrf"):
            assert score["signature"] in page.text
            assert score["signature"].replace("|", r"\|") in markdown
    assert "![" in markdown
    assert all((two[1] / path).exists() for path in re.findall(r"\]\((figures/[^)]*)\)", markdown))


def test_the_summary_opens_both_pages(two: tuple[list[RunFolder], Path], page: Page, numbers: dict[str, Any]) -> None:
    markdown = (two[1] / "report.md").read_text(encoding="utf-8")
    assert len(numbers["summary"]) == 3
    for sentence in numbers["summary"]:
        assert sentence in page.text
        assert sentence.replace("<", "&lt;") in markdown


def test_the_page_shows_data_costs_hashes_and_the_way_to_do_it_again(
    page: Page, two: tuple[list[RunFolder], Path]
) -> None:
    for wanted in (
        "Two ways",
        "repetition loop",
        "214,377",
        "76.53",
        "14 min 01 s",
        "27 min",
        "NVIDIA H200",
        "2.13.0",
        two[0][0].stages()["assemble"].outputs["records.parquet"],
        f"radistill run {two[0][0].config}",
        "name: alma-vanilla",
    ):
        assert wanted in page.text, wanted


def test_a_report_has_the_same_bytes_each_time_and_does_not_report_on_itself(tmp_path: Path) -> None:
    from radistill.runs import begin

    run = run_folder(tmp_path / "r")
    before = [p.read_bytes() for p in write_report([run], tmp_path / "r", margin=0.02, seed=0, tasks=QUICK)]
    stage = begin(run, "report", {}, [], redo=False)
    assert stage is not None
    during = [p.read_bytes() for p in write_report([run], tmp_path / "r", margin=0.02, seed=0, tasks=QUICK)]
    assert before == during


# Other people's text

HOSTILE = (
    "<script>alert(1)</script></pre></style><img src=x onerror=alert(2)> [x](javascript:alert(3)) "
    '"onmouseover="alert(4) {{ 7*7 }} &lt;b&gt; | a | \u202etxt\u2066\u0007\u0000\u200b\ud83d `code` <!-- --> ]]>'
)

TEXT = HOSTILE.replace("\ud83d", "")  # what parquet and JSON files can hold


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Page]:
    root = tmp_path_factory.mktemp("attacked")
    rows = [hostile(p, TEXT) for p in [*predictions("base", BASE), *predictions("r", TUNED)]]
    run = run_folder(root / "r", answers=rows)
    summary = json.loads(run.summary.read_text())
    write_json(
        run.summary,
        {**summary, "dropped": {TEXT: 3}, "notes": [TEXT]},
    )
    record = next(read_records(run.records))
    texts = tuple(TEXT for _ in record.texts)
    write_records(run.records, [replace(record, texts=texts)])
    write_jsonl(run.train_log, [{"step": 1, "loss/<script>": 1.0}, {"step": 2, "loss/<script>": 0.5}])
    config = run.config.read_text().replace("mistralai/Mistral", '"<script>alert(5)</script>')
    run.config.write_text(config.replace("Instruct-v0.2", 'Instruct-v0.2"'))
    write_report([run], root / "out", margin=0.02, seed=0, tasks=QUICK, title=HOSTILE)
    return root / "out", Page((root / "out" / "report.html").read_text(encoding="utf-8"))


def test_what_a_model_wrote_is_text_and_never_markup(attacked: tuple[Path, Page], page: Page) -> None:
    _, found = attacked
    assert {tag for tag, _ in found.tags} == {tag for tag, _ in page.tags}
    allowed = {name for _, attrs in page.tags for name in attrs}
    for tag, attrs in found.tags:
        assert set(attrs) <= allowed, tag
        assert "javascript:" not in attrs.get("href", "")
    assert found.open == []
    assert found.text.count("<script>alert(1)</script></pre></style><img src=x onerror=alert(2)>") > 100
    assert "<script>alert(5)</script>" in found.text
    assert "{{ 7*7 }}" in found.text


def test_text_that_hides_or_turns_is_made_visible(attacked: tuple[Path, Page]) -> None:
    out, page = attacked
    for name in ("report.html", "report.md", "predictions.html"):
        text = (out / name).read_text(encoding="utf-8")
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u202a-\u202e\u2066-\u2069]", text), name
    assert "[U+202E]txt[U+2066][U+0007][U+0000][U+200B]" in page.text


def test_markdown_is_not_broken_by_what_a_model_wrote(attacked: tuple[Path, Page]) -> None:
    text = (attacked[0] / "report.md").read_text(encoding="utf-8")
    assert not re.search(r"<(?!/?br)[a-z!/]", text)
    assert "](javascript" not in text
    tables = [line for line in text.splitlines() if line.startswith("| dropped")]
    assert len(tables) == 1
    assert len(re.findall(r"(?<!\\)\|", tables[0])) == 3


def test_figures_of_hostile_names_are_still_figures(attacked: tuple[Path, Page]) -> None:
    for path in (attacked[0] / "figures").glob("*.svg"):
        assert not re.search(r"<script|\bon\w+=", path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain\ttext\n中文", "plain\ttext\n中文"),
        ("a\u202eb", "a[U+202E]b"),
        ("a\rb\x1b[31m", "a[U+000D]b[U+001B][31m"),
        ("half \ud83d", "half [U+D83D]"),
        ("می\u200cخواهم 👩\u200d🚀", "می\u200cخواهم 👩\u200d🚀"),
    ],
)
def test_only_what_could_deceive_is_replaced(text: str, shown: str) -> None:
    assert report_text.visible(text) == shown


def test_numbers_are_written_for_people() -> None:
    assert [report_text.number(v) for v in (-0.04, -1.25, 1234.56, None, float("nan"))] == [
        "0.0", "−1.2", "1,234.6", "not recorded", "not recorded",
    ]  # fmt: skip
    assert [report_text.signed(v) for v in (0.04, 2.0, -2.0)] == ["0.0", "+2.0", "−2.0"]
    assert [report_text.p_value(p) for p in (0.000999, 0.001, 1.0)] == ["< 0.001", "0.001", "1.000"]
    assert [report_text.duration(s) for s in (0.24, 185, 7620, None)] == [
        "0.2 s",
        "3 min 05 s",
        "2 h 07 min",
        "not recorded",
    ]
    assert [report_text.listed(w) for w in ([], ["a"], ["a", "b"], ["a", "b", "c"])] == [
        "",
        "a",
        "a and b",
        "a, b and c",
    ]
    assert report_text.spaces_shown("\n\n ") == "⏎⏎␣"


# Examples and training rows


def test_examples_are_a_seeded_sample_from_every_group(two: tuple[list[RunFolder], Path], page: Page) -> None:
    rows = tuple(read_predictions(two[0][0].predictions("translation")))
    evaluation = Evaluation(name="translation", task=Translation(), predictions=rows)
    chosen = sampled_items(evaluation, seed=0, count=40)
    groups = [next(p.tags["pair"] for p in rows if p.example_id == i) for i in chosen]
    assert groups == ["de-en"] * 14 + ["en-de"] * 13 + ["zh-en"] * 13
    assert len(set(chosen)) == 40
    assert chosen == sampled_items(replace(evaluation, predictions=rows[::-1]), seed=0, count=40)
    assert set(chosen) != set(sampled_items(evaluation, seed=1, count=40))
    assert len(sampled_items(evaluation, seed=0, count=100)) == 60
    assert "40 of 60 items of translation" in page.text
    assert sum(1 for _, attrs in page.tags if attrs.get("aria-label", "").startswith("item ")) == 40


def test_examples_show_source_reference_and_every_systems_answer(two: tuple[list[RunFolder], Path], page: Page) -> None:
    every = [p for run in two[0] for p in read_predictions(run.predictions("translation"))]
    evaluation = Evaluation(name="translation", task=Translation(), predictions=tuple(every[:120]))
    chosen = set(sampled_items(evaluation, seed=0, count=40))
    for p in every:
        if p.example_id in chosen:
            assert all(text in page.text for text in (p.source, p.reference, p.answer, p.raw.split("\n")[-1]))
    assert page.text.count("leaked rationale") > 20


def prediction(raw: str, answer: str, **changed: Any) -> Prediction:
    return replace(predictions("base", BASE)[0], raw=raw, answer=answer, **changed)


@pytest.mark.parametrize(
    ("raw", "answer", "found"),
    [
        ("Good day.", "Good day.", [("answer", "Good day.")]),
        (
            "Sure:\n\nGood day.\n\nNote: polite.",
            "Good day.",
            [("cut off before", "Sure:"), ("answer", "Good day."), ("cut off after", "Note: polite.")],
        ),
        ("GOOD DAY", "good day", [("answer", "good day"), ("whole reply", "GOOD DAY")]),
        ("Note only", "", [("whole reply", "Note only")]),
        (" \n", "", [("only white space was written", "")]),
        ("", "", [("nothing was written", "")]),
    ],
)
def test_a_reply_is_shown_as_answer_and_what_was_cut(raw: str, answer: str, found: list[tuple[str, str]]) -> None:
    assert [(p.label, p.text) for p in pieces(prediction(raw, answer), "en")] == found


def test_a_reply_that_could_not_be_had_is_not_shown_as_empty() -> None:
    assert [p.label for p in pieces(prediction("", "", finish_reason="error"), "en")] == ["could not be had"]


def test_three_training_rows_are_shown_with_segments_and_weights(two: tuple[list[RunFolder], Path], page: Page) -> None:
    stored = {r.id: r for r in read_records(two[0][0].records)}
    rows = trained_rows(two[0][0].records, seed=0)
    assert len({row.id for row in rows}) == 3
    for row in rows:
        assert tuple(s for s, _ in row.pieces) == stored[row.id].segments
        assert tuple(t for _, t in row.pieces) == stored[row.id].texts
        assert all(text.strip() in page.text for _, text in row.pieces)
    assert rows != trained_rows(two[0][0].records, seed=1)
    assert "prompt · 28 tokens · weight 0" in page.text
    assert "⏎⏎" in page.text


def test_training_rows_are_found_in_every_part_of_a_large_file(
    two: tuple[list[RunFolder], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = list(read_records(two[0][0].records))
    monkeypatch.setattr("radistill.tables.BATCH_ROWS", 3)
    write_records(tmp_path / "records.parquet", records)
    rows = trained_rows(tmp_path / "records.parquet", seed=0, count=20)
    assert [row.id for row in rows] == [r.id for r in records]


def test_a_step_logged_again_after_a_resume_counts_once(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "r")
    log = [{"step": s, "loss/reference": v} for s, v in ((5, 3.0), (10, 2.0), (15, float("nan")), (10, 1.0), (20, 0.5))]
    write_jsonl(run.train_log, log)
    found = curves([read_run(run, QUICK)])
    assert found == {"r": {"reference": [(5, 3.0), (10, 1.0), (20, 0.5)]}}


def test_a_method_may_declare_itself_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from radistill.methods.vanilla import Vanilla

    run = run_folder(tmp_path / "r", method="vanilla")
    assert not report_data.read_run(run, QUICK).ours
    monkeypatch.setattr(Vanilla, "ours", True)
    assert report_data.read_run(run, QUICK).ours
