"""Figures: the numbers stand where they should, nothing reaches out, and everybody can read them."""

import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from importlib.resources import files
from typing import Any

import matplotlib as mpl
import pytest

from radistill.plots import ORIGINS, PALETTE, Drawing, Estimate, Point, against, intervals, losses, shares

SVG = "{http://www.w3.org/2000/svg}"
HREF = "{http://www.w3.org/1999/xlink}href"
HOSTILE = 'a$x^{2$ _b <script>alert(1)</script> --> \u202e\x07 "q" 中文'


def estimate(system: str, row: str, value: float, half: float = 2.0) -> Estimate:
    return Estimate(system=system, row=row, value=value, low=value - half, high=value + half)


def skill(*systems: str) -> Drawing:
    found = [
        estimate(s, row, v + i)
        for row, v in (("de-en", 20.0), ("en-de", 30.0))
        for i, s in enumerate(("base", *systems))
    ]
    return intervals("skill", found, title="BLEU", unit="BLEU, points of 100")


def loss(points: int = 12) -> Drawing:
    curve = [(10.0 * i, 2.0 * math.exp(-i / 5) + 1) for i in range(points)]
    return losses("loss", {"radis": {"reference": curve, "rationale": curve}}, title="Loss")


def parts() -> Drawing:
    return shares("shares", {"learned": {"reference": 30, "rationale": 90}, "read": {"prompt": 1}}, title="Tokens")


def point(system: str, x: float, y: float, half: float = 0.05) -> Point:
    return Point(system=system, x=x, x_low=x - half, x_high=x + half, y=y, y_low=y - 100 * half, y_high=y + 100 * half)


def kept(*points: Point) -> Drawing:
    found = [point("base", 1.0, 10.0, 0.0), *points]
    return against("kept", found, title="Skill and retention", x_unit="retention", y_unit="BLEU")


def two_kept() -> Drawing:
    return kept(point("radis", 0.9, 50.0), point("vanilla", 0.7, 60.0))


ALL: list[Callable[[], Drawing]] = [lambda: skill("radis"), loss, parts, two_kept]


@pytest.mark.parametrize("draw", ALL)
def test_the_same_numbers_give_the_same_bytes(draw: Callable[[], Drawing]) -> None:
    first, second = draw(), draw()
    assert first.svg == second.svg
    assert first.inline == second.inline
    assert not re.search(r"<(dc|cc|rdf):|Matplotlib|\d{4}-\d\d-\d\d", first.svg)


@pytest.mark.parametrize("draw", ALL)
def test_a_figure_names_itself_for_those_who_do_not_see_it(draw: Callable[[], Drawing]) -> None:
    drawing = draw()
    for text in (drawing.svg[drawing.svg.index("<svg") :], drawing.inline):
        root = ET.fromstring(text)
        prefix = SVG if root.tag.startswith("{") else ""
        words = {e.get("id"): e.text for e in root if e.tag in (f"{prefix}title", f"{prefix}desc")}
        assert root.get("role") == "img"
        assert [words[i] for i in str(root.get("aria-labelledby")).split()] == [drawing.title, drawing.description]


@pytest.mark.parametrize("draw", ALL)
def test_an_inlined_figure_holds_no_address_and_no_rule_for_the_page(draw: Callable[[], Drawing]) -> None:
    inline = draw().inline
    assert "//" not in inline
    assert "<style" not in inline
    assert "<!--" not in inline
    assert inline.startswith("<svg")


def test_figures_on_one_page_share_no_id_and_every_reference_resolves() -> None:
    ids: list[str] = []
    for drawing in (skill("radis"), loss(), parts(), two_kept()):
        mine = re.findall(r'\bid="([^"]*)"', drawing.inline)
        targets = re.findall(r'href="#([^"]*)"|url\(#([^)]*)\)', drawing.inline)
        assert targets
        assert {a or b for a, b in targets} <= set(mine)
        ids += mine
    assert len(ids) == len(set(ids))


