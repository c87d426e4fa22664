"""What a comparison comes to: plain numbers, from which its page, tables and JSON are written.

Retention is a fraction, new skill is in the metric's own points; draws are bootstrap draws over items and seeds.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from radistill.stats import Interval, Paired, Resampled

SHARES_OF_WAY = (0.5, 0.75, 0.9)
"""Of the way from the untouched model to the best new skill of the comparison, where retention is compared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What one configuration took, as the mean over its seeds."""

    processed_tokens: float
    """All that any model read or wrote for it: generation, scoring, training, the untouched model beside it."""
    trained_tokens: float
    steps: float
    seconds: float
    """Of the stages generate, assemble and train, on the machine that ran them; what came from a ledger took none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedSpot:
    """One run on the test items."""

    seed: int
    skill: float
    retention: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Spot:
    """One configuration of a method, over all its seeds."""

    method: str
    index: int
    """Place among the method's configurations, from 0."""
    settings: Mapping[str, Any]
    """What it sets, by dotted key."""
    skill: Resampled
    retention: Resampled
    seeds: tuple[SeedSpot, ...]
    abilities: Mapping[str, float]
    """Retention of each measurable ability, unclipped, as the mean over the seeds."""
    cost: Cost
    within_budget: bool
    chosen: bool
    """By the validation items; the frontier is made of the chosen ones."""
    validation_skill: float
    validation_retention: float

    @property
    def name(self) -> str:
        """As `radis.2`."""
        return f"{self.method}.{self.index}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Test:
    """A method's difference to a rival on the same items and seeds, at each one's best configuration."""

    rival: str
    what: str
    """`skill`, `retention` or `hypervolume`."""
    paired: Paired
    p_holm: float
    """Corrected for the number of methods compared with this rival in this respect."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """One method."""

    name: str
    ours: bool
    brings_data: bool
    """It learns from data that the untouched model did not write, beside the examples."""
    spots: tuple[Spot, ...]
    """All its configurations."""
    best: int
    """Index of the one with the largest share of the box by itself on the validation items."""
    hypervolume: Interval
    """Share of the box between the reference point and the axes' ends that its chosen spots dominate, 0 to 1."""
    retention_at: Mapping[float, Interval | None]
    """Share of the way → retention there; None where the method does not come so far."""
    cost: Cost
    """Mean over its chosen spots."""
    tests: tuple[Test, ...]

    @property
    def chosen(self) -> tuple[Spot, ...]:
        """The spots of its frontier."""
        return tuple(spot for spot in self.spots if spot.chosen)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """All methods."""

    name: str
    skill_name: str
    """As `BLEU on translation`."""
    base_skill: Interval
    """Of the untouched model."""
    best_skill: float
    """The highest of any configuration within the budget, as the mean over its seeds."""
    axis_end: float
    """New skill at the right edge of the box; the left edge is the untouched model's, retention runs from 0 to 1."""
    budget: str
    """In words, as `at most 1,000,000 processed tokens`."""
    seeds: tuple[int, ...]
    points: int
    """So many configurations of each method make its frontier."""
    n_items: Mapping[str, tuple[int, int]]
    """Task → validation and test items."""
    abilities: tuple[str, ...]
    """The measurable ones, in the order in which they were tested."""
    standings: tuple[Standing, ...]
    """In the order of the config."""
    unfinished: tuple[str, ...]
    """Cells that are lacking; their configurations are left out."""
    notes: tuple[str, ...]
