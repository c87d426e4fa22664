"""What a model expects at each place of a text: the stored form of soft labels and of scores.

Natural logarithms at temperature 1 of the whole distribution, before anything is cut off, so that what lies outside the
K most probable tokens is known to the last bit of float16: it is what is left of 1.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_STORED = {"given": "<f4", "ids": "<i4", "values": "<f2"}


@dataclass(frozen=True, slots=True, eq=False)
class LogProbs:
    """Of a text of T ids."""

    given_T: NDArray[np.float32]
    """Of each id itself, given those before it; the first, which nothing predicts, has 0."""
    top_ids_TK: NDArray[np.int32]
    """The K most probable ids at each place, most probable first; K may be 0. The first place has -1."""
    top_values_TK: NDArray[np.float16]

    @property
    def top_k(self) -> int:
        """K."""
        return int(self.top_ids_TK.shape[1])

    def __len__(self) -> int:
        return len(self.given_T)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, LogProbs):
            return NotImplemented
        return all(np.array_equal(getattr(self, name), getattr(other, name)) for name in LogProbs.__slots__)

    def as_bytes(self) -> dict[str, Any]:
        """As parquet takes it: `k`, and little-endian bytes."""
        arrays = (self.given_T, self.top_ids_TK, self.top_values_TK)
        named = zip(_STORED.items(), arrays, strict=True)
        return {"k": self.top_k} | {name: np.ascontiguousarray(a, dtype=dtype).tobytes() for (name, dtype), a in named}

    @classmethod
    def of_bytes(cls, stored: Mapping[str, Any]) -> "LogProbs":
        """What `as_bytes` made."""
        given, ids, values = (np.frombuffer(stored[name], dtype=dtype) for name, dtype in _STORED.items())
        shape = (len(given), int(stored["k"]))
        return cls(given, ids.reshape(shape), values.reshape(shape))
