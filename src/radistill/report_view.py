"""What the report shows, in order: sections of sentences, figures and tables, then examples and run files."""

import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import radistill
from radistill import plots, report_answers, report_kept, report_tables, report_words, stats
from radistill.columns import MACRO
from radistill.plots import Drawing, Estimate
from radistill.records import BASE
from radistill.report_data import Evaluation, Run, trained_rows
from radistill.report_parts import Part, Piece, Row, Section, Titled, View
from radistill.report_scores import Kept, Result, of_kind
from radistill.report_tables import group_name, label_name, metric_name
from radistill.report_text import count, shorten, spaces_shown, tokens
from radistill.tasks.base import Kind

Curves = dict[str, dict[str, list[tuple[float, float]]]]


def view(
    runs: Sequence[Run],
    found: Sequence[Result],
    *,
    title: str,
    summary: Sequence[str],
    notes: Sequence[str],
    what_is_kept: Mapping[str, Kept],
    margin: float,
    seed: int,
    examples: int,
    output: Path,
) -> View:
    """Lay the report out."""
    systems = f"{len(runs)} run{'s' if len(runs) > 1 else ''} against the untouched model"
    return View(
        title=title,
        subtitle=" · ".join([systems, *_tests(found), "intervals are 95 %"]),
        summary=tuple(summary),
        notes=tuple(notes),
        sections=tuple(_sections(runs, found, what_is_kept, margin=margin, seed=seed, examples=examples)),
        has_predictions=bool(found),
        command=_command(runs, output),
        files=tuple(Titled(title=f"{run.name}: config.yaml", text=run.config_text) for run in runs if run.config_text),
        footer=f"radistill {radistill.__version__}, from the stored predictions; seed {seed}, margin {margin:g}.",
    )


def curves(runs: Iterable[Run]) -> Curves:
    """Run → origin → (step, loss). A step that was logged again after a resume counts as logged last."""
    found: Curves = {}
    for run in runs:
        origins: dict[str, dict[float, float]] = {}
        for row in run.log:
            for name, value in row.items():
                if name.startswith("loss/") and isinstance(value, int | float) and math.isfinite(value):
                    origins.setdefault(name.removeprefix("loss/"), {})[row["step"]] = value
        if origins:
            found[run.name] = {origin: sorted(points.items()) for origin, points in origins.items()}
    return found


def _sections(
    runs: Sequence[Run],
    found: Sequence[Result],
    what_is_kept: Mapping[str, Kept],
    *,
    margin: float,
    seed: int,
    examples: int,
) -> Iterable[Section]:
    skills = of_kind(found, "skill")
    yield Section(id="setting", title="What was run", parts=(Part(tables=(report_tables.settings(runs),)),))
    if skills:
        yield Section(id="skill", title="The new skill", texts=(_about_intervals(),), parts=tuple(map(_skill, skills)))
    if parts := tuple(report_kept.parts(found, runs, what_is_kept, margin=margin)):
        yield Section(id="abilities", title="What was kept", texts=(_ABOUT_RETENTION,), parts=parts)
    if found:
        parts = (*map(_rates, skills), *_other_rates(found, runs))
        yield Section(id="rates", title="What goes wrong", texts=(_ABOUT_RATES,), parts=parts)
    if found and examples:
        items, note = report_answers.sample(found, seed=seed, examples=examples)
        yield Section(id="examples", title="Answers side by side", texts=(note,), items=items)
    yield Section(id="training", title="Training", parts=tuple(_training(runs)))
    if rows := tuple(_trained(run, seed) for run in runs if run.folder.records.exists()):
        yield Section(id="rows", title="Rows trained on", texts=(_ABOUT_ROWS,), rows=rows)
    yield Section(id="costs", title="What it cost", parts=(Part(tables=(report_tables.costs(runs),)),))
    manifest = [report_tables.versions(runs), report_tables.files(runs)]
    others = of_kind(found, "ability", "probe")
    if others:
        manifest.insert(
            0, replace(report_tables.signatures(others), caption="Signatures of the other tests", folded=True)
        )
    if skills:
        manifest.insert(0, report_tables.signatures(skills))
    yield Section(id="manifest", title="Signatures, versions, files", parts=(Part(tables=tuple(manifest)),))


def _skill(result: Result) -> Part:
    drawings = tuple(_scores_drawn(result, metric) for metric in result.metrics)
    tables = [report_tables.scores(result, metric) for metric in result.metrics]
    texts = []
    if result.is_cut:
        texts.append(report_words.raw_scores(result))
        tables.append(report_tables.raw_and_cut(result))
    return Part(title=result.evaluation.name, texts=tuple(texts), drawings=drawings, tables=tuple(tables))


def _scores_drawn(result: Result, metric: str) -> Drawing:
    estimates, unit = [], ""
    for group in (*result.groups, MACRO):
        for system in result.evaluation.systems:
            score = result.scored.find(system=system, metric=metric, group=group)
            if score:
                row, unit = group_name(group), score.unit
                estimates.append(Estimate(system=system, row=row, value=score.value, low=score.low, high=score.high))
    name, task = metric_name(metric), result.evaluation.name
    return plots.intervals(f"{task}-{metric}", estimates, title=f"{name} on {task}", unit=f"{name}, {unit}")


