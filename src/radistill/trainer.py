"""The one training loop: transformers' Trainer with our loss.

What is ours: what a batch is (`packing.py`), the loss over the global batch and its parts (`losses.py`), the log, and
a stop on Ctrl-C that keeps every finished step. What is not: optimizer, schedule, precision, checkpoints, devices.
"""

import json
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from radistill import losses
from radistill.errors import ModelError
from radistill.head import loss_at
from radistill.losses import ORIGINS, Weighting
from radistill.packing import Collator, Row
from radistill.progress import Progress
from radistill.training_parts import Beside, Penalty, Reference, Rollout, Step, Tokens, is_task, logits_at, token_losses

EXACT = 1e-5
"""In nats: what is computed in equal shapes from equal numbers does not differ at all, but for a device's whims."""


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


@dataclass
class Extras:
    """What a run adds to the plain loss."""

    reference: Reference | None = None
    token_weights: Callable[[torch.Tensor, torch.Tensor], torch.Tensor | None] | None = None
    penalty: Penalty | None = None
    rollout: Rollout | None = None
    refresh: Refreshing | None = None
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

    def __init__(self, *, weighting: Weighting, extras: Extras | None = None, **trainer: Any) -> None:
        super().__init__(**trainer)
        self.weighting = weighting
        self.extras = extras or Extras()
        # `compute_loss` divides by the totals of the whole window, so the Trainer must not divide again.
        self.loss_is_scaled_for_ga = True
        self._sums = torch.zeros(2, len(ORIGINS), dtype=torch.float64)
        self.tokens_processed = 0
        self.tokens_trained = 0
        self.tokens_rolled_out = 0
        self._penalty = torch.zeros((), dtype=torch.float64)
        self._logged_step = 0
        self.batches: Sequence[dict[str, torch.Tensor]] = ()
        """Micro-batches of the optimizer step in work …"""
        self.total: torch.Tensor | None = None
        """… what its means are divided by, (1 + P,) …"""
        self.grad_norm: Any = None
        """… and the norm of its gradient, before it was scaled down."""

    def continue_counts(self, done: Mapping[str, int]) -> None:
        """Go on counting from the last line of a log."""
        self.tokens_processed, self.tokens_trained = done.get("tokens", 0), done.get("tokens_trained", 0)
        self.tokens_rolled_out = done.get("tokens_rolled_out", 0)
        self._logged_step = done.get("step", 0)
        if self.extras.reference is not None:
            self.extras.reference.tokens = done.get("tokens_reference", 0) // self.args.world_size

    @property
    def tokens_reference(self) -> int:
        """Tokens the untouched model has read, on all ranks."""
        return self.extras.reference.tokens * self.args.world_size if self.extras.reference is not None else 0

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        """The micro-batches of an optimizer step; where rows change with the model, of the rows as they are now."""
        self.batches, self.total = self._step_batches(epoch_iterator, num_batches, device)
        return self.batches, self.total

    def _step_batches(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        batches, total = super().get_batch_samples(epoch_iterator, num_batches, device)
        extras, step = self.extras, self.state.global_step
        if not batches or (extras.rollout is None and extras.refresh is None):
            return batches, total
        if extras.refresh is not None:
            self.tokens_rolled_out += extras.refresh(step)
        # The data loader is a batch ahead, so what it made may be of rows that have been replaced since.
        renewed = []
        for batch in batches:
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
        total = num_items_in_batch
        if total is None:
            total = losses.totals(inputs["weights_N"], inputs["pools_N"])
        share = _Share(self, model, self.extras.tokens(inputs), total)
        loss, nll_N = loss_at(model, inputs["input_ids"], inputs["position_ids"], inputs["places_N"], share)
        self._count(nll_N, inputs)
        if self.extras.penalty is not None and not self.extras.penalises_tokens:
            loss = loss + share.penalty(inputs)
        self._penalty += share.penalties
        return (loss, {"loss_N": nll_N}) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the mean loss of each origin's trained tokens since the last line, and the tokens so far."""
        if "loss" in logs:
            sums = self._sums
            if self.args.world_size > 1:
                sums = self.accelerator.reduce(sums.to(self.args.device), reduction="sum").cpu()
            for origin, loss, count in zip(ORIGINS, *sums.tolist(), strict=True):
                if count:
                    logs[f"loss/{origin}"] = loss / count
            self._sums = torch.zeros_like(self._sums)
            if self.extras.penalty is not None:
                steps = max(1, self.state.global_step - self._logged_step)
                logs["penalty"], self._logged_step = float(self._penalty) / steps, self.state.global_step
                self._penalty = torch.zeros((), dtype=torch.float64)
            logs["tokens"] = self.tokens_processed
            logs["tokens_trained"] = self.tokens_trained
            logs["tokens_rolled_out"] = self.tokens_rolled_out
            logs["tokens_reference"] = self.tokens_reference
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


def refuse_contaminated_packing(model: nn.Module, rows: Sequence[Row], *, pad_id: int) -> None:
    """Ask the model that is to be trained whether it keeps packed records apart.

    Not every architecture does (state-space models read through, ALiBi ignores the positions), and none that does not
    says so. Two questions, each answered in the model's own precision: does the loss of a record change when the one
    before it is replaced (in equal shapes, so that the answer is exact), and when it stands behind another instead of
    alone (against the noise of another shape)?

    Raises:
        ModelError: it does.
    """
    half = max(map(len, rows)) // 2
    ids = np.resize(np.concatenate([row.ids_T for row in rows[:64]]), 2 * half)
    before, record = ids[:half], _probe(ids[half:])
    if half < 3 or np.array_equal(before, before[::-1]):
        return
    width = 2 * half
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            pairs = [[_probe(first), record] for first in (before, before[::-1])]
            behind, swapped = (_nll(model, Collator(pad_id)(pair, width=width)) for pair in pairs)
            padded, alone = (_nll(model, Collator(pad_id)([record], width=size)) for size in (width, half))
    finally:
        model.train(was_training)
    behind, swapped = behind[-len(alone) :], swapped[-len(alone) :]
    read = (behind - swapped).abs().max().item()
    moved, noise = (behind - padded).abs().mean().item(), (alone - padded).abs().mean().item()
    wide = next(model.parameters()).dtype in (torch.float32, torch.float64)
    if read > EXACT or moved > max(10 * noise, 1e-4 if wide else 0.05):
        raise ModelError(
            f"packed records do not stay apart in this model ({type(model).__name__}): the loss of a token changes by "
            f"up to {max(read, moved):.2g} nats with what stands before its record. Set train.packing=false."
        )


def _probe(ids_T: Any) -> Row:
    """A record of these ids that is trained on all of them."""
    weights = np.ones(len(ids_T), dtype=np.float32)
    weights[0] = 0.0
    nothing = np.zeros(len(ids_T), dtype=np.int8)
    return Row(np.ascontiguousarray(ids_T), weights, nothing, nothing, nothing)


def _nll(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Loss of every trained token."""
    device = next(model.parameters()).device
    on = {name: tensor.to(device) for name, tensor in batch.items()}
    logits_NV = logits_at(model, on["input_ids"], on["position_ids"], on["places_N"])
    return losses.token_nll(logits_NV, on["targets_N"])


class Recorder(TrainerCallback):  # type: ignore[misc]
    """Writes train_log.jsonl, shows progress and stops on request."""

    def __init__(self, path: Path, shown: Progress, *, start_step: int) -> None:
        self.path = path
        self.shown = shown
        self.step = start_step
        self.stop_requested = False
        self.count_tokens: Callable[[], int] = lambda: 0
        self.tokens_shown = 0
        self.clock = time.monotonic()
        self.tokens: float = 0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Start the clock after all loading is done."""
        self.tokens_shown = self.count_tokens()
        self.clock = time.monotonic()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """A checkpoint always has a log line of its own step, so that a resumed log has no half window."""
        self.shown.advance(state.global_step - self.step, self.count_tokens() - self.tokens_shown)
        self.step, self.tokens_shown = state.global_step, self.count_tokens()
        if self.stop_requested:
            control.should_save = control.should_training_stop = True
        if control.should_save or state.global_step == args.max_steps:
            control.should_log = True

    def on_log(self, _args: TrainingArguments, state: TrainerState, _control: Any, **given: Any) -> None:
        """Append one line."""
        logs: dict[str, Any] = given["logs"]
        if "loss" not in logs or not state.is_world_process_zero:
            return
        now = time.monotonic()
        speed = (logs["tokens"] - self.tokens) / max(now - self.clock, 1e-9) if self.tokens else None
        self.tokens, self.clock = logs["tokens"], now
        row = {"step": state.global_step, **logs, **({"tokens_per_second": round(speed, 1)} if speed else {})}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self.shown.advance(0, note=f"loss {logs['loss']:.3f}")


@contextmanager
def stopping_on_signals(recorder: Recorder) -> Iterator[None]:
    """The first Ctrl-C (or SIGTERM) ends after the step in work, with a checkpoint; the second at once."""

    def handle(_number: int, _frame: FrameType | None) -> None:
        if recorder.stop_requested:
            raise KeyboardInterrupt
        recorder.stop_requested = True

    try:
        before = {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: whoever owns it handles signals
        yield
        return
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
