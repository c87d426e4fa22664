"""Many shares of one training: the weights of a finished run, taken instead of training."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from radistill import pipeline
from radistill.config import config_from
from radistill.errors import RunFolderError
from radistill.runs import RunFolder

TO_TRAIN = ("generate", "assemble", "train")


@pytest.fixture
def trained(raw_config: dict[str, Any], tmp_path: Path) -> tuple[dict[str, Any], Path]:
    """A run file to change, and a finished run of it."""
    raw_config["method"] = {"name": "vanilla"}
    raw_config["data"]["train"]["limit"] = 8
    raw_config["train"] = {"max_steps": 3, "per_device_train_batch_size": 4, "learning_rate": 0.02, "lora": None}
    raw_config["output_dir"] = str(tmp_path / "end")
    pipeline.run(config_from(raw_config), stages=TO_TRAIN)
    return raw_config, tmp_path / "end"


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {n: t.float() for f in sorted(folder.glob("*.safetensors")) for n, t in load_file(f).items()}


def taken(raw: dict[str, Any], run: Path, share: float, out: Path) -> RunFolder:
    method = {"name": "interpolate", "run": str(run), "share": share}
    pipeline.run(config_from({**raw, "output_dir": str(out), "method": method}), stages=TO_TRAIN)
    return RunFolder(out)


def test_every_weight_lies_on_the_line_from_start_to_end(
    trained: tuple[dict[str, Any], Path], tmp_path: Path, tiny_model: Path
) -> None:
    raw, end = trained
    start, stop = weights(tiny_model), weights(end / "model")
    for share in (0.0, 0.25, 1.0):
        found = weights(taken(raw, end, share, tmp_path / f"s{share}").model)
        moved = 0.0
        for name, tensor in found.items():
            expected = start[name] + share * (stop[name] - start[name])
            assert (tensor - expected).abs().max() < 1e-6, name
            moved = max(moved, float((tensor - start[name]).abs().max()))
        assert (moved > 1e-3) == (share > 0)


def test_what_is_taken_cost_what_the_training_cost(trained: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    raw, end = trained
    facts = taken(raw, end, 0.5, tmp_path / "half").stages()["train"].facts
    before = RunFolder(end).stages()["train"]
    assert facts["tokens_processed"] == before.facts["tokens_processed"] > 0
    assert facts["steps"] == 3
    assert facts["seconds_there"] == before.seconds


def test_of_an_adapter_the_update_is_scaled(trained: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    raw, _ = trained
    raw["train"]["lora"] = {"r": 2}
    raw["output_dir"] = str(tmp_path / "adapter")
    pipeline.run(config_from(raw), stages=TO_TRAIN)
    end = weights(tmp_path / "adapter" / "model")
    half = weights(taken(raw, tmp_path / "adapter", 0.5, tmp_path / "half").model)
    assert half.keys() == end.keys()
    for name, tensor in half.items():
        assert tensor.allclose(end[name] * (0.5 if "lora_B" in name else 1.0)), name


def test_a_run_that_cannot_be_taken_is_named(
    trained: tuple[dict[str, Any], Path], tmp_path: Path, tiny_model: Path
) -> None:
    raw, end = trained
    with pytest.raises(RunFolderError, match="nowhere holds no trained weights"):
        taken(raw, tmp_path / "nowhere", 0.5, tmp_path / "a")
    shutil.copytree(tiny_model, tmp_path / "other")
    (tmp_path / "other" / "config.json").open("a").write("\n")
    with pytest.raises(RunFolderError, match="started from another model"):
        taken({**raw, "model": str(tmp_path / "other")}, end, 0.5, tmp_path / "b")
    shutil.rmtree(end / "model")
    with pytest.raises(RunFolderError, match="holds no trained weights"):
        taken(raw, end, 0.5, tmp_path / "c")
