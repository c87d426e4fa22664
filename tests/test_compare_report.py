"""A comparison as files: the same numbers everywhere, and text that stays text."""

import csv
import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from jsonschema import Draft202012Validator, ValidationError

from fakes_compare import ABILITIES, SEEDS, SEVERAL, UNFINISHED, only, several, standing_of
from fakes_report import Page
from radistill import compare_words, report_text, stats
from radistill.compare_data import SHARES_OF_WAY, Comparison
from radistill.compare_report import as_json, schema, view, write_comparison
from radistill.report import schema as report_schema
from radistill.schema import schema_of


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    return several()


@pytest.fixture(scope="module")
def folder(comparison: Comparison, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("compared")
    write_comparison(comparison, out)
    return out


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    return Page((folder / "compare.html").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def numbers(folder: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((folder / "compare.json").read_text(encoding="utf-8"))
    return loaded


# The files


def test_all_files_are_written_and_named(comparison: Comparison, folder: Path, tmp_path: Path) -> None:
    written = write_comparison(only("vanilla"), tmp_path)
    names = {path.relative_to(tmp_path).as_posix() for path in written}
    figures = ("frontier", "frontier-each", "hypervolume", "retention-at", "abilities", "costs")
    tables = {f"compare.{ending}" for ending in ("html", "md", "json", "csv", "parquet")}
    assert names == tables | {f"figures/{name}.svg" for name in figures}
    assert {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()} == names


def test_the_same_comparison_has_the_same_bytes(tmp_path: Path) -> None:
    one, two = (write_comparison(only("vanilla", "radis"), tmp_path / name) for name in "ab")
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]


def strict(part: Any) -> Any:
    """The schema with every unknown key refused."""
    if isinstance(part, list):
        return [strict(p) for p in part]
    if not isinstance(part, dict):
        return part
    closed = {k: strict(v) for k, v in part.items()}
    return {**closed, "additionalProperties": False} if isinstance(part.get("properties"), dict) else closed


def test_compare_json_follows_the_published_schema_and_that_of_the_report(numbers: dict[str, Any]) -> None:
    assert schema_of("compare") == schema()
    Draft202012Validator.check_schema(schema())
    Draft202012Validator(schema()).validate({**numbers, "added_later": 1})
    told = strict(schema())
    told["properties"]["runs"] = True
    Draft202012Validator(told).validate(numbers)
    Draft202012Validator(strict({**report_schema()["$defs"]["run"], "$defs": report_schema()["$defs"]})).validate(
        numbers["runs"][1]
    )
    Draft202012Validator(report_schema()).validate(numbers)
    anchor = numbers["frontier"]["anchor"]
    for broken in (
        {**numbers, "schema": 2},
        {**numbers, "frontier": {"anchor": {**anchor, "retention_at": {"0.5": None, "0.75": None}}}},
        {**numbers, "frontier": {"anchor": {**anchor, "hypervolume": 0.5}}},
        {**numbers, "configurations": [{**numbers["configurations"][0], "cost": {}}]},
    ):
        with pytest.raises(ValidationError):
            Draft202012Validator(schema()).validate(broken)


def test_compare_json_holds_what_was_computed(comparison: Comparison, numbers: dict[str, Any]) -> None:
    assert list(numbers["frontier"]) == list(SEVERAL)
    for s in comparison.standings:
        told = numbers["frontier"][s.name]
        assert told["hypervolume"] == {
            "value": s.hypervolume.value,
            "low": s.hypervolume.low,
            "high": s.hypervolume.high,
        }
        assert (told["ours"], told["brings_data"]) == (s.name in ("radis", "anchor"), s.name == "replay")
        assert told["best"] == f"{s.name}.{s.best}"
        assert told["chosen"] == [spot.name for spot in s.chosen]
        assert told["cost"]["processed_tokens"] == s.cost.processed_tokens
        for share, found in s.retention_at.items():
            assert (told["retention_at"][str(share)] or {}).get("value") == (found.value if found else None)
        assert [(t["rival"], t["what"], t["difference"], t["p_holm"]) for t in told["tests"]] == [
            (t.rival, t.what, t.paired.difference, t.p_holm) for t in s.tests
        ]
    assert numbers["frontier"]["seqkd"]["retention_at"]["0.75"] is None
    assert numbers["frontier"]["sdft_onpolicy"]["chosen"] == [f"sdft_onpolicy.{i}" for i in range(3)]
    assert len(numbers["configurations"]) == 4 * len(SEVERAL)
    spot, told = standing_of(comparison, "radis").spots[2], numbers["configurations"][6]
    assert (told["name"], told["settings"], told["abilities"]) == ("radis.2", spot.settings, spot.abilities)
    assert [s["skill"] for s in told["seeds"]] == [s.skill for s in spot.seeds]
    assert numbers["unfinished"] == list(UNFINISHED)
    assert numbers["n_items"]["translation"] == {"validation": 700, "test": 2000}
    run = numbers["runs"][7]
    assert (run["name"], run["method"], run["new_skill"]["n"]) == ("radis.2", "radis", 2000)
    assert run["new_skill"]["metric"] == "BLEU"
    assert run["tokens_processed"] == round(spot.cost.processed_tokens)


def test_the_long_table_has_a_row_for_each_configuration_and_seed(comparison: Comparison, folder: Path) -> None:
    rows = pq.read_table(folder / "compare.parquet").to_pylist()
    assert len(rows) == len(SEVERAL) * 4 * len(SEEDS)
    assert len({(row["configuration"], row["seed"]) for row in rows}) == len(rows)
    spot = standing_of(comparison, "sdft_onpolicy").spots[3]
    row = next(row for row in rows if (row["configuration"], row["seed"]) == ("sdft_onpolicy.3", 2))
    assert json.loads(row["settings"]) == spot.settings
    assert (row["skill"], row["retention"]) == (spot.seeds[2].skill, spot.seeds[2].retention)
    assert (row["skill_value"], row["retention_low"]) == (spot.skill.value, spot.retention.interval().low)
    assert (row["chosen"], row["within_budget"], row["best"]) == (False, False, False)
    assert (row["validation_skill"], row["seconds"]) == (spot.validation_skill, spot.cost.seconds)
    assert [row[f"retention.{name}"] for name in ABILITIES] == [spot.abilities[name] for name in ABILITIES]
    with (folder / "compare.csv").open(encoding="utf-8", newline="") as file:
        texts = list(csv.DictReader(file))
    assert [{k: str(v) for k, v in row.items()} for row in rows] == texts
    for method in SEVERAL:
        best = {row["configuration"] for row in rows if row["method"] == method and row["best"]}
        assert best == {f"{method}.{standing_of(comparison, method).best}"}


def test_numbers_that_are_plain_values_are_all_that_json_gets(comparison: Comparison) -> None:
    assert json.loads(json.dumps(as_json(comparison), allow_nan=False)) == as_json(comparison)


# The page


def test_the_page_reaches_for_nothing_outside_itself(folder: Path, page: Page) -> None:
    assert {"script", "link", "iframe", "img", "object", "form", "base"} & {tag for tag, _ in page.tags} == set()
    for tag, attrs in page.tags:
        for name, value in attrs.items():
            assert not name.startswith("on"), (tag, name)
            assert "//" not in value, (tag, name, value)
            assert name not in ("href", "xlink:href", "src") or value.startswith("#"), (tag, value)
    assert "default-src 'none'" in (folder / "compare.html").read_text(encoding="utf-8")


def test_the_page_can_be_read_without_eyes(page: Page) -> None:
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert len(page.all("caption")) == len(page.all("table")) >= 9
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    targets = {attrs["href"][1:] for attrs in page.all("a")}
    named = {word for _, attrs in page.tags for word in attrs.get("aria-labelledby", "").split()}
    assert targets | named <= set(ids)
    assert len(page.all("svg")) == 6
    assert page.open == []
    assert "Run it again" not in page.text


def test_html_and_markdown_hold_the_numbers_of_the_json(folder: Path, page: Page, numbers: dict[str, Any]) -> None:
    markdown = (folder / "compare.md").read_text(encoding="utf-8")
    rows = [re.split(r"(?<!\\) \| ", line.strip("| ")) for line in markdown.splitlines() if line.startswith("| ")]

    def shown(found: Mapping[str, float] | None, digits: int = 3) -> str:
        if found is None:
            return "not reached"
        return f"{found['value']:.{digits}f} [{found['low']:.{digits}f}, {found['high']:.{digits}f}]"

    for name, told in numbers["frontier"].items():
        spot = next(c for c in numbers["configurations"] if c["name"] == told["best"])
        of = [row for row in rows if row[0] == report_text.markdown(name)]
        best = [shown(told["hypervolume"]), shown(spot["skill"], 1), shown(spot["retention"])]
        assert any(row[3:] == best for row in of), name
        assert any(row[2:] == [shown(told["retention_at"][str(s)]) for s in SHARES_OF_WAY] for row in of), name
        assert any(row[1] == f"{told['cost']['processed_tokens']:,.0f}" for row in of), name
        assert any(row[1:] == [report_text.number(spot["abilities"][a], 3) for a in ABILITIES] for row in of), name
        for test in told["tests"]:
            digits = 1 if test["what"] == "skill" else 3
            bounds = report_text.interval(test["low"], test["high"], digits, difference=True)
            cell = f"{report_text.signed(test['difference'], digits)} {bounds}"
            p = report_text.markdown(report_text.p_value(test["p_holm"]))
            assert any([cell, p] in ([a, b] for a, b in pairwise(row)) for row in of), test
            assert cell in page.text
        assert shown(told["hypervolume"]) in page.text
    for c in numbers["configurations"]:
        row = next(row for row in rows if row[0] == report_text.markdown(c["name"]))
        assert row[3:5] == [shown(c["skill"], 1), shown(c["retention"])]
        assert ("chosen" if c["chosen"] else "over the budget") in row[2]
    assert all((folder / path).exists() for path in re.findall(r"\]\((figures/[^)]*)\)", markdown))
    assert "Run it again" not in markdown


def test_the_summary_opens_both_pages(folder: Path, page: Page, numbers: dict[str, Any]) -> None:
    markdown = (folder / "compare.md").read_text(encoding="utf-8")
    assert len(numbers["summary"]) == 5
    for sentence in numbers["summary"]:
        assert sentence in page.text
        assert report_text.markdown(sentence) in markdown


def test_what_is_lacking_is_said_first_and_listed(page: Page) -> None:
    assert (
        "This is not the whole comparison: 2 cells are not finished, and their configurations are left out."
        in page.text
    )
    assert "What is not finished" in page.text
    for cell in UNFINISHED:
        assert cell in page.text
    whole = view(only("vanilla"))
    assert whole.notes == ("Trained on CPU, 2 threads.",)
    assert "unfinished" not in [section.id for section in whole.sections]
    one = compare_words.notes(only("vanilla", unfinished=("a",)))
    assert one[0].startswith("This is not the whole comparison: 1 cell is not finished")


def test_little_is_enough_for_a_page(tmp_path: Path) -> None:
    nothing = only("vanilla", standings=(), unfinished=("vanilla.0.seed0",), n_items={}, abilities=())
    write_comparison(nothing, tmp_path / "nothing")
    text = (tmp_path / "nothing" / "compare.html").read_text(encoding="utf-8")
    assert "No method has a finished configuration" in text
    assert pq.read_table(tmp_path / "nothing" / "compare.parquet").num_rows == 0
    Draft202012Validator(report_schema()).validate(json.loads((tmp_path / "nothing" / "compare.json").read_text()))
    # A method all of whose configurations are over the budget has no frontier.
    sdft = standing_of(only("sdft"), "sdft")
    over = tuple(replace(s, chosen=False, within_budget=False) for s in sdft.spots)
    none = replace(sdft, spots=over, hypervolume=stats.Interval(0, 0, 0), retention_at=dict.fromkeys(SHARES_OF_WAY))
    write_comparison(only("sdft", standings=(none,), abilities=()), tmp_path / "over")
    assert "over the budget, best" in (tmp_path / "over" / "compare.md").read_text(encoding="utf-8")


# Other people's text

HOSTILE = (
    "<script>alert(1)</script></pre></style><img src=x onerror=alert(2)> [x](javascript:alert(3)) "
    '"onmouseover="alert(4) {{ 7*7 }} &lt;b&gt; | a | \u202etxt\u2066\u0007\u200b\ud83d `code` <!-- --> ]]> a$x^{2$'
)


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = only("vanilla", "radis", HOSTILE)
    spots = tuple(
        replace(spot, settings={HOSTILE: [HOSTILE, {HOSTILE: None}, index]}, abilities={HOSTILE: 0.5})
        for index, spot in enumerate(standing_of(found, HOSTILE).spots)
    )
    standings = tuple(replace(s, spots=spots) if s.name == HOSTILE else s for s in found.standings)
    names: dict[str, Any] = dict.fromkeys(("name", "skill_name", "budget"), HOSTILE)
    lists: dict[str, Any] = dict.fromkeys(("unfinished", "notes", "abilities"), (HOSTILE,))
    out = tmp_path_factory.mktemp("attacked")
    write_comparison(replace(found, standings=standings, n_items={HOSTILE: (1, 2)}, **names, **lists), out)
    return out


def test_what_others_wrote_is_text_and_never_markup(attacked: Path, page: Page) -> None:
    found = Page((attacked / "compare.html").read_text(encoding="utf-8"))
    assert {tag for tag, _ in found.tags} <= {tag for tag, _ in page.tags}
    allowed = {name for _, attrs in page.tags for name in attrs}
    for tag, attrs in found.tags:
        assert set(attrs) <= allowed, tag
        assert "javascript:" not in attrs.get("href", "")
    assert found.open == []
    assert found.text.count("<script>alert(1)</script></pre></style><img src=x onerror=alert(2)>") > 20
    assert "{{ 7*7 }}" in found.text
    for name in ("compare.html", "compare.md", "compare.json", "compare.csv"):
        text = (attacked / name).read_text(encoding="utf-8")
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u202a-\u202e\u2066-\u2069\ud83d]", text), name
        assert "[U+202E]txt[U+2066][U+0007][U+200B][U+D83D]" in text.replace("\\", ""), name
    markdown = (attacked / "compare.md").read_text(encoding="utf-8")
    assert not re.search(r"<(?!/?br)[a-z!/]", markdown)
    assert "](javascript" not in markdown
    for path in (attacked / "figures").glob("*.svg"):
        root = ET.fromstring(path.read_text(encoding="utf-8"))
        kinds = {"svg", "title", "desc", "g", "defs", "path", "use", "clipPath", "rect"}
        assert {e.tag.rpartition("}")[2] for e in root.iter()} <= kinds
