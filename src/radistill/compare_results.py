"""From the stored rows of all finished cells to where each method stands; needs no model.

Every task's items are divided once, by their ids and for all cells alike, into validation items, by which
configurations are chosen, and test items, on which all that is shown was measured. Draws of items and of seeds are the
same for all cells, so that any two of them are paired.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from radistill import frontier, scoring, stats
from radistill.columns import counts_of, measures
from radistill.compare import is_finished
from radistill.compare_config import Cell, CompareConfig, by_method
from radistill.compare_data import SHARES_OF_WAY, Comparison, Cost, SeedSpot, Spot, Standing, Test
from radistill.errors import RunFolderError
from radistill.methods._composed import flag
from radistill.records import BASE, digest
from radistill.runs import RunFolder
from radistill.stats import Interval, Resampled
from radistill.tasks.base import Task

Side = Literal["validation", "test"]
SEED = 0
"""Of the draws; that of the runs is another matter."""


@dataclass
class _Rows:
    """Reads rows and remembers what all cells have in common."""

    share: float
    margin: float
    base: dict[tuple[str, Side], Resampled] = field(default_factory=dict)
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)

    def score(self, run: RunFolder, task: Task, system: str, side: Side) -> Resampled:
        """A system's headline score over the groups, on one side's items."""
        if system == BASE and (task.title, side) in self.base:
            return self.base[task.title, side]
        name, metric = next(iter(measures(task).items()))
        arrays, ids = scoring.load_rows(run.rows(task.title, name))
        counts = counts_of(f"{task.title}/{side}", SEED)
        parts, sizes = [], [0, 0]
        for key in (key for key in arrays if key.rpartition("/")[0] == system):
            wanted = self._side(ids[key], side)
            sizes = [sizes[0] + len(ids[key]) - len(wanted), sizes[1] + len(wanted)]
            parts.append(stats.resample(arrays[key][wanted], metric.score, counts(key.rpartition("/")[2], len(wanted))))
        if not parts:
            raise RunFolderError(f"{run.path} holds no rows of {system} for the task {task.title}.")
        found = stats.mean_of(parts)
        if side == "test":
            self.sizes[task.title] = (sizes[0], sizes[1])
        if system == BASE:
            self.base[task.title, side] = found
        return found

    def _side(self, ids: Sequence[str], side: Side) -> NDArray[np.intp]:
        """Places of the side's items; validation has the same share of every group."""
        order = sorted(range(len(ids)), key=lambda at: digest("validation", ids[at]))
        cut = min(max(1, round(self.share * len(ids))), len(ids) - 1)
        return np.array(sorted(order[:cut] if side == "validation" else order[cut:]), dtype=np.intp)

    def retention(self, run: RunFolder, tasks: Sequence[Task], system: str, side: Side) -> dict[str, stats.Retention]:
        """Of every ability."""
        found = {}
        for task in tasks:
            before, after = (self.score(run, task, name, side) for name in (BASE, system))
            found[task.title] = stats.retention(before, after, margin=self.margin, chance=task.chance)
        return found


@dataclass(frozen=True)
class _Measured:
    """One cell, on the test items and, in brackets, on the validation items."""

    cell: Cell
    skill: Resampled
    kept: stats.MacroRetention
    abilities: Mapping[str, float]
    validation: tuple[float, float]
    cost: Cost


