"""A comparison as files: a page that opens offline, the same in Markdown, its numbers and its long table.

`compare.html` looks like `report.html` and is made of the same pieces; `compare.json` follows the published schema
`schemas/compare.schema.json`; `compare.csv` and `compare.parquet` have a row for each configuration and seed.
"""

import csv
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any

import radistill
from radistill import compare_tables as tables
from radistill import compare_words, plots_compare
from radistill.compare_data import Comparison, Spot, Standing, Test
from radistill.files import atomic, write_json, write_text
from radistill.records import BASE
from radistill.report import asset, templates
from radistill.report_parts import Part, Section, View
from radistill.report_text import count, markdown, visible
from radistill.stats import Interval

SCHEMA = 1


def write_comparison(comparison: Comparison, folder: Path) -> list[Path]:
    """Write compare.html, compare.md, compare.json, compare.csv, compare.parquet and figures/*.svg.

    Returns:
        What was written.
    """
    page = view(comparison)
    html = templates(visible, autoescape=True).get_template("compare.html.j2")
    text = templates(markdown, autoescape=False).get_template("compare.md.j2")
    texts = {
        folder / "compare.html": html.render(view=page, css=asset("report.css"), origins={}, predictions=""),
        folder / "compare.md": text.render(view=page, predictions=""),
        folder / "compare.csv": _csv(comparison),
        **{folder / "figures" / f"{d.name}.svg": d.svg for d in page.drawings},
    }
    for path, content in texts.items():
        write_text(path, content)
    write_json(folder / "compare.json", as_json(comparison))
    _write_parquet(comparison, folder / "compare.parquet")
    return [*texts, folder / "compare.json", folder / "compare.parquet"]


