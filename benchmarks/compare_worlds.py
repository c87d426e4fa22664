"""All methods on worlds that nothing was chosen on: each brings up its own pocket model, and all are compared once.

Methods and configurations are those of `configs/compare-lab.yaml`, with one seed and 700 test sentences a direction;
what differs from world to world is here. Finished upbringings and cells are never done again, so that the script can
be stopped and started. At the end `--json FILE` gets the frontier of each world and the means over the worlds.

    python benchmarks/compare_worlds.py [--worlds 100 101 ...] [--workers 2] [--output-dir DIR] [--json FILE] [--tiny]
"""

import argparse
import json
import statistics
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from radistill.compare import compare, default_command
from radistill.compare_config import load_compare_config, put
from radistill.lab import POCKET
from radistill.lab.exam import exam
from radistill.lab.pretrain import Upbringing, pretrain
from radistill.lab.world import WorldSettings, world_of

LAB = Path(__file__).resolve().parents[1] / "configs" / "compare-lab.yaml"
TESTED = 700
"""Sentences a direction, a quarter of them to choose by."""
WORLDS: dict[int, dict[str, Any]] = {
    100: {},
    101: {"word_order": "sov", "morphology": "prefixes"},
    102: {"rationale_overlap": 0.2},
    103: {"word_order": "vso", "morphology": "particles"},
    104: {},
}
"""Number → what is not as in the shipped world, besides all names, words, facts and sentences."""
SIZE = {"hidden_size": 192, "intermediate_size": 512, "layers": 3}
"""1.7 M parameters."""
SHORT = {"texts": 30_000, "chats": (200_000,), "practice": 0, "mixed": 40_000}
"""A third of the shipped model's upbringing."""
TINY = {"hidden_size": 64, "intermediate_size": 64, "layers": 1, "texts": 64, "chats": (64,), "practice": 0, "mixed": 0}
SHARES = ("0.5", "0.75", "0.9")


def bring_up(world: WorldSettings, folder: Path, *, tiny: bool) -> Path:
    """The world's model, and beside it what it can."""
    model = pretrain(Upbringing(world=world, **(TINY if tiny else {**SIZE, **SHORT})), folder / "upbringing", say=say)
    marks = folder / "exam.json"
    if not marks.exists():
        found = exam(str(model), world, items=2 if tiny else 200)
        marks.write_text(json.dumps(asdict(found), indent=1) + "\n", encoding="utf-8")
    return model


def config_of(world: WorldSettings, model: Path, folder: Path, *, tiny: bool) -> Path:
    """The comparison in this world, written where it is run."""
    raw = yaml.safe_load(LAB.read_text(encoding="utf-8"))
    code = world_of(world).new.code
    pairs = [f"en-{code}", f"{code}-en"]
    raw |= {"name": f"world-{world.number}", "output_dir": str(folder / "compare"), "seeds": [0]}
    raw["methods"]["replay"]["method"]["world"] = world.model_dump(mode="json")
    raw["run"]["model"] = str(model)
    for part in raw["run"]["data"].values():
        part |= {"path": str(model / "sentences"), "pairs": pairs}
    for task in raw["run"]["evaluate"]:
        if task["task"] == "lab":
            task |= {"world": world.model_dump(mode="json")} | ({"items": 4} if tiny else {})
    put(raw["run"], "data.test.limit", 2 * TESTED)
    if tiny:
        raw |= {"methods": {name: raw["methods"][name] for name in ("vanilla", "replay")}}
        raw |= {"quick": {}, "points": 1}
        for grid in raw["methods"].values():
            grid["configurations"] = grid["configurations"][:1]
        put(raw["run"], "data.train.limit", 8)
        put(raw["run"], "data.test.limit", 8)
    file = folder / "compare.yaml"
    file.write_text(yaml.safe_dump(raw, sort_keys=False), encoding="utf-8")
    return file


def summary(frontiers: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """Means over the worlds of what each method reaches; a method that does not come so far in one has none."""
    means: dict[str, Any] = {}
    for method in next(iter(frontiers.values()), {}):
        of_worlds = [frontier[method] for frontier in frontiers.values()]
        kept = {share: [w["retention_at"][share] for w in of_worlds] for share in SHARES}
        means[method] = {
            "hypervolume": statistics.fmean(w["hypervolume"]["value"] for w in of_worlds),
            "retention_at": {s: _mean(values) for s, values in kept.items()},
        }
    return means


def _mean(values: list[Any]) -> float | None:
    return statistics.fmean(v["value"] for v in values) if all(v is not None for v in values) else None


def say(line: str) -> None:
    """Told at once, also into a file."""
    print(line, flush=True)


def main() -> None:
    """Bring up, compare, sum up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, default=Path("runs/worlds"))
    parser.add_argument("--worlds", type=int, nargs="*", choices=WORLDS, default=list(WORLDS))
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--only-bring-up", action="store_true")
    parser.add_argument("--tiny", action="store_true", help="few of all, the shipped model: to see that it runs")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    frontiers = {}
    for number in args.worlds:
        world = WorldSettings(number=number, **WORLDS[number])
        folder = args.output_dir / str(number)
        folder.mkdir(parents=True, exist_ok=True)
        model = bring_up(world, folder, tiny=args.tiny)
        if args.only_bring_up:
            continue
        if args.tiny:  # what was just brought up knows nothing that it could keep
            world, model = WorldSettings(), POCKET
        file = config_of(world, model, folder, tiny=args.tiny)
        command = default_command(["compare", str(file)])
        compare(load_compare_config(file), workers=args.workers, say=say, command=command)
        numbers = json.loads((folder / "compare" / "compare.json").read_text(encoding="utf-8"))
        frontiers[number] = numbers["frontier"]
    if args.json and frontiers:
        told = {"worlds": {str(n): f for n, f in frontiers.items()}, "means": summary(frontiers)}
        args.json.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
