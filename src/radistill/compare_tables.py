"""The tables of a comparison: those of its page, as text in cells, and the long one, for programs."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from radistill import stats
from radistill.compare_data import SHARES_OF_WAY, Comparison, Spot, Standing, Test
from radistill.report_tables import NOTHING, Table
from radistill.report_text import count, duration, interval, listed, number, p_value, signed, visible
from radistill.stats import Interval, Paired

if TYPE_CHECKING:
    import pyarrow as pa

VANILLA, OURS = "vanilla", "radis"
"""The two methods that all others are held against, where they are compared."""
SURE = 0.05
DIGITS = {"hypervolume": 3, "skill": 1, "retention": 3}


def ranked(comparison: Comparison) -> list[Standing]:
    """The methods, largest hypervolume first."""
    return sorted(comparison.standings, key=lambda s: -s.hypervolume.value)


def named(comparison: Comparison, name: str) -> Standing | None:
    """The method of that name, if it is compared."""
    return next((s for s in comparison.standings if s.name == name), None)


def at_best(standing: Standing) -> Spot | None:
    """A method's best configuration."""
    return next((spot for spot in standing.spots if spot.index == standing.best), None)


def tested(standing: Standing, rival: str, what: str) -> Test | None:
    """The method's test against that rival in that respect."""
    return next((t for t in standing.tests if (t.rival, t.what) == (rival, what)), None)


def is_shown(paired: Paired, p: float) -> bool:
    """Whether a difference is more than chance: its interval excludes zero and so does the corrected test."""
    return p < SURE and (paired.low > 0 or paired.high < 0)


def rivals(comparison: Comparison) -> list[str]:
    """The methods that others are tested against, vanilla first."""
    found = dict.fromkeys(t.rival for s in comparison.standings for t in s.tests)
    return sorted(found, key=lambda name: name != VANILLA)


def skill_at(comparison: Comparison, share: float) -> float:
    """New skill after that share of the way from the untouched model to the best."""
    base = comparison.base_skill.value
    return base + share * (comparison.best_skill - base)


def kind(standing: Standing) -> str:
    """What a reader must know about where a method comes from."""
    return ", ".join(word for word, holds in (("ours", standing.ours), ("outside data", standing.brings_data)) if holds)


def percent(share: float) -> str:
    """A share as people write it: `50 %`."""
    return f"{100 * share:.0f} %"


def plain(settings: object) -> str:
    """Settings as people write them: `train.learning_rate: 0.001, method.weight: 4`."""
    if isinstance(settings, dict) or hasattr(settings, "items"):
        return ", ".join(f"{k}: {plain(v)}" for k, v in settings.items()) or NOTHING
    if isinstance(settings, list | tuple):
        return "[" + ", ".join(map(plain, settings)) + "]"
    return json.dumps(settings) if settings is None or isinstance(settings, bool) else str(settings)


def hypervolumes(comparison: Comparison) -> Table:
    """Where each method stands, and its best configuration."""
    rows = []
    for standing in ranked(comparison):
        spot = at_best(standing)
        best = (_with(spot.skill.interval(), 1), _with(spot.retention.interval(), 3)) if spot else (NOTHING, NOTHING)
        words = (standing.name, kind(standing) or NOTHING, spot.name if spot else NOTHING)
        rows.append((*words, _with(standing.hypervolume, 3), *best))
    return Table(
        caption="Hypervolume, and the configuration that is best by the validation items, with 95 % intervals",
        head=("method", "kind", "best", "hypervolume", "its new skill", "its retention"),
        rows=tuple(rows),
        words=3,
        strong=tuple(s.name for s in comparison.standings if s.ours),
    )


def on_the_way(comparison: Comparison) -> Table:
    """Retention at equal new skill."""
    rows = []
    for standing in ranked(comparison):
        found = [standing.retention_at.get(share) for share in SHARES_OF_WAY]
        rows.append((standing.name, kind(standing) or NOTHING, *(_with(f, 3) if f else "not reached" for f in found)))
    heads = [f"{percent(share)}: {number(skill_at(comparison, share))}" for share in SHARES_OF_WAY]
    return Table(
        caption=f"Retention at equal new skill, by share of the way from the untouched model to the best "
        f"({number(comparison.best_skill)}), with 95 % intervals",
        head=("method", "kind", *heads),
        rows=tuple(rows),
        words=2,
        strong=tuple(s.name for s in comparison.standings if s.ours),
    )