def test_values_and_intervals_stand_where_the_axis_says() -> None:
    found = [estimate("radis", "a", 10.0, 4.0), estimate("radis", "b", 20.0, 2.0), estimate("radis", "c", 40.0, 8.0)]
    svg = intervals("x", found, title="t", unit="u").svg
    # The first use of the marker is in the legend's place order: take those of the axes, one per row.
    dots = [float(x) for x in re.findall(r'<use xlink:href="#m\w+" x="([\d.]+)" y="[\d.]+" style="fill: #0072b2', svg)]
    dots = sorted(dots)[-3:]
    per_point = (dots[2] - dots[1]) / 20
    assert dots[1] - dots[0] == pytest.approx(10 * per_point, abs=0.01)
    lines = re.findall(r'<path d="M ([\d.]+) ([\d.]+) \nL ([\d.]+) \2 \n" [^>]*style="[^"]*stroke: #0072b2', svg)
    ends = sorted((float(a), float(b)) for a, _, b in lines)[-3:]
    for dot, (low, high), half in zip(dots, ends, (4, 2, 8), strict=True):
        assert [dot - low, high - dot] == pytest.approx([half * per_point] * 2, abs=0.01)


def test_points_stand_where_both_axes_say_and_the_untouched_model_is_marked() -> None:
    svg = kept(point("a", 0.9, 50.0), point("b", 0.7, 60.0), point("c", 0.8, 20.0)).svg
    places = {}
    for colour in PALETTE[:3]:
        dots = re.findall(rf'<use xlink:href="#\w+" x="([\d.]+)" y="([\d.]+)" style="fill: {colour}', svg)
        places[colour] = max((float(x), float(y)) for x, y in dots if float(y) > 40)
    (ax, ay), (bx, by), (cx, cy) = (places[colour] for colour in PALETTE[:3])
    assert ax - bx == pytest.approx(2 * (ax - cx), abs=0.01)
    assert ax > cx > bx
    assert cy - by == pytest.approx(4 * (ay - by), abs=0.01)
    assert by < ay < cy  # y grows downwards
    across = re.findall(rf'<path d="M ([\d.]+) ([\d.]+) \nL ([\d.]+) \2 \n" [^>]*stroke: {PALETTE[0]}', svg)
    (left, _, right) = map(float, next(a for a in across if float(a[1]) == pytest.approx(ay, abs=0.01)))
    assert [ax - left, right - ax] == pytest.approx([(ax - bx) / 4] * 2, abs=0.01)
    # Dotted lines cross at the untouched model, and nowhere else.
    assert len(re.findall(r"stroke-dasharray: 0\.8,2\.4", svg)) == 2


def test_half_of_the_whole_is_in_view_however_little_was_lost() -> None:
    def x_of(drawing: Drawing) -> float:
        dots = re.findall(rf'<use xlink:href="#\w+" x="([\d.]+)" y="([\d.]+)" style="fill: {PALETTE[0]}', drawing.svg)
        return max(float(x) for x, y in dots if float(y) > 40)

    near, far = kept(point("a", 0.99, 50.0, 0.001)), kept(point("a", 0.2, 50.0))
    assert x_of(near) > 450 > 150 > x_of(far)
    assert kept(point("a", -0.3, 50.0)).svg  # worse than a guesser


def test_two_figures_of_one_span_have_one_axis_and_keep_their_colours() -> None:
    def place_of_fifty(*others: float, **options: Any) -> float:
        found = [estimate("radis", f"r{i}", value) for i, value in enumerate((50.0, *others))]
        svg = intervals("x", found, title="t", unit="u", **options).svg
        dots = re.findall(rf'<use xlink:href="#\w+" x="([\d.]+)" y="([\d.]+)" style="fill: {PALETTE[0]}', svg)
        return float(sorted(dots, key=lambda dot: float(dot[1]))[1][0])  # the first is the legend's

    assert place_of_fifty(40.0, span=(0, 100)) == pytest.approx(place_of_fifty(90.0, span=(0, 100)), abs=0.01)
    assert place_of_fifty(40.0) > place_of_fifty(90.0) + 50
    alone = intervals("x", [estimate("b", "r", 1.0)], title="t", unit="u", systems=("base", "a", "b"))
    assert PALETTE[1] in alone.svg
    assert PALETTE[0] not in alone.svg


def test_bars_are_as_long_as_their_shares() -> None:
    svg = parts().svg
    widths = {}
    for origin in ("reference", "rationale", "prompt"):
        bars = re.findall(rf'<path d="M ([\d.]+) [\d.]+ \nL ([\d.]+) [^>]*style="fill: {ORIGINS[origin]}', svg)
        widths[origin] = max(float(b) - float(a) for a, b in bars)
    assert widths["rationale"] == pytest.approx(3 * widths["reference"], rel=1e-3)
    assert widths["prompt"] == pytest.approx(widths["rationale"] + widths["reference"], rel=1e-3)


