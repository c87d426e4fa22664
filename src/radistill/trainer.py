"""The one training loop: transformers' Trainer with our loss.

What is ours: what a batch is (`packing.py`), the loss over the global batch and its parts (`losses.py`), the log and a
stop on Ctrl-C that keeps every finished step (`recorder.py`). What is not: optimizer, schedule, precision, checkpoints,
devices.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainerControl, TrainerState

from radistill import global_batch, losses, ranks, sharding
from radistill.head import loss_at
from radistill.losses import ORIGINS, Weighting
from radistill.packing import Row
from radistill.training_model import offloading, optimizer_of
from radistill.training_parts import (
    Beside,
    Penalty,
    Reference,
    Rollout,
    Step,
    Tokens,
    by_label,
    is_task,
    token_losses,
)


class Rows(Dataset[Row]):
    """Rows in memory; each knows its place."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = [replace(row, index=index) for index, row in enumerate(rows)]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        return self.rows[index]


class Refreshing(Protocol):
    """Keeps the rows of a training up to date."""

    @property
    def facts(self) -> dict[str, Any]:
        """For the manifest."""

    def __call__(self, step: int) -> int:
        """Called before the optimizer step after so many; may replace rows. Returns tokens read and written for it."""


class Judging(Protocol):
    """Evaluates the model in training."""

    tokens: int
    """So many were read and written for it."""

    def __call__(self, model: Any, step: int) -> dict[str, float]:
        """The model after so many steps; returns what is logged of it."""


