"""The figures of a comparison, in the style of `plots`.

At most seven methods have a colour, the same in every figure: vanilla, RaDis and the five others of the largest
hypervolume. All others are grey in the figure they share and have a panel of their own in the next one. A hollow
marker is a method that brings data from outside; a bold name is one of ours.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from radistill.compare_data import SHARES_OF_WAY, Comparison, Spot, Standing
from radistill.compare_tables import OURS, VANILLA, at_best, percent, ranked, skill_at
from radistill.plots import GRID, INK, MARKERS, MUTED, PALETTE, PANEL, Drawing, drawing, label_of, legend
from radistill.records import BASE
from radistill.report_text import count, number
from radistill.stats import Interval

PALE = "#98a2ac"
"""Of methods without a colour; it can be seen on white and on black."""
COLUMNS = 4
LONGEST = 24
"""So many characters of a name are shown."""
MOST_GAINED = 1.2
"""Retention at which the heat map's colour for gains is full."""
DEEPEST = 0.75
"""Opacity of the heat map's fullest colour, so that numbers can be read on it on a white and on a black page."""
Looks = Mapping[str, Mapping[str, Any]]


def looks(comparison: Comparison) -> dict[str, dict[str, Any]]:
    """Colour, marker and line of each method, by name."""
    others = iter(zip(PALETTE[1:], MARKERS[2:], strict=False))
    found: dict[str, dict[str, Any]] = {}
    for standing in ranked(comparison):
        if standing.name == VANILLA:
            look: dict[str, Any] = {"color": INK, "marker": "s", "ls": (0, (4, 1.5))}
        elif standing.name == OURS:
            look = {"color": PALETTE[0], "marker": "o", "ls": "-"}
        else:
            colour, marker = next(others, (PALE, "o"))
            look = {"color": colour, "marker": marker, "ls": "-"}
        if standing.brings_data:
            look |= {"markerfacecolor": PANEL, "markeredgewidth": 1.4}
        found[standing.name] = look
    return found


def frontiers(comparison: Comparison) -> Drawing:
    """New skill against retention: one curve per method over its chosen configurations."""
    look = looks(comparison)

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for standing in reversed(ranked(comparison)):
            if look[standing.name]["color"] == PALE:
                _curve(axes, standing, {"color": PALE, "ls": "-"}, lw=0.9)
        for standing in reversed(_coloured(comparison, look)):
            _crosses(axes, standing, look[standing.name])
            _curve(axes, standing, look[standing.name], lw=1.8)
        for standing in _coloured(comparison, look):
            axes.plot([], [], label=_brief(standing.name), ms=6, lw=1.8, **look[standing.name])
        if len(_coloured(comparison, look)) < len(ranked(comparison)):
            axes.plot([], [], label=" others (next figure)", color=PALE, lw=0.9)
        _box(axes, comparison)
        axes.set(
            xlabel=f"{_brief(comparison.skill_name).strip()}: new skill",
            ylabel="retention: share of the abilities kept",
        )
        legend(figure, axes)

    title = "The frontier: further right has learned more, further up has kept more"
    return drawing("frontier", title, _spelled_spots(comparison), height=5.0, draw=draw)


