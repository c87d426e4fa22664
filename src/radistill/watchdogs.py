"""Stop a training that learns nothing or falls apart, before the step that would spoil it.

Asked between the backward pass and the optimizer's turn of every step, at no cost worth naming: all numbers are there.

- A loss or a gradient that is no number stops at once, always.
- `train.watchdogs` (on by default) stops for gradients that are zero although there is a loss, a segment's loss that
  explodes, a step in which nothing is trained, and a learning rate of zero within the schedule.

The last whole step is saved, so that the same command goes on from it. If it is the weights that are spoilt, not the
step (asked by the loss of the batch before), the training goes on from the last checkpoint that is not.
"""

import math
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback, TrainerState, TrainingArguments

from radistill.errors import RadistillError
from radistill.last_step import LastStep
from radistill.losses import ORIGINS

if TYPE_CHECKING:
    from radistill.trainer import SegmentTrainer

STEPS_BEFORE = 10
"""A segment's loss is judged once it was seen in so many steps."""
MEMORY = 0.99
"""Weight of the past in a running mean: about 100 steps are remembered."""
ABSURD = 100.0
"""In nats; no loss of a language model that can be used is above it. Until others are known, it is the limit."""
FEWEST = 16
"""A mean over fewer tokens is not judged."""
LEAST_RISE = 4.0
"""In nats; what rises by less never explodes: soft labels start at a loss of 0."""
NOISE = 6.0
"""It must rise by so many times the usual difference between two steps."""
ANY_LOSS = 1e-6
"""In nats; a smaller loss may well have no gradient."""
IDLE_STEPS = 3
"""So many steps in a row may train nothing where the model in training writes what is trained on."""


class Usual:
    """What the loss of a segment usually is: its running mean, and by how much two steps differ."""

    def __init__(self) -> None:
        self.mean = self.difference = self.last = 0.0
        self.steps = 0

    def add(self, loss: float) -> None:
        """Another step; the first count as much as all before them together."""
        self.steps += 1
        share = max(1 - MEMORY, 1 / self.steps)
        if self.steps > 1:
            share_of_difference = max(1 - MEMORY, 1 / (self.steps - 1))
            self.difference += share_of_difference * (abs(loss - self.last) - self.difference)
        self.mean += share * (loss - self.mean)
        self.last = loss

    @property
    def limit(self) -> float:
        """What is above it has exploded: three times the mean, far above it, and out of the noise."""
        if self.steps < STEPS_BEFORE:
            return ABSURD
        return self.mean + max(2 * self.mean, LEAST_RISE, NOISE * self.difference)