def _rates(result: Result) -> Part:
    estimates = []
    for rate in report_tables.rate_names(result):
        for system in result.evaluation.systems:
            s = result.scored.find(system=system, metric=rate)
            if s:
                estimates.append(Estimate(system=system, row=label_name(rate), value=s.value, low=s.low, high=s.high))
    if not estimates:
        return Part(title=result.evaluation.name)
    task = result.evaluation.name
    title = f"Rates on {task}, mean over the groups"
    drawing = plots.intervals(f"{task}-rates", estimates, title=title, unit="% of the answers")
    return Part(title=task, drawings=(drawing,), tables=(report_tables.rates(result), report_tables.lengths(result)))


def _other_rates(found: Sequence[Result], runs: Sequence[Run]) -> Iterable[Part]:
    """All tests but the skills in two tables: there may be a dozen of them."""
    others, abilities = of_kind(found, "ability", "probe"), of_kind(found, "ability")
    systems = (BASE, *(run.name for run in runs))
    tables = [report_tables.rates_of_each(others)] if others else []
    if len(abilities) > 1:
        tables.insert(0, report_tables.mean_rates(abilities, systems))
    if tables:
        yield Part(title="Abilities" if len(abilities) == len(others) else "Abilities and probes", tables=tuple(tables))


def _training(runs: Sequence[Run]) -> Iterable[Part]:
    losses = curves(runs)
    if losses:
        drawing = plots.losses("loss", losses, title="Training loss by origin of the tokens")
        yield Part(title="Loss", drawings=(drawing,), tables=(report_tables.loss_ends(losses),))
    else:
        yield Part(title="Loss", texts=("No training log was found in the run folders.",))
    bars: dict[str, Mapping[str, float]] = {}
    kinds = (("tokens", "read"), ("trained_tokens", "learned"), ("weight_share", "loss weight"))
    for run in runs:
        bars |= {f"{run.name}: {label}": run.summary[key] for key, label in kinds if run.summary.get(key)}
    shares = report_tables.token_shares(runs)
    drawings = (
        (plots.shares("shares", bars, title="What the rows consist of, by origin of the tokens"),) if bars else ()
    )
    tables = (shares, report_tables.trained_on(runs)) if shares else (report_tables.trained_on(runs),)
    told = [(run.name, [*run.summary.get("notes", ()), *report_words.chosen(run)]) for run in runs]
    said = tuple(f"{name}: {note}" for name, notes in told for note in notes)
    yield Part(title="What was trained on", texts=said, drawings=drawings, tables=tables)


def _trained(run: Run, seed: int) -> Titled:
    rows = []
    for row in trained_rows(run.folder.records, seed=seed):
        parts = [
            Piece(
                look=f"o-{segment.origin}" + ("" if segment.weight else " off"),
                label=f"{segment.origin} · {tokens(segment.stop - segment.start)} · weight {segment.weight:g}",
                text=shorten(spaces_shown(text)),
            )
            for segment, text in row.pieces
            if segment.stop > segment.start
        ]
        rows.append(Row(title=f"row {row.id[:8]}", pieces=tuple(parts)))
    return Titled(title=run.name, items=tuple(rows))


def _command(runs: Sequence[Run], output: Path) -> str:
    """As the runs were made, whatever the path by which they were reached for this report."""
    places = [Path(str(run.config.get("output_dir", run.folder.path))) for run in runs]
    lines = [f"radistill run {_quoted(place / 'config.yaml')}" for place in places]
    if len(runs) > 1 or output.resolve() != runs[0].folder.path.resolve():
        lines.append(f"radistill report {' '.join(map(_quoted, places))} --output-dir {_quoted(output)}")
    return "\n".join(lines)


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))


def _tests(found: Sequence[Result]) -> list[str]:
    """How many test items of what; tests of one kind are counted together, but for the skills."""
    said = [f"{count(_n_items(r.evaluation))} test items of {r.evaluation.name}" for r in of_kind(found, "skill")]
    plurals: tuple[tuple[Kind, str], ...] = (("ability", "abilities"), ("probe", "probes"))
    for kind, many in plurals:
        some = of_kind(found, kind)
        items = count(sum(_n_items(r.evaluation) for r in some))
        if some:
            said.append(f"{items} of {some[0].evaluation.name if len(some) == 1 else f'{len(some)} {many}'}")
    return said


def _n_items(evaluation: Evaluation) -> int:
    return len({p.example_id for p in evaluation.predictions})


def _about_intervals() -> str:
    return (
        f"Intervals are bootstrap intervals over {count(stats.DRAWS)} draws of the test items. Differences to "
        f"{BASE}, the untouched model, are paired: both are scored on the same draws. p is corrected for the "
        "number of groups (Holm); the mean over the groups is one test by itself."
    )


_ABOUT_RETENTION = (
    "Retention is (after − chance) / (before − chance) on the same items. The mean clips each ability at 1, so that no "
    "gain hides a loss. An ability in which the untouched model is less than 10 points above chance is not measurable."
)
_ABOUT_ROWS = "Drawn at random, as they were trained on, in their segments. What has weight 0 is read but not learned."
_ABOUT_RATES = (
    "How many answers have each fault. Cut: the reply held more than the answer. Leaked rationale: something stood "
    "after the answer. Off target: another language. Truncated: the answer reached the limit of tokens."
)