@dataclass
class Extras:
    """What a run adds to the plain loss."""

    reference: Reference | None = None
    token_weights: Callable[[torch.Tensor, torch.Tensor], torch.Tensor | None] | None = None
    penalty: Penalty | None = None
    rollout: Rollout | None = None
    refresh: Refreshing | None = None
    judge: Judging | None = None
    asks_about_task: bool = False
    """Whether the penalty needs the untouched model's logits on the tokens that teach the task."""

    @property
    def penalises_tokens(self) -> bool:
        """Whether the penalty is a sum over tokens, by what the model says of each."""
        return getattr(self.penalty, "reads_logits", False)

    def tokens(self, inputs: Mapping[str, torch.Tensor]) -> Tokens:
        """The trained tokens, with what the untouched model says of those that need it."""
        return Tokens(inputs, self._untouched(inputs), self._teacher(inputs))

    def _untouched(self, inputs: Mapping[str, torch.Tensor]) -> Beside | None:
        if self.reference is None:
            return None
        asked_N = inputs["labels_N"] == losses.LIVE
        if self.asks_about_task:
            asked_N = asked_N | is_task(inputs["pools_N"])
        at_M = asked_N.nonzero().squeeze(1)
        return self.reference.beside(inputs, inputs["places_N"][at_M], at_M) if len(at_M) else None

    def _teacher(self, inputs: Mapping[str, torch.Tensor]) -> Beside | None:
        """It is asked if the batch says what it is to read."""
        if self.rollout is None or "teacher_at_M" not in inputs:
            return None
        assert self.reference is not None
        read = {name: inputs[f"teacher_{name}"] for name in ("input_ids", "position_ids", "n_tokens")}
        return self.reference.beside(read, inputs["teacher_places_M"], inputs["teacher_at_M"])

    def reweighted(
        self, nll_N: torch.Tensor, logits_NV: torch.Tensor, inputs: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """The losses of hard-labelled tokens that teach the task, each times its weight."""
        assert self.token_weights is not None
        with torch.no_grad():
            weights_N = self.token_weights(logits_NV.detach(), nll_N.detach())
        if weights_N is None:
            return nll_N
        chosen_N = is_task(inputs["pools_N"]) & (inputs["labels_N"] == losses.HARD)
        return torch.where(chosen_N, nll_N * weights_N.to(nll_N), nll_N)


class SegmentTrainer(Trainer):  # type: ignore[misc]
    """Trainer whose loss is `losses.combine`; see `packing.Collator` for the batch."""

    control: TrainerControl
    optimizer: torch.optim.Optimizer | None

    def __init__(
        self,
        *,
        weighting: Weighting,
        extras: Extras | None = None,
        loraplus_lr_ratio: float | None = None,
        offloads: bool = False,
        **trainer: Any,
    ) -> None:
        super().__init__(**trainer)
        self.weighting = weighting
        self.loraplus_lr_ratio = loraplus_lr_ratio
        self.offloads = offloads
        self.extras = extras or Extras()
        # `compute_loss` divides by the totals of the whole window, so the Trainer must not divide again.
        self.loss_is_scaled_for_ga = True
        self._sums = torch.zeros(2, len(ORIGINS), dtype=torch.float64)
        self.tokens_processed = 0
        self.tokens_trained = 0
        self.tokens_rolled_out = 0
        self.tokens_reference_before = self.tokens_reference_now = 0
        self.counted = (0, 0, 0)
        self._penalty = torch.zeros((), dtype=torch.float64)
        self._logged_step = 0
        self.batches: Sequence[dict[str, torch.Tensor]] = ()
        """Micro-batches of the optimizer step in work …"""
        self.total: torch.Tensor | None = None
        """… what its means are divided by, (1 + P,) …"""
        self.grad_norm: Any = None
        """… and the norm of its gradient, before it was scaled down."""

    def create_accelerator_and_postprocess(self) -> None:
        """Also shard where accelerate would not."""
        super().create_accelerator_and_postprocess()
        sharding.complete(self)

    def _save_rng_state(self, output_dir: str) -> None:
        """Wait for all: what says that a checkpoint is whole is written next, by one."""
        super()._save_rng_state(output_dir)
        if self.args.world_size > 1:
            ranks.barrier()

    def continue_counts(self, done: Mapping[str, int]) -> None:
        """Go on counting from the last line of a log."""
        self.tokens_processed, self.tokens_trained = done.get("tokens", 0), done.get("tokens_trained", 0)
        self.tokens_rolled_out = done.get("tokens_rolled_out", 0)
        self.counted = (self.tokens_processed, self.tokens_trained, self.tokens_rolled_out)
        self._logged_step = done.get("step", 0)
        if self.extras.reference is not None:
            self.tokens_reference_before = done.get("tokens_reference", 0)

    @property
    def tokens_reference(self) -> int:
        """Tokens the untouched model has read, on all ranks."""
        return self.tokens_reference_before + self.tokens_reference_now

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The Trainer's own, or LoRA+'s."""
        if self.optimizer is None and self.loraplus_lr_ratio is not None:
            self.optimizer = optimizer_of(self, self.loraplus_lr_ratio)
        made: torch.optim.Optimizer = super().create_optimizer(model)
        return made

    def restore(self, checkpoint: Path) -> None:
        """Weights and state of a checkpoint, to which no step is to be added."""
        self._load_from_checkpoint(str(checkpoint))
        self.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        self.engine.on_train_begin()  # says what it stands on, as if it went on

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        """The micro-batches of an optimizer step; where rows change with the model, of the rows as they are now."""
        self.batches, self.total = self._step_batches(epoch_iterator, num_batches, device)
        return self.batches, self.total

    def _step_batches(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        batches, total = super().get_batch_samples(epoch_iterator, num_batches, device)
        if batches and self.args.world_size > 1 and self.accelerator.gradient_state.end_of_dataloader:
            batches[-1] = global_batch.without_repeats(batches[-1], self)
            total = self._get_num_items_in_batch(batches, device)
        extras, step = self.extras, self.state.global_step
        if not batches or (extras.rollout is None and extras.refresh is None):
            return batches, total
        if extras.refresh is not None:
            self.tokens_rolled_out += extras.refresh(step)
        # The data loader is a batch ahead, so what it made may be of rows that have been replaced since.
        renewed = []
        for batch in batches:
            if global_batch.is_empty(batch):
                renewed.append(batch)
                continue
            rows = [self.train_dataset[index] for index in batch["indices_R"].tolist()]
            if extras.rollout is None:
                renewed.append(self.data_collator(rows))
                continue
            rolled, tokens = extras.rollout(self.model, rows, step=step)
            renewed.append(rolled)
            self.tokens_rolled_out += tokens * self.args.world_size
        return renewed, self._get_num_items_in_batch(renewed, device)

    def _get_grad_norm(self, *given: Any, **named: Any) -> Any:
        self.grad_norm = super()._get_grad_norm(*given, **named)
        return self.grad_norm

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, torch.Tensor]], device: torch.device) -> Any:
        """What the means of this optimizer step are divided by, over accumulation and ranks: shape (1 + P,)."""
        if not batch_samples:
            return None
        total = sum((losses.totals(b["weights_N"], b["pools_N"]) for b in batch_samples), torch.zeros(()))
        if self.args.world_size > 1:
            total = self.accelerator.reduce(total.to(device), reduction="sum")
        return total.to(device)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> Any:
        """This micro-batch's share of the loss of the optimizer step, in nats."""
        inputs = dict(by_label(inputs))
        total = num_items_in_batch
        if total is None:
            total = losses.totals(inputs["weights_N"], inputs["pools_N"])
        share = _Share(self, model, self.extras.tokens(inputs), total)
        with offloading(self.offloads):
            loss, nll_N = loss_at(model, inputs["input_ids"], inputs["position_ids"], inputs["places_N"], share)
        self._count(nll_N, inputs)
        if self.extras.penalty is not None and not self.extras.penalises_tokens:
            loss = loss + share.penalty(inputs)
        self._penalty += share.penalties
        return (loss, {"loss_N": nll_N}) if return_outputs else loss

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Judge the model as it is now; see `judging.py`."""
        assert self.extras.judge is not None, "asked for by a callback that comes with it"
        clock = time.monotonic()
        metrics = self.extras.judge(self.model, self.state.global_step)
        self.log({**metrics, "eval_runtime": round(time.monotonic() - clock, 3)})
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the mean loss of each origin's trained tokens since the last line, and the tokens so far."""
        if "loss" in logs:
            sums = global_batch.summed(self, self._sums)
            for origin, loss, count in zip(ORIGINS, *sums.tolist(), strict=True):
                if count:
                    logs[f"loss/{origin}"] = loss / count
            self._sums = torch.zeros_like(self._sums)
            if self.extras.penalty is not None:
                steps = max(1, self.state.global_step - self._logged_step)
                logs["penalty"], self._logged_step = float(self._penalty) / steps, self.state.global_step
                self._penalty = torch.zeros((), dtype=torch.float64)
        if "loss" in logs or "eval_score" in logs:
            logs["tokens"] = self.tokens_processed
            logs["tokens_trained"] = self.tokens_trained
            logs["tokens_rolled_out"] = self.tokens_rolled_out
            logs["tokens_reference"] = self.tokens_reference
            if self.extras.judge is not None:
                logs["tokens_validated"] = self.extras.judge.tokens
        super().log(logs, start_time)

    def _count(self, nll_N: torch.Tensor, inputs: dict[str, torch.Tensor]) -> None:
        sums = losses.sums_by_origin(nll_N, inputs["weights_N"], inputs["origins_N"])
        self._sums += sums.cpu().to(self._sums.dtype)
        self.tokens_processed += int(inputs["n_tokens"]) * self.args.world_size
        self.tokens_trained += len(nll_N) * self.args.world_size


class _Share:
    """What some tokens of a micro-batch add to the loss; see `head.Share`."""

    def __init__(self, trainer: SegmentTrainer, model: nn.Module, tokens: Tokens, total: torch.Tensor) -> None:
        self.trainer, self.model, self.tokens, self.total = trainer, model, tokens, total
        self.penalties = torch.zeros((), dtype=torch.float64)
        """Their sum so far."""

    def __call__(self, logits_NV: torch.Tensor, at: slice) -> tuple[torch.Tensor, torch.Tensor]:
        extras, tokens = self.trainer.extras, self.tokens.cut(at)
        inputs = tokens.inputs
        reference_MV = None
        if tokens.untouched is not None and len(tokens.untouched.at_M):
            reference_MV = tokens.untouched.logits()
        compare = extras.rollout.compare if extras.rollout is not None else None
        nll_N = token_losses(logits_NV, tokens, reference_MV=reference_MV, compare=compare)
        if extras.token_weights is not None:
            nll_N = extras.reweighted(nll_N, logits_NV, inputs)
        loss = losses.combine(
            nll_N, inputs["weights_N"], inputs["pools_N"], total=self.total, weighting=self.trainer.weighting
        )
        # Gradients are averaged over ranks afterwards, while `total` already spans them.
        loss = loss * self.trainer.args.world_size
        if extras.penalises_tokens:
            loss = loss + self.penalty(inputs, logits_NV, tokens.untouched, reference_MV)
        return loss, nll_N

    def penalty(
        self,
        inputs: Mapping[str, torch.Tensor],
        logits_NV: torch.Tensor | None = None,
        asked: Beside | None = None,
        reference_MV: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """On those tokens, or, without logits, on the weights."""
        assert self.trainer.extras.penalty is not None
        asked_N = torch.zeros_like(inputs["pools_N"], dtype=torch.bool)
        if asked is not None:
            asked_N[asked.at_M] = True
        parts = max(1, getattr(self.trainer, "current_gradient_accumulation_steps", 1))
        step = Step(self.model, inputs, logits_NV, asked_N, reference_MV, self.total, self.trainer.weighting, parts)
        found = self.trainer.extras.penalty(step)
        self.penalties += found.detach().double().cpu()
        return found
