"""The state of a training after its last whole step, which can still be saved when the next one has gone wrong.

A step that has begun changes no weight before the optimizer's turn. What it changes is put back: the random numbers it
drew, the losses and tokens it counted. So the checkpoint is the one that would have been written at the end of the step
before, and a training that goes on from it is equal to one that nothing happened to.
"""

import random
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import TrainerCallback

if TYPE_CHECKING:
    from radistill.trainer import SegmentTrainer

COUNTED = (
    "_sums",
    "_penalty",
    "_tr_loss",
    "_logged_step",
    "current_flos",
    "tokens_processed",
    "tokens_trained",
    "tokens_rolled_out",
)
"""What the trainer adds up from step to step."""


class LastStep(TrainerCallback):  # type: ignore[misc]
    """Keeps what is small of the last whole step, at its end; weights and optimizer are still those of it."""

    trainer: "SegmentTrainer"
    """The training; set once it is there."""

    def __init__(self) -> None:
        self.first = 0
        """Step that this training went on from."""
        self.is_stepping = False
        """The optimizer is at work: the weights are those of no step."""
        self.learning_rate: float | None = None
        self.grad_norm: Any = None
        self._random: tuple[Any, ...] = ()
        self._counts: dict[str, Any] = {}

    def on_train_begin(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        """Where it starts from."""
        self.first, self.is_stepping = state.global_step, False
        self._keep()

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        """The weights are about to change."""
        self.is_stepping = True

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        """They have changed."""
        self.learning_rate = self.trainer._get_learning_rate()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """A step is whole."""
        self.is_stepping, self.grad_norm = False, self.trainer.grad_norm
        self._keep()

    def on_log(self, *_: Any, **__: Any) -> None:
        """What was told is counted from nothing again."""
        if not self.is_stepping:
            self._keep_counts()

    @property
    def sums(self) -> torch.Tensor:
        """Loss and number of trained tokens of each origin since the last line of the log, as of then: (2, P)."""
        sums: torch.Tensor = self._counts["_sums"]
        return sums

    def put_back(self) -> None:
        """Forget what the step in work has counted and drawn."""
        for name, value in self._counts.items():
            setattr(self.trainer, name, _copied(value))
        if self.trainer.extras.reference is not None:
            self.trainer.extras.reference.tokens = self._reference
        set_random(self._random)

    def save(self) -> Path | None:
        """The checkpoint of the last whole step, written if it was not; None if there was no step before this one."""
        trainer = self.trainer
        step = trainer.state.global_step
        self.put_back()
        if step == 0:
            return None
        folder = self._folder(step)
        if step > self.first:
            trainer.control.should_log, trainer.control.should_evaluate = True, False
            trainer.control.should_save = not (folder / "trainer_state.json").exists()
            trainer._maybe_log_save_evaluate(
                trainer._tr_loss, self.grad_norm, trainer.model, None, trainer.state.epoch, None, None,
                learning_rate=self.learning_rate,
            )  # fmt: skip
            trainer.control.should_log = trainer.control.should_save = False
        return folder if folder.exists() else None

    def discard(self) -> None:
        """Delete the checkpoint of the last whole step, because its weights are spoilt."""
        self.put_back()
        if self.trainer.args.should_save:
            shutil.rmtree(self._folder(self.trainer.state.global_step), ignore_errors=True)

    def _folder(self, step: int) -> Path:
        return Path(self.trainer.args.output_dir) / f"checkpoint-{step}"

    def _keep(self) -> None:
        self._random = get_random()
        self._keep_counts()

    def _keep_counts(self) -> None:
        self._counts = {name: _copied(getattr(self.trainer, name)) for name in COUNTED if hasattr(self.trainer, name)}
        reference = self.trainer.extras.reference
        self._reference = reference.tokens if reference is not None else 0


def get_random() -> tuple[Any, ...]:
    """The states of all generators that a checkpoint keeps."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else None
    return random.getstate(), np.random.get_state(), torch.get_rng_state(), cuda  # noqa: NPY002


def set_random(states: tuple[Any, ...]) -> None:
    """Put them back."""
    python, numpy, cpu, cuda = states
    random.setstate(python)
    np.random.set_state(numpy)  # noqa: NPY002
    torch.set_rng_state(cpu)
    if cuda is not None:
        torch.cuda.set_rng_state_all(cuda)


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, torch.Tensor) else value
