"""How well a set of configurations trades a new skill against what was known before.

Both axes are better when larger. The box runs from the untouched model's skill to a fixed end, and from retention 0
to 1; a method's hypervolume is the share of the box that at least one of its points dominates (Zitzler and Thiele,
1998). Everything is computed for the value and again for each bootstrap draw, so every number has an interval, and two
methods can be compared on the same draws.

Letters: S seeds, P points, D draws. The last axis of an array `_V` holds the value, then the draws.
"""

import math
from collections.abc import Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from radistill.seeds import generator
from radistill.stats import Resampled

MOST_SUBSETS = 5000
"""Up to so many subsets are all tried; beyond, points are chosen one after the other."""
SAME = 1e-12
"""Two shares of the box that differ by less are equal but for rounding."""

Array = NDArray[np.float64]


def over_seeds(parts: Sequence[Resampled], *, seed: int) -> Resampled:
    """The mean over a system's training seeds, by a bootstrap over items and seeds.

    Each draw keeps its draw of items and also draws the seeds with replacement. Which ones is decided by `seed`, the
    number of parts and the number of draws alone, so that it is the same for every system: pairing two systems pairs
    their seeds. So few seeds can show only part of their own spread: with S of them the variance between seeds is too
    small by (S - 1) / S on average, and one seed shows none of it.

    Args:
        parts: one per training seed, in the same order of seeds for every system, all by the same draws of items.
        seed: of the bootstrap.
    """
    if len(parts) == 1:
        return parts[0]
    draws_SD = np.array([part.draws_D for part in parts])
    n_seeds, n_draws = draws_SD.shape
    chosen_DS = generator(seed, "bootstrap over seeds", n_seeds, n_draws).integers(n_seeds, size=(n_draws, n_seeds))
    draws_D = draws_SD[chosen_DS, np.arange(n_draws)[:, None]].mean(axis=1)
    return Resampled(float(np.mean([part.value for part in parts])), draws_D)


def on_the_way(base: Resampled, best: float, share: float) -> Resampled:
    """The skill after that share of the way from the untouched model to `best`, which is held fixed in the draws."""
    return Resampled(base.value + share * (best - base.value), base.draws_D + share * (best - base.draws_D))


def hypervolume(points: Sequence[tuple[Resampled, Resampled]], *, base: Resampled, end: float) -> Resampled:
    """The share, 0 to 1, of the box that the points dominate.

    Args:
        points: (new skill, retention) of each configuration; what lies outside the box counts up to its border.
        base: the untouched model's new skill, the left edge of the box; it is drawn along with the points.
        end: new skill at the right edge.

    Raises:
        ValueError: the box has no width.
    """
    _check_width(base.value, end)
    base_V = _with_draws(base)
    skill_PV, retention_PV = _stacked(points, len(base_V))
    return _resampled(_dominated(skill_PV, retention_PV, base_V, end))


def box(skill: float, retention: float, *, base: float, end: float) -> float:
    """The share of the box that one point dominates by itself.

    Raises:
        ValueError: the box has no width.
    """
    _check_width(base, end)
    return min(max((skill - base) / (end - base), 0.0), 1.0) * min(max(retention, 0.0), 1.0)


def retention_at(
    points: Sequence[tuple[Resampled, Resampled]], *, base: Resampled, target: Resampled
) -> Resampled | None:
    """Retention where the method's frontier passes a given new skill, interpolated on straight lines.

    The frontier is made of the points that no other dominates, and of the untouched model, which keeps everything;
    retention above 1 counts as 1. None if even the method's largest skill is below the target. In a draw that does
    not reach the target, although the value does, the retention of the method's right-most point stands in, so that
    the interval exists; that is kind to the method, since going on would have cost it more.

    Args:
        points: (new skill, retention) of each configuration.
        base: the untouched model's new skill.
        target: the new skill asked for, as `on_the_way` gives it.
    """
    if not points or max(skill.value for skill, _ in points) < target.value:
        return None
    base_V = _with_draws(base)
    skill_PV, retention_PV = _stacked(points, len(base_V))
    return _resampled(_interpolated(skill_PV, np.minimum(retention_PV, 1.0), base_V, _with_draws(target)))


