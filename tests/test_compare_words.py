"""What a comparison says: sentences and tables that follow from the numbers and claim no more than they show."""

import re
from dataclasses import replace

import pytest

from fakes_compare import only, several, standing_of, with_volume
from radistill import compare_tables, compare_words, report_text, stats
from radistill.compare_data import SHARES_OF_WAY, Comparison
from radistill.compare_data import Test as Difference


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    return several()


# The sentences


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        ((0.8, 0.75, 0.85), (0.6, 0.5, 0.7), "Its interval lies above that of the second, kl, 0.600 [0.500, 0.700]."),
        (
            (0.8, 0.65, 0.85),
            (0.6, 0.5, 0.7),
            "Its interval lies above the value of the second, kl, 0.600 [0.500, 0.700], but the two intervals overlap: "
            "which of the two is better cannot be told.",
        ),
        (
            (0.8, 0.55, 0.85),
            (0.6, 0.5, 0.7),
            "Its interval lies not above the value of the second, kl, 0.600 [0.500, 0.700], and the two intervals "
            "overlap: which of the two is better cannot be told.",
        ),
    ],
)
def test_a_lead_is_called_one_only_if_the_intervals_say_so(
    first: tuple[float, float, float], second: tuple[float, float, float], said: str
) -> None:
    found = compare_words.summary(with_volume(only("kl", "ewc"), kl=second, ewc=first))
    low, high = first[1:]
    start = f"Of 2 methods, ewc has the largest hypervolume, 0.800 [{low:.3f}, {high:.3f}]."
    assert found[0] == f"{start} {said} ewc brings no data from outside."


def paired_test(rival: str, difference: float, half: float, p: float) -> Difference:
    paired = stats.Paired(difference, difference - half, difference + half, p)
    return Difference(rival=rival, what="hypervolume", paired=paired, p_holm=p)


def told_of(test: Difference, *, of: str = "radis") -> list[str]:
    """The sentences where radis and vanilla overlap and one of them has this test."""
    found = with_volume(only("vanilla", "radis"), vanilla=(0.6, 0.5, 0.7), radis=(0.65, 0.55, 0.75))
    standings = tuple(replace(s, tests=(test,)) if s.name == of else s for s in found.standings)
    return compare_words.summary(replace(found, standings=standings))


def test_a_paired_test_decides_where_intervals_overlap() -> None:
    said = told_of(paired_test("vanilla", 0.05, 0.02, 0.004))
    assert (
        "overlap; yet on the same items and seeds the difference is +0.050 [+0.030, +0.070] with p = 0.004: " in said[0]
    )
    assert said[0].endswith(": radis is better. radis brings no data from outside.")
    assert said[1].startswith(
        "radis has a hypervolume of 0.650 [0.550, 0.750], vanilla of 0.600 [0.500, 0.700]; on the "
    )
    assert said[1].endswith("is +0.050 [+0.030, +0.070] with p = 0.004: radis is better.")
    assert said[2] == "Hypervolume is smaller than radis's for vanilla."
    for half, p in ((0.06, 0.004), (0.02, 0.06)):
        said = told_of(paired_test("vanilla", 0.05, half, p))
        assert "which of the two is better cannot be told" in said[0]
        assert said[1].endswith("which of the two is better cannot be told.")
        assert said[2] == "Hypervolume is not to be told apart from radis's for vanilla."


def test_a_test_that_the_rival_holds_is_turned_around() -> None:
    said = told_of(paired_test("radis", 0.05, 0.02, 0.0004), of="vanilla")
    assert said[1].endswith("is −0.050 [−0.070, −0.030] with p < 0.001: vanilla is better.")
    assert said[2] == "Hypervolume is larger than radis's for vanilla."
    assert "which of the two is better cannot be told" in said[0]  # the larger one is not the better one


def test_radis_against_vanilla_is_also_told_at_their_best_configurations(comparison: Comparison) -> None:
    said = compare_words.summary(comparison)
    assert re.search(
        r"At their best configurations the difference is −2\.0 \[−\d\.\d, \+\d\.\d\] with p = \d\.\d{3} in BLEU on "
        r"translation \(not shown\) and \+0\.154 \[\+0\.\d+, \+0\.\d+\] with p = 0\.\d{3} in retention \(shown\)\.",
        said[2],
    )
    assert len(compare_words.summary(only("vanilla", "kl"))) == 2
    without = [replace(s, tests=()) for s in only("vanilla", "radis").standings]
    apart = compare_words.summary(only("vanilla", "radis", standings=tuple(without)))
    assert apart[1].endswith(": radis is better.")  # by intervals that lie apart