def multiples(comparison: Comparison) -> Drawing:
    """The same, one panel per method, vanilla dashed and all others faint behind it."""
    standings, look = ranked(comparison), looks(comparison)
    lines = -(-len(standings) // COLUMNS)

    def draw(figure: Any) -> None:
        panels = figure.subplots(lines, COLUMNS, sharex=True, sharey=True, squeeze=False).flatten()
        for i, (axes, standing) in enumerate(zip(panels, standings, strict=False)):
            mine = dict(look[standing.name])
            if mine["color"] == PALE:
                mine["color"] = MUTED
            for other in standings:
                if other.name == VANILLA != standing.name:
                    _curve(axes, other, {"color": INK, "ls": (0, (3, 1.5))}, lw=0.8)
                elif other is not standing:
                    _curve(axes, other, {"color": GRID, "ls": "-"}, lw=0.7)
            _crosses(axes, standing, mine, size=2.5)
            _curve(axes, standing, mine, lw=1.5, size=4)
            axes.set_title(_brief(standing.name), color=INK, fontsize=8.5, **_weight(standing))
            _box(axes, comparison, size=4)
            # The lowest panel of a column names its axis, also where the last row is not full.
            is_lowest, is_first = i + COLUMNS >= len(standings), i % COLUMNS == 0
            axes.tick_params(labelsize=7, labelbottom=is_lowest, labelleft=is_first)
        for axes in panels[len(standings) :]:
            axes.set_visible(False)
        figure.supxlabel(f"{_brief(comparison.skill_name).strip()}: new skill", fontsize=8.5, color=MUTED)
        figure.supylabel("retention", fontsize=8.5, color=MUTED)

    title = "Each method by itself, largest hypervolume first; dashed: vanilla, faint: all others"
    words = f"The numbers of the figure before, in {len(standings)} panels: {', '.join(s.name for s in standings)}."
    return drawing("frontier-each", title, words, height=0.5 + 1.45 * lines, draw=draw)


def volumes(comparison: Comparison) -> Drawing:
    """Hypervolume of each method, sorted."""
    title = "Hypervolume: the share of the box that a method's configurations dominate"
    column = {"": {s.name: s.hypervolume for s in ranked(comparison)}}
    return _dots("hypervolume", comparison, column, title=title, unit="share of the box")


def on_the_way(comparison: Comparison) -> Drawing:
    """Retention at equal new skill, one panel per share of the way."""
    columns = {
        f"{percent(share)} of the way: {number(skill_at(comparison, share))}": {
            s.name: s.retention_at.get(share) for s in ranked(comparison)
        }
        for share in SHARES_OF_WAY
    }
    title = "Retention at equal new skill, interpolated on each method's frontier"
    return _dots("retention-at", comparison, columns, title=title, unit="retention")


def heat(comparison: Comparison) -> Drawing | None:
    """Retention of each ability, at each method's best configuration; None where there is nothing to show."""
    rows = [(s, spot) for s in ranked(comparison) if (spot := at_best(s))]
    if not rows or not comparison.abilities:
        return None

    def draw(figure: Any) -> None:
        from matplotlib.patches import Rectangle

        axes = figure.subplots()
        for y, (_, spot) in enumerate(rows):
            for x, ability in enumerate(comparison.abilities):
                value = spot.abilities.get(ability)
                if value is None:
                    continue
                axes.add_patch(Rectangle((x + 0.02, y + 0.03), 0.96, 0.94, lw=0, **_shade(value)))
                axes.text(x + 0.5, y + 0.5, number(value, 2), ha="center", va="center", fontsize=8, color=INK)
        for value in (0.0, 0.5, 0.75, 1.0, MOST_GAINED):
            ends = {0.0: "0 or less", MOST_GAINED: f"{MOST_GAINED:g} or more"}
            shade: dict[str, Any] = {"edgecolor": GRID, "lw": 0.8, **_shade(value)}
            axes.add_patch(Rectangle((0, 0), 0, 0, label=f" {ends.get(value, f'{value:g}')}", **shade))
        axes.set(xlim=(0, len(comparison.abilities)), ylim=(len(rows), 0))
        axes.set_xticks([x + 0.5 for x in range(len(comparison.abilities))])
        axes.set_xticklabels(map(_brief, comparison.abilities), rotation=35, ha="right", rotation_mode="anchor")
        axes.tick_params(axis="x", colors=INK)
        _name_rows(axes, [standing for standing, _ in rows], 0.5)
        axes.spines["bottom"].set_visible(False)
        legend(figure, axes)

    words = "; ".join(
        f"{s.name}: " + ", ".join(f"{a} {spot.abilities[a]:.2f}" for a in comparison.abilities if a in spot.abilities)
        for s, spot in rows
    )
    title = "Retention of each ability at each method's best configuration"
    return drawing("abilities", title, f"Retention, not clipped. {words}.", height=1.5 + 0.27 * len(rows), draw=draw)


def costs(comparison: Comparison) -> Drawing:
    """Processed tokens per method, the mean over its chosen configurations."""
    look, standings = looks(comparison), ranked(comparison)

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for y, standing in enumerate(standings):
            tokens = standing.cost.processed_tokens
            axes.barh(y, tokens / 1e6, height=0.62, color=look[standing.name]["color"])
            axes.annotate(number(tokens / 1e6, 2), (tokens / 1e6, y), (5, 0), textcoords="offset points", va="center",
                          fontsize=8, color=MUTED)  # fmt: skip
        axes.set(ylim=(len(standings) - 0.5, -0.5), xlabel="million processed tokens")
        axes.margins(x=0.1)
        axes.grid(axis="x")
        _name_rows(axes, standings)

    words = "; ".join(f"{s.name}: {count(s.cost.processed_tokens)}" for s in standings)
    title = "Cost: tokens that any model read or wrote for one configuration, generation included"
    return drawing("costs", title, f"Processed tokens. {words}.", height=0.8 + 0.24 * len(standings), draw=draw)


def _dots(
    name: str, comparison: Comparison, columns: Mapping[str, Mapping[str, Interval | None]], *, title: str, unit: str
) -> Drawing:
    """A row per method, a panel per column, all panels to one scale."""
    look, standings = looks(comparison), ranked(comparison)

    def draw(figure: Any) -> None:
        from matplotlib.ticker import MaxNLocator

        panels = figure.subplots(1, len(columns), sharex=True, sharey=True, squeeze=False)[0]
        locator = MaxNLocator(4, steps=[1, 2, 5, 10])
        known = [found for of in columns.values() for found in of.values() if found]
        left, right = min([f.low for f in known], default=0.0), max([f.high for f in known], default=1.0)
        for axes, (head, of) in zip(panels, columns.items(), strict=True):
            for y, standing in enumerate(standings):
                _dot(axes, y, of.get(standing.name), look[standing.name], nothing_at=left)
            axes.set_title(head, color=INK)
            # Room on the right for the number beside each interval.
            room = max(right - left, 0.01) * (0.03 + 0.11 * len(columns))
            axes.set(xlim=(left - room / 4, right + room), ylim=(len(standings) - 0.5, -0.5), xlabel=unit)
            axes.set_xticks([tick for tick in locator.tick_values(left, right) if left <= tick <= max(right, 1)])
            axes.grid(axis="x")
            axes.tick_params(length=0)
            axes.spines["left"].set_visible(False)
            axes.label_outer()
        _name_rows(panels[0], standings)

    words = "; ".join(
        f"{head or unit}: "
        + ", ".join(
            f"{s} {f.value:.3f} [{f.low:.3f}, {f.high:.3f}]" if f else f"{s} not reached" for s, f in of.items()
        )
        for head, of in columns.items()
    )
    height = 0.95 + 0.26 * len(standings)
    return drawing(name, title, f"Values and 95 % intervals. {words}.", height=height, draw=draw)


def _dot(axes: Any, y: float, found: Interval | None, look: Mapping[str, Any], *, nothing_at: float) -> None:
    if found is None:
        axes.text(nothing_at, y, "not reached", va="center", fontsize=8, color=MUTED)
        return
    axes.plot([found.low, found.high], [y, y], color=look["color"], lw=1.8, solid_capstyle="round", zorder=2)
    axes.plot([found.value], [y], ms=6, zorder=3, **{**look, "ls": ""})
    axes.annotate(number(found.value, 3), (found.high, y), (6, 0), textcoords="offset points", va="center", fontsize=8,
                  color=MUTED)  # fmt: skip


def _curve(axes: Any, standing: Standing, look: Mapping[str, Any], *, lw: float, size: float = 6) -> None:
    spots = sorted(standing.chosen, key=lambda spot: spot.skill.value)
    places = [s.skill.value for s in spots], [s.retention.value for s in spots]
    is_quiet = "marker" not in look
    axes.plot(*places, lw=lw, ms=3 if is_quiet else size, zorder=1 if is_quiet else 3, **{"marker": ".", **look})


def _crosses(axes: Any, standing: Standing, look: Mapping[str, Any], *, size: float = 3.5) -> None:
    """Seeds as faint points, intervals as thin crosses."""
    for spot in standing.chosen:
        x, y = spot.skill.interval(), spot.retention.interval()
        line = {"color": look["color"], "lw": 0.9, "alpha": 0.55, "zorder": 2}
        axes.plot([x.low, x.high], [y.value, y.value], **line)
        axes.plot([x.value, x.value], [y.low, y.high], **line)
        seeds = [s.skill for s in spot.seeds], [s.retention for s in spot.seeds]
        axes.plot(*seeds, ls="", marker="o", ms=size, mew=0, alpha=0.35, color=look["color"], zorder=2)


def _box(axes: Any, comparison: Comparison, *, size: float = 7) -> None:
    """The box of the hypervolume, with the untouched model at its upper left corner."""
    base, end = comparison.base_skill.value, comparison.axis_end
    axes.plot([base], [1.0], ls="", marker="o", ms=size, color=MUTED, markerfacecolor=PANEL, markeredgewidth=1.4,
              zorder=4, label=f" {BASE}", clip_on=False)  # fmt: skip
    for place in (axes.axhline(1.0), axes.axvline(base)):
        place.set(color=MUTED, lw=0.8, ls=(0, (1, 3)), zorder=1)
    seeds = [s for standing in ranked(comparison) for spot in standing.chosen for s in spot.seeds]
    low = min([0.0, *(s.retention for s in seeds)])
    left, right = min([base, *(s.skill for s in seeds)]), max([end, *(s.skill for s in seeds)])
    margin = 0.02 * (right - left)
    axes.set(xlim=(left - margin, right + margin), ylim=(low - 0.02, 1.04))
    axes.grid()
    axes.tick_params(axis="both", length=0, labelsize=8.5)


def _name_rows(axes: Any, standings: Sequence[Standing], offset: float = 0.0) -> None:
    axes.set_yticks([y + offset for y in range(len(standings))])
    for tick, standing in zip(axes.set_yticklabels([_brief(s.name) for s in standings]), standings, strict=True):
        tick.set(**_weight(standing))
    axes.tick_params(axis="both", length=0)
    axes.spines["left"].set_visible(False)


def _brief(name: str) -> str:
    """A name that leaves room for what it names."""
    return label_of(name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…")


def _weight(standing: Standing) -> dict[str, str]:
    return {"fontweight": "bold"} if standing.ours else {}


def _coloured(comparison: Comparison, look: Looks) -> list[Standing]:
    return [s for s in ranked(comparison) if look[s.name]["color"] != PALE]


def _shade(value: float) -> dict[str, Any]:
    """Nothing where all is kept, ever fuller vermilion towards nothing left, blue for what was gained."""
    lost, gained = min(max(1 - value, 0.0), 1.0), min(max((value - 1) / (MOST_GAINED - 1), 0.0), 1.0)
    return {"facecolor": (PALETTE[1] if lost else PALETTE[0], DEEPEST * max(lost, gained))}


def _spelled_spots(comparison: Comparison) -> str:
    base = f"{BASE} {number(comparison.base_skill.value)}, 1"
    of_each = (f"{s.name} " + _spelled(s.chosen) for s in ranked(comparison))
    return f"New skill and retention of each configuration, from little skill to much. {'; '.join([base, *of_each])}."


def _spelled(spots: Iterable[Spot]) -> str:
    ordered = sorted((spot.skill.value, spot.retention.value) for spot in spots)
    return " / ".join(f"{skill:.1f}, {kept:.3f}" for skill, kept in ordered)
