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

folder, out, batch, accumulation, weighting = sys.argv[1:6]
model = models.load(models.resolve(folder), dtype="float32", attention="sdpa").double()
trainer = SegmentTrainer(
    weighting=weighting, model=model, train_dataset=Rows(some_rows(40)), data_collator=Collator(pad_id=0),
    args=TrainingArguments(
        output_dir=out + ".d", per_device_train_batch_size=int(batch), gradient_accumulation_steps=int(accumulation),
        max_steps=5, learning_rate=1e-3, lr_scheduler_type="constant", seed=3, report_to="none", use_cpu=True,
        disable_tqdm=True, save_strategy="no", remove_unused_columns=False, label_names=[], logging_steps=1,
    ),
)
trainer.train()
if trainer.is_world_process_zero():
    weights = torch.cat([p.detach().flatten() for p in trainer.accelerator.unwrap_model(trainer.model).parameters()])
    logged = [row for row in trainer.state.log_history if "loss" in row]
    torch.save({"weights": weights, "world": trainer.args.world_size, "logged": logged}, out)
"""


@pytest.mark.parametrize("weighting", ["tokens", "segments"])
def test_two_processes_of_two_learn_what_one_of_four_does(tiny_model: Path, tmp_path: Path, weighting: str) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT, encoding="utf-8")
    root = Path(__file__).resolve().parents[2]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    results = []
    for command, batch in (([sys.executable], 4), (launcher, 2)):
        out = tmp_path / f"{batch}.pt"
        done = subprocess.run(
            [*command, str(script), str(tiny_model), str(out), str(batch), "2", weighting],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr[-3000:]
        results.append(torch.load(out, weights_only=True))
    one, two = results
    assert (one["world"], two["world"]) == (1, 2)
    assert (one["weights"] - two["weights"]).abs().max().item() < 1e-9
    for before, after in zip(one["logged"], two["logged"], strict=True):
        assert before["loss"] == pytest.approx(after["loss"], rel=1e-6)
        assert before["loss/rationale"] == pytest.approx(after["loss/rationale"], rel=1e-6)
