"""The frontier's numbers: areas, interpolation and choices, against hand-computed cases and slower ways."""

from itertools import combinations, pairwise, permutations

import numpy as np
import pytest

from radistill import frontier
from radistill.frontier import box, choose, hypervolume, on_the_way, over_seeds, retention_at
from radistill.seeds import generator
from radistill.stats import Resampled, difference

Pair = tuple[float, float]


def fixed(value: float, draws: int = 3) -> Resampled:
    return Resampled(value, np.full(draws, value))


def at(*points: Pair) -> list[tuple[Resampled, Resampled]]:
    return [(fixed(skill), fixed(kept)) for skill, kept in points]


def share(*points: Pair, base: float = 0.0, end: float = 100.0) -> float:
    return hypervolume(at(*points), base=fixed(base), end=end).value


def kept_at(target: float, *points: Pair, base: float = 0.0) -> float | None:
    found = retention_at(at(*points), base=fixed(base), target=fixed(target))
    return None if found is None else found.value


def scattered(n: int, *, seed: int = 0, draws: int = 40) -> list[tuple[Resampled, Resampled]]:
    """Points in and around the box from 10 to 90, that move from draw to draw."""
    random = generator(seed, "test points", n)
    middle = np.column_stack([random.uniform(0, 100, n), random.uniform(-0.1, 1.1, n)])
    moved = middle[:, :, None] + random.normal(size=(n, 2, draws)) * np.array([3.0, 0.05])[None, :, None]
    return [(Resampled(m[0], d[0]), Resampled(m[1], d[1])) for m, d in zip(middle, moved, strict=True)]


# Hypervolume


def test_the_area_is_the_one_on_paper() -> None:
    assert share((50, 0.8)) == pytest.approx(0.4)
    # 0..40 at 0.9, 40..70 at 0.5, 70..90 at 0.2; (30, 0.4) lies below the others.
    stairs = 0.4 * 0.9 + 0.3 * 0.5 + 0.2 * 0.2
    assert share((40, 0.9), (70, 0.5), (90, 0.2), (30, 0.4)) == pytest.approx(stairs)
    assert share((40, 0.9), base=20, end=60) == pytest.approx(0.5 * 0.9)
    assert share((50, 0.8), (50, 0.3)) == share((50, 0.8), (20, 0.8)) == pytest.approx(0.4)


def test_what_lies_outside_the_box_counts_up_to_its_border() -> None:
    assert share((150, 0.5), (40, 1.7)) == pytest.approx(0.4 + 0.6 * 0.5)
    assert share((-5, 1.0)) == share((5, 1.0), base=5) == share((50, -0.2)) == share() == 0.0
    assert share((1000, 9.0)) == 1.0


def test_the_area_is_that_of_points_thrown_at_the_box() -> None:
    points = [(skill.value, kept.value) for skill, kept in scattered(7, seed=3)]
    random = generator(0, "thrown")
    x, y = random.uniform(10, 90, 200_000), random.random(200_000)
    is_under = np.any([(x <= skill) & (y <= kept) for skill, kept in points], axis=0)
    assert share(*points, base=10, end=90) == pytest.approx(float(is_under.mean()), abs=0.004)


def test_the_area_is_that_of_inclusion_and_exclusion_in_every_draw() -> None:
    points = scattered(5, seed=1)
    base = Resampled(10.0, generator(0, "test base").normal(10, 2, 40))
    found = hypervolume(points, base=base, end=90.0)
    for i in range(-1, 40):
        left = base.value if i < 0 else base.draws_D[i]
        now = [tuple(part.value if i < 0 else part.draws_D[i] for part in point) for point in points]
        area = 0.0
        for size in range(1, 6):
            for group in combinations(now, size):
                wide = np.clip((min(skill for skill, _ in group) - left) / (90 - left), 0, 1)
                area -= (-1) ** size * wide * np.clip(min(kept for _, kept in group), 0, 1)
        assert (found.value if i < 0 else found.draws_D[i]) == pytest.approx(area, abs=1e-12)


def test_one_more_point_and_one_better_point_never_take_area_away() -> None:
    points = scattered(6, seed=2)
    base = fixed(10.0, 40)
    areas = [hypervolume(points[:n], base=base, end=90.0) for n in range(7)]
    for fewer, more in pairwise(areas):
        assert more.value >= fewer.value
        assert (more.draws_D >= fewer.draws_D - 1e-12).all()
    better = [(Resampled(s.value + 1, s.draws_D + 1), Resampled(k.value + 0.1, k.draws_D + 0.1)) for s, k in points]
    assert (hypervolume(better, base=base, end=90.0).draws_D >= areas[-1].draws_D - 1e-12).all()
    assert areas[0].value == 0.0


def test_the_order_of_the_points_does_not_matter() -> None:
    points = scattered(4, seed=4)
    base = fixed(10.0, 40)
    target = fixed(max(skill.value for skill, _ in points) - 5, 40)
    for other in permutations(points):
        area = hypervolume(other, base=base, end=90.0)
        assert area.draws_D == pytest.approx(hypervolume(points, base=base, end=90.0).draws_D, abs=1e-12)
        one, two = (retention_at(p, base=base, target=target) for p in (other, points))
        assert one is not None
        assert two is not None
        assert (one.draws_D == two.draws_D).all()


