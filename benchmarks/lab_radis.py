"""Where published RaDis stands in the lab: learning rates, seeds, controls, and the weighting of segments.

Every run is the demo's (`radistill.demo.run_config`) with the settings named in its row; runs that are finished are
reused, so the script can be stopped and started again. Prints two Markdown tables: the means over the seeds with
intervals over test items, and paired differences to vanilla at the same and at half the learning rate. `--json FILE`
keeps the numbers of every run, `--picture FILE` draws them (SVG). Without `--all` only two runs are made.

    python benchmarks/lab_radis.py [--all | --only NAME ...] [--seeds 3] [--output-dir DIR] [--quick | --tiny]
        [--json FILE] [--picture FILE]
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from radistill import pipeline, plots, scoring, stats
from radistill.config import RunConfig, as_dict, config_from
from radistill.demo import MARGIN, run_config
from radistill.filters import OFF
from radistill.plots import Point
from radistill.records import BASE
from radistill.report import collect
from radistill.report_scores import Result
from radistill.runs import RunFolder

STAGES = ("generate", "assemble", "train", "evaluate")
RATES = (2.5e-4, 5e-4, 1e-3, 2e-3)


@dataclass(frozen=True)
class Variant:
    """One row of the table: a name, a method, and what is set."""

    name: str
    method: dict[str, Any]
    train: dict[str, Any]


VARIANTS = (
    *(Variant(f"vanilla-{rate:g}", {"name": "vanilla"}, {"learning_rate": rate}) for rate in RATES),
    *(Variant(f"radis-{rate:g}", {"name": "radis"}, {"learning_rate": rate}) for rate in RATES),
    Variant("radis-0.001-shuffled", {"name": "radis", "pairing": "shuffled"}, {"learning_rate": 1e-3}),
    Variant("radis-0.001-no-end", {"name": "radis", "train_end": False}, {"learning_rate": 1e-3}),
    Variant("radis-0.001-segments", {"name": "radis"}, {"learning_rate": 1e-3, "weighting": "segments"}),
    Variant("vanilla-0.001-segments", {"name": "vanilla"}, {"learning_rate": 1e-3, "weighting": "segments"}),
)


def config_of(variant: Variant, output_dir: Path, seed: int, *, quick: bool, tiny: bool = False) -> RunConfig:
    """The variant's run."""
    raw = as_dict(run_config("radis", output_dir, quick=quick, seed=seed))
    name = f"{variant.name}-seed{seed}"
    raw |= {"name": name, "output_dir": str(output_dir / name), "method": variant.method}
    raw["train"] |= variant.train
    raw["generate"]["filters"] = OFF.model_dump()  # RaDis as published; what is finished is from before there were any
    for task in raw["evaluate"]:
        if "items" in task:
            task["items"] = 2 if tiny else min(task["items"], 100)
    if tiny:
        raw["data"]["train"]["limit"], raw["data"]["test"]["limit"] = 16, 4
    return config_from(raw)


def measure(folders: Sequence[RunFolder], names: Sequence[str]) -> dict[str, dict[str, stats.Resampled]]:
    """New skill and retention (all, rehearsed by rationales, not rehearsed) of every system."""
    found = collect(folders, margin=MARGIN, seed=0).results
    return {name: _of(found, name) for name in (BASE, *names)}


def _of(found: Sequence[Result], system: str) -> dict[str, stats.Resampled]:
    skill = next(r for r in found if r.evaluation.task.kind == "skill")
    numbers = {"skill": scoring.resampled(skill.scored, system=system, metric=skill.metrics[0])}
    parts = {"retention": (True, False), "rehearsed": (True,), "not rehearsed": (False,)}
    for name, kinds in parts.items():
        tasks = [r for r in found if r.evaluation.task.kind == "ability" and r.evaluation.task.is_rehearsed in kinds]
        kept = {r.evaluation.name: scoring.retention(r.scored, system=system, margin=MARGIN) for r in tasks}
        macro = stats.macro_retention(kept)
        assert macro is not None, "the pocket model has abilities"
        numbers[name] = stats.Resampled(100 * macro.resampled.value, 100 * macro.resampled.draws_D)
    return numbers


