"""The numbers of a report: every score recomputed from the stored predictions, and `report.json`.

Its schema is published as `schemas/report.schema.json`. Keys are only ever added; what they mean does not change.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import radistill
from radistill import scoring, stats
from radistill.columns import MACRO, RAW, measures
from radistill.records import BASE, Score
from radistill.report_data import UNTOUCHED, Evaluation, Run
from radistill.tasks.base import Kind

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

    abilities: Mapping[str, stats.Retention]
    """By task, in the order in which they were tested."""
    general: stats.Interval | None
    """Mean over the measurable abilities, in points of 100."""
    n: int
    """Test items behind it."""
    retention: stats.MacroRetention | None
    """Over the measurable abilities; None if there is none."""
    rehearsed: stats.MacroRetention | None
    """Over those that rationales touch."""
    not_rehearsed: stats.MacroRetention | None
    """Over those that rationales do not touch. What is not known to be either is in neither."""


def results(evaluations: Sequence[Evaluation], *, seed: int) -> list[Result]:
    """Score every task from its predictions; what a run scored itself is not looked at."""
    found = []
    for evaluation in evaluations:
        scored = scoring.score(evaluation.predictions, evaluation.task, evaluation.name, seed=seed)
        tuned = [s for s in evaluation.systems if s != BASE] if BASE in evaluation.systems else []
        comparisons = tuple(c for system in tuned for c in scoring.compare(scored, system=system, baseline=BASE))
        found.append(Result(evaluation=evaluation, scored=scored, comparisons=comparisons))
    return found


def of_kind(found: Sequence[Result], *kinds: Kind) -> list[Result]:
    """The results of tasks of these kinds."""
    return [result for result in found if result.evaluation.task.kind in kinds]


def kept(found: Sequence[Result], *, system: str, margin: float) -> Kept:
    """How much the system retains of each ability that it and the untouched model were tested on."""
    abilities = {r.evaluation.name: r for r in of_kind(found, "ability") if {system, BASE} <= set(r.evaluation.systems)}
    retentions = {name: scoring.retention(r.scored, system=system, margin=margin) for name, r in abilities.items()}
    macro = stats.macro_retention(retentions)
    measurable = [r for name, r in abilities.items() if macro and name not in macro.not_measurable]
    parts = [scoring.resampled(r.scored, system=system, metric=r.metrics[0]) for r in measurable]
    rehearsed, not_rehearsed = (
        stats.macro_retention(
            {name: r for name, r in retentions.items() if abilities[name].evaluation.task.is_rehearsed is wanted}
        )
        for wanted in (True, False)
    )
    return Kept(
        abilities=retentions,
        general=stats.mean_of(parts).interval() if parts else None,
        n=sum(headline(r, system).n for r in measurable),
        retention=macro,
        rehearsed=rehearsed,
        not_rehearsed=not_rehearsed,
    )


def kept_by_all(found: Sequence[Result], runs: Sequence[Run], *, margin: float) -> dict[str, Kept]:
    """The same of every system by name, the untouched model (which retains all) first."""
    return {system: kept(found, system=system, margin=margin) for system in (BASE, *(run.name for run in runs))}


def headline(result: Result, system: str) -> Score:
    """The system's score by the task's first metric, over all groups."""
    score = result.scored.find(system=system, metric=result.metrics[0])
    assert score is not None, f"{system} has no {result.metrics[0]} in {result.evaluation.name}"
    return score


def new_skill(found: Sequence[Result], system: str) -> Score | None:
    """The system's headline score in the first skill that was tested, if it was tested there."""
    skills = of_kind(found, "skill")
    return headline(skills[0], system) if skills and system in skills[0].evaluation.systems else None


def as_json(
    runs: Sequence[Run],
    found: Sequence[Result],
    *,
    what_is_kept: Mapping[str, Kept],
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
        "runs": [_run(run, found, what_is_kept[run.name if run else BASE]) for run in (None, *runs)],
        "title": title,
        "radistill": radistill.__version__,
        "margin": margin,
        "seed": seed,
        "summary": summary,
        "notes": notes,
        "scores": [asdict(score) for result in found for score in result.scored.scores],
        "differences": [_difference(c) for result in found for c in result.comparisons],
    }


def _run(run: Run | None, found: Sequence[Result], what: Kept) -> dict[str, Any]:
    system = run.name if run else BASE
    mine = [result for result in found if system in result.evaluation.systems]
    signatures = {s.signature for result in mine for s in result.scored.scores if s.system == system}
    return {
        "name": system,
        "method": run.method if run else UNTOUCHED,
        "ours": run.ours if run else False,
        "new_skill": _skill(mine, system),
        "general": asdict(what.general) | {"n": what.n} if what.general else None,
        "retention": _macro(what.retention),
        "retention_rehearsed": _of_subset(what.rehearsed),
        "retention_not_rehearsed": _of_subset(what.not_rehearsed),
        "abilities": {
            r.evaluation.name: _ability(r, headline(r, system), what.abilities[r.evaluation.name])
            for r in mine
            if r.evaluation.name in what.abilities
        },
        "probes": {r.evaluation.name: _probe(r, system) for r in of_kind(mine, "probe")},
        "tokens_trained": _whole(run.fact("train", "tokens_trained")) if run else 0,
        "tokens_processed": _whole(run.fact("train", "tokens_processed")) if run else 0,
        "seconds": {name: stage.seconds for name, stage in run.stages.items()} if run else {},
        "signatures": sorted(signatures),
    }


def _skill(mine: Sequence[Result], system: str) -> dict[str, Any] | None:
    # The first skill that this system was tested on.
    score = new_skill(mine, system)
    return {"metric": score.metric, **_numbers(score)} if score else None


def _ability(result: Result, score: Score, of: stats.Retention) -> dict[str, Any]:
    told = {"retention": of.value, "retention_low": of.low, "retention_high": of.high, "verdict": of.verdict}
    return _numbers(score) | told | {"rehearsed": result.evaluation.task.is_rehearsed}


def _probe(result: Result, system: str) -> dict[str, Any]:
    score = headline(result, system)
    c = result.comparison(system=system, metric=score.metric)
    compared = {"value": c.difference, "low": c.low, "high": c.high} if c else None
    return {"metric": score.metric, **_numbers(score), "difference": compared}


def _numbers(score: Score) -> dict[str, Any]:
    return {"value": score.value, "low": score.low, "high": score.high, "n": score.n}


def _difference(c: scoring.Comparison) -> dict[str, Any]:
    where = {"system": c.system, "task": c.task, "metric": c.metric, "group": c.group}
    return where | {"value": c.difference, "low": c.low, "high": c.high, "p": c.p_value, "p_holm": c.p_holm}


def _macro(of: stats.MacroRetention | None) -> dict[str, float] | None:
    return {"value": of.value, "low": of.low, "high": of.high} if of else None


def _of_subset(of: stats.MacroRetention | None) -> dict[str, float] | None:
    return {"value": of.value, "low": of.low, "high": of.high, "n_abilities": of.n_abilities} if of else None


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)