def schema() -> dict[str, Any]:
    """The JSON Schema of compare.json."""
    text = files("radistill").joinpath("schemas/compare.schema.json").read_text(encoding="utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def view(comparison: Comparison) -> View:
    """Lay the page out."""
    n_seeds, n_methods = len(comparison.seeds), len(comparison.standings)
    parts = (
        _several(n_methods, "method"),
        f"{count(comparison.points)} configurations in each frontier",
        _several(n_seeds, "seed"),
        f"budget: {comparison.budget}",
        "intervals are 95 %",
    )
    return View(
        title=f"Comparison {comparison.name}",
        subtitle=" · ".join(parts),
        summary=tuple(compare_words.summary(comparison)),
        notes=tuple(compare_words.notes(comparison)),
        sections=tuple(_sections(comparison)),
        has_predictions=False,
        command="",
        files=(),
        footer=f"radistill {radistill.__version__}, from the stored rows of the comparison's runs. "
        "The numbers of this page: compare.json, compare.csv, compare.parquet.",
    )


def as_json(comparison: Comparison) -> dict[str, Any]:
    """The comparison as plain values, by the published schema."""
    found = {
        "schema": SCHEMA,
        "name": comparison.name,
        "radistill": radistill.__version__,
        "title": f"Comparison {comparison.name}",
        "summary": compare_words.summary(comparison),
        "notes": compare_words.notes(comparison),
        "skill": comparison.skill_name,
        "base_skill": asdict(comparison.base_skill),
        "best_skill": comparison.best_skill,
        "axis_end": comparison.axis_end,
        "budget": comparison.budget,
        "seeds": list(comparison.seeds),
        "points": comparison.points,
        "n_items": {name: {"validation": v, "test": t} for name, (v, t) in comparison.n_items.items()},
        "abilities": list(comparison.abilities),
        "unfinished": list(comparison.unfinished),
        "configurations": [_configuration(s, spot) for s in comparison.standings for spot in s.spots],
        "frontier": {standing.name: _standing(standing) for standing in comparison.standings},
        "baseline": BASE,
        "runs": [
            _untouched(comparison),
            *(_run(comparison, s, spot) for s in comparison.standings for spot in s.spots),
        ],
    }
    cleaned: dict[str, Any] = _cleaned(found)
    return cleaned


def _sections(comparison: Comparison) -> Iterator[Section]:
    if comparison.standings:
        yield from _results(comparison)
    yield Section(id="setting", title="How it was compared", parts=(Part(tables=(tables.setting(comparison),)),))
    if any(standing.spots for standing in comparison.standings):
        part = Part(tables=(tables.configurations(comparison),))
        yield Section(id="configurations", title="All configurations", texts=(_ABOUT_CHOICE,), parts=(part,))
    if comparison.unfinished:
        part = Part(tables=(tables.unfinished(comparison),))
        yield Section(id="unfinished", title="What is not finished", parts=(part,))


def _results(comparison: Comparison) -> Iterator[Section]:
    drawings = (plots_compare.frontiers(comparison), plots_compare.multiples(comparison))
    yield Section(id="curves", title="The frontier", texts=(_ABOUT_FRONTIER,), parts=(Part(drawings=drawings),))
    part = Part(drawings=(plots_compare.volumes(comparison),), tables=(tables.hypervolumes(comparison),))
    yield Section(id="volume", title="Hypervolume", texts=(_ABOUT_VOLUME,), parts=(part,))
    part = Part(drawings=(plots_compare.on_the_way(comparison),), tables=(tables.on_the_way(comparison),))
    yield Section(id="equal", title="Retention at equal new skill", texts=(_ABOUT_WAY,), parts=(part,))
    tested = [Part(title=f"Against {r}", tables=(t,)) for r in tables.rivals(comparison)
              if (t := tables.tests(comparison, r))]  # fmt: skip
    if at_each := tables.at_each_dial(comparison):
        title = f"{tables.OURS} against {tables.VANILLA} at each of its configurations"
        tested.append(Part(title=title, tables=(at_each,)))
    if tested:
        yield Section(id="tests", title="Paired tests", texts=(_ABOUT_TESTS,), parts=tuple(tested))
    if heat := plots_compare.heat(comparison):
        part = Part(drawings=(heat,), tables=(tables.abilities(comparison),))
        yield Section(id="lost", title="What is lost where", texts=(_ABOUT_ABILITIES,), parts=(part,))
    part = Part(drawings=(plots_compare.costs(comparison),), tables=(tables.costs(comparison),))
    yield Section(id="cost", title="What it costs", texts=(_ABOUT_COSTS,), parts=(part,))


_ABOUT_FRONTIER = (
    "Each point is one configuration of a method on the test items, the mean over its seeds, with 95 % intervals in "
    "both directions; the faint points are its seeds. Retention is the mean over the abilities of the share that is "
    "left, each counted as at most 1. A hollow marker is a method that brings data from outside, beside the examples "
    "and what the untouched model wrote. Only configurations that were chosen on the validation items are shown."
)
_ABOUT_VOLUME = (
    "The box reaches from the untouched model's new skill to a fixed end and from retention 0 to 1. A method's "
    "hypervolume is the share of it in which one of its configurations has both at least as much new skill and at "
    "least as much retention: 1 would be to learn everything and to lose nothing. A bold name is one of ours; hollow "
    "means data from outside. Intervals are over test items and seeds."
)
_ABOUT_WAY = (
    "How much is left once a method has come half of the way, three quarters and nine tenths from the untouched model "
    "to the best new skill that any configuration of the comparison reaches within the budget. A method that does not "
    "come so far has no number."
)
_ABOUT_TESTS = (
    "Differences are method minus rival, on the same test items and seeds, drawn together. A difference counts as "
    "shown when its interval excludes zero and its p value, corrected for the number of methods, is below 0.05; "
    "whether the hypervolume is shown to be larger or smaller stands beside each method's name."
)
_ABOUT_ABILITIES = (
    "Retention of each ability by itself, the mean over the seeds, not clipped. The fuller the colour, the more is "
    "lost; blue is a gain; colours end at 0 and 1.2."
)
_ABOUT_COSTS = (
    "Processed tokens are all that any model read or wrote: generation, scoring, training and the untouched model "
    "beside it. Time is that of generating, assembling and training; what came from a ledger took none."
)
_ABOUT_CHOICE = (
    "Configurations were chosen on the validation items: of each method the set that dominates most of the box. All "
    "other numbers are from the test items, which played no part in the choice."
)


def _configuration(standing: Standing, spot: Spot) -> dict[str, Any]:
    return {
        "name": spot.name,
        "method": standing.name,
        "index": spot.index,
        "settings": dict(spot.settings),
        "skill": asdict(spot.skill.interval()),
        "retention": asdict(spot.retention.interval()),
        "seeds": [asdict(seed) for seed in spot.seeds],
        "abilities": dict(spot.abilities),
        "cost": asdict(spot.cost),
        "within_budget": spot.within_budget,
        "chosen": spot.chosen,
        "best": spot.index == standing.best,
        "validation_skill": spot.validation_skill,
        "validation_retention": spot.validation_retention,
    }


def _standing(standing: Standing) -> dict[str, Any]:
    return {
        "ours": standing.ours,
        "brings_data": standing.brings_data,
        "hypervolume": asdict(standing.hypervolume),
        "retention_at": {f"{share:g}": asdict(f) if f else None for share, f in standing.retention_at.items()},
        "cost": asdict(standing.cost),
        "best": f"{standing.name}.{standing.best}",
        "chosen": [spot.name for spot in standing.chosen],
        "tests": [_test(test) for test in standing.tests],
    }


def _test(test: Test) -> dict[str, Any]:
    return {"rival": test.rival, "what": test.what, **asdict(test.paired), "p_holm": test.p_holm}


def _untouched(comparison: Comparison) -> dict[str, Any]:
    """The model before training, as a run by the schema of report.json."""
    kept = {"value": 1.0, "low": 1.0, "high": 1.0}
    return _as_run(comparison, comparison.base_skill, name=BASE, method="untouched", ours=False, retention=kept,
                   tokens_trained=0, tokens_processed=0, seconds={})  # fmt: skip


def _run(comparison: Comparison, standing: Standing, spot: Spot) -> dict[str, Any]:
    """A configuration over its seeds, as a run by the schema of report.json."""
    return _as_run(
        comparison,
        spot.skill.interval(),
        name=spot.name,
        method=standing.name,
        ours=standing.ours,
        retention=asdict(spot.retention.interval()),
        tokens_trained=round(spot.cost.trained_tokens),
        tokens_processed=round(spot.cost.processed_tokens),
        seconds={"generate, assemble, train": spot.cost.seconds},
    )


def _as_run(comparison: Comparison, skill: Interval, **told: Any) -> dict[str, Any]:
    metric, _, task = comparison.skill_name.rpartition(" on ")
    n = comparison.n_items.get(task, (0, 0))[1]
    new_skill = {"metric": metric, **asdict(skill), "n": n} if n else None
    # Abilities stand in `configurations`, by their retention alone: a comparison holds no scores of them.
    return {**told, "new_skill": new_skill, "general": None, "abilities": {}, "signatures": []}


def _csv(comparison: Comparison) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, tables.long_schema(comparison).names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(_cleaned(row) for row in tables.long_rows(comparison))
    return out.getvalue()


def _write_parquet(comparison: Comparison, path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [_cleaned(row) for row in tables.long_rows(comparison)]
    with atomic(path) as file:
        table = pa.Table.from_pylist(rows, schema=tables.long_schema(comparison))
        pq.write_table(table, file, compression="zstd")


def _cleaned(value: Any) -> Any:
    """Every text made visible, as on the page: half characters cannot be written to a file at all."""
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, Mapping):
        return {visible(str(k)): _cleaned(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_cleaned(v) for v in value]
    return value if value is None or isinstance(value, bool | int | float) else visible(str(value))


def _several(n: int, what: str) -> str:
    return f"{count(n)} {what}{'' if n == 1 else 's'}"
