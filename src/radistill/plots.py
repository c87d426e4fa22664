"""Every figure, in one style, as SVG text.

Functions take plain numbers and give a `Drawing`; none knows a run folder. The same input gives the same bytes. Text
is drawn as outlines, so nothing is missing offline, and ink, grid and panel are CSS variables with a fallback: alone
a figure stands on white, inlined it follows the page into the dark. Data colours are Okabe and Ito's (2008), which
colour-blind readers can tell apart (yellow darkened, to be seen on white); marker and line style
repeat what colour says.
"""

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from radistill.records import BASE
from radistill.report_text import shorten, visible

INK, MUTED, GRID, PANEL = "#1b1f24", "#5d6670", "#d9dee3", "#fefefe"
VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--grid", PANEL: "--panel"}
# Blue, vermilion, green, purple, orange, sky: the first three have a contrast of 3:1 on white and on black.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "*")
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (5, 1.5, 1.2, 1.5)), (0, (1, 3)))
ORIGINS = {
    "prompt": "#8b949e",
    "reference": "#009e73",
    "separator": "#9c8a00",
    "rationale": "#0072b2",
    "model": "#d55e00",
    "replay": "#cc79a7",
    "free": "#e69f00",
    "end": "#56b4e9",
}
"""Colour of each origin of tokens; the report's segments have the same ones."""
LONG = 30
"""From so many dots on, a figure's rows move together."""
WIDTH = 7.2  # inches; a report column
STYLE: dict[Any, Any] = {
    "svg.fonttype": "path",
    "svg.hashsalt": "radistill",
    "text.parse_math": False,  # a run named `a$b$` is a name, not a formula
    "font.family": ["DejaVu Sans"],
    "font.size": 9.5,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.axisbelow": True,
    "xtick.color": MUTED,
    "ytick.color": INK,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 9.5,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "figure.facecolor": PANEL,
    "axes.facecolor": "none",
    "savefig.facecolor": PANEL,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """One number with its interval: where it stands and whose it is."""

    system: str
    row: str
    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """Two numbers of one system, each with its interval."""

    system: str
    x: float
    x_low: float
    x_high: float
    y: float
    y_low: float
    y_high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """A figure and what it says in words."""

    name: str
    """File name without ending; unique in a report."""
    title: str
    description: str
    svg: str
    """A whole SVG file."""

    @property
    def inline(self) -> str:
        """The figure for an HTML page: no address in it, as wide as its place, ids that no other figure has."""
        body = self.svg[self.svg.index("<svg") :]
        head, _, rest = body.partition(">")
        head = re.sub(r'\s(?:width|height|version|xmlns(?::\w+)?)="[^"]*"', "", head)
        body = f"{head}>{rest}".replace("xlink:href", "href")
        return re.sub(r'((?:\bid="|href="#|url\(#))(?!' + re.escape(self.name) + r")", rf"\g<1>{self.name}-", body)


def intervals(
    name: str,
    estimates: Sequence[Estimate],
    *,
    title: str,
    unit: str,
    systems: Sequence[str] = (),
    span: tuple[float, float] | None = None,
) -> Drawing:
    """Dots with 95 % intervals: one row per group, one colour and marker per system.

    Args:
        name: the figure's name.
        estimates: in the order in which rows and systems are to be shown.
        title: what is measured.
        unit: label of the axis.
        systems: all systems of the page, where some of them may be missing here: colours stay the same.
        span: what the axis shows at least, so that two figures can be compared.
    """
    rows = list(dict.fromkeys(e.row for e in estimates))
    looks = _looks(systems or list(dict.fromkeys(e.system for e in estimates)))
    systems = list(dict.fromkeys(e.system for e in estimates))
    is_long = len(rows) * len(systems) > LONG

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        step = 0.8 / max(len(systems), 1)
        for e in estimates:
            y = rows.index(e.row) + (systems.index(e.system) - (len(systems) - 1) / 2) * step
            axes.plot([e.low, e.high], [y, y], color=looks[e.system]["color"], lw=1.8, solid_capstyle="round", zorder=2)
            axes.plot([e.value], [y], ls="", ms=6.5, zorder=3, label=label_of(e.system), **looks[e.system])
            axes.annotate(
                f"{e.value:.1f}", (e.high, y), (6, 0), textcoords="offset points", va="center", fontsize=8, color=MUTED
            )
        for i in range(1, len(rows)):
            axes.axhline(i - 0.5, color=GRID, lw=0.8)
        axes.set(
            yticks=range(len(rows)), yticklabels=[label_of(r) for r in rows], ylim=(len(rows) - 0.5, -0.5), xlabel=unit
        )
        axes.margins(x=0.1)
        if span:
            axes.update_datalim([(end, 0) for end in span], updatey=False)
            axes.autoscale_view(scaley=False)
        axes.grid(axis="x")
        axes.tick_params(axis="both", length=0)
        axes.spines["left"].set_visible(False)
        legend(figure, axes)

    words = "; ".join(f"{e.row}, {e.system}: {e.value:.1f} [{e.low:.1f}, {e.high:.1f}]" for e in estimates)
    height = 0.95 + len(rows) * (0.16 + (0.15 if is_long else 0.2) * len(systems))
    return drawing(name, title, f"{unit}, value and 95 % interval. {words}.", height=height, draw=draw)


def against(name: str, points: Sequence[Point], *, title: str, x_unit: str, y_unit: str) -> Drawing:
    """One point per system, with its 95 % intervals in both directions; dotted lines cross at the untouched model.

    Args:
        name: the figure's name.
        points: in the order in which the systems are to be named.
        title: what is set against what.
        x_unit: label of the horizontal axis, a fraction of which 1 is the whole.
        y_unit: label of the vertical axis.
    """
    looks = _looks([p.system for p in points])
    # Half of the whole is always in view, so that a small loss looks small.
    left = min([0.5, *(math.floor(10 * p.x_low) / 10 for p in points)])

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for p in points:
            line = {"color": looks[p.system]["color"], "lw": 1.8, "solid_capstyle": "round", "zorder": 2}
            if p.x_low < p.x_high:
                axes.plot([p.x_low, p.x_high], [p.y, p.y], **line)
            axes.plot([p.x, p.x], [p.y_low, p.y_high], **line)
            axes.plot([p.x], [p.y], ls="", ms=8, zorder=3, label=label_of(p.system), **looks[p.system])
            if p.system == BASE:
                for place in (axes.axhline(p.y), axes.axvline(p.x)):
                    place.set(color=MUTED, lw=0.8, ls=(0, (1, 3)), zorder=1)
        axes.margins(y=0.12)
        axes.set(xlim=(left, 1 + 0.03 * (1 - left)), xlabel=x_unit, ylabel=y_unit)
        axes.grid()
        axes.tick_params(axis="both", length=0, labelsize=8.5)
        legend(figure, axes)

    words = "; ".join(
        f"{p.system}: {x_unit} {p.x:.3f} [{p.x_low:.3f}, {p.x_high:.3f}], "
        f"{y_unit} {p.y:.1f} [{p.y_low:.1f}, {p.y_high:.1f}]"
        for p in points
    )
    return drawing(name, title, f"Values and 95 % intervals. {words}.", height=4.2, draw=draw)


def losses(name: str, curves: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]], *, title: str) -> Drawing:
    """Training loss by origin of the tokens, one panel per run, all panels to one scale.

    Args:
        name: the figure's name.
        curves: run → origin → (step, loss) in the order of the steps.
        title: what is shown.
    """
    columns = min(len(curves), 2) or 1
    lines = -(-len(curves) // columns) or 1

    def draw(figure: Any) -> None:
        panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).flatten()
        for axes, (run, by_origin) in zip(panels, curves.items(), strict=False):
            axes.set_title(label_of(run), color=INK)
            for origin, points in by_origin.items():
                dash = DASHES[([*ORIGINS, origin].index(origin) - 1) % len(DASHES)]
                _curve(axes, points, label=label_of(origin), color=ORIGINS.get(origin, MUTED), dash=dash)
            axes.grid(axis="y")
            axes.tick_params(length=0)
            axes.set(xlabel="step", ylabel="nats per token")
            axes.label_outer()
        for axes in panels[len(curves) :]:
            axes.set_visible(False)
        legend(figure, *panels[: len(curves)])

    words = "; ".join(
        f"{run}, {origin}: {points[0][1]:.2f} at step {points[0][0]:g}, {points[-1][1]:.2f} at step {points[-1][0]:g}"
        for run, by_origin in curves.items()
        for origin, points in by_origin.items()
        if points
    )
    description = f"Negative log-likelihood in nats per token over training steps. {words}."
    return drawing(name, title, description, height=0.7 + 2.3 * lines, draw=draw)


