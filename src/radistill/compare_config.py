"""The config of a comparison: what all runs share, and what each method may set.

A cell is one run: a method, one of its configurations, a seed. All cells are built, and so checked, before any begins.
"""

import copy
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from radistill import run_file
from radistill.config import NAME, RunConfig, config_from
from radistill.errors import ConfigError, did_you_mean
from radistill.settings import Settings

CELL = "@"
"""`@vanilla.2` stands for the run folder of that configuration with the same seed."""
OWN = ("name", "output_dir", "seed", "method")
"""What the cells set themselves, and `run` may not."""
Measure = Literal["processed_tokens", "trained_tokens", "steps", "seconds"]


class Grid(Settings):
    """One method's configurations."""

    method: Any = None
    """As in a run file: a name, a mapping, or a list of several; by default the entry's own name."""
    set: dict[str, Any] = Field(default_factory=dict)
    """What all its configurations set, by dotted key: `{train.labels: live}`."""
    dials: dict[str, list[Any]] = Field(default_factory=dict)
    """Dotted key → values; the configurations are all their combinations."""
    configurations: list[dict[str, Any]] = Field(default_factory=list)
    """The configurations one by one, instead of `dials`."""
    ours: bool | None = None
    """Whether reports show it as this project's own; null = as the method itself says."""

    @model_validator(mode="after")
    def _one_way(self) -> "Grid":
        if bool(self.dials) == bool(self.configurations):
            raise ValueError("give either `dials` or `configurations`")
        if empty := [key for key, values in self.dials.items() if not values]:
            raise ValueError(f"the dial {empty[0]} has no values")
        return self

    def settings(self) -> list[dict[str, Any]]:
        """What each configuration sets beside `set`."""
        if self.configurations:
            return self.configurations
        return [dict(zip(self.dials, values, strict=True)) for values in itertools.product(*self.dials.values())]


class Budget(Settings):
    """What a configuration may cost."""

    measure: Measure = "processed_tokens"
    """`processed_tokens`: all that any model read or wrote for it, generation included."""
    limit: float | None = Field(None, gt=0)
    """A configuration whose mean over the seeds is above it is shown and not counted; null = none."""


class Quick(Settings):
    """What `--quick` leaves of the comparison."""

    methods: list[str] | None = Field(None, min_length=1)
    """Only these; null = all."""
    configurations: int = Field(1, ge=1)
    """Only the first so many of each."""
    seeds: list[int] = Field(default_factory=lambda: [0], min_length=1)
    """Only these."""
    set: dict[str, Any] = Field(default_factory=dict)
    """What all cells set, by dotted key."""