def against(by_variant: dict[str, list[dict[str, stats.Resampled]]], rivals: Sequence[str]) -> list[str]:
    """Markdown: each run minus the rival, paired on the test items, as the mean over the seeds both have."""
    lines = ["| run | minus | Esperanto, BLEU | retention, points |", "|---|---|---|---|"]
    for rival in (name for name in rivals if name in by_variant):
        for name, seeds in by_variant.items():
            if name in (rival, "untouched"):
                continue
            cells = []
            for what in ("skill", "retention"):
                theirs, ours = (stats.mean_of([n[what] for n in of]) for of in (by_variant[rival], seeds))
                d = stats.difference(theirs, ours)
                cells.append(f"{d.difference:+.1f} [{d.low:+.1f}, {d.high:+.1f}]")
            lines.append(f"| {name} | {rival} | {' | '.join(cells)} |")
    return lines


def table(by_variant: dict[str, list[dict[str, stats.Resampled]]]) -> list[str]:
    """Markdown: the mean over the seeds, its interval over items, and the seeds' own values."""
    lines = [
        "| run | Esperanto, BLEU | retention, % | of rehearsed | of not rehearsed | retention by seed |",
        "|---|---|---|---|---|---|",
    ]
    for name, seeds in by_variant.items():
        cells = []
        for what in ("skill", "retention", "rehearsed", "not rehearsed"):
            mean = stats.mean_of([numbers[what] for numbers in seeds]).interval()
            cells.append(f"{mean.value:.1f} [{mean.low:.1f}, {mean.high:.1f}]")
        each = ", ".join(f"{numbers['retention'].value:.1f}" for numbers in seeds)
        lines.append(f"| {name} | {' | '.join(cells)} | {each} |")
    return lines


def picture(by_variant: dict[str, list[dict[str, stats.Resampled]]]) -> str:
    """New skill against retention, one point a variant over its seeds, as SVG."""
    points = []
    for name, seeds in by_variant.items():
        if not name.endswith("segments") or name.startswith("radis"):  # vanilla has one origin: the same run
            y, x = (stats.mean_of([n[what] for n in seeds]).interval() for what in ("skill", "retention"))
            span = {"x": x.value / 100, "x_low": x.low / 100, "x_high": x.high / 100}
            points.append(Point(system=name, **span, y=y.value, y_low=y.low, y_high=y.high))
    title = "What was learned (up) against what was kept (right), one point for each setting, mean of the seeds"
    drawn = plots.against("radis-in-the-lab", points, title=title, x_unit="retention", y_unit="BLEU, Esperanto")
    return drawn.svg


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, default=Path("runs/lab-radis"))
    parser.add_argument("--seeds", type=int, default=1)
    names = [variant.name for variant in VARIANTS]
    parser.add_argument("--only", nargs="*", choices=names, default=["vanilla-0.001", "radis-0.001"])
    parser.add_argument("--all", action="store_const", const=names, dest="only")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--tiny", action="store_true", help="16 sentences, 2 items a task: to see that it runs")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--picture", type=Path)
    args = parser.parse_args()
    chosen = [variant for variant in VARIANTS if variant.name in args.only]
    folders: list[RunFolder] = []
    by_variant: dict[str, list[str]] = {}
    for seed in range(args.seeds):
        for variant in chosen:
            config = config_of(variant, args.output_dir, seed, quick=args.quick, tiny=args.tiny)
            pipeline.run(config, stages=STAGES)
            folders.append(RunFolder(Path(config.output_dir)))
            by_variant.setdefault(variant.name, []).append(config.name)
            print(f"{config.name}: done", flush=True)
    numbers = measure(folders, [name for names in by_variant.values() for name in names])
    rows = {"untouched": [numbers[BASE]]} | {v: [numbers[n] for n in names] for v, names in by_variant.items()}
    print("\n".join([*table(rows), "", *against(rows, ("vanilla-0.0005", "vanilla-0.001"))]))
    if args.picture:
        args.picture.write_text(picture(rows), encoding="utf-8")
    if args.json:
        plain = {name: {what: _interval(found) for what, found in of.items()} for name, of in numbers.items()}
        args.json.write_text(json.dumps(plain, indent=1) + "\n", encoding="utf-8")


def _interval(found: stats.Resampled) -> dict[str, float]:
    interval = found.interval()
    return {"value": interval.value, "low": interval.low, "high": interval.high}


if __name__ == "__main__":
    main()