def test_a_loss_curve_falls_as_the_loss_falls_and_a_long_one_keeps_its_noise() -> None:
    def paths(svg: str) -> list[list[tuple[float, float]]]:
        found = re.findall(rf'<path d="([^"]*)" [^>]*style="[^"]*stroke: {ORIGINS["reference"]}', svg)
        return [[(float(x), float(y)) for x, y in re.findall(r"[ML] ([\d.]+) ([\d.]+)", d)] for d in found]

    short = max(paths(loss(12).svg), key=len)
    assert short[0][1] < short[-1][1]  # y grows downwards
    assert short[0][0] < short[-1][0]
    assert len([p for p in paths(loss(120).svg) if len(p) > 20]) == 2


def test_words_say_what_the_figure_shows() -> None:
    assert "de-en, radis: 21.0 [19.0, 23.0]" in skill("radis").description
    assert "radis, reference: 3.00 at step 0" in loss().description
    assert "learned: reference 25.0 %, rationale 75.0 %" in parts().description
    assert "radis: retention 0.900 [0.850, 0.950], BLEU 50.0 [45.0, 55.0]" in two_kept().description


def test_a_strange_run_name_is_only_a_name() -> None:
    for drawing in (
        skill(HOSTILE),
        losses("l", {HOSTILE: {HOSTILE: [(1, 2.0)]}}, title=HOSTILE),
        shares("s", {HOSTILE: {HOSTILE: 1, "end": 0}}, title=HOSTILE),
        against("m", [point(HOSTILE, 0.5, 10.0)], title=HOSTILE, x_unit=HOSTILE, y_unit=HOSTILE),
    ):
        root = ET.fromstring(drawing.inline)
        assert {e.tag for e in root.iter()} <= {"svg", "title", "desc", "g", "defs", "path", "use", "clipPath", "rect"}
        assert "\u202e" not in drawing.svg
        assert "\x07" not in drawing.svg


def test_a_name_that_starts_with_an_underscore_is_in_the_legend() -> None:
    def texts(name: str) -> int:
        return len(re.findall(r'<g id="text_\d+"', skill(name).svg))

    assert texts("_radis") == texts("radis")


def test_long_names_take_more_rows_of_the_legend() -> None:
    def legend_rows(length: int) -> int:
        names = [f"{i}{'n' * length}" for i in range(6)]
        svg = kept(*(point(name, 0.9, 10.0 * i) for i, name in enumerate(names))).svg
        legend = svg[svg.index('<g id="legend_1">') :]
        return len(set(re.findall(r'<use xlink:href="#\w+" x="[\d.]+" y="([\d.]+)" style="fill', legend)))

    assert [legend_rows(length) for length in (3, 20, 34)] == [2, 3, 4]


def test_ink_follows_the_page_and_data_keep_their_colours() -> None:
    inline = skill("radis").inline
    assert "var(--ink, #1b1f24)" in inline
    assert "var(--panel, #fefefe)" in inline
    assert not re.search(r"(?<!, )#1b1f24", inline)
    assert PALETTE[0] in inline


def test_colours_can_be_told_from_both_pages() -> None:
    css = files("radistill").joinpath("templates/report.css").read_text(encoding="utf-8")
    light, dark = (dict(re.findall(r"--([a-z]+): (#[0-9a-f]{6});", part)) for part in css.split("@media", 2)[:2])
    for page in (light, dark):
        for ground in ("page", "soft", "panel"):
            for ink in ("ink", "muted", "link", "bad"):
                assert contrast(page[ink], page[ground]) >= 4.5, (ink, ground)
        for colour in PALETTE[:3]:
            assert contrast(colour, page["panel"]) >= 3
        for colour in ORIGINS.values():
            for ink in ("ink", "muted"):
                assert contrast(page[ink], mixed(colour, page["page"], 0.13)) >= 4.5, (ink, colour)


def test_drawing_leaves_the_callers_settings_alone() -> None:
    before = dict(mpl.rcParams)
    skill("radis")
    assert dict(mpl.rcParams) == before


def mixed(colour: str, ground: str, share: float) -> str:
    pairs = [(int(colour[i : i + 2], 16), int(ground[i : i + 2], 16)) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(share * a + (1 - share) * b):02x}" for a, b in pairs)


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b