class Watchdog(TrainerCallback):  # type: ignore[misc]
    """Looks at every step before the optimizer does; its callback stands before that of `last`."""

    trainer: "SegmentTrainer"
    """The training; set once it is there."""

    def __init__(self, last: LastStep, *, is_strict: bool) -> None:
        self.last = last
        self.is_strict = is_strict
        self.usual: dict[str, Usual] = {origin: Usual() for origin in ORIGINS}
        self.idle = 0
        self.batches: Any = ()
        """Micro-batches of the last good step."""

    def on_train_begin(self, *_: Any, optimizer: Any = None, lr_scheduler: Any = None, **__: Any) -> None:
        """Ask the schedule again where the rate is zero: a checkpoint keeps that, also when the schedule was mended."""
        if optimizer is not None and hasattr(lr_scheduler, "lr_lambdas") and max(_rates(optimizer)) == 0:
            rates = zip(lr_scheduler.base_lrs, lr_scheduler.lr_lambdas, strict=True)
            for group, (base, share) in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = base * share(lr_scheduler.last_epoch)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, _control: Any, optimizer: Any = None, **_: Any
    ) -> None:
        """Stop if something is wrong.

        Raises:
            RadistillError: it is; the last good step is saved.
        """
        losses, counts = self._losses()
        step, norm = state.global_step + 1, self.trainer.grad_norm
        norm = None if norm is None else float(norm)
        bad = next((f"{origin}: {loss}" for origin, loss in losses.items() if not math.isfinite(loss)), None)
        if bad is not None:
            self._stop(f"the loss is no number at step {step} ({bad}). {_CALM}", blame_weights=True)
        if self.is_strict:
            self._refuse_idle(step)
            self._refuse_explosion(step, {o: loss for o, loss in losses.items() if counts[o] >= FEWEST})
        if norm is not None and not math.isfinite(norm):
            self._stop(
                f"the gradient is no number at step {step} (norm {norm}), though the loss is one. {_CALM}",
                blame_weights=True,
            )
        if self.is_strict:
            if norm == 0 and max(losses.values(), default=0.0) > ANY_LOSS:
                self._stop(
                    f"all gradients are zero at step {step} (loss {_shown(losses)}): nothing would be learned. See "
                    "whether the parameters that are trained (train.lora.target_modules, method) take part in the "
                    f"model's output. {_OFF}"
                )
            # The first step of a warm-up, and the last of all, may have one of zero.
            if optimizer is not None and max(_rates(optimizer)) == 0 and 1 < step < args.max_steps:
                self._stop(
                    f"the learning rate is zero at step {step} of {args.max_steps}: nothing would be learned from here "
                    "on. See train.lr_scheduler_type and train.warmup_steps; if you have set neither, it is a fault of "
                    f"the schedule. {_OFF}"
                )
        for origin, loss in losses.items():
            if counts[origin] >= FEWEST:
                self.usual[origin].add(loss)
        self.batches = self.trainer.batches

    def _refuse_idle(self, step: int) -> None:
        total = self.trainer.total
        self.idle = self.idle + 1 if total is not None and float(total[0]) == 0 else 0
        if self.idle > (IDLE_STEPS if self.trainer.extras.rollout is not None else 0):
            self._stop(
                f"no token is trained at step {step}: the weights of all tokens of its batch are zero. See the weights "
                f"and segments of some records with `radistill preview`. {_OFF}"
            )

    def _refuse_explosion(self, step: int, losses: dict[str, float]) -> None:
        for origin, loss in losses.items():
            usual = self.usual[origin]
            if loss > usual.limit:
                self._stop(
                    f"the loss of the segment `{origin}` explodes at step {step}: {loss:.2f} nats, where it was "
                    f"{usual.mean:.2f} on average (stops above {usual.limit:.2f}). {_CALM} {_OFF}",
                    blame_weights=True,
                )

    def _losses(self) -> tuple[dict[str, float], dict[str, float]]:
        """Of this step, on all ranks: mean over the trained tokens of each origin that has some, and their number."""
        sums = self.trainer._sums - self.last.sums
        if self.trainer.args.world_size > 1:
            sums = self.trainer.accelerator.reduce(sums.to(self.trainer.args.device), reduction="sum").cpu()
        return _means(sums)

    def _stop(self, what: str, *, blame_weights: bool = False) -> None:
        step = self.trainer.state.global_step
        self.last.put_back()
        if blame_weights and step > self.last.first and not self._weights_are_good():
            self.last.discard()
            raise RadistillError(
                f"{what} The weights are spoilt since step {step}, so they are not kept: the same command goes on from "
                f"the last checkpoint before it in {self.trainer.args.output_dir}, or from the start if there is none; "
                "after a change of settings that changes what is learned, begin the stage anew with --redo train."
            )
        saved = self.last.save()
        kept = (
            f"The state after step {step} is kept in {saved}: the"
            if saved is not None
            else "It was the first step: the"
        )
        raise RadistillError(
            f"{what} {kept} same command goes on from there when the cause is mended (driver, package, device); after "
            "a change of settings that changes what is learned, begin the stage anew with --redo train."
        )

    def _weights_are_good(self) -> bool:
        """Whether the weights, as they are now, are no worse than usual on the batch before, on all ranks."""
        trainer = self.trainer
        model, args = trainer.model, trainer.args
        trainer._sums = torch.zeros_like(trainer._sums)
        model.zero_grad()
        for inputs in self.batches:
            with trainer.compute_loss_context_manager():
                loss = trainer.compute_loss(model, trainer._prepare_inputs(inputs))
            loss.backward()
        losses, counts = _means(trainer._sums)
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        good = all(bool(torch.isfinite(gradient).all()) for gradient in gradients) and all(
            math.isfinite(loss) and (counts[origin] < FEWEST or loss <= self.usual[origin].limit)
            for origin, loss in losses.items()
        )
        model.zero_grad()
        self.last.put_back()
        if args.world_size > 1:
            agreed = trainer.accelerator.reduce(torch.tensor(float(good), device=args.device), "sum")
            good = bool(agreed == args.world_size)
        return good


_CALM = "Lower train.learning_rate, or set train.bf16=false."
_OFF = "If this is meant to be so, set train.watchdogs=false, which may be done while a training is interrupted."


def _rates(optimizer: Any) -> list[float]:
    return [float(group["lr"]) for group in optimizer.param_groups]


def _means(sums: torch.Tensor) -> tuple[dict[str, float], dict[str, float]]:
    found = {o: (loss, n) for o, loss, n in zip(ORIGINS, *sums.tolist(), strict=True) if n}
    return {o: loss / n for o, (loss, n) in found.items()}, {o: n for o, (_, n) in found.items()}


def _shown(losses: dict[str, float]) -> str:
    return ", ".join(f"{origin} {loss:.2g}" for origin, loss in losses.items())