def shares(name: str, bars: Mapping[str, Mapping[str, float]], *, title: str) -> Drawing:
    """Stacked bars that each add up to 100 %: what a row of tokens consists of, by origin.

    Args:
        name: the figure's name.
        bars: row → origin → amount; amounts are scaled to shares of their row.
        title: what is shown.
    """
    parts = {row: _scaled(amounts) for row, amounts in bars.items()}
    origins = [o for o in [*ORIGINS, *_others(parts)] if any(o in p for p in parts.values())]

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for y, row in enumerate(parts.values()):
            left = 0.0
            for origin in (o for o in origins if o in row):
                colour, named = ORIGINS.get(origin, MUTED), label_of(origin)
                axes.barh(y, row[origin], left=left, height=0.62, color=colour, edgecolor=PANEL, lw=1.2, label=named)
                if row[origin] >= 5:
                    axes.text(left + row[origin] / 2, y, f"{row[origin]:.0f} %", ha="center", va="center", fontsize=8.5,
                              color=ink_on(colour))  # fmt: skip
                left += row[origin]
        axes.set(
            yticks=range(len(parts)),
            yticklabels=[label_of(p) for p in parts],
            xlim=(0, 100),
            ylim=(len(parts) - 0.5, -0.5),
        )
        axes.set_xlabel("% of the row")
        axes.tick_params(length=0)
        axes.spines["left"].set_visible(False)
        axes.spines["bottom"].set_visible(False)
        legend(figure, axes)

    words = "; ".join(
        f"{row}: " + ", ".join(f"{o} {p[o]:.1f} %" for o in origins if o in p) for row, p in parts.items()
    )
    return drawing(name, title, f"Shares by origin. {words}.", height=0.95 + 0.42 * len(parts), draw=draw)


