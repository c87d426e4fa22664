"""The one way to compute an interval, a difference, a retention and a verdict.

Everything rests on a metric's additive rows (`metrics/base.py`). A bootstrap draw is how often each item was taken; the
rows of all systems are summed by the same draws, so two systems are compared on the same items, resampled together.
All intervals are 95 %. Letters: N items, K statistics, D draws.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from radistill.seeds import generator

DRAWS = 1000
Z = 1.959963984540054
"""Two-sided 95 % point of the normal distribution."""
MEASURABLE = 10.0
"""Points by which the untouched model must beat a guesser before one can say how much of that is left."""
BLOCK = 4_000_000

ScoreOfTotal = Callable[[NDArray[np.float64]], float]
Verdict = Literal["retained", "lost", "improved", "inconclusive", "not measurable"]


@dataclass(frozen=True, slots=True)
class Interval:
    """A value and the 95 % interval around it."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Resampled:
    """A value on the items as they are, and on every bootstrap draw of them."""

    value: float
    draws_D: NDArray[np.float64] = field(repr=False, compare=False)

    def interval(self) -> Interval:
        """The percentile interval."""
        low, high = np.quantile(self.draws_D, [0.025, 0.975])
        return Interval(self.value, float(low), float(high))


@dataclass(frozen=True, slots=True)
class Paired:
    """How much one system differs from another on the same items (after - before)."""

    difference: float
    low: float
    high: float
    p_value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """How much of an ability is left. `value` is a fraction: 1 = all of it."""

    before: float
    after: float
    chance: float
    value: float | None
    """None when it is not measurable."""
    low: float | None
    high: float | None
    verdict: Verdict
    draws_D: NDArray[np.float64] | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class MacroRetention:
    """Mean retention over the measurable abilities, each clipped at 1, so that no gain hides a loss."""

    value: float
    low: float
    high: float
    unclipped: Interval
    worst: str
    """The ability of which least is left."""
    worst_value: float
    n_abilities: int
    not_measurable: tuple[str, ...]
    resampled: Resampled = field(repr=False, compare=False)
    """The clipped mean with its draws laid around it, to compare two systems on the same draws."""


def draw(n: int, *, seed: int, name: str = "", draws: int = DRAWS) -> NDArray[np.uint16]:
    """How often each of `n` items is taken in each draw: shape (D, N), every row sums to n.

    Equal arguments give equal draws, which is what pairs two systems. Groups that are to be resampled apart from
    each other need different names.
    """
    assert n > 0, "nothing to draw from"
    random = generator(seed, "bootstrap", name, n)
    counts_DN = np.empty((draws, n), dtype=np.uint16)
    even = np.full(n, 1 / n)
    step = max(1, BLOCK // n)
    for at in range(0, draws, step):
        counts_DN[at : at + step] = random.multinomial(n, even, size=min(step, draws - at))
    return counts_DN


def resample(rows_NK: NDArray[np.float64], score: ScoreOfTotal, counts_DN: NDArray[np.uint16]) -> Resampled:
    """The score of the rows, and of each draw of them."""
    step = max(1, BLOCK // len(rows_NK))
    totals = (counts_DN[at : at + step].astype(np.float64) @ rows_NK for at in range(0, len(counts_DN), step))
    return Resampled(score(rows_NK.sum(axis=0)), np.array([score(total_K) for block in totals for total_K in block]))


def bootstrap(
    rows_NK: NDArray[np.float64], score: ScoreOfTotal, *, seed: int, name: str = "", draws: int = DRAWS
) -> Interval:
    """The score of the rows with its percentile interval."""
    return resample(rows_NK, score, draw(len(rows_NK), seed=seed, name=name, draws=draws)).interval()


def mean_of(parts: Sequence[Resampled]) -> Resampled:
    """The unweighted mean, draw by draw: a stratified bootstrap if the parts were drawn under different names."""
    assert parts, "no mean of nothing"
    draws_D = np.mean([part.draws_D for part in parts], axis=0)
    return Resampled(float(np.mean([part.value for part in parts])), draws_D)


def difference(before: Resampled, after: Resampled) -> Paired:
    """After - before, with its interval and a two-sided p-value.

    p is the share of draws in which the difference strays from its mean over the draws at least as far as the
    observed difference lies from 0, with 1 added to both counts: at 1,000 draws it is never under 0.000999.
    sacreBLEU's paired bootstrap centres *absolute* differences instead, and asks for "further than". Where the
    difference is large the two agree; where it is small theirs is too low: on is-en, 0.40 chrF2 with the interval
    -0.30 to 1.07, they give 0.11 and this gives 0.25, and a system against itself gets 0.001 there and 1 here.
    """
    draws_D = after.draws_D - before.draws_D
    observed = after.value - before.value
    low, high = np.quantile(draws_D, [0.025, 0.975])
    strays = np.abs(draws_D - draws_D.mean()) >= abs(observed)
    p_value = (int(strays.sum()) + 1) / (len(draws_D) + 1)
    return Paired(float(observed), float(low), float(high), p_value)


def paired(
    before_NK: NDArray[np.float64],
    after_NK: NDArray[np.float64],
    score: ScoreOfTotal,
    *,
    seed: int,
    name: str = "",
    draws: int = DRAWS,
) -> Paired:
    """The difference of two systems whose rows stand for the same items in the same order."""
    assert len(before_NK) == len(after_NK), "paired rows must stand for the same items"
    counts_DN = draw(len(before_NK), seed=seed, name=name, draws=draws)
    return difference(resample(before_NK, score, counts_DN), resample(after_NK, score, counts_DN))


def wilson(successes: int, n: int) -> Interval:
    """A proportion with its Wilson score interval, all three from 0 to 1.

    Where nothing was seen in n trials the upper end is 3.84 / (n + 3.84), a little over the rule of three's 3 / n.
    """
    assert 0 <= successes <= n > 0, f"{successes} of {n} is no proportion"
    share = successes / n
    spread = Z**2 / n
    centre = (share + spread / 2) / (1 + spread)
    half = Z * np.sqrt(share * (1 - share) / n + spread / (4 * n)) / (1 + spread)
    # The ends are exactly 0 and 1 there; rounding would leave a speck.
    low = 0.0 if successes == 0 else float(centre - half)
    high = 1.0 if successes == n else float(centre + half)
    return Interval(share, low, high)


def mean_of_proportions(parts: Sequence[Interval]) -> Interval:
    """The unweighted mean of independent proportions, from their own intervals (MOVER: Zou and Donner, 2008)."""
    assert parts, "no mean of nothing"
    value = sum(part.value for part in parts) / len(parts)
    below = sum((part.value - part.low) ** 2 for part in parts) ** 0.5 / len(parts)
    above = sum((part.high - part.value) ** 2 for part in parts) ** 0.5 / len(parts)
    return Interval(value, value - below, value + above)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """p-values corrected for being many (Holm, 1979), under the same names in the same order."""
    corrected: dict[str, float] = {}
    highest = 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda name: (p_values[name], name))):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[name]))
        corrected[name] = highest
    return {name: corrected[name] for name in p_values}


