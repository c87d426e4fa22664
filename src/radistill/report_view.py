"""What a report page shows, in order: sections of sentences, figures and tables, then examples and run files."""

import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import radistill
from radistill import plots, report_tables, report_words, stats
from radistill.columns import MACRO
from radistill.plots import Drawing, Estimate
from radistill.records import BASE, Prediction
from radistill.report_data import Evaluation, Run, sampled_items, trained_rows
from radistill.report_scores import Result
from radistill.report_tables import Table, group_name, label_name, metric_name
from radistill.report_text import count, listed, shorten, spaces_shown, tokens

Curves = dict[str, dict[str, list[tuple[float, float]]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Figures and tables that belong together."""

    title: str = ""
    texts: tuple[str, ...] = ()
    drawings: tuple[Drawing, ...] = ()
    tables: tuple[Table, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One heading of the page."""

    id: str
    title: str
    texts: tuple[str, ...] = ()
    parts: tuple[Part, ...] = ()
    items: tuple["Titled", ...] = ()
    """Answers to test items, by group."""
    rows: tuple["Titled", ...] = ()
    """Training rows, by run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Coloured text: where it comes from, and what it spells."""

    look: str
    label: str
    text: str
    language: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One system's reply to one item."""

    system: str
    size: str
    labels: tuple[str, ...]
    pieces: tuple[Piece, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One test item, with every system's answer."""

    title: str
    source: str
    reference: str
    language: str
    answers: tuple[Answer, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One training row in its segments."""

    title: str
    pieces: tuple[Piece, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Titled:
    """Things under one heading. Not all fields are used everywhere."""

    title: str
    items: tuple[Item, ...] | tuple[Row, ...] = ()
    text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """All that the templates print."""

    title: str
    subtitle: str
    summary: tuple[str, ...]
    notes: tuple[str, ...]
    sections: tuple[Section, ...]
    command: str
    files: tuple[Titled, ...]
    footer: str

    @property
    def drawings(self) -> list[Drawing]:
        """Every figure of the page."""
        return [d for section in self.sections for part in section.parts for d in part.drawings]


def view(
    runs: Sequence[Run],
    found: Sequence[Result],
    *,
    title: str,
    summary: Sequence[str],
    notes: Sequence[str],
    margin: float,
    seed: int,
    examples: int,
    output: Path,
) -> View:
    """Lay the report out."""
    tests = [f"{count(_n_items(r.evaluation))} test items of {r.evaluation.name}" for r in found]
    systems = f"{len(runs)} run{'s' if len(runs) > 1 else ''} against the untouched model"
    return View(
        title=title,
        subtitle=" · ".join([systems, *tests, "intervals are 95 %"]),
        summary=tuple(summary),
        notes=tuple(notes),
        sections=tuple(_sections(runs, found, margin=margin, seed=seed, examples=examples)),
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


def pieces(prediction: Prediction, language: str) -> tuple[Piece, ...]:
    """The reply in coloured pieces: what counted as the answer, and what was cut off around it."""
    raw, answer = prediction.raw, prediction.answer
    if prediction.finish_reason == "error":
        return (Piece(look="off", label="could not be had", text=""),)
    if not raw.strip():
        return (Piece(look="off", label="only white space was written" if raw else "nothing was written", text=""),)
    at = raw.find(answer) if answer else -1
    if at < 0:
        # An answer that a task has rewritten stands for itself.
        found = [("answer", "answer", answer)] if answer else []
        found.append(("cut", "whole reply", raw.strip()))
    else:
        before, after = raw[:at].strip(), raw[at + len(answer) :].strip()
        found = [("cut", "cut off before", before), ("answer", "answer", answer), ("cut", "cut off after", after)]
    return tuple(
        Piece(look=look, label=label, text=shorten(text), language=language if look == "answer" else "")
        for look, label, text in found
        if text
    )


def _sections(
    runs: Sequence[Run], found: Sequence[Result], *, margin: float, seed: int, examples: int
) -> Iterable[Section]:
    skills = [result for result in found if result.evaluation.task.kind == "skill"]
    yield Section(id="setting", title="What was run", parts=(Part(tables=(report_tables.settings(runs),)),))
    if skills:
        yield Section(id="skill", title="The new skill", texts=(_about_intervals(),), parts=tuple(map(_skill, skills)))
    if table := report_tables.abilities(found, runs, margin=margin):
        yield Section(id="abilities", title="What was kept", texts=(_ABOUT_RETENTION,), parts=(Part(tables=(table,)),))
    if found:
        yield Section(id="rates", title="What goes wrong", texts=(_ABOUT_RATES,), parts=tuple(map(_rates, found)))
    if found and examples:
        items, note = _items([result.evaluation for result in found], seed=seed, examples=examples)
        yield Section(id="examples", title="Answers side by side", texts=(note,), items=items)
    yield Section(id="training", title="Training", parts=tuple(_training(runs)))
    if rows := tuple(_trained(run, seed) for run in runs if run.folder.records.exists()):
        yield Section(id="rows", title="Rows trained on", texts=(_ABOUT_ROWS,), rows=rows)
    yield Section(id="costs", title="What it cost", parts=(Part(tables=(report_tables.costs(runs),)),))
    manifest = [report_tables.versions(runs), report_tables.files(runs)]
    if found:
        manifest.insert(0, report_tables.signatures(found))
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
    said = tuple(f"{run.name}: {note}" for run in runs for note in run.summary.get("notes", ()))
    yield Part(title="What was trained on", texts=said, drawings=drawings, tables=tables)


def _items(evaluations: Sequence[Evaluation], *, seed: int, examples: int) -> tuple[tuple[Titled, ...], str]:
    shown: list[Titled] = []
    sizes = []
    for evaluation in evaluations:
        chosen = sampled_items(evaluation, seed=seed, count=examples)
        by_item: dict[str, list[Prediction]] = {}
        for p in evaluation.predictions:
            by_item.setdefault(p.example_id, []).append(p)
        groups: dict[str, list[Item]] = {}
        for example_id in chosen:
            group = evaluation.task.group(by_item[example_id][0].tags)
            groups.setdefault(group, []).append(_item(by_item[example_id], evaluation.task.language(group)))
        shown += [
            Titled(title=f"{evaluation.name}, {group}: {len(items)} items", items=tuple(items))
            for group, items in groups.items()
        ]
        sizes.append(f"{count(len(chosen))} of {count(len(by_item))} items of {evaluation.name}")
    note = f"Drawn at random with seed {seed}, the same number from each group: {listed(sizes)}."
    return tuple(shown), note + " Of each reply, what counted as the answer is set apart from what the rule cut off."


def _item(predictions: Sequence[Prediction], language: str) -> Item:
    first = predictions[0]
    answers = [
        Answer(
            system=p.system,
            size=tokens(p.n_tokens) + (", cut at the limit" if p.finish_reason == "length" else ""),
            labels=tuple(label.replace("_", " ") for label in p.labels),
            pieces=pieces(p, language),
        )
        for p in predictions
    ]
    return Item(
        title=f"item {first.example_id[:8]}",
        source=shorten(first.source),
        reference=shorten(first.reference),
        language=language,
        answers=tuple(answers),
    )


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
