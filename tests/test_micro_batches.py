"""Where memory does not suffice, smaller micro-batches make the same optimizer steps."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from radistill import pipeline, tables
from radistill.config import RunConfig, config_from
from radistill.errors import ModelError
from radistill.micro_batches import smaller, states_of
from radistill.runs import RunFolder
from radistill.trainer import SegmentTrainer


def config_of(raw: dict[str, Any], name: str, **train: Any) -> RunConfig:
    """Of ten examples in batches of four: the last step of an epoch is of fewer."""
    settings = {"max_steps": 7, "num_train_epochs": 3, "logging_steps": 1, "auto_find_batch_size": True}
    data = {**raw["data"], "train": {**raw["data"]["train"], "limit": 10}}
    folder = str(Path(raw["output_dir"]).with_name(name))
    return config_from({**raw, "output_dir": folder, "data": data, "train": {**raw["train"], **settings, **train}})


def trained(config: RunConfig) -> RunFolder:
    pipeline.run(config, stages=("generate", "assemble", "train"))
    return RunFolder(Path(config.output_dir))


def weights_of(run: RunFolder) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return {name: tensor for p in sorted(run.model.glob("*.safetensors")) for name, tensor in load_file(str(p)).items()}


def furthest(one: RunFolder, other: RunFolder) -> float:
    pairs = zip(weights_of(one).values(), weights_of(other).values(), strict=True)
    return max((a.double() - b.double()).abs().max().item() for a, b in pairs)


class Memory:
    """Lets a forward pass fail that has more records than fit."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, records: int, from_step: int = 0) -> None:
        self.seen: list[tuple[int, int, int]] = []
        """Of each forward pass: steps done, records, longest row."""
        compute = SegmentTrainer.compute_loss

        def limited(trainer: SegmentTrainer, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            size, step = len(inputs["indices_R"]), trainer.state.global_step
            self.seen.append((step, size, inputs["input_ids"].shape[1]))
            loss = compute(trainer, model, inputs, *args, **kwargs)  # counts its tokens before it fails
            if size > records and step >= from_step:
                raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return loss

        monkeypatch.setattr(SegmentTrainer, "compute_loss", limited)


@pytest.mark.parametrize("lora", [None, {"r": 4, "dropout": 0.0}])
def test_half_the_batch_and_twice_the_accumulation_come_to_the_same_weights(
    raw_config: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], lora: Any
) -> None:
    whole = trained(config_of(raw_config, "whole", lora=lora))
    by_hand = trained(
        config_of(raw_config, "hand", lora=lora, per_device_train_batch_size=1, gradient_accumulation_steps=4)
    )
    capsys.readouterr()
    memory = Memory(monkeypatch, records=1)
    found = trained(config_of(raw_config, "found", lora=lora))
    facts = found.stages()["train"].facts
    assert (facts["per_device_train_batch_size"], facts["gradient_accumulation_steps"]) == (1, 4)
    assert furthest(found, by_hand) == 0.0
    assert furthest(found, whole) < 1e-5
    assert [size for _, size, _ in memory.seen[:3]] == [4, 2, 1], "all were tried before the first step"
    said = capsys.readouterr().err
    assert "4 records do not fit into memory at once; going on with 2, and 2 forward passes" in said
    assert "2 records do not fit into memory at once; going on with 1, and 4 forward passes" in said
    for one, other in zip(*(tables.read_jsonl(run.train_log) for run in (found, whole)), strict=True):
        assert one["tokens"] == other["tokens"]
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)


def test_the_longest_records_are_tried_first_and_change_nothing(
    raw_config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = trained(config_of(raw_config, "plain", auto_find_batch_size=False, lora={"r": 4, "dropout": 0.3}))
    memory = Memory(monkeypatch, records=99)
    tried = trained(config_of(raw_config, "tried", lora={"r": 4, "dropout": 0.3}))
    longest = max(len(r.token_ids) for r in tables.read_records(tried.records))
    assert memory.seen[0] == (0, 4, longest)
    assert furthest(plain, tried) == 0.0
    assert plain.stages()["train"].facts["tokens_processed"] == tried.stages()["train"].facts["tokens_processed"]


@pytest.mark.parametrize("from_step", [0, 3, 4])
def test_memory_that_fails_within_the_training_costs_no_step_that_was_done(
    raw_config: dict[str, Any], monkeypatch: pytest.MonkeyPatch, from_step: int
) -> None:
    lora = {"r": 4, "dropout": 0.0}
    whole = trained(config_of(raw_config, "whole", lora=lora, per_device_train_batch_size=5))
    memory = Memory(monkeypatch, records=4, from_step=from_step)
    found = trained(config_of(raw_config, "found", lora=lora, per_device_train_batch_size=5))
    facts = found.stages()["train"].facts
    assert (facts["per_device_train_batch_size"], facts["gradient_accumulation_steps"]) == (1, 5)
    assert furthest(found, whole) < 1e-5
    rows = list(tables.read_jsonl(found.train_log))
    assert [row["step"] for row in rows] == list(range(1, 8))
    assert [row["tokens"] for row in rows] == [row["tokens"] for row in tables.read_jsonl(whole.train_log)]
    steps = [step for step, size, _ in memory.seen if size == 1]
    assert min(steps) == from_step, "what was done before is not done again"


def test_where_not_even_one_record_fits_the_message_is_the_usual_one(
    raw_config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    Memory(monkeypatch, records=0)
    with pytest.raises(ModelError, match="does not fit into memory"):
        trained(config_of(raw_config, "run"))


def test_without_the_setting_nothing_is_tried(raw_config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    memory = Memory(monkeypatch, records=2)
    with pytest.raises(ModelError, match=r"Set train.auto_find_batch_size=true"):
        trained(config_of(raw_config, "run", auto_find_batch_size=False))
    assert len(memory.seen) == 1


def test_the_next_smaller_batch_keeps_the_product_and_is_at_most_half() -> None:
    for size in range(1, 33):
        for accumulation in (1, 2, 3, 8):
            found = smaller(size, accumulation)
            if size == 1:
                assert found is None
                continue
            assert found is not None
            assert math.prod(found) == size * accumulation
            assert found[0] <= size / 2
    assert smaller(8, 1) == (4, 2)
    assert smaller(6, 1) == (3, 2)
    assert smaller(3, 2) == (1, 6)


def test_what_optimizers_keep() -> None:
    assert [states_of(name) for name in ("adamw_torch", "adamw_torch_fused", "sgd", "lion_32bit", "adafactor")] == [
        2, 2, 0, 1, 0,
    ]  # fmt: skip
    assert states_of("of_tomorrow") == 2
