"""`train.devices`: several processes learn what one does, on every engine, and leave one model."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml
from safetensors.torch import load_file

from radistill import pipeline
from radistill.config import config_from
from tiny import sentences

LORA = {"r": 4, "alpha": 8, "dropout": 0.0, "target_modules": ["q_proj", "v_proj", "down_proj"]}
needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None,
    reason="DeepSpeed is not installed: pip install --no-build-isolation 'radistill[deepspeed]'",
)
ENGINES = ["ddp", "fsdp2", *(pytest.param(name, marks=needs_deepspeed) for name in ("zero2", "zero3"))]
"""Of equal float32 sums in another order; AdamW divides by their roots, so that a rounding error may move a weight by
more than it is itself."""
TOLERANCE = 2e-5


@pytest.fixture
def prepared(raw_config: dict[str, Any], tmp_path: Path) -> Callable[..., Path]:
    """Run folders with equal records (29, which fill no batch of 4), each to be trained otherwise."""
    raw_config["data"]["train"]["limit"] = 29
    raw_config["data"]["train"]["pairs"] = ["en-de"]
    raw_config["train"] |= {"weighting": "segments", "num_train_epochs": 2, "save_steps": 5, "save_total_limit": 9}
    raw_config["train"] |= {"learning_rate": 1e-3, "lr_scheduler_type": "linear"}
    first = tmp_path / "run"
    pipeline.run(config_from(raw_config), stages=("generate", "assemble"))

    def prepare(name: str, **train: Any) -> Path:
        shutil.copytree(first, tmp_path / name)
        raw = {**raw_config, "output_dir": str(tmp_path / name), "train": {**raw_config["train"], **train}}
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(raw), encoding="utf-8")
        return path

    return prepare


def command(verb: str, config: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "radistill.cli", verb, str(config), *more]


def radistill(verb: str, config: Path, *more: str, before: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    told = [*before, *command(verb, config, *more)[len(before) and 1 :]]
    return subprocess.run(
        told, capture_output=True, text=True, check=False, env=environment(), timeout=300, start_new_session=True
    )


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}


def weights_of(config: Path) -> dict[str, torch.Tensor]:
    folder = config.with_suffix("") / "model"
    return {k: v for file in sorted(folder.glob("*.safetensors")) for k, v in load_file(file).items()}


def record_of(config: Path) -> dict[str, Any]:
    manifest = json.loads((config.with_suffix("") / "manifest.json").read_text(encoding="utf-8"))
    found: dict[str, Any] = manifest["stages"]["train"]
    return found


def log_of(config: Path) -> list[dict[str, Any]]:
    lines = (config.with_suffix("") / "train_log.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def assert_equal(first: Path, second: Path) -> None:
    one, two = weights_of(first), weights_of(second)
    assert one.keys() == two.keys()
    assert one
    assert max((one[name] - two[name]).abs().max().item() for name in one) < TOLERANCE
    for before, after in zip(log_of(first), log_of(second), strict=True):
        for name in ("step", "loss", "loss/reference", "loss/rationale", "grad_norm", "tokens", "tokens_trained"):
            assert before.get(name) == pytest.approx(after.get(name), rel=1e-4), (before["step"], name)
    facts = (record_of(first)["facts"], record_of(second)["facts"])
    for name in ("steps", "tokens_processed", "tokens_trained", "parameters", "trainable"):
        assert facts[0][name] == facts[1][name], name


@pytest.mark.slow
@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("parallel", ENGINES)
def test_two_devices_learn_what_one_does_and_go_on_from_a_checkpoint(
    prepared: Callable[..., Path], parallel: str, lora: Any
) -> None:
    one = prepared("one", lora=lora)
    two = prepared("two", lora=lora, devices=2, per_device_train_batch_size=2, parallel=parallel)
    for config in (one, two):
        done = radistill("train", config)
        assert done.returncode == 0, done.stderr
    assert_equal(one, two)
    assert len(log_of(one)) == 16
    devices = record_of(two)["facts"]["devices"]
    assert devices["processes"] == 2
    sharded = {
        "ddp": {"weights": 1.0, "gradients": 1.0, "optimizer": 1.0},
        "fsdp2": {"weights": 0.5, "gradients": 0.5, "optimizer": 0.5},
        "zero2": {"weights": 1.0, "gradients": 0.5, "optimizer": 0.5},
        "zero3": {"weights": 0.5, "gradients": 0.5, "optimizer": 0.5},
    }[parallel]
    assert devices["share_held"] == pytest.approx(sharded, abs=0.01)
    wrapper = {"ddp": "DistributedDataParallel", "fsdp2": "FSDP"}.get(parallel, "DeepSpeedEngine")
    assert devices["wrapper"].startswith(wrapper)
    assert f"2 processes, {parallel}" in done.stderr

    # Once more from the checkpoint of step 10, as after a crash.
    again = prepared("again", lora=lora, devices=2, per_device_train_batch_size=2, parallel=parallel)
    begun_until(two, again, step=10)
    done = radistill("train", again)
    assert done.returncode == 0, done.stderr
    assert "10/16" in done.stderr or log_of(again)[-1]["step"] == 16
    assert not (again.with_suffix("") / "model" / "checkpoint-5").exists(), "it did not go on, it began anew"
    assert_equal(one, again)


def begun_until(finished: Path, config: Path, *, step: int) -> None:
    """Let a run stand as it did after that step of another."""
    source, target = finished.with_suffix(""), config.with_suffix("")
    shutil.copytree(source / "model" / f"checkpoint-{step}", target / "model" / f"checkpoint-{step}")
    shutil.copy(source / "model" / ".made_with", target / "model")
    shutil.copy(source / "train_log.jsonl", target)
    manifest = json.loads((source / "manifest.json").read_text(encoding="utf-8"))
    manifest["stages"]["train"] |= {"status": "started", "outputs": {}, "facts": {}}
    (target / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


@pytest.mark.slow
def test_two_devices_are_judged_and_stopped_as_one_is(
    prepared: Callable[..., Path], raw_config: dict[str, Any], tmp_path: Path
) -> None:
    """The first of them asks the model; all know what came out, and end with the best."""
    raw_config["data"]["validation"] = {"path": str(tmp_path / "validation"), "pairs": ["en-de"], "limit": 12}
    (tmp_path / "validation").mkdir()
    pairs = [{"translation": {"en": en, "de": de}} for en, de in dict.fromkeys(sentences(60, "validation"))]
    (tmp_path / "validation" / "valid.en-de.json").write_text(json.dumps(pairs), encoding="utf-8")
    judged = {"eval_steps": 2, "metric_for_best_model": "skill", "load_best_model_at_end": True}
    runs = []
    for name, more in {"one": {}, "two": {"devices": 2, "per_device_train_batch_size": 2}}.items():
        raw_config["generate"]["ledger"] = str(tmp_path / f"ledger-{name}")  # or the second reads the first's answers
        runs.append(prepared(name, **judged, early_stopping_patience=3, **more))
        done = radistill("train", runs[-1])
        assert done.returncode == 0, done.stderr
    told = [record_of(config)["facts"]["validation"] for config in runs]
    assert told[0] == told[1]
    assert len(told[0]["evaluations"]) >= 3
    lines = [[line for line in log_of(config) if "eval_score" in line] for config in runs]
    assert [line["step"] for line in lines[0]] == [line["step"] for line in lines[1]], "one line of each evaluation"
    one, two = weights_of(runs[0]), weights_of(runs[1])
    assert max((one[name] - two[name]).abs().max().item() for name in one) < TOLERANCE


@pytest.mark.slow
def test_ddp_and_fsdp2_go_on_with_another_number_of_devices(prepared: Callable[..., Path]) -> None:
    """The global batch is what it was: 4 rows."""
    one = prepared("one")
    assert radistill("train", one).returncode == 0
    two = prepared("two", devices=2, per_device_train_batch_size=2)
    begun_until(one, two, step=10)
    done = radistill("train", two)
    assert done.returncode == 0, done.stderr
    assert_equal(one, two)
    begun_until(one, other := prepared("other", devices=2, per_device_train_batch_size=2, parallel="fsdp2"), step=10)
    done = radistill("train", other)
    assert done.returncode == 2
    assert "was written by ddp, and fsdp2 cannot go on from it" in done.stderr
    sharded = prepared("sharded", devices=4, per_device_train_batch_size=1, parallel="fsdp2")
    assert radistill("train", sharded).returncode == 0
    fewer = prepared("fewer", devices=2, per_device_train_batch_size=2, parallel="fsdp2")
    begun_until(sharded, fewer, step=10)
    done = radistill("train", fewer)
    assert done.returncode == 0, done.stderr
    assert_equal(one, fewer)


def test_what_a_process_meets_is_one_message(prepared: Callable[..., Path]) -> None:
    config = prepared("wrong", devices=2, lora={**LORA, "target_modules": ["no_proj"]})
    done = radistill("train", config)
    assert done.returncode == 2
    lengths, line = (line for line in done.stderr.splitlines() if line.strip())
    assert lengths.startswith("train: 29 records of"), "only the first process says it"
    assert line.startswith("error: train.lora.target_modules: ('no_proj',) is not in this model")
    # It was refused before any work, so it does not bind the folder.
    assert "train" not in json.loads((config.with_suffix("") / "manifest.json").read_text(encoding="utf-8"))["stages"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_a_stop_of_many_keeps_a_checkpoint_of_all(prepared: Callable[..., Path], number: int) -> None:
    config = prepared("stopped", devices=2, num_train_epochs=400, parallel="fsdp2", save_steps=100000)
    process = subprocess.Popen(
        command("train", config), stderr=subprocess.PIPE, text=True, env=environment(), start_new_session=True
    )
    try:
        log = config.with_suffix("") / "train_log.jsonl"
        until(lambda: log.exists() and log.read_text(encoding="utf-8").count("\n") > 3, process)
        # To all at once, as a terminal does.
        os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
        _, said = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 2, said
    assert "Traceback" not in said
    assert "interrupted in the stage `train`" in said
    (checkpoint,) = (config.with_suffix("") / "model").glob("checkpoint-*")
    assert {"trainer_state.json", "rng_state_0.pth", "rng_state_1.pth", "pytorch_model_fsdp_0"} <= {
        file.name for file in checkpoint.iterdir()
    }
    assert checkpoint.name == f"checkpoint-{log_of(config)[-1]['step']}"
    assert record_of(config)["status"] == "started"


def test_nobody_trains_on_when_the_parent_was_killed(prepared: Callable[..., Path]) -> None:
    config = prepared("killed", devices=2, num_train_epochs=4000)
    process = subprocess.Popen(command("train", config), stderr=subprocess.DEVNULL, env=environment())
    try:
        until(lambda: len(children_of(process.pid)) == 2, process)
        children = children_of(process.pid)
    finally:
        process.kill()
        process.wait()
    _, alive = psutil.wait_procs(children, timeout=60)
    for child in alive:
        child.kill()
    assert not alive


def children_of(pid: int) -> list[psutil.Process]:
    return [child for child in psutil.Process(pid).children() if "radistill.rank" in child.cmdline()]


def until(is_so: Callable[[], bool], process: subprocess.Popen[Any]) -> None:
    for _ in range(1200):
        if is_so():
            return
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.1)
    raise AssertionError("it did not come to it within two minutes")


def test_torchrun_starts_it_too(prepared: Callable[..., Path]) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    config = prepared("launched", per_device_train_batch_size=2, max_steps=3)
    done = radistill("train", config, before=launcher)
    assert done.returncode == 0, done.stderr
    assert record_of(config)["facts"]["devices"]["processes"] == 2
    assert [row["step"] for row in log_of(config)] == [1, 2, 3]
    done = radistill("train", config, "train.learning_rate=0.5", before=launcher)
    assert done.stderr.count("error:") == 1, "each process said it"
    assert "of another config" in done.stderr
    done = radistill("run", config, before=launcher)
    assert "only the stage `train` is done by several at once" in done.stderr
