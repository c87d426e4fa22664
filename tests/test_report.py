"""Stage 5: the numbers are those of the predictions, the words are honest, and other people's text stays text."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from jsonschema import Draft202012Validator, ValidationError

from fakes_report import BASE, TUNED, Habits, hostile, predictions, run_folder
from radistill import report_data, report_text, scoring, stats
from radistill.errors import RunFolderError
from radistill.metrics.bleu import BLEU
from radistill.records import Prediction
from radistill.report import collect, schema, write_report
from radistill.report_data import Evaluation, read_run, sampled_items, trained_rows
from radistill.report_view import curves, pieces
from radistill.runs import RunFolder, write_json
from radistill.tables import read_predictions, read_records, write_jsonl, write_predictions, write_records
from radistill.tasks.base import Task
from radistill.tasks.translation import Translation

QUICK: dict[str, Task] = {"translation": Translation(metrics=(BLEU(),))}
VOID = {"meta", "link", "br", "hr", "img", "input"}


class Page(HTMLParser):
    """Every tag with its attributes, and all text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, *names: str) -> list[dict[str, str]]:
        return [attrs for tag, attrs in self.tags if tag in names]


@pytest.fixture(scope="module", autouse=True)
def fewer_draws() -> Iterator[None]:
    """The bootstrap has its own tests; here it need only be the same everywhere."""
    with pytest.MonkeyPatch.context() as patch:
        assert stats.draw.__kwdefaults__["draws"] == stats.DRAWS
        patch.setitem(stats.draw.__kwdefaults__, "draws", 200)
        yield


def numbers_of(*runs: RunFolder, tasks: Mapping[str, Task] = QUICK) -> dict[str, Any]:
    found = collect(runs, margin=0.02, seed=0, tasks=tasks).numbers
    Draft202012Validator(schema()).validate(found)
    return found


def report(runs: Sequence[RunFolder], output: Path, **options: Any) -> tuple[dict[str, Any], Page, str]:
    write_report(runs, output, **{"margin": 0.02, "seed": 0, "tasks": QUICK, **options})
    html, markdown = ((output / f"report.{e}").read_text(encoding="utf-8") for e in ("html", "md"))
    numbers = json.loads((output / "report.json").read_text(encoding="utf-8"))
    Draft202012Validator(schema()).validate(numbers)
    return numbers, Page(html), markdown


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[RunFolder], Path]:
    root = tmp_path_factory.mktemp("two")
    runs = [
        run_folder(root / "alma-radis"),
        run_folder(root / "alma-vanilla", method="vanilla", tuned=Habits(swaps=0.2, explains=0.0)),
    ]
    # Without `tasks`, so that they are made from the run files as on the command line.
    write_report(runs, root / "report", margin=0.02, seed=0, title="Two ways")
    return runs, root / "report"


@pytest.fixture(scope="module")
def page(two: tuple[list[RunFolder], Path]) -> Page:
    return Page((two[1] / "report.html").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def numbers(two: tuple[list[RunFolder], Path]) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((two[1] / "report.json").read_text(encoding="utf-8"))
    return loaded


# report.json


def test_report_json_follows_the_published_schema(numbers: dict[str, Any]) -> None:
    Draft202012Validator.check_schema(schema())
    Draft202012Validator(schema()).validate(numbers)
    for broken in (
        {**numbers, "extra": 1},
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


# The page


def test_all_files_are_written_and_named(two: tuple[list[RunFolder], Path], tmp_path: Path) -> None:
    written = write_report(two[0][:1], tmp_path, margin=0.02, seed=0, tasks=QUICK)
    names = {path.relative_to(tmp_path).as_posix() for path in written}
    figures = {f"figures/{name}.svg" for name in ("translation-bleu", "translation-rates", "loss", "shares")}
    assert names == {"report.html", "report.md", "report.json", *figures}
    assert {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()} == names


def test_the_page_reaches_for_nothing_outside_itself(two: tuple[list[RunFolder], Path], page: Page) -> None:
    assert {"script", "link", "iframe", "img", "object", "form", "base", "a"} & {tag for tag, _ in page.tags} == {"a"}
    for tag, attrs in page.tags:
        for name, value in attrs.items():
            assert not name.startswith("on"), (tag, name)
            assert "//" not in value, (tag, name, value)
            if name in ("href", "xlink:href", "src"):
                assert value.startswith("#"), (tag, value)
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
    targets = {attrs["href"][1:] for attrs in page.all("a")}
    named = {word for _, attrs in page.tags for word in attrs.get("aria-labelledby", "").split()}
    assert targets | named <= set(ids)
    assert all(svg["role"] == "img" and len(svg["aria-labelledby"].split()) == 2 for svg in page.all("svg"))
    assert page.all("html") == [{"lang": "en"}]
    assert page.open == []


def test_html_and_markdown_hold_the_numbers_of_the_json(two: tuple[list[RunFolder], Path], page: Page) -> None:
    markdown = (two[1] / "report.md").read_text(encoding="utf-8")
    numbers = json.loads((two[1] / "report.json").read_text(encoding="utf-8"))
    rows = [re.split(r"(?<!\\) \| ", line.strip("| ")) for line in markdown.splitlines() if line.startswith("| ")]
    for score in numbers["scores"]:
        group = "mean" if score["group"] == "macro" else score["group"]
        value, bounds = f"{score['value']:.1f}", f"[{score['low']:.1f}, {score['high']:.1f}]"
        told = " | ".join
        if score["metric"] in ("bleu", "chrf"):
            assert any(row[:4] == [group, score["system"], value, bounds] for row in rows), told([group, value])
        elif score["metric"].startswith("rate_"):
            label = score["metric"].removeprefix("rate_").replace("_", " ")
            assert any(row[:2] == [label, score["system"]] and f"{value} {bounds}" in row for row in rows), score
        assert value in page.text
        assert bounds in page.text
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


def test_the_same_run_gives_the_same_bytes(two: tuple[list[RunFolder], Path], tmp_path: Path) -> None:
    first, second = (
        [p.read_bytes() for p in write_report(two[0][:1], tmp_path, margin=0.02, seed=0, tasks=QUICK)] for _ in "12"
    )
    assert first == second


def test_a_report_does_not_report_on_itself(tmp_path: Path) -> None:
    from radistill.runs import begin

    run = run_folder(tmp_path / "r")
    before = [p.read_bytes() for p in write_report([run], tmp_path / "r", margin=0.02, seed=0, tasks=QUICK)]
    stage = begin(run, "report", {}, [], redo=False)
    assert stage is not None
    during = [p.read_bytes() for p in write_report([run], tmp_path / "r", margin=0.02, seed=0, tasks=QUICK)]
    assert before == during


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
        "kept": "retained", "lost": "lost", "never": "not measurable",
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
    for name in ("report.html", "report.md"):
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
        (" \n", "", [("nothing was written", "")]),
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