def test_a_draw_in_which_nothing_can_be_gained_has_no_area_and_a_box_without_width_is_refused() -> None:
    base = Resampled(10.0, np.array([10.0, 60.0, 50.0]))
    assert hypervolume([(fixed(70), fixed(0.5))], base=base, end=50.0).draws_D.tolist() == [0.5, 0.0, 0.0]
    for end in (10.0, 5.0, float("nan")):
        with pytest.raises(ValueError, match="the box has no width: the untouched model's new skill is 10, the axis"):
            hypervolume(at((20, 0.5)), base=fixed(10), end=end)
        with pytest.raises(ValueError, match="no width"):
            choose([(20, 0.5)], count=1, base=10, end=end)
        with pytest.raises(ValueError, match="no width"):
            box(20, 0.5, base=10, end=end)


@pytest.mark.parametrize("point", [(50, 0.8), (150, 0.5), (-5, 1.0), (50, 1.7), (50, -0.2), (10, 0.5), (90, 1.0)])
def test_one_points_box_is_the_hypervolume_of_that_point(point: Pair) -> None:
    assert box(*point, base=10, end=90) == pytest.approx(share(point, base=10, end=90), abs=1e-15)


# Retention on the way


def test_retention_is_read_off_the_straight_lines_between_the_points_that_count() -> None:
    points: list[Pair] = [(40, 0.9), (80, 0.5), (60, 0.6), (30, 0.7)]  # the last two lie below: 0.7, and left of 0.9
    assert kept_at(40, *points) == 0.9
    assert kept_at(80, *points) == 0.5
    assert kept_at(20, *points) == pytest.approx(0.95)  # half way from the untouched model at (0, 1)
    # (60, 0.6) is dominated by none: higher than (80, 0.5), further right than (40, 0.9).
    assert kept_at(50, *points) == pytest.approx(0.75)
    assert kept_at(70, *points) == pytest.approx(0.55)
    assert kept_at(35, *points) == pytest.approx(1 - 0.1 * 35 / 40)  # and not towards (30, 0.7)


def test_a_dominated_point_changes_nothing() -> None:
    for target in (10.0, 39.0, 40.0, 55.0, 80.0):
        clean = kept_at(target, (40, 0.9), (80, 0.5))
        assert kept_at(target, (40, 0.9), (80, 0.5), (35, 0.2), (79, 0.5), (40, 0.1), (-9, 0.99)) == clean


def test_a_target_beyond_the_largest_skill_has_no_retention() -> None:
    assert kept_at(80, (40, 0.9), (80, 0.5)) == 0.5
    assert kept_at(80.001, (40, 0.9), (80, 0.5)) is None
    assert kept_at(1) is None


def test_retention_above_the_untouched_models_counts_as_all_of_it() -> None:
    assert kept_at(20, (40, 1.3)) == 1.0
    assert kept_at(60, (40, 1.3), (80, 0.5)) == pytest.approx(0.75)
    assert kept_at(0, (40, 0.9)) == 1.0


def test_a_draw_that_does_not_reach_the_target_takes_its_right_most_point() -> None:
    points = [
        (Resampled(40.0, np.array([40.0, 30.0, 48.0])), Resampled(0.9, np.array([0.9, 0.8, 0.7]))),
        (Resampled(60.0, np.array([60.0, 45.0, 44.0])), Resampled(0.5, np.array([0.5, 0.4, 0.6]))),
    ]
    found = retention_at(points, base=fixed(0), target=fixed(50))
    assert found is not None
    assert found.value == pytest.approx(0.7)
    assert found.draws_D.tolist() == pytest.approx([0.7, 0.4, 0.7])


def test_every_draw_is_what_a_plain_walk_along_its_frontier_gives() -> None:
    points, n = scattered(6, seed=5), 40
    base = Resampled(10.0, generator(1, "test base").normal(10, 1, n))
    for way in (0.3, 0.6, 0.9):
        target = on_the_way(base, max(skill.value for skill, _ in points), way)
        found = retention_at(points, base=base, target=target)
        assert found is not None
        for i in range(n):
            now = [(skill.draws_D[i], min(1.0, kept.draws_D[i])) for skill, kept in points]
            assert found.draws_D[i] == pytest.approx(walk(now, base.draws_D[i], target.draws_D[i]))


def walk(points: list[Pair], base: float, target: float) -> float:
    if max(points)[0] < target:
        return max(points)[1]
    everything = [*points, (base, 1.0)]
    front = sorted(p for p in everything if not any(q != p and q[0] >= p[0] and q[1] >= p[1] for q in everything))
    return float(np.interp(target, [p[0] for p in front], [p[1] for p in front]))


