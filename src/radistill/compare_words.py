"""The opening sentences of a comparison. Each is computed from the numbers: what cannot be told is said to be so."""

from collections.abc import Sequence

from radistill.compare_data import SHARES_OF_WAY, Comparison, Standing, Test
from radistill.compare_tables import OURS, VANILLA, is_shown, named, percent, ranked, skill_at, tested
from radistill.report_text import count, interval, listed, number, p_value, signed
from radistill.stats import Interval, Paired


def summary(comparison: Comparison) -> list[str]:
    """What came out, in a few sentences."""
    standings = ranked(comparison)
    if not standings:
        return ["No method has a finished configuration: nothing can be said yet."]
    inside = [s for s in standings if not s.brings_data]
    said = [_first(standings, f"Of {_methods(len(standings))}")]
    if inside and standings[0].brings_data:
        whose = "that bring no data from outside" if len(inside) > 1 else "that brings no data from outside"
        said.append(_first(inside, f"Of the {_methods(len(inside))} {whose}"))
    elif len(inside) > 1 and inside[1] is not standings[1]:
        lead = _lead(inside[0], inside[1], called="the next one that brings none")
        said.append(f"{inside[0].name} brings no data from outside. {lead}")
    elif len(standings) > 1:
        said[0] += f" {standings[0].name} brings no data from outside."
    ours, vanilla = named(comparison, OURS), named(comparison, VANILLA)
    if ours and vanilla:
        said.append(_against(comparison, ours, vanilla))
    if ours and (others := _others(standings, ours)):
        said.append(others)
    if inside:
        said.append(_on_the_way(comparison, inside[0], [s for s in (vanilla, ours) if s]))
    return said


def notes(comparison: Comparison) -> list[str]:
    """What a reader must know before comparing."""
    lacking = len(comparison.unfinished)
    if not lacking:
        return list(comparison.notes)
    cells = "1 cell is" if lacking == 1 else f"{count(lacking)} cells are"
    return [
        f"This is not the whole comparison: {cells} not finished, and their configurations are left out.",
        *comparison.notes,
    ]


def _first(standings: Sequence[Standing], whose: str) -> str:
    first = standings[0]
    said = f"{whose}, {first.name} has the largest hypervolume, {_with(first.hypervolume)}."
    return f"{said} {_lead(first, standings[1])}" if len(standings) > 1 else said


def _lead(first: Standing, second: Standing, called: str = "the second") -> str:
    """How far the first is ahead of the second."""
    mine, other = first.hypervolume, second.hypervolume
    value = f"{second.name}, {_with(other)}"
    if mine.low > other.high:
        return f"Its interval lies above that of {called}, {value}."
    is_above = mine.low > other.value
    where, and_ = ("above", "but") if is_above else ("not above", "and")
    said = f"Its interval lies {where} the value of {called}, {value}, {and_} the two intervals overlap"
    test = _between(first, second, "hypervolume")
    if test is None:
        return f"{said}: which of the two is better cannot be told."
    numbers = f"on the same items and seeds the difference is {_difference(*test)}"
    if is_shown(*test) and test[0].difference > 0:
        return f"{said}; yet {numbers}: {first.name} is better."
    return f"{said}, and {numbers}: which of the two is better cannot be told."


def _against(comparison: Comparison, ours: Standing, vanilla: Standing) -> str:
    """Where RaDis stands against vanilla."""
    mine, other = ours.hypervolume, vanilla.hypervolume
    said = f"{ours.name} has a hypervolume of {_with(mine)}, {vanilla.name} of {_with(other)}"
    test = _between(ours, vanilla, "hypervolume")
    if test is not None:
        said += f"; on the same items and seeds the difference is {_difference(*test)}"
    better = _better(ours, vanilla)
    said += f": {better.name} is better." if better else ": which of the two is better cannot be told."
    skill, kept = (_between(ours, vanilla, what) for what in ("skill", "retention"))
    if skill and kept:
        learned = f"{_difference(*skill, digits=1)} in {comparison.skill_name} ({_shown(*skill)})"
        retained = f"{_difference(*kept)} in retention ({_shown(*kept)})"
        said += f" At their best configurations the difference is {learned} and {retained}."
    return said


def _others(standings: Sequence[Standing], ours: Standing) -> str:
    """Which methods have a larger hypervolume than RaDis, and which a smaller one."""
    larger: list[str] = []
    smaller: list[str] = []
    open_: list[str] = []
    for other in standings:
        if other is ours:
            continue
        better = _better(other, ours)
        pile = open_ if better is None else larger if better is other else smaller
        pile.append(other.name)
    kinds = (("larger than", larger), ("smaller than", smaller), ("not to be told apart from", open_))
    parts = [f"{label} {ours.name}'s for {listed(names)}" for label, names in kinds if names]
    return f"Hypervolume is {'; '.join(parts)}." if parts else ""


def _on_the_way(comparison: Comparison, first: Standing, others: Sequence[Standing]) -> str:
    """What the best method, vanilla and RaDis keep at equal new skill."""
    ways = listed([percent(share) for share in SHARES_OF_WAY])
    targets = listed([number(skill_at(comparison, share)) for share in SHARES_OF_WAY])
    told = [first, *(s for s in others if s is not first)]
    parts = [f"{standing.name} retains {_kept(standing)}" for standing in told]
    return (
        f"At {ways} of the way from the untouched model to the best new skill of this comparison ({targets} "
        f"{comparison.skill_name}), {'; '.join(parts)}."
    )


def _kept(standing: Standing) -> str:
    found = [standing.retention_at.get(share) for share in SHARES_OF_WAY]
    reached = [_with(f) for f in found if f]
    if not reached:
        return "nothing that could be read off: it does not come so far"
    lacking = len(found) - len(reached)
    return listed(reached) + (", and does not come further" if lacking else "")


def _better(one: Standing, other: Standing) -> Standing | None:
    """The one whose hypervolume is shown to be larger: by the paired test where there is one, else by the intervals."""
    test = _between(one, other, "hypervolume")
    if test is not None:
        return None if not is_shown(*test) else one if test[0].difference > 0 else other
    if one.hypervolume.low > other.hypervolume.high:
        return one
    return other if other.hypervolume.low > one.hypervolume.high else None


def _between(one: Standing, other: Standing, what: str) -> tuple[Paired, float] | None:
    """The first minus the second with its p, whichever of them was the other's rival."""
    forth, back = tested(one, other.name, what), tested(other, one.name, what)
    if forth is not None:
        return forth.paired, forth.p_holm
    return _turned(back) if back is not None else None


def _turned(test: Test) -> tuple[Paired, float]:
    p = test.paired
    return Paired(-p.difference, -p.high, -p.low, p.p_value), test.p_holm


def _shown(paired: Paired, p: float) -> str:
    return "shown" if is_shown(paired, p) else "not shown"


def _difference(paired: Paired, p: float, digits: int = 3) -> str:
    bounds = interval(paired.low, paired.high, digits, difference=True)
    return f"{signed(paired.difference, digits)} {bounds} with p {'' if p < 0.001 else '= '}{p_value(p)}"


def _with(found: Interval) -> str:
    return f"{number(found.value, 3)} {interval(found.low, found.high, 3)}"


def _methods(n: int) -> str:
    return f"{count(n)} method{'' if n == 1 else 's'}"
