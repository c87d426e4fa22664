"""What was kept: retention against the new skill, the abilities one by one, and what is only shown."""

from collections.abc import Iterator, Mapping, Sequence

from radistill import plots, stats
from radistill.plots import Drawing, Estimate, Point
from radistill.records import BASE
from radistill.report_data import Run
from radistill.report_parts import Part
from radistill.report_scores import Kept, Result, headline, new_skill, of_kind
from radistill.report_tables import NOTHING, Table, metric_name
from radistill.report_text import count, interval, number, signed

MANY_ROWS = 12
"""From more rows on, a table that says nothing new at a glance is folded."""
SUBSETS: tuple[tuple[bool | None, str, str], ...] = (
    (True, "abilities-touched", "Abilities that rationales touch"),
    (False, "abilities-untouched", "Abilities that rationales do not touch"),
    (None, "abilities", "Abilities"),
)


def parts(
    found: Sequence[Result], runs: Sequence[Run], what_is_kept: Mapping[str, Kept], *, margin: float
) -> Iterator[Part]:
    """The section's parts; none if neither an ability nor a probe was tested."""
    names = [run.name for run in runs]
    if any(what_is_kept[name].retention for name in names):
        drawing = _map(found, names, what_is_kept)
        in_a_row = skill_and_retention(found, names, what_is_kept)
        title = "New skill against retention" if drawing else "General score and retention"
        yield Part(title=title, drawings=(drawing,) if drawing else (), tables=(in_a_row,))
        yield Part(title="Means over the abilities", texts=(_ABOUT_MEANS,), tables=(means(names, what_is_kept),))
    for is_rehearsed, figure, title in SUBSETS:
        some = [r for r in of_kind(found, "ability") if r.evaluation.task.is_rehearsed is is_rehearsed]
        if some:
            yield _one_by_one(some, names, what_is_kept, figure=figure, title=title, margin=margin)
    if table := probes(found):
        yield Part(title="Shown, not counted", texts=(_ABOUT_PROBES,), tables=(table,))


def skill_and_retention(found: Sequence[Result], runs: Sequence[str], what_is_kept: Mapping[str, Kept]) -> Table:
    """What each system has learned and what it has kept, in a row."""
    skills = of_kind(found, "skill")
    head = (f"{metric_name(skills[0].metrics[0])} on {skills[0].evaluation.name}", "95 %") if skills else ()
    rows = []
    for system in (BASE, *runs):
        what, score = what_is_kept[system], new_skill(found, system)
        skill = (number(score.value), interval(score.low, score.high)) if score else (NOTHING,) * 2
        m, g = what.retention, what.general
        cells = (number(m.value, 3), interval(m.low, m.high, 3)) if m else (NOTHING,) * 2
        if system == BASE and m:
            cells = (number(1.0, 3), "by definition")
        before = NOTHING if system == BASE else _general_before(what)
        after = (number(g.value), interval(g.low, g.high)) if g else (NOTHING,) * 2
        rows.append((system, *(skill if skills else ()), *cells, before, *after, count(m.n_abilities if m else 0)))
    return Table(
        caption="New skill and retention: " * bool(skills) + "the mean is over the measurable abilities",
        head=("run", *head, "retention", "95 %", "mean before", "after", "95 %", "abilities"),
        rows=tuple(rows),
    )


def means(runs: Sequence[str], what_is_kept: Mapping[str, Kept]) -> Table:
    """Mean retention over all abilities, and apart over those that rationales touch and those they do not."""
    rows = []
    for run in runs:
        what = what_is_kept[run]
        kinds = (("all", what.retention), ("touched", what.rehearsed), ("not touched", what.not_rehearsed))
        for name, m in kinds:
            if m:
                unclipped = f"{number(m.unclipped.value, 3)} {interval(m.unclipped.low, m.unclipped.high, 3)}"
                least = f"{m.worst} {number(m.worst_value, 3)}"
                cells = (number(m.value, 3), interval(m.low, m.high, 3), unclipped, count(m.n_abilities))
                rows.append((run, name, *cells, least))
    return Table(
        caption="Mean retention, each ability clipped at 1, by whether rationales touch the ability",
        head=("run", "abilities", "retention", "95 %", "unclipped", "n", "least left"),
        rows=tuple(rows),
        words=2,
    )


