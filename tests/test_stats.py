"""Intervals cover, pairs are paired, verdicts follow their rule."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from radistill import stats
from radistill.seeds import generator
from radistill.stats import Interval, Resampled


def percent(total_K: NDArray[np.float64]) -> float:
    return float(100 * total_K[0] / total_K[1])


def answers(share: float, n: int, *purpose: object) -> NDArray[np.float64]:
    right = generator(0, "test", *purpose).random(n) < share
    return np.stack([right, np.ones(n)], axis=1).astype(np.float64)


# Draws


def test_every_draw_takes_as_many_items_as_there_are() -> None:
    counts = stats.draw(37, seed=1, draws=200)
    assert counts.shape == (200, 37)
    assert (counts.sum(axis=1) == 37).all()
    # Each item is taken once on average; 200 x 37 Poisson-like counts have a standard error of 0.07 per item.
    assert np.abs(counts.mean(axis=0) - 1).max() < 0.35


def test_draws_depend_on_seed_name_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    first = stats.draw(50, seed=1, name="t/de-en", draws=40)
    np.testing.assert_array_equal(first, stats.draw(50, seed=1, name="t/de-en", draws=40))
    np.testing.assert_array_equal(first[:7], stats.draw(50, seed=1, name="t/de-en", draws=7))
    assert (first != stats.draw(50, seed=2, name="t/de-en", draws=40)).any()
    assert (first != stats.draw(50, seed=1, name="t/en-de", draws=40)).any()
    rows = answers(0.5, 50, "blocks")
    whole = stats.resample(rows, percent, first)
    monkeypatch.setattr(stats, "BLOCK", 120)
    np.testing.assert_array_equal(first, stats.draw(50, seed=1, name="t/de-en", draws=40))
    np.testing.assert_array_equal(whole.draws_D, stats.resample(rows, percent, first).draws_D)


def test_a_draw_is_the_score_of_the_items_it_took() -> None:
    rows = answers(0.4, 30, "rows")
    counts = stats.draw(30, seed=0, draws=5)
    found = stats.resample(rows, percent, counts)
    taken = [percent(np.repeat(rows, c, axis=0).sum(axis=0)) for c in counts]
    np.testing.assert_allclose(found.draws_D, taken)
    assert found.value == percent(rows.sum(axis=0))


# Intervals


def test_the_bootstrap_interval_of_a_mean_is_the_textbook_one() -> None:
    rows = answers(0.4, 900, "mean")
    found = stats.bootstrap(rows, percent, seed=0, draws=4000)
    p = rows[:, 0].mean()
    half = 100 * 1.96 * math.sqrt(p * (1 - p) / 900)
    assert found.value == pytest.approx(100 * p)
    assert found.high - found.value == pytest.approx(half, rel=0.08)
    assert found.value - found.low == pytest.approx(half, rel=0.08)


def test_ninety_five_percent_intervals_cover_the_truth_in_ninety_five_percent_of_samples() -> None:
    trials = 400
    in_bootstrap = in_wilson = in_difference = in_macro = 0
    for trial in range(trials):
        one, other = answers(0.3, 120, "a", trial), answers(0.6, 120, "b", trial)
        found = stats.bootstrap(one, percent, seed=trial, draws=300)
        in_bootstrap += found.low <= 30 <= found.high
        share = stats.wilson(int(one[:, 0].sum()), 120)
        in_wilson += share.low <= 0.3 <= share.high
        paired = stats.paired(one, other, percent, seed=trial, draws=300)
        in_difference += paired.low <= 30 <= paired.high
        parts = [
            stats.resample(rows, percent, stats.draw(120, seed=trial, name=name, draws=300))
            for name, rows in (("a", one), ("b", other))
        ]
        macro = stats.mean_of(parts).interval()
        in_macro += macro.low <= 45 <= macro.high
    # 400 samples of 0.95 have a standard error of 0.011.
    for hits in (in_bootstrap, in_wilson, in_difference, in_macro):
        assert 0.91 <= hits / trials <= 0.985


def test_a_stratified_macro_is_narrower_than_its_parts_and_unweighted() -> None:
    sizes = {"big": 900, "small": 100}
    parts = {
        name: stats.resample(answers(0.5, n, name), percent, stats.draw(n, seed=0, name=name))
        for name, n in sizes.items()
    }
    macro = stats.mean_of(list(parts.values()))
    assert macro.value == pytest.approx((parts["big"].value + parts["small"].value) / 2)
    spread = {name: part.draws_D.std() for name, part in parts.items()}
    assert macro.draws_D.std() == pytest.approx(math.hypot(spread["big"], spread["small"]) / 2, rel=0.1)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    # Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_intervals_are_those_of_the_textbook(successes: int, n: int, low: float, high: float) -> None:
    found = stats.wilson(successes, n)
    assert found.value == successes / n
    assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize("n", [15, 100, 2037])
def test_no_failure_in_n_trials_is_held_to_the_rule_of_three(n: int) -> None:
    found = stats.wilson(0, n)
    assert found.low == 0
    assert 3 / n <= found.high <= 4 / n


def test_the_mean_of_one_proportion_is_itself_and_of_several_is_narrower() -> None:
    one = stats.wilson(3, 50)
    assert stats.mean_of_proportions([one]) == one
    four = stats.mean_of_proportions([one] * 4)
    assert four.value == pytest.approx(one.value)
    assert four.high - four.low == pytest.approx((one.high - one.low) / 2)
    assert stats.mean_of_proportions([stats.wilson(0, 9)] * 3).low == 0


# Differences


def test_the_same_answers_differ_by_nothing_and_p_is_one() -> None:
    rows = answers(0.5, 200, "same")
    assert stats.paired(rows, rows, percent, seed=0) == stats.Paired(0.0, 0.0, 0.0, 1.0)


def test_pairing_takes_out_what_the_items_have_in_common() -> None:
    before = answers(0.5, 400, "before")
    after = before.copy()
    after[np.flatnonzero(before[:, 0] == 0)[:12], 0] = 1
    paired = stats.paired(before, after, percent, seed=0)
    assert paired.difference == pytest.approx(3.0)
    assert paired.low > 0
    assert paired.p_value < 0.01
    # Unpaired, the same 3 points drown in the noise of 400 items.
    shuffled = after[generator(0, "test", "shuffle").permutation(400)]
    assert stats.paired(before, shuffled, percent, seed=0).p_value > 0.1


def test_the_difference_is_after_minus_before() -> None:
    worse = stats.paired(answers(0.9, 300, "x"), answers(0.5, 300, "y"), percent, seed=0)
    assert worse.high < 0
    assert worse.p_value == pytest.approx(1 / 1001)


def test_false_alarms_are_as_rare_as_p_says() -> None:
    p_values = [
        stats.paired(answers(0.5, 80, "n", t), answers(0.5, 80, "m", t), percent, seed=t, draws=200).p_value
        for t in range(300)
    ]
    assert 0.02 <= np.mean(np.array(p_values) <= 0.05) <= 0.09
    assert 0.4 <= np.mean(p_values) <= 0.6


def test_holm_is_the_textbooks() -> None:
    # By hand: 4 x 0.005, 3 x 0.01, 2 x 0.03, and 1 x 0.04, which may not fall under the one before it.
    assert stats.holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}) == pytest.approx(
        {"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02}
    )
    assert list(stats.holm({"z": 0.9, "a": 0.8})) == ["z", "a"]
    assert stats.holm({"z": 0.9, "a": 0.8}) == {"z": 1.0, "a": 1.0}
    assert stats.holm({}) == {}


# Retention


def of(value: float, *draws: float) -> Resampled:
    return Resampled(value, np.array(draws or (value, value)))


def test_retention_is_counted_from_the_chance_level() -> None:
    found = stats.retention(of(75.0), of(50.0), chance=25.0, margin=0.02)
    assert found.value == pytest.approx(0.5)
    assert (found.before, found.after, found.chance) == (75.0, 50.0, 25.0)
    assert found.verdict == "lost"


def test_an_ability_near_the_chance_level_is_not_measurable() -> None:
    found = stats.retention(of(34.9), of(34.9), chance=25.0, margin=0.02)
    assert (found.value, found.low, found.high, found.verdict) == (None, None, None, "not measurable")
    assert stats.retention(of(35.0), of(35.0), chance=25.0, margin=0.02).value == 1.0


def test_a_tuned_model_that_answers_as_before_retains_everything() -> None:
    rows = answers(0.7, 60, "retained")
    same = stats.resample(rows, percent, stats.draw(60, seed=0))
    found = stats.retention(same, same, margin=0.0)
    assert (found.value, found.low, found.high, found.verdict) == (1.0, 1.0, 1.0, "retained")


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.99, 1.01, "retained"),
        (0.98, 0.995, "retained"),
        (0.9, 1.1, "inconclusive"),
        (0.9, 0.98, "inconclusive"),
        (0.9, 0.979, "lost"),
        (1.01, 1.2, "retained"),
        (1.021, 1.2, "improved"),
    ],
)
def test_a_verdict_is_about_the_margin(low: float, high: float, verdict: str) -> None:
    assert stats.verdict(low, high, margin=0.02) == verdict


def test_a_loss_that_is_merely_not_significant_is_not_retained() -> None:
    before, after = answers(0.6, 40, "few"), answers(0.55, 40, "few too")
    counts = stats.draw(40, seed=0)
    found = stats.retention(
        stats.resample(before, percent, counts), stats.resample(after, percent, counts), margin=0.02
    )
    assert found.verdict == "inconclusive"


def test_retention_is_paired() -> None:
    before = answers(0.6, 200, "pairs")
    after = before.copy()
    after[np.flatnonzero(before[:, 0])[:2], 0] = 0
    drawn = stats.draw(200, seed=0)
    found = stats.retention(stats.resample(before, percent, drawn), stats.resample(after, percent, drawn), margin=0.05)
    assert found.verdict == "retained"
    other = stats.resample(after, percent, stats.draw(200, seed=1))
    assert stats.retention(stats.resample(before, percent, drawn), other, margin=0.05).verdict == "inconclusive"


def test_a_draw_that_leaves_nothing_to_divide_by_keeps_the_interval_finite() -> None:
    found = stats.retention(of(20.0, 0.0, 20.0, 20.0), of(20.0, 20.0, 20.0, 20.0), margin=0.02)
    assert found.high is not None
    assert 1 < found.high <= 20


def test_the_macro_clips_gains_and_shows_the_worst() -> None:
    abilities = {
        "arithmetic": stats.retention(of(50.0), of(100.0), margin=0.02),
        "stories": stats.retention(of(80.0), of(40.0), margin=0.02),
        "poems": stats.retention(of(4.0), of(0.0), margin=0.02),
    }
    found = stats.macro_retention(abilities)
    assert found is not None
    assert found.value == pytest.approx(0.75)
    assert found.unclipped == Interval(1.25, 1.25, 1.25)
    assert (found.worst, found.worst_value) == ("stories", 0.5)
    assert (found.n_abilities, found.not_measurable) == (2, ("poems",))
    assert stats.macro_retention({"poems": abilities["poems"]}) is None


def test_the_macro_interval_holds_the_value_of_a_model_that_lost_nothing() -> None:
    def ability(number: int) -> stats.Retention:
        before, after = answers(0.7, 100, "macro", number), answers(0.7, 100, "macro after", number)
        after[:, 0] = generator(0, "test", number).permutation(before[:, 0])
        drawn = stats.draw(100, seed=0, name=str(number))
        return stats.retention(
            stats.resample(before, percent, drawn), stats.resample(after, percent, drawn), margin=0.02
        )

    found = stats.macro_retention({str(number): ability(number) for number in range(20)})
    assert found is not None
    assert found.value == pytest.approx(1.0)
    assert found.low < found.value <= found.high <= 1.0
    assert found.low > 0.9
    assert found.unclipped.low < 1 < found.unclipped.high