def test_a_method_with_outside_data_is_not_the_best_of_those_without() -> None:
    bands = {"replay": (0.9, 0.88, 0.92), "kl": (0.8, 0.78, 0.82), "ewc": (0.7, 0.68, 0.72)}
    said = compare_words.summary(with_volume(only("kl", "replay", "ewc"), **bands))
    assert said[0].startswith("Of 3 methods, replay has the largest hypervolume")
    assert "brings no data" not in said[0]
    assert said[1] == (
        "Of the 2 methods that bring no data from outside, kl has the largest hypervolume, 0.800 [0.780, 0.820]. "
        "Its interval lies above that of the second, ewc, 0.700 [0.680, 0.720]."
    )
    between = {**bands, "replay": (0.75, 0.74, 0.76)}
    said = compare_words.summary(with_volume(only("kl", "replay", "ewc"), **between))
    assert "the second, replay" in said[0]
    assert said[1] == (
        "kl brings no data from outside. Its interval lies above that of the next one that brings none, ewc, "
        "0.700 [0.680, 0.720]."
    )
    alone = compare_words.summary(with_volume(only("kl", "replay"), replay=(0.9, 0.88, 0.92), kl=(0.8, 0.7, 0.85)))
    assert alone[1] == (
        "Of the 1 method that brings no data from outside, kl has the largest hypervolume, 0.800 [0.700, 0.850]."
    )


def test_what_is_kept_on_the_way_is_told_of_the_best_of_vanilla_and_of_radis() -> None:
    found = only("vanilla", "radis", "anchor", "seqkd")
    at = stats.Interval(0.98, 0.97, 0.99)
    changed = [replace(s, retention_at={0.5: at, 0.75: None, 0.9: None}) if s.name == "radis" else s
               for s in found.standings]  # fmt: skip
    changed = [replace(s, retention_at=dict.fromkeys(SHARES_OF_WAY)) if s.name == "vanilla" else s for s in changed]
    said = compare_words.summary(replace(found, standings=tuple(changed)))[-1]
    assert said.startswith("At 50 %, 75 % and 90 % of the way from the untouched model to the best new skill")
    assert re.search(r"\(52\.8, 73\.8 and 86\.4 BLEU on translation\), anchor retains 0\.9\d\d \[", said)
    assert "radis retains 0.980 [0.970, 0.990], and does not come further" in said
    assert "vanilla retains nothing that could be read off: it does not come so far" in said
    assert said.count("retains") == 3


# The tables


def test_radis_is_held_against_vanilla_at_each_of_its_learning_rates(comparison: Comparison) -> None:
    table = compare_tables.at_each_dial(comparison)
    assert table is not None
    ours = compare_tables.at_best(standing_of(comparison, "radis"))
    assert ours is not None
    rates = ("0.0003", "0.0005", "0.001", "0.002")
    assert [row[0] for row in table.rows] == [f"learning_rate: {rate}" for rate in rates]  # not what they all set
    p = []
    for row, spot in zip(table.rows, standing_of(comparison, "vanilla").spots, strict=True):
        gap = stats.difference(spot.retention, ours.retention)
        p.append(gap.p_value)
        assert row[4].startswith(report_text.signed(ours.retention.value - spot.retention.value, 3))
    holm = stats.holm({str(i): value for i, value in enumerate(p)})
    assert [row[5] for row in table.rows] == [report_text.p_value(value) for value in holm.values()]
    assert table.rows[0][1] == "more skill, less retention"
    assert table.rows[3][1] == "less skill, more retention"
    assert compare_tables.at_each_dial(only("vanilla", "kl")) is None
    assert compare_tables.at_each_dial(only("radis")) is None


def test_a_difference_counts_only_if_interval_and_p_say_so() -> None:
    def shown(low: float, high: float, p: float) -> bool:
        return compare_tables.is_shown(stats.Paired((low + high) / 2, low, high, 0.001), p)

    assert [shown(0.1, 0.2, 0.04), shown(-0.2, -0.1, 0.04)] == [True, True]
    assert [shown(-0.1, 0.2, 0.04), shown(0.1, 0.2, 0.06)] == [False, False]


def test_methods_stand_in_the_order_of_their_hypervolume(comparison: Comparison) -> None:
    order = [s.name for s in compare_tables.ranked(comparison)]
    assert order[0] == "anchor"
    values = [standing_of(comparison, name).hypervolume.value for name in order]
    assert values == sorted(values, reverse=True)
    tables = (compare_tables.hypervolumes(comparison), compare_tables.on_the_way(comparison))
    for table in (*tables, compare_tables.abilities(comparison), compare_tables.costs(comparison)):
        assert [row[0] for row in table.rows] == order
    assert [row[1] for row in tables[0].rows if row[0] in ("radis", "replay", "seqkd")] == ["outside data", "ours", "–"]
    against = compare_tables.tests(comparison, "vanilla")
    assert against is not None
    assert [row[0] for row in against.rows] == [name for name in order if name != "vanilla"]
    assert {row[0]: row[1] for row in against.rows}["anchor"] == "larger"
    assert {row[0]: row[1] for row in against.rows}["seqkd"] == "smaller"
    assert compare_tables.rivals(comparison) == ["vanilla", "radis"]
    assert compare_tables.tests(comparison, "nobody") is None
