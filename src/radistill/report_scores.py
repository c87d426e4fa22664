"""The numbers of a report: every score recomputed from the stored predictions, and `report.json`.

Its schema is published as `schemas/report.schema.json`. Keys are only ever added; what they mean does not change.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import radistill
from radistill import scoring, stats
from radistill.columns import MACRO, RAW, counts_of, key_of, measures
from radistill.records import BASE, Score
from radistill.report_data import UNTOUCHED, Evaluation, Run

SCHEMA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One task, scored."""

    evaluation: Evaluation
    scored: scoring.Scored
    comparisons: tuple[scoring.Comparison, ...]

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics, headline first, without their raw twins."""
        return tuple(measures(self.evaluation.task))

    @property
    def is_cut(self) -> bool:
        """Whether replies are cut to answers, so that whole replies are scored too."""
        return self.metrics[0] + RAW in self.scored.rows

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the groups, without the mean over them."""
        return tuple(dict.fromkeys(s.group for s in self.scored.scores if s.group != MACRO))

    def comparison(self, *, system: str, metric: str, group: str = MACRO) -> scoring.Comparison | None:
        """The difference of that name, if the untouched model was evaluated."""
        wanted = (system, metric, group)
        return next((c for c in self.comparisons if (c.system, c.metric, c.group) == wanted), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What one system still can."""

    general: stats.Interval
    """Mean over the measurable abilities, in points of 100."""
    n: int
    retention: stats.MacroRetention
    abilities: Mapping[str, stats.Retention]


def results(evaluations: Sequence[Evaluation], *, seed: int) -> list[Result]:
    """Score every task from its predictions; what a run scored itself is not looked at."""
    found = []
    for evaluation in evaluations:
        scored = scoring.score(evaluation.predictions, evaluation.task, evaluation.name, seed=seed)
        tuned = [s for s in evaluation.systems if s != BASE] if BASE in evaluation.systems else []
        comparisons = tuple(c for system in tuned for c in scoring.compare(scored, system=system, baseline=BASE))
        found.append(Result(evaluation=evaluation, scored=scored, comparisons=comparisons))
    return found


def kept(found: Sequence[Result], *, system: str, margin: float) -> Kept | None:
    """Retention over the ability tasks; None if there is none, or none that can be measured for this system."""
    abilities = {
        r.evaluation.name: r
        for r in found
        if r.evaluation.task.kind == "ability" and {system, BASE} <= set(r.evaluation.systems)
    }
    retentions = {name: scoring.retention(r.scored, system=system, margin=margin) for name, r in abilities.items()}
    macro = stats.macro_retention(retentions)
    if macro is None:
        return None
    measurable = [r for name, r in abilities.items() if name not in macro.not_measurable]
    general = stats.mean_of([_resampled(r, system) for r in measurable])
    n = sum(headline(r, system).n for r in measurable)
    return Kept(general=general.interval(), n=n, retention=macro, abilities=retentions)


def headline(result: Result, system: str) -> Score:
    """The system's score by the task's first metric, over all groups."""
    score = result.scored.find(system=system, metric=result.metrics[0])
    assert score is not None, f"{system} has no {result.metrics[0]} in {result.evaluation.name}"
    return score


def as_json(
    runs: Sequence[Run],
    found: Sequence[Result],
    *,
    margin: float,
    seed: int,
    title: str,
    summary: list[str],
    notes: list[str],
) -> dict[str, Any]:
    """The report as plain values, by the published schema."""
    return {
        "schema": SCHEMA,
        "baseline": BASE,
        "runs": [_run(None, found, margin), *(_run(run, found, margin) for run in runs)],
        "title": title,
        "radistill": radistill.__version__,
        "margin": margin,
        "seed": seed,
        "summary": summary,
        "notes": notes,
        "scores": [asdict(score) for result in found for score in result.scored.scores],
        "differences": [_difference(c) for result in found for c in result.comparisons],
    }


def _run(run: Run | None, found: Sequence[Result], margin: float) -> dict[str, Any]:
    system = run.name if run else BASE
    mine = [result for result in found if system in result.evaluation.systems]
    what_is_kept = kept(found, system=system, margin=margin)
    signatures = {s.signature for result in mine for s in result.scored.scores if s.system == system}
    return {
        "name": system,
        "method": run.method if run else UNTOUCHED,
        "ours": run.ours if run else False,
        "new_skill": _skill(mine, system),
        "general": asdict(what_is_kept.general) | {"n": what_is_kept.n} if what_is_kept else None,
        "retention": _interval(what_is_kept.retention) if what_is_kept else None,
        "abilities": {
            result.evaluation.name: _ability(result, system, margin)
            for result in mine
            if result.evaluation.task.kind == "ability" and BASE in result.evaluation.systems
        },
        "tokens_trained": _whole(run.fact("train", "tokens_trained")) if run else 0,
        "tokens_processed": _whole(run.fact("train", "tokens_processed")) if run else 0,
        "seconds": {name: stage.seconds for name, stage in run.stages.items()} if run else {},
        "signatures": sorted(signatures),
    }


def _skill(mine: Sequence[Result], system: str) -> dict[str, Any] | None:
    skills = [result for result in mine if result.evaluation.task.kind == "skill"]
    if not skills:
        return None
    score = headline(skills[0], system)
    return {"metric": score.metric, "value": score.value, "low": score.low, "high": score.high, "n": score.n}


def _ability(result: Result, system: str, margin: float) -> dict[str, Any]:
    score = headline(result, system)
    retained = scoring.retention(result.scored, system=system, margin=margin)
    numbers = {"value": score.value, "low": score.low, "high": score.high, "n": score.n}
    return numbers | {"retention": retained.value, "verdict": retained.verdict}


def _difference(c: scoring.Comparison) -> dict[str, Any]:
    where = {"system": c.system, "task": c.task, "metric": c.metric, "group": c.group}
    return where | {"value": c.difference, "low": c.low, "high": c.high, "p": c.p_value, "p_holm": c.p_holm}


def _interval(macro: stats.MacroRetention) -> dict[str, float]:
    return {"value": macro.value, "low": macro.low, "high": macro.high}


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)


def _resampled(result: Result, system: str) -> stats.Resampled:
    metric = result.metrics[0]
    score = measures(result.evaluation.task)[metric].score
    counts = counts_of(result.evaluation.name, result.scored.seed)
    rows = [result.scored.rows[metric][key_of(system, group)] for group in result.groups]
    return stats.mean_of(
        [
            stats.resample(of_group, score, counts(g, len(of_group)))
            for g, of_group in zip(result.groups, rows, strict=True)
        ]
    )
