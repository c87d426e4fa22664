"""Trainings with a penalty: the same however a step is cut, also when resumed, and nearer to their start at the end."""

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainingArguments

from radistill import models, penalties, pipeline
from radistill.config import RunConfig, config_from
from radistill.packing import Collator
from radistill.pipeline import Interrupted
from radistill.trainer import Extras, Rows, SegmentTrainer
from radistill.training_parts import Reference
from test_penalties import a_start, tiny
from test_train import interrupt_at, log_of, prepared, some_rows, weights_of, without_speed

METHODS: dict[str, dict[str, Any]] = {
    "kl": {"name": "kl", "weight": 50.0},
    "l2sp": {"name": "l2sp", "weight": 20.0},
    "ewc": {"name": "ewc", "weight": 20.0, "samples": 6, "max_new_tokens": 8},
}
KINDS: dict[str, dict[str, Any] | None] = {"full": None, "lora": {"r": 4, "dropout": 0.1}}


def weights_after(folder: Path, out: Path, method: dict[str, Any], *, batch: int, accumulation: int) -> torch.Tensor:
    """Ten steps of AdamW in float64 with the penalty of a method."""
    model, untouched = (tiny(folder, "sdpa").double() for _ in range(2))  # the eager one rounds to float32
    data = {"train": {"path": "d"}}
    config = config_from({"name": "x", "model": "m", "output_dir": "o", "data": data, "method": method})
    reference = Reference(untouched.requires_grad_(False), is_adapter=False)
    penalty = config.method.penalty(a_start(model, reference=reference))
    assert penalty is not None
    asks = method["name"] == "kl"
    trainer = SegmentTrainer(
        weighting="tokens",
        extras=Extras(reference=reference if asks else None, penalty=penalty, asks_about_task=asks),
        model=model,
        args=TrainingArguments(
            output_dir=str(out),
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            max_steps=10,
            learning_rate=1e-3,
            lr_scheduler_type="constant",
            seed=3,
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
            save_strategy="no",
            remove_unused_columns=False,
            label_names=[],
        ),
        train_dataset=Rows(some_rows(40)),
        data_collator=Collator(pad_id=0),
    )
    trainer.train()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("name", METHODS)
def test_the_shares_of_accumulated_batches_add_up_to_the_whole(tiny_model: Path, tmp_path: Path, name: str) -> None:
    run: dict[str, Any] = {"folder": tiny_model, "out": tmp_path}
    method = METHODS[name]
    whole = weights_after(**run, method=method, batch=4, accumulation=1)
    parts = weights_after(**run, method=method, batch=1, accumulation=4)
    weaker = weights_after(**run, method={**method, "weight": 5.0}, batch=4, accumulation=1)
    assert (whole - parts).abs().max().item() < 1e-9
    assert (whole - weaker).abs().max().item() > 1e-5, "a penalty of a quarter does the same, so the test says nothing"


SCRIPT = """
import sys
from pathlib import Path
import torch
from test_penalties_training import METHODS, weights_after

folder, out, batch = sys.argv[1:4]
found = {name: weights_after(Path(folder), Path(out + ".d"), METHODS[name], batch=int(batch), accumulation=2)
         for name in ("kl", "l2sp")}
if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
    torch.save(found, out)
"""


def test_two_processes_are_pulled_as_one_is(tiny_model: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT, encoding="utf-8")
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(penalties.__file__).parents[1])])
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    results = []
    for command, batch in (([sys.executable], 4), (launcher, 2)):
        out = tmp_path / f"{batch}.pt"
        done = subprocess.run(
            [*command, str(script), str(tiny_model), str(out), str(batch)],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr[-3000:]
        results.append(torch.load(out, weights_only=True))
    one, two = results
    for name in one:
        assert (one[name] - two[name]).abs().max().item() < 1e-9, name


def run_of(raw: dict[str, Any], out: Path, method: Any, kind: str, **train: Any) -> RunConfig:
    """References alone, so that nothing has to be written first."""
    train = {"learning_rate": 3e-3, "lora": KINDS[kind], **train}
    return prepared({**raw, "output_dir": str(out), "method": method}, **train)


def distance(config: RunConfig) -> float:
    """Of the trained model's weights from those it started from."""
    start = dict(models.load(models.resolve(config.model), dtype="float32").named_parameters())
    tuned = models.load(models.resolve(config.output_dir), dtype="float32")
    if config.train.lora is not None:
        tuned = tuned.merge_and_unload()
    return math.sqrt(sum(float((p - start[n]).detach().square().sum()) for n, p in tuned.named_parameters()))


@pytest.mark.parametrize("kind", KINDS)
def test_a_training_with_a_penalty_starts_without_any_and_ends_nearer_to_its_start(
    raw_config: dict[str, Any], tmp_path: Path, kind: str
) -> None:
    vanilla = run_of(raw_config, tmp_path / "vanilla", "vanilla", kind, num_train_epochs=2)
    pipeline.run(vanilla, stages=("train",))
    far = distance(vanilla)
    for name, method in METHODS.items():
        config = run_of(raw_config, tmp_path / name, method, kind, num_train_epochs=2)
        pipeline.run(config, stages=("train",))
        logged = [row["penalty"] for row in log_of(config)]
        assert 0 <= logged[0] <= 1e-6, name
        assert logged[-1] > 1e-4, name
        assert 0 < distance(config) < 0.9 * far, name
        assert log_of(config)[-1]["tokens_reference"] == (log_of(config)[-1]["tokens"] if name == "kl" else 0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", METHODS)
def test_a_resumed_training_is_pulled_as_an_uninterrupted_one(
    raw_config: dict[str, Any], tmp_path: Path, name: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"kind": kind, "num_train_epochs": 2, "gradient_accumulation_steps": 2}
    quiet = run_of(raw_config, tmp_path / "quiet", METHODS[name], **settings)
    pipeline.run(quiet, stages=("train",))
    torn = run_of(raw_config, tmp_path / "torn", METHODS[name], **settings)
    interrupt_at(monkeypatch, step=4)
    with pytest.raises(Interrupted):
        pipeline.run(torn, stages=("train",))
    monkeypatch.undo()
    assert len(log_of(torn)) == 4
    pipeline.run(torn, stages=("train",))
    assert len(log_of(quiet)) == 6
    assert without_speed(log_of(torn)) == without_speed(log_of(quiet))
    assert weights_of(quiet) == weights_of(torn)


@pytest.mark.parametrize("name", METHODS)
def test_a_penalty_goes_with_rationales_in_both_kinds_of_labels(
    raw_config: dict[str, Any], tmp_path: Path, name: str
) -> None:
    for labels in ("hard", "live"):
        method = [{"name": "radis"}, METHODS[name]]
        config = run_of(raw_config, tmp_path / labels, method, "lora", labels=labels, max_steps=3)
        pipeline.run(config, stages=("train",))
        rows = log_of(config)
        assert rows[0]["penalty"] <= 1e-6 < rows[-1]["penalty"]
