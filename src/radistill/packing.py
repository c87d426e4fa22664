"""Records → batches: several short rows, each packed with whole records that do not see each other.

A packed row has position ids that start again at 0 for every record, and no attention mask: transformers then builds a
block-diagonal one. This holds only with `use_cache=False` and without any mask (measured: otherwise records read each
other, silently); `tests/test_packing.py` compares packed with separate rows. What a batch *is* does not change by
packing: the same records, the same loss.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from radistill.losses import ORIGINS, pools
from radistill.records import TrainingRecord


@dataclass(frozen=True, slots=True)
class Row:
    """One record ready for training; T ids, all arrays of that length."""

    ids_T: NDArray[np.int32]
    weights_T: NDArray[np.float32]
    """Weight of *predicting* each id; that of the first is 0, because nothing predicts it."""
    origins_T: NDArray[np.int8]
    pools_T: NDArray[np.int8]

    @classmethod
    def of(cls, record: TrainingRecord) -> "Row":
        """Spread the segments over the ids."""
        size = len(record.token_ids)
        weights = np.zeros(size, dtype=np.float32)
        origins = np.zeros(size, dtype=np.int8)
        pooled = np.zeros(size, dtype=np.int8)
        for segment, pool in zip(record.segments, pools(record.segments), strict=True):
            at = slice(segment.start, segment.stop)
            weights[at] = segment.weight
            origins[at] = ORIGINS.index(segment.origin)
            pooled[at] = ORIGINS.index(pool)
        weights[:1] = 0.0
        return cls(np.asarray(record.token_ids, dtype=np.int32), weights, origins, pooled)

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

    def __call__(self, rows: Sequence[Row], *, width: int | None = None) -> dict[str, torch.Tensor]:
        """A batch of R rows of L ids with N trained tokens.

        Args:
            rows: the records.
            width: L; None = the length of the longest record.

        Returns:
            `input_ids` and `position_ids` (R, L); `places_N`: where in the flattened (R x L) hidden states each trained
            token is predicted; `targets_N`, `weights_N`, `origins_N`, `pools_N`; `n_tokens`: ids without padding, ().
        """
        lengths = [len(row) for row in rows]
        width = width or max(lengths)
        bins = pack(lengths, width) if self.packing else [[i] for i in range(len(rows))]
        ids = np.full((len(bins), width), self.pad_id, dtype=np.int64)
        # Padding stands at position 0 each: to the mask it is a row of records of one id, apart from all others.
        positions = np.zeros((len(bins), width), dtype=np.int64)
        places, chosen = [], []
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
                start = stop
        return {
            "input_ids": torch.from_numpy(ids),
            "position_ids": torch.from_numpy(positions),
            "places_N": torch.from_numpy(np.concatenate(places)),
            "targets_N": torch.from_numpy(np.concatenate([r.ids_T[t] for r, t in chosen]).astype(np.int64)),
            "weights_N": torch.from_numpy(np.concatenate([r.weights_T[t] for r, t in chosen])),
            "origins_N": torch.from_numpy(np.concatenate([r.origins_T[t] for r, t in chosen]).astype(np.int64)),
            "pools_N": torch.from_numpy(np.concatenate([r.pools_T[t] for r, t in chosen]).astype(np.int64)),
            "n_tokens": torch.tensor(sum(lengths)),
        }
