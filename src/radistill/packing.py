"""Records → batches: several short rows, each packed with whole records that do not see each other.

A packed row has position ids that start again at 0 for every record, and no attention mask: transformers then builds a
block-diagonal one. This holds only with `use_cache=False` and without any mask (measured: otherwise records read each
other, silently); `tests/test_packing.py` compares packed with separate rows. What a batch *is* does not change by
packing: the same records, the same loss.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from radistill.losses import LABELS, ORIGINS, STORED
from radistill.records import TrainingRecord, pools


def is_flash(attention: str | None) -> bool:
    """Whether that kernel keeps packed records apart in one row only.

    transformers takes their limits from the positions (`cu_seqlens`) if the batch has one row; with several it reads
    every row as one record, silently.
    """
    return attention is not None and attention.startswith("flash_attention")


@dataclass(frozen=True, slots=True)
class Row:
    """One record ready for training; T ids, all arrays of that length."""

    ids_T: NDArray[np.int32]
    weights_T: NDArray[np.float32]
    """Weight of *predicting* each id; that of the first is 0, because nothing predicts it."""
    origins_T: NDArray[np.int8]
    pools_T: NDArray[np.int8]
    labels_T: NDArray[np.int8]
    """Index into `losses.LABELS`."""
    example_id: str | None = None
    index: int = -1
    """Place among all rows of the training."""
    soft_at_S: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, dtype=np.int32))
    """Ids whose labels are stored, and what the untouched model expected at them: its K most probable tokens."""
    soft_ids_SK: NDArray[np.int32] = field(default_factory=lambda: np.zeros((0, 0), dtype=np.int32))
    soft_values_SK: NDArray[np.float16] = field(default_factory=lambda: np.zeros((0, 0), dtype=np.float16))

    @classmethod
    def of(cls, record: TrainingRecord) -> "Row":
        """Spread the segments over the ids."""
        size = len(record.token_ids)
        weights = np.zeros(size, dtype=np.float32)
        origins = np.zeros(size, dtype=np.int8)
        pooled, labels = np.zeros(size, dtype=np.int8), np.zeros(size, dtype=np.int8)
        for segment, pool in zip(record.segments, pools(record.segments), strict=True):
            at = slice(segment.start, segment.stop)
            weights[at] = segment.weight
            origins[at] = ORIGINS.index(segment.origin)
            pooled[at] = ORIGINS.index(pool)
            labels[at] = LABELS.index(segment.labels)
        if record.token_weights:
            weights *= np.asarray(record.token_weights, dtype=np.float32)
        weights[:1] = 0.0
        ids = np.asarray(record.token_ids, dtype=np.int32)
        row = cls(ids, weights, origins, pooled, labels, record.example_id)
        if record.soft is None:
            return row
        at_S = np.flatnonzero((labels == STORED) & (weights > 0)).astype(np.int32)
        return replace(
            row,
            soft_at_S=at_S,
            soft_ids_SK=record.soft.top_ids_TK[at_S],
            soft_values_SK=record.soft.top_values_TK[at_S],
        )

    def __len__(self) -> int:
        return len(self.ids_T)


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Indices of the records that share a row: first fit, longest first. No record is cut.

    A record longer than `capacity` gets a row of its own.
    """
    bins: list[list[int]] = []
    free: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        place = next((b for b, room in enumerate(free) if room >= lengths[index]), None)
        if place is None:
            bins.append([index])
            free.append(capacity - lengths[index])
        else:
            bins[place].append(index)
            free[place] -= lengths[index]
    return bins


@dataclass(frozen=True)
class Collator:
    """Puts the records of one forward pass into rows as long as the longest of them."""

    pad_id: int
    packing: bool = True
    one_row: bool = False
    """Packed records stand in one row without padding, as FlashAttention's kernels for many lengths want them."""

    def bins(self, lengths: Sequence[int], width: int) -> list[list[int]]:
        """Which records stand in each row, in their order."""
        if not self.packing:
            return [[i] for i in range(len(lengths))]
        return pack(lengths, sum(lengths) if self.one_row else width)

    def __call__(self, rows: Sequence[Row], *, width: int | None = None) -> dict[str, torch.Tensor]:
        """A batch of R rows of L ids with N trained tokens.

        Args:
            rows: the records.
            width: L; None = the length of the longest record. With `one_row` it is that of all of them.

        Returns:
            `input_ids` and `position_ids` (R, L); `places_N`: where in the flattened (R x L) hidden states each trained
            token is predicted; `targets_N`, `weights_N`, `origins_N`, `pools_N`, `labels_N`; `soft_at_S`: which of
            the N have stored labels, with `soft_ids_SK` and `soft_values_SK`; `indices_R`: places of the records among
            all rows; `n_tokens`: ids without padding, ().
        """
        lengths = [len(row) for row in rows]
        width = width or max(lengths)
        bins = self.bins(lengths, width)
        if self.one_row and self.packing:
            width = sum(lengths)
        ids = np.full((len(bins), width), self.pad_id, dtype=np.int64)
        # Padding stands at position 0 each: to the mask it is a row of records of one id, apart from all others.
        positions = np.zeros((len(bins), width), dtype=np.int64)
        places, chosen, soft, counted = [], [], [], 0
        for b, members in enumerate(bins):
            start = 0
            for member in members:
                row = rows[member]
                stop = start + len(row)
                ids[b, start:stop] = row.ids_T
                positions[b, start:stop] = np.arange(len(row))
                trained = np.flatnonzero(row.weights_T > 0)
                places.append(b * width + start + trained - 1)
                chosen.append((row, trained))
                if len(row.soft_at_S):
                    soft.append((counted + np.searchsorted(trained, row.soft_at_S), row))
                counted += len(trained)
                start = stop
        return {
            "input_ids": torch.from_numpy(ids),
            "position_ids": torch.from_numpy(positions),
            "places_N": torch.from_numpy(np.concatenate(places)),
            "targets_N": _joined([row.ids_T[at] for row, at in chosen], np.int64),
            "weights_N": _joined([row.weights_T[at] for row, at in chosen], np.float32),
            "origins_N": _joined([row.origins_T[at] for row, at in chosen], np.int64),
            "pools_N": _joined([row.pools_T[at] for row, at in chosen], np.int64),
            "labels_N": _joined([row.labels_T[at] for row, at in chosen], np.int64),
            "soft_at_S": _joined([at for at, _ in soft] or [np.zeros(0)], np.int64),
            "soft_ids_SK": _joined([row.soft_ids_SK for _, row in soft] or [np.zeros((0, 0))], np.int64),
            "soft_values_SK": _joined([row.soft_values_SK for _, row in soft] or [np.zeros((0, 0))], np.float32),
            "indices_R": torch.tensor([row.index for row in rows]),
            "n_tokens": torch.tensor(sum(lengths)),
        }


def _joined(parts: Sequence[NDArray[Any]], dtype: type[np.generic]) -> torch.Tensor:
    return torch.from_numpy(np.concatenate(parts).astype(dtype))
