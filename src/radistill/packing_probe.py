"""Does this very model keep packed records apart? Asked of it before the first step."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from radistill import losses
from radistill.errors import ModelError
from radistill.packing import Collator, Row
from radistill.training_parts import logits_at

EXACT = 1e-5
"""In nats: what is computed in equal shapes from equal numbers does not differ at all, but for a device's whims."""


def refuse_contaminated_packing(
    model: nn.Module, rows: Sequence[Row], *, pad_id: int, one_row: bool = False, autocast: bool = False
) -> None:
    """Ask the model that is to be trained whether it keeps packed records apart.

    Not every architecture does (state-space models read through, ALiBi ignores the positions), and none that does not
    says so. Two questions, each answered in the model's own precision: does the loss of a record change when the one
    before it is replaced (in equal shapes, so that the answer is exact), and when it stands behind another instead of
    alone (against the noise of another shape)?

    Args:
        model: as it is trained, with its attention kernel and compiled layers.
        rows: what it is trained on; the longest says how long a packed row is.
        pad_id: as the collator's.
        one_row: as the collator's.
        autocast: products are bfloat16, as in the training; FlashAttention knows nothing else.

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
        kind = next(model.parameters()).device.type
        with torch.no_grad(), torch.autocast(kind, dtype=torch.bfloat16, enabled=autocast):
            collate = Collator(pad_id, one_row=one_row)
            pairs = [[_probe(first), record] for first in (before, before[::-1])]
            behind, swapped = (_nll(model, collate(pair, width=width)) for pair in pairs)
            padded, alone = (_nll(model, collate([record], width=size)) for size in (width, half))
    finally:
        model.train(was_training)
    behind, swapped = behind[-len(alone) :], swapped[-len(alone) :]
    read = (behind - swapped).abs().max().item()
    moved, noise = (behind - padded).abs().mean().item(), (alone - padded).abs().mean().item()
    wide = next(model.parameters()).dtype in (torch.float32, torch.float64) and not autocast
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
