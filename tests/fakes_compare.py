"""A comparison without a model: seventeen methods, four configurations each, three seeds, numbers made by rule.

Every method loses with w of the way to its limit what its own curve says; everything else is drawn from
`radistill.seeds`, so the numbers are the same on every machine. Items are drawn together for all methods, as in life.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from radistill import compare_tables, frontier, stats
from radistill.compare_data import SHARES_OF_WAY, Comparison, Cost, SeedSpot, Spot, Standing, Test
from radistill.seeds import generator
from radistill.stats import Resampled

DRAWS, SEEDS = 1000, (0, 1, 2)
BASE_SKILL, END = 10.8, 100.0
ABILITIES = (
    "arithmetic",
    "knowledge",
    "list operations",
    "format",
    "stories",
    "definitions",
    "refusal",
    "es-en",
    "en-es",
)
METHODS = {
    "vanilla": (95, 0.1), "radis": (93, 0.45), "seqkd": (58, 0.8), "sdft": (88, 0.4), "sdft_onpolicy": (80, 0.7),
    "replay": (94, 0.72), "context_free": (90, 0.66), "kl": (84, 0.5), "l2sp": (87, 0.3), "ewc": (87, 0.36),
    "stm": (85, 0.42), "dft": (82, 0.38), "eaft": (86, 0.35), "flow": (88, 0.3), "layers": (86, 0.25),
    "interpolate": (93, 0.3), "anchor": (94, 0.84),
}  # fmt: skip
"""Name → new skill at the end of its curve, retention there."""
SEVERAL = ("vanilla", "radis", "replay", "sdft_onpolicy", "seqkd", "anchor")
UNFINISHED = ("radis.3.seed2", "flow.1.seed0")


def moved(value: float, scale: float, *purpose: object) -> Resampled:
    """The value on draws: most of the noise is that of the items, which all systems share."""
    common = generator(0, "items", scale).normal(size=DRAWS)
    own = generator(0, "own", *purpose).normal(size=DRAWS)
    return Resampled(value, value + scale * (0.8 * common + 0.6 * own))


BASE = moved(BASE_SKILL, 0.5, "base")


def spot(method: str, index: int, *, end: float, kept: float) -> Spot:
    """One configuration: the further along its curve, the more is learned and lost."""
    way = (0.45, 0.7, 0.88, 1.0)[index]
    at = [(BASE_SKILL + way * (end - BASE_SKILL), 1 - (1 - kept) * way**2.5)]
    random = generator(0, "spot", method, index)
    runs = [(at[0][0] + random.normal(0, 1.2), min(1.0, at[0][1] + random.normal(0, 0.015))) for _ in SEEDS]
    skill = frontier.over_seeds([moved(s, 0.7, method, index, i, "s") for i, (s, _) in enumerate(runs)], seed=0)
    left = frontier.over_seeds([moved(k, 0.01, method, index, i, "k") for i, (_, k) in enumerate(runs)], seed=0)
    tokens = 1.1e6 * (1.0 if kept < 0.4 else 2.4) * (1 + 0.1 * index)
    spread = random.normal(0, 0.5 * (1 - left.value) + 0.01, len(ABILITIES))
    return Spot(
        method=method,
        index=index,
        settings={"train.learning_rate": (3e-4, 5e-4, 1e-3, 2e-3)[index], "method.weight": 1.0},
        skill=skill,
        retention=left,
        seeds=tuple(SeedSpot(seed=n, skill=s, retention=k) for n, (s, k) in zip(SEEDS, runs, strict=True)),
        abilities={name: float(left.value + gap) for name, gap in zip(ABILITIES, spread, strict=True)},
        cost=Cost(processed_tokens=tokens, trained_tokens=tokens / 4, steps=282.0, seconds=95.0 * (1 + kept)),
        within_budget=not (method == "sdft_onpolicy" and index == 3),
        chosen=not (method == "sdft_onpolicy" and index == 3),
        validation_skill=skill.value - 0.4,
        validation_retention=left.value + 0.003,
    )


def standing(method: str, spots: Sequence[Spot], *, best_skill: float) -> Standing:
    """A method as its spots make it, untested."""
    chosen = [s for s in spots if s.chosen]
    points = [(s.skill, s.retention) for s in chosen]
    at = {
        share: frontier.retention_at(points, base=BASE, target=frontier.on_the_way(BASE, best_skill, share))
        for share in SHARES_OF_WAY
    }
    return Standing(
        name=method,
        ours=method in ("radis", "anchor"),
        brings_data=method == "replay",
        spots=tuple(spots),
        best=max(chosen, key=lambda s: frontier.box(s.skill.value, s.retention.value, base=BASE_SKILL, end=END)).index,
        hypervolume=frontier.hypervolume(points, base=BASE, end=END).interval(),
        retention_at={share: found.interval() if found else None for share, found in at.items()},
        cost=Cost(**{n: float(np.mean([getattr(s.cost, n) for s in chosen])) for n in Cost.__slots__}),
        tests=(),
    )


def tested(standings: Sequence[Standing]) -> list[Standing]:
    """The same, held against vanilla and RaDis where they are there."""
    tests: dict[str, list[Test]] = {s.name: [] for s in standings}
    for rival in (s for s in standings if s.name in ("vanilla", "radis")):
        for what in ("skill", "retention", "hypervolume"):
            others = [s for s in standings if s is not rival]
            paired = {s.name: stats.difference(number(rival, what), number(s, what)) for s in others}
            holm = stats.holm({name: p.p_value for name, p in paired.items()})
            for name, p in paired.items():
                tests[name].append(Test(rival=rival.name, what=what, paired=p, p_holm=holm[name]))
    return [replace(s, tests=tuple(tests[s.name])) for s in standings]


def number(standing: Standing, what: str) -> Resampled:
    if what == "hypervolume":
        return frontier.hypervolume([(s.skill, s.retention) for s in standing.chosen], base=BASE, end=END)
    best = next(s for s in standing.spots if s.index == standing.best)
    return best.skill if what == "skill" else best.retention


def fake_comparison(methods: Sequence[str] = tuple(METHODS), **changes: Any) -> Comparison:
    """A whole comparison of these methods."""
    ends = {name: METHODS.get(name, (80.0, 0.5)) for name in methods}
    spots = {m: [spot(m, i, end=end, kept=kept) for i in range(4)] for m, (end, kept) in ends.items()}
    best_skill = max(s.skill.value for of in spots.values() for s in of if s.within_budget)
    standings = tested([standing(m, of, best_skill=best_skill) for m, of in spots.items()])
    found = Comparison(
        name="compare-lab",
        skill_name="BLEU on translation",
        base_skill=BASE.interval(),
        best_skill=best_skill,
        axis_end=END,
        budget="at most 4,000,000 processed tokens",
        seeds=SEEDS,
        points=4,
        n_items={"translation": (700, 2000), **dict.fromkeys(ABILITIES, (100, 300))},
        abilities=ABILITIES,
        standings=tuple(standings),
        unfinished=(),
        notes=("Trained on CPU, 2 threads.",),
    )
    return replace(found, **changes)


def several() -> Comparison:
    """Methods of every kind, and cells that are not finished."""
    return fake_comparison(SEVERAL, unfinished=UNFINISHED)


def only(*methods: str, **changes: Any) -> Comparison:
    return fake_comparison(methods, **changes)


def standing_of(comparison: Comparison, name: str) -> Standing:
    found = compare_tables.named(comparison, name)
    assert found is not None
    return found


def with_volume(comparison: Comparison, **volumes: tuple[float, float, float]) -> Comparison:
    """The same with other hypervolumes and no tests, to see what is said of them."""
    changed = [
        replace(s, hypervolume=stats.Interval(*volumes[s.name]), tests=()) if s.name in volumes else s
        for s in comparison.standings
    ]
    return replace(comparison, standings=tuple(changed))
