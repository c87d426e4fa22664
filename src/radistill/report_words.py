"""The sentences of a report. Each is computed from the numbers: a loss is called a loss, chance is called chance."""

from collections.abc import Mapping, Sequence

from radistill import scoring
from radistill.columns import RAW
from radistill.report_data import Run
from radistill.report_scores import Kept, Result, headline, of_kind
from radistill.report_tables import metric_name
from radistill.report_text import count, interval, listed, number, p_value, signed
from radistill.tasks.translation import Translation

SURE = 0.05


def summary(
    runs: Sequence[Run], found: Sequence[Result], *, what_is_kept: Mapping[str, Kept], margin: float
) -> list[str]:
    """What came out, in a few sentences."""
    skills = of_kind(found, "skill")
    said = [_skill(run, result) for run in runs for result in skills if run.name in result.evaluation.systems]
    if not said:
        said = ["No skill was evaluated, so this report cannot say what was learned."]
    if not of_kind(found, "ability"):
        return [*said, "No other ability was tested: this report says nothing about what was kept or forgotten."]
    return [*said, *(_kept(run, what_is_kept[run.name], margin) for run in runs)]


def failures(found: Sequence[Result]) -> list[str]:
    """Which systems' predictions are missing, if any are."""
    said = []
    for result in found:
        for system in result.evaluation.systems:
            score = headline(result, system)
            if score.n_failed:
                share = f"{count(score.n_failed)} of {count(score.n)} predictions of {system}"
                said.append(f"{result.evaluation.name}: {share} could not be had; they are scored as empty answers.")
    return said


def raw_scores(result: Result) -> str:
    """Why answers are cut, and what that does to each system."""
    metric = result.metrics[0]
    parts = []
    for system in result.evaluation.systems:
        cut, raw = (result.scored.find(system=system, metric=m) for m in (metric, metric + RAW))
        if cut and raw:
            parts.append(f"{system} {number(raw.value)} → {number(cut.value)}")
    return (
        "The same rule cuts every system's reply to its answer. A model that learns to stop gains on whole replies "
        f"without translating any better. {metric_name(metric)} of whole replies → of answers: {', '.join(parts)}."
    )


def chosen(run: Run) -> list[str]:
    """By what a training was judged while it went on, and what followed."""
    told = run.stages["train"].facts.get("validation") if "train" in run.stages else None
    if not told or not told.get("best"):
        return []
    settings, best, n = run.stages["train"].settings.get("validation", {}), told["best"], len(told["evaluations"])
    metric, rate = told["metric_for_best_model"], told["exchange_rate"]
    by = f"new skill + {rate:g} x 100 x retention" if metric == "both" else metric
    start = told["untouched"]
    parts = [
        f"{name} {number(best[key], digits)} (untouched {number(start[key], digits)})"
        for name, key, digits in (("new skill", "skill", 1), ("retention", "retention", 3))
        if best[key] is not None
    ]
    said = (
        f"The training was evaluated {n} time{'' if n == 1 else 's'} on {count(sum(told['items'].values()))} "
        "validation items, which are neither trained nor tested on; the best by "
        f"{by} is that after step {count(best['step'])}: {listed(parts)}."
    )
    said += " It is the result." if settings.get("load_best_model_at_end") else " The result is the last one."
    if told["stopped_early"]:
        said += f" It was stopped early, after {settings.get('early_stopping_patience')} evaluations without progress."
    return [said]


def is_shown(c: scoring.Comparison) -> bool:
    """Whether the difference is more than chance: its interval excludes zero and so does the corrected test."""
    return c.p_holm < SURE and (c.low > 0 or c.high < 0)


def _skill(run: Run, result: Result) -> str:
    score = headline(result, run.name)
    name, task = metric_name(score.metric), result.evaluation.name
    where = f"the mean of {len(result.groups)} {_groups(result)}" if len(result.groups) > 1 else result.groups[0]
    value = f"{number(score.value)} {name} {interval(score.low, score.high)}"
    who = run.name if run.name == run.method else f"{run.name} ({run.method})"
    has = f"{who} has {value} on {task}, {where}"
    c = result.comparison(system=run.name, metric=score.metric)
    if c is None:
        return f"{has}; there is no untouched model to compare with."
    return f"{has}. {_difference(c, score.higher_is_better)}{_exceptions(run, result, c, score.higher_is_better)}"


def _difference(c: scoring.Comparison, higher_is_better: bool) -> str:
    numbers = f"{interval(c.low, c.high, difference=True)}, p {_equals(c.p_holm)}"
    if not is_shown(c):
        against = f"The difference to the untouched model's {number(c.before)}"
        return f"{against} is {signed(c.difference)} {numbers}: neither a gain nor a loss is shown."
    way = "more" if c.difference > 0 else "less"
    is_gain = (c.difference > 0) == higher_is_better
    result = "it has improved" if is_gain else "it got worse"
    by = f"{number(abs(c.difference))} {way} than the untouched model's {number(c.before)}"
    return f"That is {by} ({numbers}): {result}."


def _exceptions(run: Run, result: Result, c: scoring.Comparison, higher_is_better: bool) -> str:
    if len(result.groups) < 2:
        return ""
    better: list[str] = []
    worse: list[str] = []
    open_: list[str] = []
    for group in result.groups:
        of_group = result.comparison(system=run.name, metric=c.metric, group=group)
        if of_group is None:
            continue
        pile = open_ if not is_shown(of_group) else better if (of_group.difference > 0) == higher_is_better else worse
        pile.append(group)
    kinds = (("better in", better), ("worse in", worse), ("no difference shown in", open_))
    return " One by one: " + "; ".join(f"{label} {listed(groups)}" for label, groups in kinds if groups) + "."


def _kept(run: Run, what: Kept, margin: float) -> str:
    if what.retention is None:
        return f"What {run.name} kept cannot be said: no tested ability can be measured for it and the untouched model."
    macro, verdicts = what.retention, [r.verdict for r in what.abilities.values()]
    shown = ", ".join(f"{verdicts.count(v)} {v}" for v in dict.fromkeys(verdicts))
    return (
        f"{run.name} retains {number(macro.value, 3)} {interval(macro.low, macro.high, 3)} of {macro.n_abilities} "
        f"abilities ({shown}; margin {margin:g}); least is left of {macro.worst}: {number(macro.worst_value, 3)}."
        f"{_apart(what)}"
    )


def _apart(what: Kept) -> str:
    parts = ((what.rehearsed, "touch"), (what.not_rehearsed, "do not touch"))
    said = [
        f"{number(m.value, 3)} {interval(m.low, m.high, 3)} of the {_one(m.n_abilities)} that rationales {verb}"
        for m, verb in parts
        if m
    ]
    return f" That is {listed(said)}." if said else ""


def _one(n: int) -> str:
    return "one" if n == 1 else count(n)


def _groups(result: Result) -> str:
    return "directions" if isinstance(result.evaluation.task, Translation) else "groups"


def _equals(p: float) -> str:
    return p_value(p) if p < 0.001 else f"= {p_value(p)}"
