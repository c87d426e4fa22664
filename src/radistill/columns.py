"""The measures of one task: every metric on answers and on whole replies, the rates of pathologies, the tokens.

Each measure of one system is a `Column`: an interval for every group, and one for their unweighted mean. `scoring.py`
puts them together.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from radistill import plugins, stats
from radistill.errors import DataError
from radistill.metrics.base import Metric, Pair
from radistill.pathologies import signature_of
from radistill.records import BASE, Prediction, Score
from radistill.tasks.base import Task

MACRO = "macro"
RAW = "_raw"
RATE = "rate_"
TOKENS = "tokens_per_answer"

Rows = Mapping[str, NDArray[np.float64]]
"""`system/group` → one row of statistics per example, in the order of the sorted example ids."""
Ids = Mapping[str, tuple[str, ...]]
"""`system/group` → the sorted example ids."""
Cells = dict[tuple[str, str], list[Prediction]]
Counts = Callable[[str, int], NDArray[np.uint16]]


class Column(NamedTuple):
    """One measure of one system in all its groups."""

    system: str
    metric: str
    found: Mapping[str, list[Prediction]]
    """By group: what was measured."""
    intervals: Mapping[str, stats.Interval]
    """By group, `macro` last."""
    unit: str
    higher_is_better: bool
    signatures: Mapping[str, str]


def measures(task: Task) -> dict[str, Metric]:
    """The task's metrics by name; one that is listed with several settings carries those that differ from default."""
    names = [plugins.name_of(metric) for metric in task.metrics]
    return {
        name if names.count(name) == 1 else "-".join([name, *_differing_settings(metric)]): metric
        for name, metric in zip(names, task.metrics, strict=True)
    }


def with_raw(task: Task) -> dict[str, Metric]:
    """The task's measures by name, each followed by the one on whole replies if the task cuts them."""
    endings = ("", RAW) if task.reading() != "none" else ("",)
    return {name + ending: metric for name, metric in measures(task).items() for ending in endings}


def key_of(system: str, group: str) -> str:
    """Name of one system's rows in one group."""
    return f"{system}/{group}"


def cells_of(predictions: Sequence[Prediction], task: Task, task_name: str) -> Cells:
    """The predictions of every system and group, sorted by example id, the untouched model's first.

    Raises:
        DataError: there are none, or a system answered an example twice.
    """
    if not predictions:
        raise DataError(
            f"there are no predictions for the task {task_name}: nothing can be scored. Run evaluate first."
        )
    cells: Cells = {}
    for p in sorted(predictions, key=lambda p: (p.system != BASE, p.system, task.group(p.tags), p.example_id)):
        cell = cells.setdefault((p.system, task.group(p.tags)), [])
        if cell and cell[-1].example_id == p.example_id:
            raise DataError(
                f"{p.system} answered the example {p.example_id} of the task {task_name} twice. "
                "Keep one prediction per system and example, or evaluate again with --redo evaluate."
            )
        cell.append(p)
    return cells


def counts_of(task_name: str, seed: int) -> Counts:
    """The draws of so many items of a group."""
    # One draw serves all systems and metrics of a group: that is what pairs them.
    return functools.cache(lambda group, n: stats.draw(n, seed=seed, name=f"{task_name}/{group}"))


def rows_of(cells: Cells, task: Task) -> dict[str, dict[str, NDArray[np.float64]]]:
    """Each measure's rows for every `system/group`, on answers and, where replies are cut, on whole replies."""
    rows: dict[str, dict[str, NDArray[np.float64]]] = {name: {} for name in with_raw(task)}
    for name, metric in measures(task).items():
        for (system, group), found in cells.items():
            language = task.language(group)
            answers = metric.rows([_pair(p, p.answer) for p in found], language)
            rows[name][key_of(system, group)] = answers
            if name + RAW not in rows:
                continue
            # A pair's row depends on nothing else, so only the replies that were cut are scored a second time.
            cut = [at for at, p in enumerate(found) if _is_cut(p)]
            whole = answers.copy()
            if cut:
                whole[cut] = metric.rows([_pair(found[at], found[at].raw) for at in cut], language)
            rows[name + RAW][key_of(system, group)] = whole
    return rows


