"""What `radistill check` says of memory and time, against trainings that are really run.

Models (the pocket model, random Llamas of 30 and 125 million parameters) x full and LoRA x two lengths, each training
in a process of its own: its highest resident memory above that of the bare process with all libraries loaded (on a GPU:
the most that was allocated), and the median time of its steps, after the first (on a CPU, seconds computed, for each
thread). `ratio` = estimated / measured.

    python benchmarks/memory.py [--quick] [--only NAME] [--json FILE]
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

BATCH = 8
STEPS = 6
SIZES: Mapping[str, Mapping[str, int] | None] = {
    "pocket": None,
    "llama-30m": {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 10, "num_attention_heads": 6},
    "llama-125m": {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12},
}
VOCABULARY = 32000
LENGTHS = (64, 256)


def cases(*, quick: bool) -> Iterator[dict[str, Any]]:
    """What is trained."""
    for size in list(SIZES)[: 2 if quick else None]:
        for lora in (False, True):
            for length in LENGTHS[-1:] if quick else LENGTHS:
                yield {
                    "name": f"{size} {'lora' if lora else 'full'} {length}",
                    "size": size,
                    "lora": lora,
                    "length": length,
                }


def make(size: str, folder: Path) -> str:
    """Write a random model of that size; returns its name."""
    shape = SIZES[size]
    if shape is None:
        return size
    if not (folder / "config.json").exists():
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(0)
        config = LlamaConfig(vocab_size=VOCABULARY, max_position_embeddings=2048, tie_word_embeddings=True, **shape)
        LlamaForCausalLM(config).save_pretrained(str(folder))
    return str(folder)


def settings(job: Mapping[str, Any]) -> Any:
    """The run file's `train`."""
    from radistill.stage_settings import LoraSettings, TrainSettings

    return TrainSettings(lora=LoraSettings() if job["lora"] else None, per_device_train_batch_size=BATCH)


def measured(job: Mapping[str, Any]) -> dict[str, float]:
    """Train in this process."""
    import numpy as np
    import torch
    from _train_meter import Meter, watched
    from transformers import PrinterCallback, TrainingArguments

    from radistill import models
    from radistill.packing import Collator, Row
    from radistill.trainer import Rows, SegmentTrainer

    with tempfile.TemporaryDirectory() as out:
        arguments = TrainingArguments(
            output_dir=out, per_device_train_batch_size=BATCH, max_steps=STEPS, bf16=True, logging_steps=1,
            use_cpu=models.device() == "cpu", report_to="none", disable_tqdm=True, save_strategy="no",
            remove_unused_columns=False, label_names=[], dataloader_pin_memory=False,
        )  # fmt: skip
        rows, rng = [], np.random.default_rng(0)
        for _ in range(BATCH * STEPS):
            ids = rng.integers(5, 1000, job["length"]).astype(np.int32)
            weights = (np.arange(job["length"]) >= job["length"] // 2).astype(np.float32)
            nothing = np.zeros(job["length"], dtype=np.int8)
            rows.append(Row(ids, weights, nothing, nothing, nothing))
        meter = Meter(job)
        meter.imported()
        train = settings(job)
        weights = models.resolve(job["model"])
        model = models.load(weights, dtype="bfloat16" if train.lora else "float32", attention="sdpa")
        if train.lora is not None:
            model = models.adapt(model, train.lora, base_name=job["model"], seed=0)
        meter.end = lambda _: None  # type: ignore[method-assign, assignment] # the loss is of no interest here
        with watched(meter):
            trainer = SegmentTrainer(
                weighting="tokens",
                model=model,
                args=arguments,
                train_dataset=Rows(rows),
                data_collator=Collator(pad_id=0),
            )
            trainer.remove_callback(PrinterCallback)
            trainer.train()
        # On a CPU the seconds that this process has computed: others use the same cores.
        on_cpu = models.device() == "cpu"
        clocks = [busy / torch.get_num_threads() if on_cpu else clock for _, _, clock, busy in meter.marks]
        spent = [later - earlier for earlier, later in pairwise(clocks)]
        return {"bytes": float(meter.peak - meter.floor), "seconds": statistics.median(spent)}


def estimated(job: Mapping[str, Any]) -> dict[str, float]:
    """As `check` does."""
    from radistill import models
    from radistill.estimate import Shape, Training

    training = Training(models.resolve(job["model"]), settings(job), device=models.device())
    shape = Shape(BATCH, job["length"], BATCH * (job["length"] // 2))
    memory = training.memory(shape)
    return {"bytes": float(memory.total), "seconds": sum(training.seconds(shape))}


def main() -> int:
    """Measure, print a table, write ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two models and one length")
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--job", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.job:
        job = json.loads(given.job)
        print(json.dumps({"measured": measured, "estimated": estimated}[job["do"]](job)))
        return 0
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for case in (c for c in cases(quick=given.quick) if given.only in c["name"]):
            job = {**case, "model": make(case["size"], Path(folder) / case["size"])}
            told = {do: _in_a_process({**job, "do": do}) for do in ("measured", "estimated")}
            ratio = {name: told["estimated"][name] / told["measured"][name] for name in ("bytes", "seconds")}
            found[case["name"]] = {**told, "ratio": ratio}
            print(
                f"{case['name']:>22}: {told['measured']['bytes'] / 2**20:7.0f} MiB measured, "
                f"{told['estimated']['bytes'] / 2**20:7.0f} estimated ({ratio['bytes']:.2f}); a step "
                f"{told['measured']['seconds']:.2f} s measured, {told['estimated']['seconds']:.2f} estimated "
                f"({ratio['seconds']:.2f})",
                flush=True,
            )
    if given.json:
        ratios = {f"{what} {name}": of["ratio"][what] for name, of in found.items() for what in ("bytes", "seconds")}
        given.json.write_text(json.dumps({"ratios": ratios, "cases": found}, indent=1), encoding="utf-8")
    return 0


def _in_a_process(job: Mapping[str, Any]) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, __file__, "--job", json.dumps(job)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{job['name']}: {done.stderr[-2000:]}")
    told: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return told


if __name__ == "__main__":
    sys.exit(main())
