"""A training that learns nothing or falls apart is stopped before the step that would spoil it, and can go on."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from radistill import files, pipeline, tables, watchdogs
from radistill.config import RunConfig, config_from
from radistill.errors import RadistillError
from radistill.runs import RunFolder
from radistill.train import last_checkpoint
from radistill.trainer import SegmentTrainer
from radistill.watchdogs import FEWEST, Usual

STEPS = 16


def config_of(raw: dict[str, Any], name: str, **train: Any) -> RunConfig:
    """Of twelve examples, so that an epoch has three steps; a checkpoint is written by no one but who stops."""
    settings = {
        "num_train_epochs": 6,
        "max_steps": STEPS,
        "logging_steps": 5,
        "lr_scheduler_type": "constant_with_warmup",
    }
    data = {**raw["data"], "train": {**raw["data"]["train"], "limit": 12}}
    folder = str(Path(raw["output_dir"]).with_name(name))
    return config_from(
        {**raw, "output_dir": folder, "data": data, "train": {**raw["train"], **settings, "lora": LORA, **train}}
    )


LORA = {"r": 4, "dropout": 0.2}
"""With dropout, so that a training that goes on from other random numbers comes to other weights."""


def trained(config: RunConfig) -> RunFolder:
    pipeline.run(config, stages=("generate", "assemble", "train"))
    return RunFolder(Path(config.output_dir))


def weights_of(run: RunFolder) -> dict[str, str]:
    return {p.name: files.sha256(p) for p in sorted(run.model.glob("*.safetensors"))}


def stopped(config: RunConfig, match: str) -> str:
    with pytest.raises(RadistillError, match=match) as caught:
        trained(config)
    return str(caught.value)


def spoil_gradients(monkeypatch: pytest.MonkeyPatch, *, step: int, value: float) -> None:
    """Let all gradients of that step be this number."""
    clip = SegmentTrainer._clip_grad_norm

    def spoilt(self: SegmentTrainer, model: Any) -> Any:
        if self.state.global_step == step - 1:
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter.grad.fill_(value)
        return clip(self, model)

    monkeypatch.setattr(SegmentTrainer, "_clip_grad_norm", spoilt)


def spoil_rate(monkeypatch: pytest.MonkeyPatch, *, step: int) -> None:
    """Let the schedule fall to zero there."""
    compute = SegmentTrainer.compute_loss

    def spoilt(self: SegmentTrainer, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == step - 1:
            assert self.optimizer is not None
            for group in self.optimizer.param_groups:
                group["lr"] = 0.0
        return compute(self, *args, **kwargs)

    monkeypatch.setattr(SegmentTrainer, "compute_loss", spoilt)


def spoil_batch(
    monkeypatch: pytest.MonkeyPatch, change: Callable[[dict[str, torch.Tensor]], None], *, step: int
) -> None:
    """Change the batch of that step."""
    take = SegmentTrainer._step_batches

    def spoilt(self: SegmentTrainer, iterator: Any, number: int, device: torch.device) -> Any:
        batches, total = take(self, iterator, number, device)
        if self.state.global_step == step - 1:
            for batch in batches:
                change(batch)
            total = self._get_num_items_in_batch(batches, device)
        return batches, total

    monkeypatch.setattr(SegmentTrainer, "_step_batches", spoilt)


def untrain(batch: dict[str, torch.Tensor]) -> None:
    batch["weights_N"] = torch.zeros_like(batch["weights_N"])


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda m, step: spoil_gradients(m, step=step, value=math.nan), "the gradient is no number at step 5 "),
        (lambda m, step: spoil_gradients(m, step=step, value=0.0), "all gradients are zero at step 5 "),
        (lambda m, step: spoil_batch(m, untrain, step=step), "no token is trained at step 5:"),
        (lambda m, step: spoil_rate(m, step=step), f"the learning rate is zero at step 5 of {STEPS}:"),
    ],
    ids=["nan", "zero", "idle", "rate"],
)
def test_what_is_wrong_stops_with_the_last_good_step_and_the_training_goes_on_as_if_nothing_had_been(
    raw_config: dict[str, Any], monkeypatch: pytest.MonkeyPatch, spoil: Callable[..., None], said: str
) -> None:
    quiet = trained(config_of(raw_config, "quiet"))
    config = config_of(raw_config, "torn")
    spoil(monkeypatch, 5)
    message = stopped(config, said)
    monkeypatch.undo()
    saved = last_checkpoint(RunFolder(Path(config.output_dir)).model)
    assert saved is not None
    assert saved.name == "checkpoint-4"
    assert f"The state after step 4 is kept in {saved}" in message
    assert "the same command goes on from there" in message
    torn = trained(config)
    assert weights_of(torn) == weights_of(quiet)
    # It has a line of the step that was saved; what stands in both is equal, and every token is counted once.
    rows = {row["step"]: row for row in tables.read_jsonl(torn.train_log)}
    assert 4 in rows
    for row in tables.read_jsonl(quiet.train_log):
        for name in ("tokens", "tokens_trained", "grad_norm", "learning_rate"):
            assert rows[row["step"]][name] == row[name]
    assert torn.stages()["train"].facts["tokens_trained"] == quiet.stages()["train"].facts["tokens_trained"]


def test_at_the_border_of_an_epoch_the_state_is_that_of_the_step_before_too(
    raw_config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet = trained(config_of(raw_config, "quiet"))
    config = config_of(raw_config, "torn")
    spoil_gradients(monkeypatch, step=7, value=math.nan)  # the first of the third epoch
    stopped(config, "at step 7 ")
    monkeypatch.undo()
    assert weights_of(trained(config)) == weights_of(quiet)


def test_watchdogs_may_be_sent_away_while_the_training_is_interrupted_but_not_from_what_is_no_number(
    raw_config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil_rate(monkeypatch, step=5)
    assert "train.watchdogs=false" in stopped(config_of(raw_config, "run"), "the learning rate is zero")
    spoil_gradients(monkeypatch, step=9, value=math.nan)
    stopped(config_of(raw_config, "run", watchdogs=False), "the gradient is no number at step 9 ")


def test_the_first_step_of_a_warm_up_and_the_end_of_a_schedule_are_let_through(raw_config: dict[str, Any]) -> None:
    run = trained(config_of(raw_config, "run", warmup_steps=4, lr_scheduler_type="linear", logging_steps=1))
    rates = [row["learning_rate"] for row in tables.read_jsonl(run.train_log)]
    assert len(rates) == STEPS
    assert rates[0] == 0.0


def explode(batch: dict[str, torch.Tensor]) -> None:
    """Other targets, of which the model thinks nothing."""
    batch["targets_N"] = (batch["targets_N"] + 7) % 200


def test_a_batch_whose_loss_explodes_stops_and_the_weights_before_it_are_kept(
    raw_config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    sure_of_itself(monkeypatch)
    config = config_of(raw_config, "run", lora=None, learning_rate=3e-2, num_train_epochs=40, max_steps=60)
    spoil_batch(monkeypatch, explode, step=50)
    message = stopped(config, r"the loss of the segment `\w+` explodes at step 50: ")
    saved = last_checkpoint(RunFolder(Path(config.output_dir)).model)
    assert saved is not None
    assert saved.name == "checkpoint-49", message


def sure_of_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """The usual losses of the tiny model are high; let three quarters of the limit do in its place."""
    monkeypatch.setattr(watchdogs, "LEAST_RISE", 1.0)
    monkeypatch.setattr(watchdogs, "NOISE", 2.0)


def test_weights_that_are_spoilt_are_not_kept_and_an_earlier_checkpoint_is_gone_on_from(
    raw_config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    step = torch.optim.AdamW.step
    done: list[int] = []

    def spoilt(self: Any, *args: Any, **kwargs: Any) -> Any:
        found = step(self, *args, **kwargs)
        done.append(1)
        if len(done) == 8:
            with torch.no_grad():
                for group in self.param_groups:
                    for parameter in group["params"]:
                        parameter.fill_(math.nan)
        return found

    config = config_of(raw_config, "run", save_steps=4)
    monkeypatch.setattr(torch.optim.AdamW, "step", spoilt)
    message = stopped(config, r"the loss is no number at step 9 .*The weights are spoilt since step 8")
    assert "goes on from the last checkpoint before it" in message
    monkeypatch.undo()
    saved = last_checkpoint(RunFolder(Path(config.output_dir)).model)
    assert saved is not None
    assert saved.name == "checkpoint-4", "the one of step 8, which was due, is gone"
    assert weights_of(trained(config)) == weights_of(trained(config_of(raw_config, "quiet")))


def test_nothing_is_saved_before_the_first_step(raw_config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(raw_config, "run")
    spoil_gradients(monkeypatch, step=1, value=0.0)
    assert "It was the first step" in stopped(config, "all gradients are zero at step 1 ")
    assert not list(RunFolder(Path(config.output_dir)).model.glob("checkpoint-*"))


def test_usual_noise_is_no_explosion_and_a_jump_is() -> None:
    rng = torch.Generator().manual_seed(0)
    for tokens in (FEWEST, 64, 512):  # of a batch: the mean over few is far from the mean over many
        usual = Usual()
        for _ in range(3000):
            loss = torch.empty(tokens).exponential_(1.0, generator=rng).mean().item()
            assert loss <= usual.limit
            usual.add(loss)
        assert usual.limit < 6.0


def test_a_loss_that_climbs_slowly_explodes_too() -> None:
    usual, loss = Usual(), 1.0
    for _ in range(200):
        usual.add(1.0)
    while loss <= usual.limit and loss < 12:
        usual.add(loss)
        loss += 0.2
    assert loss < 8


def test_soft_labels_may_start_at_nothing() -> None:
    usual = Usual()
    for step in range(300):
        loss = min(0.5, 0.002 * step)
        assert loss <= usual.limit
        usual.add(loss)


def test_a_segment_is_judged_only_after_some_steps() -> None:
    usual = Usual()
    for _ in range(watchdogs.STEPS_BEFORE - 1):
        usual.add(1.0)
    assert usual.limit == watchdogs.ABSURD
    usual.add(1.0)
    assert usual.limit == 5.0
