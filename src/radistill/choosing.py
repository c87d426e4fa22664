"""Which of a training's evaluations is the best, and when another one is not worth waiting for.

An evaluation is a point: new skill (points of 100) and retention (a fraction), both on validation items. Its *score* is

    skill       the new skill
    retention   100 x retention
    both        new skill + exchange_rate x 100 x retention

so that at an exchange rate of 2 one hundredth of retention is worth two points of new skill. The best evaluation is the
first of the highest score.

*Frontier*: a point is on it when it comes if no earlier point, nor the untouched model (its own skill, retention 1), is
at least as good in all that was measured. An evaluation that is not is one without progress; by `score` it is one whose
score is not higher than that of every earlier evaluation.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from radistill.stats import Interval

Metric = Literal["skill", "retention", "both"]
Criterion = Literal["frontier", "score"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """What one evaluation came to; what was not measured is None."""

    step: int
    """After so many optimizer steps; 0 is the untouched model."""
    skill: float | None
    """In points of 100."""
    retention: float | None
    """A fraction, mean over the abilities, each clipped at 1."""

    def score(self, metric: Metric, exchange_rate: float) -> float:
        """See above; higher is better."""
        skill, kept = self.skill or 0.0, 100.0 * (self.retention or 0.0)
        return {"skill": skill, "retention": kept, "both": skill + exchange_rate * kept}[metric]

    def is_as_good_as(self, other: "Point") -> bool:
        """In everything that was measured of both."""
        pairs = ((self.skill, other.skill), (self.retention, other.retention))
        return all(mine >= its for mine, its in pairs if mine is not None and its is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A point with its intervals, for log, manifest and report."""

    point: Point
    skill: Interval | None
    retention: Interval | None
    abilities: dict[str, float]
    """Retention of each measurable ability, unclipped."""
    n: int
    """So many items were answered."""
    tokens: int
    """So many tokens were read and written for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """How evaluations are compared."""

    metric: Metric
    exchange_rate: float
    patience: int | None
    criterion: Criterion

    def score(self, point: Point) -> float:
        """Of one evaluation."""
        return point.score(self.metric, self.exchange_rate)

    def best(self, points: Sequence[Point]) -> Point | None:
        """The first of the highest score; the untouched model is none of them."""
        return max(points, key=lambda p: (self.score(p), -p.step), default=None)

    def without_progress(self, points: Sequence[Point], untouched: Point) -> int:
        """How many evaluations in a row, up to the last, were without progress."""
        return next((n for n, at in enumerate(range(len(points) - 1, -1, -1)) if self._goes_on(points, at, untouched)),
                    len(points))  # fmt: skip

    def should_stop(self, points: Sequence[Point], untouched: Point) -> bool:
        """Whether patience has run out."""
        return self.patience is not None and self.without_progress(points, untouched) >= self.patience

    def _goes_on(self, points: Sequence[Point], at: int, untouched: Point) -> bool:
        point, earlier = points[at], points[:at]
        if self.criterion == "score":
            return all(self.score(point) > self.score(p) for p in earlier)
        return not any(p.is_as_good_as(point) for p in (untouched, *earlier))


def point_of(row: dict[str, Any]) -> Point | None:
    """The evaluation that a line of train_log.jsonl tells of, if it does."""
    if "eval_score" not in row:
        return None
    return Point(step=row["step"], skill=row.get("eval_skill"), retention=row.get("eval_retention"))
