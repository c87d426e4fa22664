"""Means are over the global batch: two processes learn what one does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = """
import sys
import torch
from transformers import TrainingArguments
from radistill import models
from radistill.packing import Collator
from radistill.trainer import Rows, SegmentTrainer
from tests.test_train import some_rows

folder, out, batch, weighting, optim, packing = sys.argv[1:7]
model = models.load(models.resolve(folder), dtype="float32", attention="sdpa")
model = model.double() if optim == "adamw_torch" else model
trainer = SegmentTrainer(
    weighting=weighting, model=model, train_dataset=Rows(some_rows(19)),
    data_collator=Collator(pad_id=0, packing=packing == "packed"),
    args=TrainingArguments(
        output_dir=out + ".d", per_device_train_batch_size=int(batch), gradient_accumulation_steps=2, optim=optim,
        max_steps=10, learning_rate=0.05 if optim == "sgd" else 1e-3, lr_scheduler_type="constant",
        seed=3, report_to="none", use_cpu=True,
        disable_tqdm=True, save_strategy="no", remove_unused_columns=False, label_names=[], logging_steps=1,
    ),
)
trainer.train()
if trainer.is_world_process_zero():
    weights = torch.cat([p.detach().flatten() for p in trainer.accelerator.unwrap_model(trainer.model).parameters()])
    logged = [row for row in trainer.state.log_history if "loss" in row]
    torch.save({"weights": weights, "world": trainer.args.world_size, "logged": logged}, out)
"""


@pytest.mark.parametrize(
    ("weighting", "optim", "packing", "tolerance"),
    [
        ("tokens", "sgd", "packed", 1e-6),
        pytest.param("segments", "sgd", "padded", 1e-6, marks=pytest.mark.slow),
        pytest.param("tokens", "adamw_torch", "padded", 1e-9, marks=pytest.mark.slow),
        ("segments", "adamw_torch", "packed", 1e-9),
    ],
)
def test_two_processes_of_two_and_four_of_one_learn_what_one_of_four_does(
    tiny_model: Path, tmp_path: Path, weighting: str, optim: str, packing: str, tolerance: float
) -> None:
    """SGD in float32, AdamW in float64; 19 rows, which fill neither the last batch nor the last step of an epoch."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT, encoding="utf-8")
    root = Path(__file__).resolve().parents[2]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
    results = {}
    for processes in (1, 2, 4):
        out = tmp_path / f"{processes}.pt"
        command = [sys.executable] if processes == 1 else [*launcher, str(processes)]
        done = subprocess.run(
            [*command, str(script), str(tiny_model), str(out), str(4 // processes), weighting, optim, packing],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PYTHONPATH": os.pathsep.join((str(root / "src"), str(root))), "OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr[-3000:]
        results[processes] = torch.load(out, weights_only=True)
    one = results.pop(1)
    assert one["world"] == 1
    for processes, many in results.items():
        assert many["world"] == processes
        assert (one["weights"] - many["weights"]).abs().max().item() < tolerance
        for before, after in zip(one["logged"], many["logged"], strict=True):
            for name in ("loss", "loss/reference", "loss/rationale", "grad_norm"):
                assert before[name] == pytest.approx(after[name], rel=1e-5)
            assert (before["tokens"], before["tokens_trained"]) == (after["tokens"], after["tokens_trained"])