def comparison(
    config: CompareConfig, cells: Sequence[Cell], *, say: Callable[[str], None] = lambda _: None
) -> Comparison:
    """Where all methods stand.

    Raises:
        RunFolderError: no configuration is finished with all its seeds, or no ability can be measured.
    """
    finished = [cell for cell in cells if is_finished(cell)]
    unfinished = [cell.name for cell in cells if cell not in finished]
    if not finished:
        raise RunFolderError(f"no cell of the comparison {config.name} is finished yet.")
    tasks = finished[0].config.evaluate
    rows = _Rows(config.validation, finished[0].config.report.margin)
    skill_task, ability_tasks = _skill(tasks), [t for t in tasks if t.kind == "ability"]
    measured: dict[str, list[list[_Measured]]] = {}
    for method, configurations in by_method(cells):
        done = [of for of in configurations if all(cell in finished for cell in of)]
        if done:
            say(f"{method}: reading {sum(map(len, done))} cells")
            measured[method] = [[_measure(c, rows, skill_task, ability_tasks) for c in of] for of in done]
    if not measured:
        raise RunFolderError(f"no configuration of {config.name} is finished with all its seeds yet.")
    base = rows.score(RunFolder(finished[0].folder), skill_task, BASE, "test")
    base_validation = rows.score(RunFolder(finished[0].folder), skill_task, BASE, "validation").value
    spots = {m: _spots(config, m, of, base_validation) for m, of in measured.items()}
    best_skill = max((s.skill.value for of in spots.values() for s in of if s.within_budget), default=base.value)
    standings = _standings(config, cells, spots, base, base_validation, best_skill)
    first = next(iter(measured.values()))[0][0]
    name = next(iter(measures(skill_task).values()))
    return Comparison(
        name=config.name,
        skill_name=f"{type(name).__name__} on {skill_task.title}",
        base_skill=base.interval(),
        best_skill=best_skill,
        axis_end=config.axis_end,
        budget=_budget(config),
        seeds=tuple(config.seeds),
        points=config.points,
        n_items=dict(rows.sizes),
        abilities=tuple(first.abilities),
        standings=standings,
        unfinished=tuple(unfinished),
        notes=_notes(config, first),
    )


def _skill(tasks: Sequence[Task]) -> Task:
    found = next((task for task in tasks if task.kind == "skill"), None)
    if found is None:
        raise RunFolderError("the comparison evaluates no task of the kind `skill`, such as translation.")
    return found


def _measure(cell: Cell, rows: _Rows, skill: Task, abilities: Sequence[Task]) -> _Measured:
    run = RunFolder(cell.folder)
    kept = {side: rows.retention(run, abilities, cell.name, side) for side in ("validation", "test")}
    macro = {side: stats.macro_retention(of) for side, of in kept.items()}
    test, validation = macro["test"], macro["validation"]
    if test is None or validation is None:
        raise RunFolderError("none of the abilities can be measured: the untouched model is no better than a guesser.")
    return _Measured(
        cell,
        rows.score(run, skill, cell.name, "test"),
        test,
        {name: r.value for name, r in kept["test"].items() if r.value is not None},
        (rows.score(run, skill, cell.name, "validation").value, validation.value),
        cost_of(run),
    )


def cost_of(run: RunFolder) -> Cost:
    """What one run took, from its manifest; what it read from a ledger counts as if it had been written for it."""
    stages = run.stages()
    train = stages["train"].facts
    asked = train.get("asked", stages["assemble"].facts.get("asked", {}))  # of the run whose weights were taken, or own
    names = ("tokens_processed", "tokens_reference", "tokens_rolled_out", "tokens_prepared", "tokens_validated")
    return Cost(
        processed_tokens=float(sum(asked.values()) + sum(train.get(name, 0) for name in names)),
        trained_tokens=float(train.get("tokens_trained", 0)),
        steps=float(train.get("steps", 0)),
        seconds=sum(stages[n].seconds for n in ("generate", "assemble", "train")) + train.get("seconds_there", 0.0),
    )


def _spots(config: CompareConfig, method: str, measured: Sequence[list[_Measured]], base: float) -> list[Spot]:
    """The configurations of a method, those of its frontier marked."""
    found = []
    for of_seeds in measured:
        cell = of_seeds[0].cell
        cost = Cost(**{n: float(np.mean([getattr(m.cost, n) for m in of_seeds])) for n in Cost.__slots__})
        names = of_seeds[0].abilities
        found.append(
            Spot(
                method=method,
                index=cell.index,
                settings=cell.settings,
                skill=frontier.over_seeds([m.skill for m in of_seeds], seed=SEED),
                retention=frontier.over_seeds([m.kept.resampled for m in of_seeds], seed=SEED),
                seeds=tuple(SeedSpot(seed=m.cell.seed, skill=m.skill.value, retention=m.kept.value) for m in of_seeds),
                abilities={name: float(np.mean([m.abilities.get(name, 0.0) for m in of_seeds])) for name in names},
                cost=cost,
                within_budget=config.budget.limit is None
                or getattr(cost, config.budget.measure) <= config.budget.limit,
                chosen=False,
                validation_skill=float(np.mean([m.validation[0] for m in of_seeds])),
                validation_retention=float(np.mean([m.validation[1] for m in of_seeds])),
            )
        )
    allowed = [spot for spot in found if spot.within_budget]
    values = [(spot.validation_skill, spot.validation_retention) for spot in allowed]
    taken = frontier.choose(values, count=config.points, base=base, end=config.axis_end)
    chosen = {allowed[at].index for at in taken}
    return [_replaced(spot, chosen=spot.index in chosen) for spot in found]