def choose(points: Sequence[tuple[float, float]], *, count: int, base: float, end: float) -> tuple[int, ...]:
    """Indices of the `count` points that together dominate the largest share of the box, in ascending order.

    All subsets are tried where there are not too many; otherwise the points are taken one after the other, each time
    the one that adds most, which reaches at least 1 - 1/e of the largest share. Among equals, smaller indices win.

    Args:
        points: (new skill, retention).
        count: so many are chosen; all, if there are no more.
        base: new skill at the left edge of the box.
        end: new skill at its right edge.

    Raises:
        ValueError: the box has no width.
    """
    _check_width(base, end)
    n = len(points)
    if n <= count:
        return tuple(range(n))
    skill_PV = np.array([[skill] for skill, _ in points])
    retention_PV = np.array([[retention] for _, retention in points])

    def share(chosen: Sequence[int]) -> float:
        rows = list(chosen)
        return float(_dominated(skill_PV[rows], retention_PV[rows], np.array([base]), end)[0])

    if math.comb(n, count) <= MOST_SUBSETS:
        return _first_largest([(subset, share(subset)) for subset in combinations(range(n), count)])
    taken: tuple[int, ...] = ()
    for _ in range(count):
        taken = _first_largest([((*taken, i), share((*taken, i))) for i in range(n) if i not in taken])
    return tuple(sorted(taken))


def _dominated(skill_PV: Array, retention_PV: Array, base_V: Array, end: float) -> Array:
    width_V = end - base_V
    # A draw in which the untouched model is already at the end leaves no room for anything to be gained.
    room_V = np.where(width_V > 0, width_V, np.inf)
    right_PV = np.clip((skill_PV - base_V) / room_V, 0.0, 1.0)
    order_PV = np.argsort(right_PV, axis=0, kind="stable")
    right_PV = np.take_along_axis(right_PV, order_PV, axis=0)
    height_PV = np.take_along_axis(np.clip(retention_PV, 0.0, 1.0), order_PV, axis=0)
    # From one point to the next, whatever lies further right counts with its height.
    above_PV = np.maximum.accumulate(height_PV[::-1], axis=0)[::-1]
    left_PV = np.vstack([np.zeros_like(base_V), right_PV])[:-1]
    found: Array = ((right_PV - left_PV) * above_PV).sum(axis=0)
    return found


def _interpolated(skill_PV: Array, retention_PV: Array, base_V: Array, target_V: Array) -> Array:
    with_base_PV = np.vstack([base_V, skill_PV])
    kept_PV = np.vstack([np.ones_like(base_V), retention_PV])
    is_right_PV = with_base_PV >= target_V
    # Of two neighbours on the frontier, the right one is the highest of all at or beyond the target ...
    right_V = np.where(is_right_PV, kept_PV, -np.inf).max(axis=0)
    right_at_V = np.where(is_right_PV & (kept_PV == right_V), with_base_PV, -np.inf).max(axis=0)
    # ... and the left one the nearest of those before it that it does not dominate.
    is_left_PV = ~is_right_PV & (kept_PV > right_V)
    left_at_V = np.where(is_left_PV, with_base_PV, -np.inf).max(axis=0)
    left_V = np.where(is_left_PV & (with_base_PV == left_at_V), kept_PV, -np.inf).max(axis=0)
    last_V = np.where(skill_PV == skill_PV.max(axis=0), retention_PV, -np.inf).max(axis=0)
    with np.errstate(invalid="ignore"):  # where there is no neighbour, the place of none is infinite
        share_V = (right_at_V - target_V) / (right_at_V - left_at_V)
        between_V = right_V + (left_V - right_V) * share_V
    reached_V = np.where(is_left_PV.any(axis=0), between_V, right_V)
    found: Array = np.where((skill_PV >= target_V).any(axis=0), reached_V, last_V)
    return found


def _first_largest(subsets: Sequence[tuple[tuple[int, ...], float]]) -> tuple[int, ...]:
    best, largest = subsets[0]
    for subset, share in subsets[1:]:
        if share > largest + SAME:
            best, largest = subset, share
    return best


def _with_draws(number: Resampled) -> Array:
    return np.concatenate([[number.value], number.draws_D], dtype=np.float64)


def _resampled(found_V: Array) -> Resampled:
    return Resampled(float(found_V[0]), found_V[1:])


def _stacked(points: Sequence[tuple[Resampled, Resampled]], width: int) -> tuple[Array, Array]:
    skill_PV = np.array([_with_draws(skill) for skill, _ in points]).reshape(len(points), width)
    retention_PV = np.array([_with_draws(retention) for _, retention in points]).reshape(len(points), width)
    return skill_PV, retention_PV


def _check_width(base: float, end: float) -> None:
    if not end > base:
        raise ValueError(f"the box has no width: the untouched model's new skill is {base:g}, the axis ends at {end:g}")
