"""The last batch of an epoch, on several processes.

Where the rows do not fill it, accelerate gives the processes rows of the epoch's beginning once more, so that all have
equally many. They would be learned twice, and a training on two devices would not be that on one: they are taken out.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from radistill.packing import Row

Batch = dict[str, torch.Tensor]


def without_repeats(batch: Mapping[str, torch.Tensor], trainer: Any) -> Batch:
    """What this process has of the last micro-batch of an epoch, each row once.

    Args:
        batch: what accelerate has given it.
        trainer: a SegmentTrainer.

    Returns:
        The batch itself if all of its rows are the epoch's, and one without trained tokens if none is.
    """
    rows, per_device = trainer.train_dataset.rows, trainer.args.per_device_train_batch_size
    mine = real_rows(
        len(rows), per_device=per_device, rank=trainer.args.process_index, processes=trainer.args.world_size
    )
    places = batch["indices_R"].tolist()
    if mine >= len(places):
        return dict(batch)
    made = trainer.data_collator([rows[index] for index in places[:mine]] or [_untrained(rows[places[0]])])
    made["n_tokens"] *= mine > 0
    return {name: tensor.to(batch["input_ids"].device) for name, tensor in made.items()}


def real_rows(count: int, *, per_device: int, rank: int, processes: int) -> int:
    """How many rows of the last micro-batch of a process stand there for the first time.

    accelerate deals an epoch out in turns of so many rows for each process, in the order of their ranks.
    """
    left = count % (per_device * processes)
    return max(0, min(per_device, left - rank * per_device)) if left else per_device


def summed(trainer: Any, sums: torch.Tensor) -> torch.Tensor:
    """Sums over all processes; makes the trainer's counts of tokens exact, which were one process's times their number.

    Args:
        trainer: a SegmentTrainer.
        sums: of this process, in float64 on the CPU.
    """
    reference, processes = trainer.extras.reference, trainer.args.world_size
    trainer.tokens_reference_now = reference.tokens if reference is not None else 0
    if processes == 1:
        return sums
    now = (trainer.tokens_processed, trainer.tokens_trained, trainer.tokens_rolled_out)
    own = [(late - early) // processes for late, early in zip(now, trainer.counted, strict=True)]
    counts = torch.tensor([*own, trainer.tokens_reference_now], dtype=torch.float64)
    told = torch.cat([sums.flatten(), counts]).to(trainer.args.device)
    all_sums, found = trainer.accelerator.reduce(told, reduction="sum").cpu().split([sums.numel(), len(counts)])
    *new, trainer.tokens_reference_now = (int(value) for value in found.tolist())
    trainer.counted = tuple(early + more for early, more in zip(trainer.counted, new, strict=True))
    trainer.tokens_processed, trainer.tokens_trained, trainer.tokens_rolled_out = trainer.counted
    total: torch.Tensor = all_sums.reshape(sums.shape)
    return total


def is_empty(batch: Mapping[str, torch.Tensor]) -> bool:
    """Whether nothing is trained in it."""
    return len(batch["places_N"]) == 0


def _untrained(row: Row) -> Row:
    nothing: Any = np.zeros_like(row.weights_T)
    none = slice(0, 0)
    return replace(
        row,
        weights_T=nothing,
        soft_at_S=row.soft_at_S[none],
        soft_ids_SK=row.soft_ids_SK[none],
        soft_values_SK=row.soft_values_SK[none],
    )