def verdicts(some: Sequence[Result], runs: Sequence[str], what_is_kept: Mapping[str, Kept], *, margin: float) -> Table:
    """A row for each ability, a column for each run."""
    rows = []
    for result in some:
        name = result.evaluation.name
        found = [what_is_kept[run].abilities.get(name) for run in runs]
        before = next((number(r.before) for r in found if r), NOTHING)
        rows.append((name, before, *(_verdict(r) for r in found)))
    caption = f"Verdict and retention by run, margin {margin:g}"
    return Table(caption=caption, head=("ability", f"{BASE}'s score", *runs), rows=tuple(rows))


def details(some: Sequence[Result], runs: Sequence[str], what_is_kept: Mapping[str, Kept], *, margin: float) -> Table:
    """Everything about each ability and run."""
    rows = []
    for result in some:
        name = result.evaluation.name
        for run in runs:
            if r := what_is_kept[run].abilities.get(name):
                scores = (number(r.before), number(r.after), number(r.chance))
                rows.append((name, run, r.verdict, *scores, _share(r, 3), count(headline(result, run).n)))
    return Table(
        caption=f"What is left of each ability, margin {margin:g}: scores, chance, retention",
        head=("ability", "system", "verdict", "before", "after", "chance", "retention", "n"),
        rows=tuple(rows),
        words=3,
        folded=len(runs) > 1 and len(rows) > MANY_ROWS,
    )


def probes(found: Sequence[Result]) -> Table | None:
    """Scores of the probes, and what training changed in them; None if there is none."""
    rows = []
    for result in of_kind(found, "probe"):
        metric = result.metrics[0]
        for system in result.evaluation.systems:
            score = headline(result, system)
            c = result.comparison(system=system, metric=metric)
            change = (signed(c.difference), interval(c.low, c.high, difference=True)) if c else (NOTHING,) * 2
            value = (number(score.value), interval(score.low, score.high))
            rows.append((result.evaluation.name, system, metric_name(metric), *value, *change, count(score.n)))
    head = ("probe", "system", "metric", "score", "95 %", f"minus {BASE}", "95 %", "n")
    return Table(caption="Probes, with 95 % intervals", head=head, rows=tuple(rows), words=3) if rows else None


def _map(found: Sequence[Result], runs: Sequence[str], what_is_kept: Mapping[str, Kept]) -> Drawing | None:
    points, unit = [], ""
    for system in (BASE, *runs):
        m, score = what_is_kept[system].retention, new_skill(found, system)
        if m and score:
            unit = f"{metric_name(score.metric)} on {score.task}, {score.unit}"
            points.append(
                Point(system=system, x=m.value, x_low=m.low, x_high=m.high, y=score.value, y_low=score.low,
                      y_high=score.high)
            )  # fmt: skip
    if not points:
        return None
    title = "What was learned (up) against what was kept (right), one point for each run"
    return plots.against("skill-and-retention", points, title=title, x_unit=_RETENTION, y_unit=unit)


def _one_by_one(
    some: Sequence[Result],
    runs: Sequence[str],
    what_is_kept: Mapping[str, Kept],
    *,
    figure: str,
    title: str,
    margin: float,
) -> Part:
    estimates = []
    for result in some:
        for system in result.evaluation.systems:
            s = headline(result, system)
            name = result.evaluation.name
            estimates.append(Estimate(system=system, row=name, value=s.value, low=s.low, high=s.high))
    drawing = plots.intervals(
        figure,
        estimates,
        title=f"{title}: scores before and after",
        unit="points of 100",
        systems=(BASE, *runs),
        span=(0, 100),
    )
    tables = [details(some, runs, what_is_kept, margin=margin)]
    if len(runs) > 1:
        tables.insert(0, verdicts(some, runs, what_is_kept, margin=margin))
    return Part(title=title, drawings=(drawing,), tables=tuple(t for t in tables if t.rows))


def _general_before(what: Kept) -> str:
    measurable = [r.before for r in what.abilities.values() if r.value is not None]
    return number(sum(measurable) / len(measurable)) if measurable else NOTHING


def _verdict(r: stats.Retention | None) -> str:
    return NOTHING if r is None else r.verdict if r.value is None else f"{r.verdict} {_share(r, 2)}"


def _share(r: stats.Retention, digits: int) -> str:
    if r.value is None or r.low is None or r.high is None:
        return NOTHING
    return f"{number(r.value, digits)} {interval(r.low, r.high, digits)}"


_RETENTION = "retention, mean over the abilities (1 = all is left)"
_ABOUT_MEANS = (
    "Rationales draw on some abilities and so rehearse them; those they do not touch show whether what is kept is more "
    "than what was rehearsed. Where it is not known which they touch, only the mean over all is given."
)
_ABOUT_PROBES = "Measured before and after, and part of no mean, no retention and no verdict."