def tests(comparison: Comparison, rival: str) -> Table | None:
    """Every method's differences to one rival; None where nothing was tested against it."""
    rows = []
    for standing in ranked(comparison):
        of = {what: t for what in DIGITS if (t := tested(standing, rival, what))}
        if not of:
            continue
        cells = [
            cell
            for what, digits in DIGITS.items()
            for cell in (_difference(of[what].paired, of[what].p_holm, digits) if what in of else (NOTHING, NOTHING))
        ]
        volume = of.get("hypervolume")
        rows.append((standing.name, _larger(volume.paired, volume.p_holm) if volume else NOTHING, *cells))
    if not rows:
        return None
    return Table(
        caption=f"Minus {rival}, each one at its best configuration (hypervolume: of all chosen ones), "
        "with 95 % intervals, Holm-corrected p",
        head=("method", "shown", "hypervolume", "p", "new skill", "p", "retention", "p"),
        rows=tuple(rows),
        words=2,
        strong=tuple(s.name for s in comparison.standings if s.ours),
    )


def at_each_dial(comparison: Comparison) -> Table | None:
    """RaDis at its best configuration against every configuration of vanilla; None unless both were compared."""
    ours, vanilla = named(comparison, OURS), named(comparison, VANILLA)
    spot = at_best(ours) if ours else None
    if spot is None or vanilla is None or not vanilla.spots:
        return None
    pairs = {
        what: [stats.difference(getattr(other, what), getattr(spot, what)) for other in vanilla.spots]
        for what in ("skill", "retention")
    }
    holm = {
        what: list(stats.holm({str(i): p.p_value for i, p in enumerate(of)}).values()) for what, of in pairs.items()
    }
    rows = []
    for i, other in enumerate(vanilla.spots):
        found = {what: (pairs[what][i], holm[what][i]) for what in pairs}
        cells = [cell for what, (paired, p) in found.items() for cell in _difference(paired, p, DIGITS[what])]
        rows.append((_own_settings(other, vanilla.spots), _verdict(found), *cells))
    return Table(
        caption=f"{OURS} at its best ({spot.name}) minus {VANILLA} at each of its configurations, "
        "with 95 % intervals, Holm-corrected p",
        head=(f"{VANILLA} at", "shown", "new skill", "p", "retention", "p"),
        rows=tuple(rows),
        words=2,
    )


def abilities(comparison: Comparison) -> Table:
    """The numbers of the heat map."""
    best = [(s, spot) for s in ranked(comparison) if (spot := at_best(s))]
    rows = [
        (s.name, *(number(spot.abilities[a], 3) if a in spot.abilities else NOTHING for a in comparison.abilities))
        for s, spot in best
    ]
    caption = "Retention of each ability at each method's best configuration, not clipped, mean over the seeds"
    return Table(caption=caption, head=("method", *comparison.abilities), rows=tuple(rows), folded=True)


def costs(comparison: Comparison) -> Table:
    """All four costs."""
    rows = [
        (s.name, count(c.processed_tokens), count(c.trained_tokens), count(c.steps), duration(c.seconds))
        for s in ranked(comparison)
        for c in (s.cost,)
    ]
    return Table(
        caption="What one configuration costs: the mean over a method's chosen configurations and their seeds",
        head=("method", "processed tokens", "trained tokens", "steps", "time"),
        rows=tuple(rows),
    )


def configurations(comparison: Comparison) -> Table:
    """Every configuration, chosen or not."""
    rows = []
    for standing in comparison.standings:
        for spot in standing.spots:
            use = "chosen" if spot.chosen else "not chosen" if spot.within_budget else "over the budget"
            cells = (
                _with(spot.skill.interval(), 1),
                _with(spot.retention.interval(), 3),
                number(spot.validation_skill),
                number(spot.validation_retention, 3),
                count(spot.cost.processed_tokens),
            )
            use = f"{use}, best" if spot.index == standing.best else use
            rows.append((spot.name, plain(spot.settings), use, *cells))
    head = ("configuration", "settings", "use", "new skill", "retention", "validation: new skill", "retention",
            "processed tokens")  # fmt: skip
    caption = f"All {count(len(rows))} configurations, each the mean over its seeds, with 95 % intervals"
    return Table(caption=caption, head=head, rows=tuple(rows), words=3, folded=True)


