"""`train.auto_find_batch_size`: micro-batches that fit into memory, with the same optimizer steps.

Where memory does not suffice, `per_device_train_batch_size` is halved and `gradient_accumulation_steps` doubled: each
optimizer step is of the same records, and its loss a mean over all of them. (transformers' own search for a size takes
a tenth off, leaves the accumulation as it is and so trains on other batches.)

Before the first step the longest records of all are tried, with room for what the optimizer will keep, so that what
would fail after hours fails at once. A step that fails later all the same is done again from the step before.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback

from radistill.errors import ConfigError, RadistillError
from radistill.last_step import LastStep, get_random, set_random
from radistill.models import is_out_of_memory

if TYPE_CHECKING:
    from radistill.trainer import SegmentTrainer

STATES = {"adam": 2, "lamb": 2, "lion": 1, "rmsprop": 1, "adagrad": 1, "sgd": 0, "adafactor": 0}
"""Numbers an optimizer keeps for each trained parameter, by the first letters of its name."""


def states_of(optim: str) -> int:
    """Numbers that an optimizer keeps for each trained parameter; 2, as Adam's, where it is not known."""
    return next((count for name, count in sorted(STATES.items(), reverse=True) if optim.startswith(name)), 2)


def smaller(size: int, accumulation: int) -> tuple[int, int] | None:
    """The next smaller micro-batch and its accumulation, of the same product; None if it was of one record."""
    whole = size * accumulation
    found = next((n for n in range(size // 2, 0, -1) if whole % n == 0), None)
    return None if found is None else (found, whole // found)


class Trial(TrainerCallback):  # type: ignore[misc]
    """Runs the longest records forward and backward before the first step; nothing of it remains."""

    trainer: "SegmentTrainer"
    """The training; set once it is there."""

    def __init__(self, last: LastStep) -> None:
        self.last = last

    def on_train_begin(self, args: Any, *_: Any, optimizer: Any = None, **__: Any) -> None:
        """Fails as a step would.

        Raises:
            MemoryError: it does not fit, on this device or on another.
        """
        trainer = self.trainer
        rows = sorted(trainer.train_dataset.rows, key=len)[-args.per_device_train_batch_size :]
        batch = trainer.data_collator(rows)
        problem: str | None = None
        try:
            with _room_for_the_optimizer(trainer, optimizer):
                # The model without its wrapper, so that no device waits for one that has failed.
                trainer.training_step(trainer.model, batch, trainer._get_num_items_in_batch([batch], args.device))
        except (RuntimeError, MemoryError) as error:
            if isinstance(error, RadistillError) or not is_out_of_memory(error):
                raise
            problem = str(error)
        trainer.model.zero_grad()
        self.last.put_back()
        if args.world_size > 1:
            failed = trainer.accelerator.reduce(torch.tensor(float(problem is not None), device=args.device), "sum")
            problem = problem or ("out of memory on another device" if failed > 0 else None)
        if problem is not None:
            raise MemoryError(problem)


@contextmanager
def _room_for_the_optimizer(trainer: "SegmentTrainer", optimizer: Any) -> Iterator[None]:
    """Hold what the optimizer will keep from its first step on, if it does not hold it yet."""
    trained = [p for p in trainer.model.parameters() if p.requires_grad]
    held = bool(optimizer is not None and optimizer.state)
    count = 0 if held else states_of(str(getattr(trainer.args.optim, "value", trainer.args.optim)))
    kept = [torch.empty_like(p, dtype=torch.float32) for p in trained for _ in range(count)]
    try:
        yield
    finally:
        kept.clear()


def refuse_sharded(trainer: "SegmentTrainer") -> None:
    """Where a model is spread over devices, none can try a batch by itself.

    Raises:
        ConfigError: it is.
    """
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        raise ConfigError(
            "train.auto_find_batch_size tries a batch on each device by itself, which a model that is spread over "
            "devices cannot do. Set it to false, and train.per_device_train_batch_size to what fits."
        )


def train_to_the_end(
    trainer: "SegmentTrainer", last: LastStep, checkpoint: Path | None, *, find: bool, said: Callable[[str], None]
) -> None:
    """Train; where memory does not suffice, go on from the last whole step with smaller micro-batches.

    Args:
        trainer: the loop.
        last: one of its callbacks.
        checkpoint: where it goes on from.
        find: whether smaller micro-batches are to be tried.
        said: told about each.
    """
    at_first = get_random()
    while not _tried(trainer, last, checkpoint, find=find):
        args = trainer.args
        found = smaller(args.per_device_train_batch_size, args.gradient_accumulation_steps)
        assert found is not None
        step = trainer.state.global_step
        checkpoint = last.save() or checkpoint
        said(
            f"train: {args.per_device_train_batch_size} records do not fit into memory at once; going on "
            f"{f'after step {step} ' if step else ''}with {found[0]}, and {found[1]} forward passes for each optimizer "
            "step, whose loss is the same"
        )
        _begin_again(trainer, *found)
        set_random(at_first)


def _tried(trainer: "SegmentTrainer", last: LastStep, checkpoint: Path | None, *, find: bool) -> bool:
    """Whether it came to its end; not if memory did not suffice and less may."""
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except (RuntimeError, MemoryError) as error:
        is_memory = is_out_of_memory(error) and not isinstance(error, RadistillError)
        args = trainer.args
        fits_less = smaller(args.per_device_train_batch_size, args.gradient_accumulation_steps) is not None
        # With several processes the others wait for this one's gradients, but for the trial, which all do alone.
        is_alone = args.world_size == 1 or trainer.state.global_step == last.first
        if not (find and is_memory and fits_less and is_alone) or last.is_stepping:
            raise
        return False
    return True


def _begin_again(trainer: "SegmentTrainer", size: int, accumulation: int) -> None:
    """As the trainer was before it began, but with other micro-batches."""
    from accelerate.utils.memory import clear_device_cache

    trainer.args.per_device_train_batch_size, trainer.args.gradient_accumulation_steps = size, accumulation
    trainer._train_batch_size = trainer.args.train_batch_size
    # Without the wrappers of the first try, which would be put around once more.
    trainer.model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    trainer.model_wrapped = trainer.model
    trainer.model.zero_grad()
    trainer.optimizer = trainer.lr_scheduler = None
    clear_device_cache(garbage_collection=True)
