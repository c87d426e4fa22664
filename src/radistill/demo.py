"""`radistill demo`: the pocket model learns Esperanto in three ways, and a report shows what it gained and lost.

The lab's model, data and tests are real in the small: a language model that was brought up in a closed world, a
language it has not learned, and every ability scored by rule. `configs/lab-esperanto.yaml` is the demo's RaDis run.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from radistill import pipeline
from radistill.config import RunConfig, config_from
from radistill.errors import RunFolderError
from radistill.lab import POCKET_NAME
from radistill.pipeline import StageOutcome
from radistill.report import write_report
from radistill.runs import RunFolder

LEARNING_RATE = 1e-3
RUNS: dict[str, tuple[str, float]] = {
    "vanilla": ("vanilla", LEARNING_RATE),
    "vanilla-half-lr": ("vanilla", LEARNING_RATE / 2),
    "radis": ("radis", LEARNING_RATE),
}
"""Name → method and learning rate. Half the rate is the remedy that RaDis must be measured against."""
ABILITIES = (
    "knowledge", "vocabulary", "definitions", "rewording", "counting", "arithmetic", "comparison", "lists", "strings",
    "formats", "stories", "refusal", "known-language",
)  # fmt: skip
QUICKER = 1.2
"""So many times the learning rate in the quick form, which sees each sentence less often."""
MARGIN = 0.02
STAGES = ("generate", "assemble", "train", "evaluate")
"""Of each run; one report shows them all."""


def demo(
    output_dir: Path,
    *,
    quick: bool,
    seeds: int = 1,
    say: Callable[[str], None] = lambda _: None,
    done: Callable[[StageOutcome], None] = lambda _: None,
) -> list[RunFolder]:
    """Run vanilla, vanilla at half the learning rate and RaDis on the pocket model, and report them together.

    Args:
        output_dir: where everything goes, into its folder `quick` if that is asked for; finished stages found there are
            reused.
        quick: smaller test sets and fewer sentences.
        seeds: so many seeds, from 0.
        say: told what is going on.
        done: called after each stage.

    Returns:
        The run folders; the report lies in `report_folder`.
    """
    folders = []
    for seed in range(seeds):
        for name in RUNS:
            config = run_config(name, output_dir, quick=quick, seed=seed)
            say(f"{config.name}: {', '.join(STAGES)}")
            try:
                pipeline.run(config, stages=STAGES, done=done)
            except RunFolderError as error:
                if "of another config" not in str(error):
                    raise
                raise RunFolderError(
                    f"{error}\nIf {output_dir} is of another version's demo, delete it, or name another place with "
                    "--output-dir."
                ) from error
            folders.append(RunFolder(Path(config.output_dir)))
    title = "radistill demo: a pocket model learns Esperanto"
    write_report(folders, report_folder(output_dir, quick=quick), margin=MARGIN, seed=0, title=title)
    return folders


def report_folder(output_dir: Path, *, quick: bool) -> Path:
    """Where the report of all runs goes."""
    return output_dir / "quick" if quick else output_dir


def run_name(name: str, seed: int) -> str:
    """Name of one seed's run."""
    return name if seed == 0 else f"{name}-seed{seed}"


def run_config(name: str, output_dir: Path, *, quick: bool, seed: int = 0) -> RunConfig:
    """One of the demo's runs."""
    method, learning_rate = RUNS[name]
    learning_rate *= QUICKER if quick else 1
    pairs = ["en-eo", "eo-en"]
    items = 50 if quick else 200
    raw: dict[str, Any] = {
        "name": run_name(name, seed),
        "model": POCKET_NAME,
        "output_dir": str(report_folder(output_dir, quick=quick) / "runs" / run_name(name, seed)),
        "seed": seed,
        "data": {
            "train": {"path": POCKET_NAME, "pairs": pairs, "limit": 1200 if quick else 1500},
            "test": {"path": POCKET_NAME, "pairs": pairs, "limit": items},
        },
        "method": {"name": method},
        "generate": {
            "backend": {"name": "transformers", "batch_size": 64, "dtype": "float32"},
            "sampling": {"max_new_tokens": 96},
            "ledger": str(output_dir / "ledger"),
        },
        "train": {
            "learning_rate": learning_rate,
            # Half as many rows, in as many steps: fewer steps would learn too little at this rate.
            "num_train_epochs": 2 if quick else 3,
            "per_device_train_batch_size": 8 if quick else 16,
            "bf16": True,
            "lora": None,
        },
        "evaluate": [
            {"task": "translation", "max_new_tokens": 64},
            *({"task": "lab", "ability": ability, "items": items} for ability in ABILITIES),
            {"task": "lab_rationales", "items": items},
        ],
        "report": {"margin": MARGIN},
    }
    return config_from(raw)