def metric_columns(
    rows: Mapping[str, Rows], cells: Cells, task: Task, *, counts: Counts, seed: int
) -> Iterator[Column]:
    """Every metric, with its bootstrap interval."""
    for name, metric in with_raw(task).items():
        reading = "none" if name.endswith(RAW) else task.reading()
        for system, by_group in _by_system(cells).items():
            parts = {}
            for group in by_group:
                array = rows[name][key_of(system, group)]
                parts[group] = stats.resample(array, metric.score, counts(group, len(array)))
            told = {group: metric.signature(task.language(group)) for group in by_group}
            told[MACRO] = " & ".join(sorted(set(told.values())))
            yield Column(
                system=system,
                metric=name,
                found=by_group,
                intervals=_with_macro(parts),
                unit=metric.unit,
                higher_is_better=metric.higher_is_better,
                signatures={g: f"{s}|cut:{reading}|bs:{stats.DRAWS}|rs:{seed}" for g, s in told.items()},
            )


def rate_columns(cells: Cells, task: Task) -> Iterator[Column]:
    """How often each pathology was found, and how often something was cut, in percent of what was answered."""
    tests: dict[str, Callable[[Prediction], bool]] = {
        label: functools.partial(_has_label, label=label) for label in task.labels
    }
    if task.reading() != "none":
        tests["cut"] = _is_cut
    for label, holds in tests.items():
        for system, answered in _by_system(cells, answered_only=True).items():
            parts = {g: stats.wilson(sum(map(holds, found)), len(found)) for g, found in answered.items()}
            signature = f"{signature_of(label)}|cut:{task.reading()}|wilson:95"
            yield Column(
                system=system,
                metric=RATE + label,
                found=answered,
                intervals={
                    **{g: _percent(part) for g, part in parts.items()},
                    MACRO: _percent(stats.mean_of_proportions(list(parts.values()))),
                },
                unit="%",
                higher_is_better=False,
                signatures=dict.fromkeys([*parts, MACRO], signature),
            )


def token_columns(cells: Cells, *, counts: Counts, seed: int) -> Iterator[Column]:
    """How long the whole replies are."""
    for system, answered in _by_system(cells, answered_only=True).items():
        parts = {}
        for group, found in answered.items():
            rows = np.array([[p.n_tokens, 1] for p in found], dtype=np.float64)
            parts[group] = stats.resample(rows, _mean, counts(group, len(rows)))
        yield Column(
            system=system,
            metric=TOKENS,
            found=answered,
            intervals=_with_macro(parts),
            unit="tokens",
            higher_is_better=False,
            signatures=dict.fromkeys([*parts, MACRO], f"whole reply|bs:{stats.DRAWS}|rs:{seed}"),
        )


def scores_of(column: Column, cells: Cells, task_name: str) -> Iterator[Score]:
    """The column as scores, one for each group."""
    for group, interval in column.intervals.items():
        members = list(column.found) if group == MACRO else [group]
        yield Score(
            system=column.system,
            task=task_name,
            metric=column.metric,
            group=group,
            value=interval.value,
            low=interval.low,
            high=interval.high,
            n=sum(len(column.found[g]) for g in members),
            n_failed=sum(p.finish_reason == "error" for g in members for p in cells[column.system, g]),
            unit=column.unit,
            higher_is_better=column.higher_is_better,
            signature=column.signatures[group],
        )


def _by_system(cells: Cells, *, answered_only: bool = False) -> dict[str, dict[str, list[Prediction]]]:
    systems: dict[str, dict[str, list[Prediction]]] = {}
    for (system, group), found in cells.items():
        kept = [p for p in found if not answered_only or p.finish_reason != "error"]
        if kept:
            systems.setdefault(system, {})[group] = kept
    return systems


def _differing_settings(metric: Metric) -> list[str]:
    return [f"{key}={value}" for key, value in metric.model_dump(exclude_defaults=True).items()]


def _has_label(prediction: Prediction, *, label: str) -> bool:
    return label in prediction.labels


def _pair(prediction: Prediction, text: str) -> Pair:
    return Pair("" if prediction.finish_reason == "error" else text, prediction.reference, prediction.source)


def _is_cut(prediction: Prediction) -> bool:
    return prediction.raw.strip() != prediction.answer.strip()


def _mean(total_K: NDArray[np.float64]) -> float:
    return float(total_K[0] / total_K[1])


def _with_macro(parts: Mapping[str, stats.Resampled]) -> dict[str, stats.Interval]:
    intervals = {group: part.interval() for group, part in parts.items()}
    return {**intervals, MACRO: stats.mean_of(list(parts.values())).interval()}


def _percent(share: stats.Interval) -> stats.Interval:
    return stats.Interval(100 * share.value, 100 * share.low, 100 * share.high)