def verdict(low: float, high: float, *, margin: float) -> Verdict:
    """What a retention interval shows about a margin that was fixed before the run.

    improved: all of it lies above 1 + margin. retained: all of it lies at or above 1 - margin, so a loss greater
    than the margin is excluded. lost: all of it lies below 1 - margin. Otherwise inconclusive; a loss that is merely
    not significant is never called retained.
    """
    if low > 1 + margin:
        return "improved"
    if low >= 1 - margin:
        return "retained"
    return "lost" if high < 1 - margin else "inconclusive"


def retention(
    before: Resampled, after: Resampled, *, margin: float, chance: float = 0.0, n: int | None = None
) -> Retention:
    """(after - chance) / (before - chance), with a paired interval and a verdict.

    Both must come from the same draws of the same items, in points of 100. An ability in which the untouched model is
    less than 10 points better than a guesser is not measurable.

    Args:
        before: the untouched model.
        after: the tuned model.
        margin: the loss that would still count as retained, as a fraction.
        chance: what a guesser would score.
        n: how many items; where all draws are equal, because every answer was right or every one wrong, the interval
            reaches as far as Wilson's does for so many.
    """
    if before.value - chance < MEASURABLE:
        return Retention(
            before=before.value,
            after=after.value,
            chance=chance,
            value=None,
            low=None,
            high=None,
            verdict="not measurable",
        )
    # A draw of few items can leave nothing to divide by; one point keeps it finite and still far out.
    draws_D = (after.draws_D - chance) / np.maximum(before.draws_D - chance, 1.0)
    value = (after.value - chance) / (before.value - chance)
    low, high = map(float, np.quantile(draws_D, [0.025, 0.975]))
    if n and np.ptp(after.draws_D) == 0.0:
        unseen = 100 * Z**2 / (n + Z**2) / (before.value - chance)
        low, high = min(low, value - unseen), max(high, value + unseen)
    return Retention(
        before=before.value,
        after=after.value,
        chance=chance,
        value=value,
        low=low,
        high=high,
        verdict=verdict(low, high, margin=margin),
        draws_D=draws_D,
    )


def macro_retention(abilities: Mapping[str, Retention]) -> MacroRetention | None:
    """The abilities' mean, each clipped at 1, with the unclipped mean and the worst; None if none is measurable.

    Clipping pulls the draws of unharmed abilities under 1 on average. The interval of the clipped mean is therefore
    the spread of the draws around their own mean, laid around the value.
    """
    values = {name: r.value for name, r in abilities.items() if r.value is not None}
    draws_AD = np.array([r.draws_D for r in abilities.values() if r.draws_D is not None])
    if not values:
        return None
    value = float(np.mean([min(1.0, v) for v in values.values()]))
    clipped_D = np.minimum(draws_AD, 1.0).mean(axis=0)
    around_D = clipped_D - clipped_D.mean() + value
    low, high = np.quantile(around_D, [0.025, 0.975])
    worst = min(values, key=lambda name: values[name])
    return MacroRetention(
        value=value,
        low=float(min(low, value)),
        high=float(min(1.0, max(high, value))),
        unclipped=Resampled(float(np.mean(list(values.values()))), draws_AD.mean(axis=0)).interval(),
        worst=worst,
        worst_value=values[worst],
        n_abilities=len(values),
        not_measurable=tuple(name for name in abilities if name not in values),
        resampled=Resampled(value, around_D),
    )
