"""The figures of a comparison: marks where the numbers say, and colours that can be told apart and read."""

import math
import re
from itertools import pairwise

import pytest

from fakes_compare import METHODS, fake_comparison, several, standing_of
from radistill import compare_tables, plots_compare
from radistill.compare_data import Comparison
from radistill.plots import INK, PALETTE


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    return several()


def test_at_most_seven_methods_have_a_colour_and_each_its_own() -> None:
    looks = plots_compare.looks(fake_comparison())
    assert set(looks) == set(METHODS)
    coloured = {name: look for name, look in looks.items() if look["color"] != plots_compare.PALE}
    order = [s.name for s in compare_tables.ranked(fake_comparison()) if s.name not in ("vanilla", "radis")]
    assert set(coloured) == {"vanilla", "radis", *order[:5]}
    assert (
        len({look["color"] for look in coloured.values()}) == len({look["marker"] for look in coloured.values()}) == 7
    )
    assert coloured["radis"]["color"] == PALETTE[0]
    assert coloured["vanilla"]["color"] == INK
    assert [name for name, look in looks.items() if "markerfacecolor" in look] == ["replay"]


def test_points_of_the_frontier_stand_where_both_axes_say(comparison: Comparison) -> None:
    svg = plots_compare.frontiers(comparison).svg
    dots = [
        (float(x), float(y))
        for x, y in re.findall(
            rf'<use xlink:href="#\w+" x="([\d.]+)" y="([\d.]+)" style="fill: {PALETTE[0]}; stroke', svg
        )
    ]
    spots = sorted(standing_of(comparison, "radis").chosen, key=lambda spot: spot.skill.value)
    curve = next(dots[i : i + 4] for i in range(len(dots) - 3) if is_a_curve(dots[i : i + 4]))
    per_point = (curve[3][0] - curve[0][0]) / (spots[3].skill.value - spots[0].skill.value)
    per_share = (curve[3][1] - curve[0][1]) / (spots[0].retention.value - spots[3].retention.value)
    for (x, y), spot in zip(curve, spots, strict=True):
        assert x - curve[0][0] == pytest.approx(per_point * (spot.skill.value - spots[0].skill.value), abs=0.01)
        assert y - curve[0][1] == pytest.approx(per_share * (spots[0].retention.value - spot.retention.value), abs=0.01)


def is_a_curve(dots: list[tuple[float, float]]) -> bool:
    steps = list(pairwise(dots))
    return all(after[0] > before[0] + 20 and after[1] > before[1] + 5 for before, after in steps)


def test_figures_say_their_numbers_in_words(comparison: Comparison) -> None:
    anchor = standing_of(comparison, "anchor")
    volume, at, best = anchor.hypervolume, anchor.retention_at[0.9], compare_tables.at_best(anchor)
    assert at is not None
    assert best is not None
    words = [plots_compare.frontiers, plots_compare.volumes, plots_compare.on_the_way, plots_compare.costs]
    frontier, volumes, way, costs = (draw(comparison).description for draw in words)
    assert f"anchor {volume.value:.3f} [{volume.low:.3f}, {volume.high:.3f}]" in volumes
    assert f"{best.skill.value:.1f}, {best.retention.value:.3f}" in frontier
    assert f"anchor {at.value:.3f} [{at.low:.3f}, {at.high:.3f}]" in way.partition("90 % of the way")[2]
    assert "seqkd not reached" in way
    assert f"anchor: {anchor.cost.processed_tokens:,.0f}" in costs
    heat = plots_compare.heat(comparison)
    assert heat is not None
    assert f"stories {best.abilities['stories']:.2f}" in heat.description


def test_bars_are_as_long_as_their_costs(comparison: Comparison) -> None:
    svg = plots_compare.costs(comparison).svg

    def length(colour: str) -> float:
        bars = re.findall(rf'<path d="M ([\d.]+) [\d.]+ \nL ([\d.]+) [^>]*style="fill: {re.escape(colour)}', svg)
        return max(float(b) - float(a) for a, b in bars)

    radis, vanilla = (standing_of(comparison, name).cost.processed_tokens for name in ("radis", "vanilla"))
    assert length(PALETTE[0]) / length(f"var(--ink, {INK})") == pytest.approx(radis / vanilla, rel=1e-3)


def test_the_heat_maps_colour_grows_with_the_loss_and_ends_at_the_limits() -> None:
    def shade(value: float) -> tuple[str, float]:
        colour, opacity = plots_compare._shade(value)["facecolor"]
        return colour, opacity

    assert shade(1.0)[1] == 0.0
    opacities = [shade(value)[1] for value in (0.95, 0.7, 0.4, 0.0)]
    assert opacities == sorted(opacities)
    assert shade(0.0) == shade(-0.7) == (PALETTE[1], plots_compare.DEEPEST)
    assert shade(1.2) == shade(1.9) == (PALETTE[0], plots_compare.DEEPEST)
    assert shade(1.1)[1] == pytest.approx(plots_compare.DEEPEST / 2)


def test_the_numbers_of_the_heat_map_can_be_read_on_every_shade_of_both_pages() -> None:
    for page, ink in (("#ffffff", "#1b1f24"), ("#101418", "#e4e9ee")):
        for colour in PALETTE[:2]:
            for share in range(5):
                mixed = mix(colour, page, plots_compare.DEEPEST * share / 4)
                assert contrast(ink, mixed) >= 3, (page, colour, share)
        assert contrast(plots_compare.PALE, page) >= 2.5


def mix(colour: str, ground: str, share: float) -> str:
    pairs = [(int(colour[i : i + 2], 16), int(ground[i : i + 2], 16)) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(share * a + (1 - share) * b):02x}" for a, b in pairs)


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    r, g, b = (c / 12.92 if c <= 0.04045 else math.pow((c + 0.055) / 1.055, 2.4) for c in channels)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b