def drawing(name: str, title: str, description: str, *, height: float, draw: Callable[[Any], None]) -> Drawing:
    """Draw on a matplotlib figure of the one style, `height` inches high, and make an SVG of it that names itself."""
    import warnings

    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with mpl.rc_context({**STYLE, "svg.id": name}), warnings.catch_warnings():
        # A run may be named in a script the font lacks; the table beside the figure has the name.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from font")
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return Drawing(
        name=name, title=title, description=description, svg=_finished(out.getvalue(), name, title, description)
    )


def _finished(svg: str, name: str, title: str, description: str) -> str:
    # matplotlib repeats every text as a comment, and comments have escape rules of their own in HTML.
    svg = re.sub(r"<!--.*?-->\n?", "", svg, flags=re.DOTALL)
    svg = re.sub(
        r"<defs>\s*<style.*?</style>\s*</defs>\n?", "", svg, count=1, flags=re.DOTALL
    )  # it would hold for the whole page
    svg = re.sub(r"<!DOCTYPE.*?>\n?", "", svg, count=1, flags=re.DOTALL)
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, f"var({variable}, {colour})")
    at = svg.index(">", svg.index("<svg"))
    words = f'<title id="{name}-title">{_xml(title)}</title>\n<desc id="{name}-desc">{_xml(description)}</desc>'
    labelled = f'style="stroke-linejoin: round" role="img" aria-labelledby="{name}-title {name}-desc"'
    return f"{svg[:at]} {labelled}>\n {words}{svg[at + 1 :]}"


def _xml(text: str) -> str:
    return escape(visible(text))


def label_of(name: str) -> str:
    """A name as matplotlib is to be given it: on one line, not too long, with nothing hidden in it."""
    # matplotlib leaves labels that start with an underscore out of legends, hence the space.
    return " " + shorten(visible(name).replace("\n", " "), 36)


def _looks(systems: Sequence[str]) -> dict[str, dict[str, Any]]:
    tuned = [s for s in systems if s != BASE]
    looks: dict[str, dict[str, Any]] = {
        s: {"color": PALETTE[i % len(PALETTE)], "marker": MARKERS[i % len(MARKERS)]} for i, s in enumerate(tuned)
    }
    looks[BASE] = {"color": MUTED, "marker": "o", "markerfacecolor": PANEL, "markeredgewidth": 1.6}
    return looks


def legend(figure: Any, *panels: Any) -> None:
    """Name above the figure what its panels label, each label once."""
    found: dict[str, Any] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    if found:
        # Nothing would keep a row of long names inside the figure: about so many inches has each.
        wide = 0.55 + 0.072 * max(map(len, found))
        columns = max(1, min(len(found), 5, int(WIDTH / wide)))
        figure.legend(found.values(), found.keys(), loc="outside upper left", ncols=columns, handlelength=1.6)


def _curve(axes: Any, points: Sequence[tuple[float, float]], *, label: str, color: str, dash: Any) -> None:
    steps, values = [p[0] for p in points], [p[1] for p in points]
    width = len(points) // 20
    if width < 2:
        axes.plot(steps, values, color=color, lw=1.8, ls=dash, label=label, marker="o" if len(points) < 8 else "", ms=4)
        return
    # The noise stays visible behind its own running mean, so that smoothing hides nothing.
    axes.plot(steps, values, color=color, lw=0.7, alpha=0.35)
    means = [sum(part) / len(part) for part in (values[max(0, i - width) : i + width + 1] for i in range(len(values)))]
    axes.plot(steps, means, color=color, lw=2, ls=dash, label=label)


def _scaled(amounts: Mapping[str, float]) -> dict[str, float]:
    total = sum(amounts.values())
    return {origin: 100 * amount / total for origin, amount in amounts.items() if amount > 0} if total > 0 else {}


def _others(parts: Mapping[str, Mapping[str, float]]) -> list[str]:
    return sorted({origin for part in parts.values() for origin in part} - set(ORIGINS))


def ink_on(colour: str) -> str:
    """Black or white, whichever is read better on the colour (WCAG relative luminance)."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return "#000000" if 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.179 else "#ffffff"