def _replaced(spot: Spot, **changes: Any) -> Spot:
    from dataclasses import replace

    return replace(spot, **changes)


def _standings(
    config: CompareConfig,
    cells: Sequence[Cell],
    spots: Mapping[str, list[Spot]],
    base: Resampled,
    base_validation: float,
    best_skill: float,
) -> tuple[Standing, ...]:
    volumes = {m: _volume(of, base, config.axis_end) for m, of in spots.items()}
    best = {m: _best(of, base_validation, config.axis_end) for m, of in spots.items()}
    tests = _tests(spots, best, volumes)
    standings = []
    for method, of in spots.items():
        points = [(s.skill, s.retention) for s in of if s.chosen]
        at: dict[float, Interval | None] = {}
        for share in SHARES_OF_WAY:
            target = frontier.on_the_way(base, best_skill, share)
            found = frontier.retention_at(points, base=base, target=target) if points else None
            at[share] = found.interval() if found else None
        run = next(cell.config for cell in cells if cell.method == method)
        ours = config.methods[method].ours
        counted = [s for s in of if s.chosen] or of
        standings.append(
            Standing(
                name=method,
                ours=flag(run.method, "ours") if ours is None else ours,
                brings_data=flag(run.method, "brings_data"),
                spots=tuple(of),
                best=best[method].index,
                hypervolume=volumes[method].interval(),
                retention_at=at,
                cost=Cost(**{n: float(np.mean([getattr(s.cost, n) for s in counted])) for n in Cost.__slots__}),
                tests=tuple(tests.get(method, ())),
            )
        )
    return tuple(standings)


def _volume(spots: Sequence[Spot], base: Resampled, end: float) -> Resampled:
    points = [(s.skill, s.retention) for s in spots if s.chosen]
    return frontier.hypervolume(points, base=base, end=end)


def _best(spots: Sequence[Spot], base: float, end: float) -> Spot:
    """The configuration that by itself takes the largest share of the box on the validation items."""
    allowed = [s for s in spots if s.within_budget] or list(spots)
    return max(
        allowed, key=lambda s: (frontier.box(s.validation_skill, s.validation_retention, base=base, end=end), -s.index)
    )


def _tests(
    spots: Mapping[str, list[Spot]], best: Mapping[str, Spot], volumes: Mapping[str, Resampled]
) -> dict[str, list[Test]]:
    """Every method against `vanilla` and `radis`, where they are compared."""
    found: dict[str, list[Test]] = {}
    for rival in ("vanilla", "radis"):
        if rival not in spots:
            continue
        for what in ("skill", "retention", "hypervolume"):

            def of(method: str, what: str = what) -> Resampled:
                if what == "hypervolume":
                    return volumes[method]
                return best[method].skill if what == "skill" else best[method].retention

            paired = {m: stats.difference(of(rival), of(m)) for m in spots if m != rival}
            holm = stats.holm({m: p.p_value for m, p in paired.items()})
            for method, p in paired.items():
                found.setdefault(method, []).append(Test(rival=rival, what=what, paired=p, p_holm=holm[method]))
    return found


def _budget(config: CompareConfig) -> str:
    limit, measure = config.budget.limit, config.budget.measure.replace("_", " ")
    return f"at most {limit:,.0f} {measure}" if limit is not None else "none"


def _notes(config: CompareConfig, first: _Measured) -> tuple[str, ...]:
    stages = RunFolder(first.cell.folder).stages()
    device = stages["train"].device
    notes = [f"Trained on {device}."] if device else []
    if len(config.seeds) == 1:
        notes.append("One seed: the intervals are over test items alone.")
    if Path(config.output_dir).name == "quick":
        notes.append("The quick form: fewer configurations, seeds and items than the comparison itself.")
    return tuple(notes)
