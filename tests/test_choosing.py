"""Which evaluation is the best, and when patience has run out: by hand."""

import pytest

from radistill.choosing import Choice, Criterion, Metric, Point, point_of


def points(*pairs: tuple[float | None, float | None]) -> list[Point]:
    return [Point(step=10 * n, skill=skill, retention=kept) for n, (skill, kept) in enumerate(pairs, start=1)]


def choice(
    metric: Metric = "both", rate: float = 1.0, patience: int | None = None, by: Criterion = "frontier"
) -> Choice:
    return Choice(metric=metric, exchange_rate=rate, patience=patience, criterion=by)


UNTOUCHED = Point(step=0, skill=20.0, retention=1.0)
RUN = points((30.0, 0.9), (40.0, 0.8), (42.0, 0.6), (41.0, 0.5))


@pytest.mark.parametrize(
    ("metric", "rate", "step"),
    [
        ("skill", 1.0, 30),
        ("retention", 1.0, 10),
        ("both", 0.0, 30),
        ("both", 0.05, 30),
        ("both", 0.5, 20),
        ("both", 2.0, 10),
    ],
)
def test_the_best_is_the_highest_score_by_skill_retention_or_both_at_a_rate(
    metric: Metric, rate: float, step: int
) -> None:
    best = choice(metric, rate).best(RUN)
    assert best is not None
    assert best.step == step


def test_a_rate_of_two_makes_a_hundredth_of_retention_worth_two_points() -> None:
    even = points((30.0, 0.90), (28.0, 0.91))
    assert choice(rate=2.0).score(even[0]) == pytest.approx(choice(rate=2.0).score(even[1])) == pytest.approx(210.0)


def test_of_equal_scores_the_first_is_the_best() -> None:
    best = choice().best(points((30.0, 0.9), (30.0, 0.9)))
    assert best is not None
    assert best.step == 10
    assert choice().best([]) is None


@pytest.mark.parametrize(
    ("run", "count"),
    [
        (points((30.0, 0.9)), 0),
        (points((30.0, 0.9), (30.0, 0.9)), 1),  # equal is no progress
        (points((30.0, 0.9), (29.0, 0.95)), 0),  # worse in one, better in the other
        (points((30.0, 0.9), (29.0, 0.9), (28.0, 0.8)), 2),
        (points((30.0, 0.9), (29.0, 0.8), (31.0, 0.1), (30.5, 0.05)), 1),  # a new point of the frontier starts anew
        (points((20.0, 1.0)), 1),  # no better than the untouched model
        (points((19.0, 0.5), (18.0, 0.4)), 2),
    ],
)
def test_progress_on_the_frontier_is_what_nothing_before_is_as_good_as_in_both(run: list[Point], count: int) -> None:
    assert choice().without_progress(run, UNTOUCHED) == count
    assert choice(patience=2).should_stop(run, UNTOUCHED) is (count >= 2)
    assert not choice(patience=None).should_stop(run, UNTOUCHED)


def test_by_score_a_point_of_the_frontier_may_be_no_progress() -> None:
    run = points((30.0, 0.9), (31.0, 0.5), (32.0, 0.4))
    assert choice(by="frontier").without_progress(run, UNTOUCHED) == 0
    assert choice(by="score").without_progress(run, UNTOUCHED) == 2
    assert choice(by="score", rate=0.01).without_progress(run, UNTOUCHED) == 0


def test_what_was_not_measured_does_not_count() -> None:
    run = points((30.0, None), (29.0, None), (31.0, None))
    untouched = Point(step=0, skill=20.0, retention=None)
    assert [choice("skill").without_progress(run[:n], untouched) for n in (1, 2, 3)] == [0, 1, 0]


def test_a_line_of_the_log_gives_the_point_back() -> None:
    row = {"step": 7, "eval_score": 120.0, "eval_skill": 30.123456789, "eval_retention": 0.9}
    assert point_of(row) == Point(step=7, skill=30.123456789, retention=0.9)
    assert point_of({"step": 7, "loss": 1.0}) is None