def setting(comparison: Comparison) -> Table:
    """What the comparison was."""
    items = (f"{name} {count(v)} and {count(t)}" for name, (v, t) in comparison.n_items.items())
    rows = (
        ("new skill", comparison.skill_name),
        ("untouched model", f"new skill {_with(comparison.base_skill, 1)}, retention 1"),
        ("best new skill of any configuration within the budget", number(comparison.best_skill)),
        ("box", f"new skill {number(comparison.base_skill.value)} to {number(comparison.axis_end)}, retention 0 to 1"),
        ("budget of a configuration", comparison.budget),
        ("seeds", listed([str(seed) for seed in comparison.seeds])),
        ("configurations in each frontier", count(comparison.points)),
        ("validation and test items", "; ".join(items)),
        ("abilities", listed(list(comparison.abilities))),
    )
    return Table(caption="What was compared, and how", head=("", ""), rows=rows, words=2)


def unfinished(comparison: Comparison) -> Table:
    """Cells that are lacking."""
    rows = tuple((cell,) for cell in comparison.unfinished)
    return Table(caption=f"Cells that are not finished: {count(len(rows))}", head=("cell",), rows=rows, folded=True)


def long_rows(comparison: Comparison) -> Iterator[dict[str, Any]]:
    """One row per configuration and seed.

    `skill` and `retention` are that seed's; all other numbers are those of the configuration over all its seeds.
    """
    for standing in comparison.standings:
        for spot in standing.spots:
            skill, kept = spot.skill.interval(), spot.retention.interval()
            for seed in spot.seeds:
                yield {
                    "method": standing.name,
                    "ours": standing.ours,
                    "brings_data": standing.brings_data,
                    "configuration": spot.name,
                    "settings": json.dumps(dict(spot.settings), ensure_ascii=False, default=str),
                    "seed": seed.seed,
                    "skill": seed.skill,
                    "retention": seed.retention,
                    **{f"skill_{name}": value for name, value in asdict(skill).items()},
                    **{f"retention_{name}": value for name, value in asdict(kept).items()},
                    "validation_skill": spot.validation_skill,
                    "validation_retention": spot.validation_retention,
                    "within_budget": spot.within_budget,
                    "chosen": spot.chosen,
                    "best": spot.index == standing.best,
                    **asdict(spot.cost),
                    **{f"retention.{name}": spot.abilities.get(name) for name in comparison.abilities},
                }


def long_schema(comparison: Comparison) -> "pa.Schema":
    """The columns of the long table, whatever rows there are."""
    import pyarrow as pa

    text, flag, real = pa.string(), pa.bool_(), pa.float64()
    numbers = ("skill", "retention", *(f"{w}_{n}" for w in ("skill", "retention") for n in ("value", "low", "high")))
    numbers = (*numbers, "validation_skill", "validation_retention")
    costs = ("processed_tokens", "trained_tokens", "steps", "seconds")
    return pa.schema(
        [
            *(("method", text), ("ours", flag), ("brings_data", flag), ("configuration", text), ("settings", text)),
            ("seed", pa.int64()),
            *((name, real) for name in numbers),
            *((name, flag) for name in ("within_budget", "chosen", "best")),
            *((name, real) for name in costs),
            *((f"retention.{visible(name)}", real) for name in comparison.abilities),
        ]
    )


def _with(found: Interval, digits: int) -> str:
    return f"{number(found.value, digits)} {interval(found.low, found.high, digits)}"


def _difference(paired: Paired, p: float, digits: int) -> tuple[str, str]:
    bounds = interval(paired.low, paired.high, digits, difference=True)
    return f"{signed(paired.difference, digits)} {bounds}", p_value(p)


def _larger(paired: Paired, p: float) -> str:
    return NOTHING if not is_shown(paired, p) else "larger" if paired.difference > 0 else "smaller"


def _own_settings(spot: Spot, others: Sequence[Spot]) -> str:
    """What this configuration sets otherwise than some other one, without the sections' names."""
    own = {k: v for k, v in spot.settings.items() if any(k not in o.settings or o.settings[k] != v for o in others)}
    return plain({key.rpartition(".")[2]: value for key, value in own.items()}) if own else spot.name


def _verdict(found: dict[str, tuple[Paired, float]]) -> str:
    """What is shown, in words: `more skill, less retention`."""
    said = [f"{'more' if d.difference > 0 else 'less'} {what}" for what, (d, p) in found.items() if is_shown(d, p)]
    return ", ".join(said) or "nothing"
