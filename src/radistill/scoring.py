"""From predictions to scores: shared by the stages `evaluate` and `report`, needs no model.

Every system is scored on its answers and, under the metric's name with `_raw`, on its whole replies. Beside the scores
stand the rates of pathologies. A prediction that could not be had (finish reason `error`) is counted in `n_failed`,
scored as an empty answer, and left out of the rates and of the token counts, which describe the model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from radistill import stats
from radistill.columns import (
    MACRO,
    RATE,
    Ids,
    Rows,
    cells_of,
    counts_of,
    key_of,
    measures,
    metric_columns,
    rate_columns,
    rows_of,
    scores_of,
    token_columns,
    with_raw,
)
from radistill.errors import DataError
from radistill.files import atomic
from radistill.languages import base_code
from radistill.metrics.base import Metric
from radistill.pathologies import labels_of
from radistill.records import BASE, Prediction, Score
from radistill.tasks.base import Task
from radistill.tasks.translation import Translation

IDS = "ids:"
"""Marks the example ids among the arrays of a file of rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """One task's scores of all systems, with the rows they were computed from."""

    task_name: str
    task: Task
    seed: int
    scores: tuple[Score, ...]
    rows: Mapping[str, Rows]
    """By metric, `bleu` and `bleu_raw` alike."""
    ids: Ids

    def find(self, *, system: str, metric: str, group: str = MACRO) -> Score | None:
        """The score of that name, if there is one."""
        wanted = (system, metric, group)
        return next((s for s in self.scores if (s.system, s.metric, s.group) == wanted), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """How much a system differs from the baseline (system - baseline) on the items that both answered."""

    system: str
    baseline: str
    task: str
    metric: str
    group: str
    before: float
    after: float
    difference: float
    low: float
    high: float
    p_value: float
    p_holm: float
    """Corrected for the number of groups; `macro` is one test by itself."""
    n: int
    n_left_out: int
    """Items that only one of the two answered."""


class Together(NamedTuple):
    """Baseline and system on the same draws of the same items."""

    before: stats.Resampled
    after: stats.Resampled
    n: int
    n_left_out: int


def score(predictions: Sequence[Prediction], task: Task, task_name: str, *, seed: int) -> Scored:
    """Score every system in every group of the task, and over all groups.

    Args:
        predictions: of any number of systems, in any order.
        task: reads groups, languages and metrics.
        task_name: for the scores; also keeps the draws of two tasks apart.
        seed: of the bootstrap.

    Raises:
        DataError: there are no predictions, or a system answered an example twice.
    """
    cells = cells_of(predictions, task, task_name)
    counts = counts_of(task_name, seed)
    rows = rows_of(cells, task)
    columns = [
        *metric_columns(rows, cells, task, counts=counts, seed=seed),
        *rate_columns(cells, task),
        *token_columns(cells, counts=counts, seed=seed),
    ]
    return Scored(
        task_name=task_name,
        task=task,
        seed=seed,
        scores=tuple(s for column in columns for s in scores_of(column, cells, task_name)),
        rows=rows,
        ids={key_of(*cell): tuple(p.example_id for p in found) for cell, found in cells.items()},
    )


def compare(scored: Scored, *, system: str, baseline: str = BASE) -> tuple[Comparison, ...]:
    """Differences to the baseline for every metric, in every group and over all groups.

    Raises:
        DataError: one of the two was not scored, or they have no item in common.
    """
    found = []
    for metric in scored.rows:
        groups = _together(scored, metric, system=system, baseline=baseline)
        differences = {group: stats.difference(t.before, t.after) for group, t in groups.items()}
        corrected = stats.holm({g: d.p_value for g, d in differences.items() if g != MACRO})
        found += [
            Comparison(
                system=system,
                baseline=baseline,
                task=scored.task_name,
                metric=metric,
                group=group,
                before=groups[group].before.value,
                after=groups[group].after.value,
                difference=d.difference,
                low=d.low,
                high=d.high,
                p_value=d.p_value,
                p_holm=corrected.get(group, d.p_value),
                n=groups[group].n,
                n_left_out=groups[group].n_left_out,
            )
            for group, d in differences.items()
        ]
    return tuple(found)


def retention(
    scored: Scored, *, system: str, margin: float, baseline: str = BASE, metric: str | None = None
) -> stats.Retention:
    """How much of the task the system retains, over all its groups, by one metric (the first unless named).

    Raises:
        DataError: one of the two was not scored, or they have no item in common.
    """
    name = metric or next(iter(measures(scored.task)))
    both = _together(scored, name, system=system, baseline=baseline)[MACRO]
    return stats.retention(both.before, both.after, margin=margin, chance=scored.task.chance, n=both.n)


def resampled(scored: Scored, *, system: str, metric: str) -> stats.Resampled:
    """The system's score over all groups, with its draws."""
    score, counts = measures(scored.task)[metric].score, counts_of(scored.task_name, scored.seed)
    groups = _ids_by_group(scored, system)
    rows = {group: scored.rows[metric][key_of(system, group)] for group in groups}
    return stats.mean_of([stats.resample(of, score, counts(group, len(of))) for group, of in rows.items()])


def save_rows(path: Path, scored: Scored, metric: str) -> None:
    """Write one metric's rows, with the example ids they stand for, so that its scores can be computed again."""
    arrays: dict[str, Any] = dict(scored.rows[metric])
    arrays |= {IDS + key: np.array(value, dtype=np.str_) for key, value in scored.ids.items()}
    with atomic(path) as file:
        np.savez_compressed(file, **arrays)


def load_rows(path: Path) -> tuple[Rows, Ids]:
    """What `save_rows` wrote.

    Raises:
        DataError: the file is missing or damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            ids = {n.removeprefix(IDS): tuple(stored[n].tolist()) for n in stored.files if n.startswith(IDS)}
            return {name: stored[name] for name in ids}, ids
    except (OSError, EOFError, ValueError, KeyError, TypeError, BadZipFile) as error:
        raise DataError(f"{path} holds no rows of a metric ({error}). Make it again with --redo evaluate.") from error


def score_files(
    hypotheses: Path,
    references: Path,
    sources: Path | None = None,
    *,
    language: str,
    metrics: Sequence[Metric] = (),
    seed: int = 0,
) -> list[Score]:
    """Score finished translations: line files, one segment per line, taken whole.

    Args:
        hypotheses: the translations; the file's name becomes the name of the system.
        references: as many lines.
        sources: as many lines; without them copies of the source cannot be counted.
        language: code of the language of the translations.
        metrics: BLEU and chrF unless named.
        seed: of the bootstrap.

    Raises:
        DataError: a file is missing, empty, not UTF-8, or has another number of lines.
    """
    answers, wanted = _lines(hypotheses), _lines(references)
    given = _lines(sources) if sources else [""] * len(answers)
    for path, lines in ((references, wanted), (sources, given)):
        if path and len(lines) != len(answers):
            raise DataError(
                f"{hypotheses} has {len(answers)} lines, {path} has {len(lines)}: they must be aligned line by line. "
                "Write one segment per line in the same order, an empty line where there is no translation."
            )
    task = Translation(cut_at="", metrics=tuple(metrics)) if metrics else Translation(cut_at="")
    rows = zip(answers, wanted, given, strict=True)
    # A pair of one: the language itself is the group.
    language = base_code(language)
    found = [_finished(hypotheses.name, number, *row, language=language) for number, row in enumerate(rows, start=1)]
    scored = score(found, task, "translation", seed=seed)
    told = ["empty", "off_target", "loop", *(["copied"] if sources else [])]
    shown = {*measures(task), *(RATE + label for label in told)}
    return [s for s in scored.scores if s.metric in shown and s.group != MACRO]


def _together(scored: Scored, metric: str, *, system: str, baseline: str) -> dict[str, Together]:
    counts = counts_of(scored.task_name, scored.seed)
    score_of = with_raw(scored.task)[metric].score
    ids = {name: _ids_by_group(scored, name) for name in (baseline, system)}
    found: dict[str, Together] = {}
    left_out = 0
    for group in sorted({*ids[baseline], *ids[system]}):
        before, after = ids[baseline].get(group, ()), ids[system].get(group, ())
        common = sorted({*before} & {*after})
        alone = len(before) + len(after) - 2 * len(common)
        left_out += alone
        if common:
            arrays = scored.rows[metric]
            drawn = counts(group, len(common))
            found[group] = Together(
                stats.resample(_only(arrays[key_of(baseline, group)], before, common), score_of, drawn),
                stats.resample(_only(arrays[key_of(system, group)], after, common), score_of, drawn),
                len(common),
                alone,
            )
    if not found:
        raise DataError(
            f"{system} and {baseline} answered no common example of the task {scored.task_name}, so they cannot be "
            "compared. Evaluate both with the same test data."
        )
    parts = list(found.values())
    found[MACRO] = Together(
        stats.mean_of([p.before for p in parts]),
        stats.mean_of([p.after for p in parts]),
        sum(p.n for p in parts),
        left_out,
    )
    return found


def _only(rows_NK: NDArray[np.float64], ids: Sequence[str], wanted: Sequence[str]) -> NDArray[np.float64]:
    at = {name: number for number, name in enumerate(ids)}
    return rows_NK[[at[name] for name in wanted]]


def _ids_by_group(scored: Scored, system: str) -> dict[str, tuple[str, ...]]:
    groups = {s.group for s in scored.scores if s.system == system} - {MACRO}
    if not groups:
        known = ", ".join(sorted({s.system for s in scored.scores}))
        raise DataError(f"no scores of the system {system!r} for the task {scored.task_name}; scored were: {known}.")
    return {group: scored.ids[key_of(system, group)] for group in groups}


def _finished(system: str, number: int, answer: str, reference: str, source: str, *, language: str) -> Prediction:
    labels = labels_of(answer, source=source, reference=reference, language=language, source_language="")
    return Prediction(
        system=system,
        example_id=f"{number:09d}",
        key="",
        source=source,
        reference=reference,
        raw=answer,
        answer=answer,
        finish_reason="stop",
        n_tokens=0,
        labels=labels,
        tags={"pair": language},
    )


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist. Name a text file with one segment per line.") from error
    except (UnicodeDecodeError, OSError) as error:
        raise DataError(
            f"{path} cannot be read as UTF-8 text ({error}). Save it as UTF-8, one segment per line."
        ) from error
    # Not splitlines: a form feed or a Unicode line separator is part of a segment.
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    lines = lines[:-1] if lines[-1] == "" else lines
    if not lines:
        raise DataError(f"{path} is empty. It must hold one segment per line.")
    return lines