class CompareConfig(Settings):
    """One comparison."""

    name: str = Field(pattern=NAME)
    """Name of the comparison; by default that of the file."""
    output_dir: str = Field(min_length=1)
    """Where everything goes; by default runs/<name>."""
    run: dict[str, Any]
    """What all cells share: a run file without name, output_dir, seed and method."""
    methods: dict[str, Grid] = Field(min_length=1)
    """Name in tables → configurations. All methods must have equally many."""
    seeds: list[int] = Field(default_factory=lambda: [0], min_length=1)
    """Each configuration is run with each of them."""
    validation: float = Field(0.25, gt=0, lt=1)
    """Share of the test items, the same for all, by which configurations are chosen; the others are the test."""
    points: int = Field(3, ge=1)
    """So many configurations of each method make its frontier."""
    axis_end: float = Field(gt=0)
    """New skill, in points of the metric, at which the box of the hypervolume ends. Fixed before the runs."""
    budget: Budget = Budget()
    """What a configuration may cost."""
    keep_models: bool = False
    """Whether the trained weights are kept; they are not needed for the report."""
    quick: Quick = Quick()
    """What `--quick` leaves."""

    @field_validator("seeds")
    @classmethod
    def _each_once(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("a seed is listed twice")
        return seeds

    @model_validator(mode="after")
    def _is_fair(self) -> "CompareConfig":
        if own := [key for key in OWN if key in self.run]:
            raise ValueError(f"run.{own[0]} is set by the comparison itself; leave it out")
        counts = {name: len(grid.settings()) for name, grid in self.methods.items()}
        if len(set(counts.values())) > 1:
            told = ", ".join(f"{name} {count}" for name, count in counts.items())
            raise ValueError(
                f"all methods need equally many configurations, or the choice is unfair; there are: {told}"
            )
        if unknown := [name for name in self.quick.methods or () if name not in self.methods]:
            raise ValueError(f"quick.methods: {unknown[0]!r} is not compared.{did_you_mean(unknown[0], self.methods)}")
        return self

    def quickly(self) -> "CompareConfig":
        """The same with what `quick` leaves of it, in a folder of its own."""
        quick = self.quick
        kept = {}
        for name in quick.methods or self.methods:
            grid = self.methods[name]
            kept[name] = grid.model_copy(
                update={
                    "dials": {},
                    "configurations": grid.settings()[: quick.configurations],
                    "set": {**grid.set, **quick.set},
                }
            )
        update = {"methods": kept, "seeds": quick.seeds, "points": min(self.points, quick.configurations)}
        return self.model_copy(update={**update, "output_dir": str(Path(self.output_dir) / "quick")})


@dataclass(frozen=True)
class Cell:
    """One run of the comparison."""

    number: int
    """From 0; what `--cell` names."""
    method: str
    index: int
    seed: int
    settings: Mapping[str, Any]
    """What this configuration sets."""
    config: RunConfig
    needs: tuple[str, ...]
    """Names of the cells whose run folders it reads."""

    @property
    def name(self) -> str:
        """As `radis.2-seed0`."""
        return self.config.name

    @cached_property
    def folder(self) -> Path:
        """Its run folder."""
        return Path(self.config.output_dir)


def load_compare_config(path: Path, overrides: Sequence[str] = ()) -> CompareConfig:
    """Read and check a config of a comparison.

    Raises:
        ConfigError: with every problem found.
    """
    file = run_file.read(path, overrides, shorthand=lambda raw: raw)
    file.raw.setdefault("name", path.stem)
    file.raw.setdefault("output_dir", f"runs/{file.raw['name']}")
    problems = list(file.problems)
    raw = run_file.tidied(file.raw, CompareConfig, (), problems)
    try:
        config = CompareConfig.model_validate(raw)
    except ValidationError as error:
        problems += run_file.problems_of(error, CompareConfig, ())
    if problems:
        raise ConfigError(file.describe(problems))
    return config


def cells_of(config: CompareConfig) -> list[Cell]:
    """All cells, one seed after another, a cell that needs another behind all that need none.

    Raises:
        ConfigError: the run of a cell would be refused; all of them are named.
    """
    found: list[Cell] = []
    problems: list[str] = []
    for seed in config.seeds:
        for method, grid in config.methods.items():
            for index, settings in enumerate(grid.settings()):
                try:
                    found.append(_cell(config, method, index, seed))
                except ConfigError as error:
                    problems.append(f"{method}.{index} {dict(settings)}: {error}")
        if problems:
            raise ConfigError("\n".join(problems))  # other seeds have the same ones
    known = {cell.name for cell in found}
    for cell in found:
        if lost := [name for name in cell.needs if name not in known]:
            raise ConfigError(
                f"{cell.method}.{cell.index} refers to {CELL}{lost[0].rpartition('-seed')[0]}, which is not compared."
            )
    ordered = sorted(found, key=lambda cell: (config.seeds.index(cell.seed), bool(cell.needs)))
    return [Cell(n, c.method, c.index, c.seed, c.settings, c.config, c.needs) for n, c in enumerate(ordered)]


def _cell(config: CompareConfig, method: str, index: int, seed: int) -> Cell:
    grid = config.methods[method]
    settings = grid.settings()[index]
    name = f"{method}.{index}-seed{seed}"
    folder = Path(config.output_dir)
    raw = copy.deepcopy(config.run)
    raw |= {
        "name": name,
        "output_dir": str(folder / "cells" / name),
        "seed": seed,
        "method": copy.deepcopy(method if grid.method is None else grid.method),
    }
    if isinstance(raw["method"], str):
        raw["method"] = {"name": raw["method"]}
    put(raw, "generate.ledger", _get(raw, "generate.ledger") or str(folder / "ledger"))
    for key, value in {**grid.set, **settings}.items():
        put(raw, key, copy.deepcopy(value))
    needs: list[str] = []
    raw["method"] = _resolved(raw["method"], folder, seed, needs)
    return Cell(0, method, index, seed, settings, config_from(raw), tuple(needs))


def put(raw: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key, making the sections it needs; a number names a place in a list.

    `evaluate.*.items` sets the key in all entries of the list that have it.

    Raises:
        ConfigError: something on the way is no section.
    """
    at: Any = raw
    *way, last = key.split(".")
    if "*" in way:
        before, after = ".".join(way[: way.index("*")]), way[way.index("*") + 1 :]
        for entry in _get(raw, before) or ():
            if isinstance(entry, dict) and (after or [last])[0] in entry:
                put(entry, ".".join([*after, last]), value)
        return
    for step in way:
        if isinstance(at, list) and step.isdigit() and int(step) < len(at):
            if isinstance(at[int(step)], str):
                at[int(step)] = {"name": at[int(step)]}
            at = at[int(step)]
        elif isinstance(at, dict):
            if not isinstance(at.get(step), dict | list):
                at[step] = {"name": at[step]} if isinstance(at.get(step), str) else {}
            at = at[step]
        else:
            raise ConfigError(f"the key {key} cannot be set: {step} is no section there.")
    if isinstance(at, list) and last.isdigit() and int(last) < len(at):
        at[int(last)] = value
    elif isinstance(at, dict):
        at[last] = value
    else:
        raise ConfigError(f"the key {key} cannot be set: {last} is no key there.")


def _get(raw: Mapping[str, Any], key: str) -> Any:
    at: Any = raw
    for step in key.split("."):
        at = at.get(step) if isinstance(at, dict) else None
    return at


def _resolved(value: Any, folder: Path, seed: int, needs: list[str]) -> Any:
    """The same with every `@method.index` as the folder of that cell."""
    if isinstance(value, str) and value.startswith(CELL):
        needs.append(f"{value.removeprefix(CELL)}-seed{seed}")
        return str(folder / "cells" / needs[-1])
    if isinstance(value, dict):
        return {key: _resolved(v, folder, seed, needs) for key, v in value.items()}
    return [_resolved(v, folder, seed, needs) for v in value] if isinstance(value, list) else value


def by_method(cells: Sequence[Cell]) -> Iterator[tuple[str, list[list[Cell]]]]:
    """Method → its configurations, each with the cells of all seeds."""
    for method in dict.fromkeys(cell.method for cell in cells):
        own = [cell for cell in cells if cell.method == method]
        yield method, [[c for c in own if c.index == index] for index in sorted({c.index for c in own})]
