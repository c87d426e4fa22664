"""What the demo says at its end: a table, and three sentences computed from the runs, whichever way they came out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from radistill import scoring, stats
from radistill.demo import MARGIN, RUNS, run_name
from radistill.records import BASE
from radistill.report import collect
from radistill.report_scores import Kept, Result
from radistill.report_text import interval, listed, number, signed
from radistill.runs import RunFolder


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One way of learning, as the mean over its seeds: new skill and retention, both in points of 100."""

    skill: stats.Resampled
    retention: stats.Resampled
    learning_rate: float = 0.0
    """0 for the untouched model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What the demo has to say."""

    measured: Mapping[str, Measured]
    """By name of the run without its seed; `base` is the untouched model."""
    sentences: tuple[str, str, str]


def seen(folders: Sequence[RunFolder], *, seeds: Sequence[int]) -> Seen:
    """Compute it from the run folders of these seeds."""
    collected = collect(folders, margin=MARGIN, seed=0)
    found, left = collected.results, collected.what_is_kept
    rates = {run.name: float(run.config["train"]["learning_rate"]) for run in collected.runs}
    measured = {BASE: Measured(skill=_skill(found, BASE), retention=_constant(100.0))}
    for name in RUNS:
        systems = [run_name(name, seed) for seed in seeds]
        measured[name] = Measured(
            skill=stats.mean_of([_skill(found, system) for system in systems]),
            retention=stats.mean_of([_retention(left[system]) for system in systems]),
            learning_rate=rates[systems[0]],
        )
    return Seen(measured=measured, sentences=sentences(measured))


def sentences(measured: Mapping[str, Measured]) -> tuple[str, str, str]:
    """What was learned; what RaDis keeps beside vanilla; what it is worth beside a lower learning rate."""
    return _learned(measured), _kept(measured), _beside_half(measured)


def _learned(measured: Mapping[str, Measured]) -> str:
    before = measured[BASE].skill
    told = [f"{name} {number(measured[name].skill.value)}" for name in RUNS]
    ways = {name: _way(stats.difference(before, measured[name].skill)) for name in RUNS}
    without = [name for name in RUNS if ways[name] == 0]
    worse = [name for name in RUNS if ways[name] < 0]
    text = (
        f"The untouched model translates Esperanto with {number(before.value)} BLEU; after learning: {', '.join(told)}."
    )
    text += f" No gain is shown for {listed(without)}." if without else ""
    return text + (f" {listed(worse)} got worse." if worse else "")


def _kept(measured: Mapping[str, Measured]) -> str:
    ours, vanilla = measured["radis"].retention, measured["vanilla"].retention
    d = stats.difference(vanilla, ours)
    rate = f"{measured['radis'].learning_rate:g}"
    text = (
        f"At the same learning rate ({rate}) radis keeps {number(ours.value)} % of what the untouched model could and "
        f"vanilla {number(vanilla.value)} %: "
    )
    if _way(d) > 0:
        return f"{text}radis keeps {number(d.difference)} points {interval(d.low, d.high)} more."
    if _way(d) < 0:
        less = f"{number(-d.difference)} points {interval(-d.high, -d.low)}"
        return f"{text}radis keeps {less} less, which is not what it promises."
    return f"{text}the difference, {_signed(d)} points, is not shown to be one."


def _beside_half(measured: Mapping[str, Measured]) -> str:
    ours, half = measured["radis"], measured["vanilla-half-lr"]
    skill = stats.difference(half.skill, ours.skill)
    kept_ = stats.difference(half.retention, ours.retention)
    by = f"{_signed(skill)} BLEU and {_signed(kept_)} points of retention"
    text = f"Beside vanilla at half the learning rate radis has {by}: "
    ways = (_way(skill), _way(kept_))
    verdicts = {
        (1, 1): "it is better in both.",
        (-1, -1): "a lower learning rate beats it in both.",
        (1, -1): "it learns more and keeps less, so neither beats the other.",
        (-1, 1): "it learns less and keeps more, so neither beats the other.",
        (0, 1): "it keeps more, and no difference in the new skill is shown.",
        (1, 0): "it learns more, and no difference in retention is shown.",
        (0, -1): "a lower learning rate keeps more, and no difference in the new skill is shown: it beats radis here.",
        (-1, 0): "a lower learning rate learns more, and no difference in retention is shown: it beats radis here.",
        (0, 0): "no difference is shown in either.",
    }
    return text + verdicts[ways]


def _way(d: stats.Paired) -> int:
    return 1 if d.low > 0 else -1 if d.high < 0 else 0


def _signed(d: stats.Paired) -> str:
    return f"{signed(d.difference)} {interval(d.low, d.high, difference=True)}"


def _skill(found: Sequence[Result], system: str) -> stats.Resampled:
    result = next(r for r in found if r.evaluation.task.kind == "skill")
    return scoring.resampled(result.scored, system=system, metric=result.metrics[0])


def _retention(what: Kept) -> stats.Resampled:
    assert what.retention is not None, "the pocket model has abilities that can be measured"
    of = what.retention.resampled
    return stats.Resampled(100 * of.value, 100 * of.draws_D)


def _constant(value: float) -> stats.Resampled:
    import numpy as np

    return stats.Resampled(value, np.full(stats.DRAWS, value))


Row = tuple[str, ...]


def table(what: Seen) -> list[Row]:
    """Rows of text: run, learning rate, BLEU, retention, each with its interval."""
    rows: list[Row] = []
    for name, one in what.measured.items():
        rate = one.learning_rate
        skill, left = one.skill.interval(), one.retention.interval()
        rows.append(
            (
                name,
                f"{rate:g}" if rate else "–",
                f"{number(skill.value)} {interval(skill.low, skill.high)}",
                f"{number(left.value)} {interval(left.low, left.high)}" if rate else number(left.value),
            )
        )
    return rows