def test_more_skill_asked_for_never_leaves_more_retention() -> None:
    points = [(skill.value, kept.value) for skill, kept in scattered(8, seed=6)]
    targets = np.linspace(10, max(points)[0], 60)
    found = [kept_at(float(target), *points, base=10.0) for target in targets]
    values = [value for value in found if value is not None]
    assert len(values) == 60
    assert all(before >= after - 1e-12 for before, after in pairwise(values))


def test_the_way_leads_from_the_untouched_model_to_the_best_in_every_draw() -> None:
    base = Resampled(10.0, np.array([8.0, 12.0]))
    half = on_the_way(base, 90.0, 0.5)
    assert half.value == 50.0
    assert half.draws_D.tolist() == [49.0, 51.0]
    assert on_the_way(base, 90.0, 0.0) == base
    assert on_the_way(base, 90.0, 1.0).draws_D.tolist() == [90.0, 90.0]


# Seeds


def test_the_mean_over_seeds_draws_the_seeds_anew_in_every_draw_of_items() -> None:
    draws = 2000
    # Whole numbers tell which seeds a draw took, the fraction which draw of items.
    parts = [Resampled(float(v), v + np.arange(draws) / 1e6) for v in (0, 10, 200)]
    found = over_seeds(parts, seed=0)
    assert found.value == pytest.approx(70.0)
    sums = np.round(3 * (found.draws_D - np.arange(draws) / 1e6)).astype(int)
    possible = {a + b + c: 0 for a in (0, 10, 200) for b in (0, 10, 200) for c in (0, 10, 200)}
    assert set(sums.tolist()) == set(possible)
    assert found.draws_D.mean() == pytest.approx(70, abs=5)
    # The variance of a mean of three drawn with replacement is a third of their variance.
    assert found.draws_D.var() == pytest.approx(np.var([0, 10, 200]) / 3, rel=0.1)


def test_every_system_draws_the_same_seeds() -> None:
    random = generator(0, "systems")
    one = [Resampled(v, random.normal(v, 1, 500)) for v in (1.0, 5.0, 9.0)]
    other = [Resampled(part.value + 2, part.draws_D + 2) for part in one]
    gap = difference(over_seeds(one, seed=3), over_seeds(other, seed=3))
    assert (gap.low, gap.high) == pytest.approx((2, 2))
    assert (over_seeds(one, seed=3).draws_D == over_seeds(one, seed=3).draws_D).all()
    assert (over_seeds(one, seed=3).draws_D != over_seeds(one, seed=4).draws_D).any()


def test_one_seed_is_itself() -> None:
    only = Resampled(3.0, np.array([1.0, 2.0]))
    assert over_seeds([only], seed=0) is only


# The choice


def test_the_chosen_points_are_the_best_of_all_subsets() -> None:
    points = [(s.value, k.value) for s, k in scattered(9, seed=7)]
    for count in (1, 2, 3, 4):
        chosen = choose(points, count=count, base=10, end=90)
        areas = [
            share(*(points[i] for i in subset), base=10, end=90) for subset in combinations(range(len(points)), count)
        ]
        assert len(chosen) == count
        assert list(chosen) == sorted(chosen)
        assert share(*(points[i] for i in chosen), base=10, end=90) == pytest.approx(max(areas), abs=1e-9)


def test_the_best_two_need_not_hold_the_best_one() -> None:
    points: list[Pair] = [(50, 0.75), (30, 1.0), (90, 0.41)]
    assert choose(points, count=1, base=0, end=100) == (0,)
    assert choose(points, count=2, base=0, end=100) == (1, 2)


def test_among_equals_the_smaller_indices_win() -> None:
    twins: list[Pair] = [(10, 0.1), (60, 0.5), (60, 0.5), (30, 0.9), (30, 0.9)]
    assert choose(twins, count=2, base=0, end=100) == (1, 3)
    assert choose([(0, 0.5)] * 4, count=2, base=10, end=100) == (0, 1)
    # 0.1 + 0.2 and 0.3 are the same skill but for rounding.
    assert choose([(0.3, 1.0), (0.1 + 0.2, 1.0)], count=1, base=0, end=1) == (0,)


def test_fewer_points_than_asked_for_are_all_taken() -> None:
    assert choose([(5, 0.5), (50, 0.2)], count=4, base=0, end=100) == (0, 1)
    assert choose([(5, 0.5), (50, 0.2)], count=2, base=0, end=100) == (0, 1)
    assert choose([], count=2, base=0, end=100) == ()


def test_of_too_many_subsets_a_good_one_is_found_step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [(s.value, k.value) for s, k in scattered(12, seed=8)]
    exact = choose(points, count=3, base=10, end=90)
    monkeypatch.setattr(frontier, "MOST_SUBSETS", 0)
    stepwise = choose(points, count=3, base=10, end=90)
    assert len(set(stepwise)) == 3
    assert list(stepwise) == sorted(stepwise)
    areas = [share(*(points[i] for i in chosen), base=10, end=90) for chosen in (stepwise, exact)]
    assert (1 - 1 / np.e) * areas[1] <= areas[0] <= areas[1]
    # Greed takes the single best first.
    assert choose([(50, 0.75), (30, 1.0), (90, 0.41)], count=2, base=0, end=100) == (0, 2)
