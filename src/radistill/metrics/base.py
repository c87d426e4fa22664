"""What a metric is: a score computed from additive statistics.

Splitting a metric into `rows` and `score` is what lets `stats.py` give every metric, unasked, a confidence interval,
a paired test against another system and a breakdown by tag: all three only re-sum rows.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from radistill.settings import Settings


class Pair(NamedTuple):
    """One thing to score."""

    answer: str
    reference: str
    source: str


class Metric(Settings, ABC):
    """One way to score answers against references. N pairs, K statistics."""

    unit: ClassVar[str] = "points of 100"
    higher_is_better: ClassVar[bool] = True

    @abstractmethod
    def rows(self, pairs: Sequence[Pair], language: str) -> NDArray[np.float64]:
        """Sufficient statistics, one row per pair: shape (N, K). Called once per system and group.

        Args:
            pairs: what to score; may be empty only if K is known without it.
            language: code of the language the answers should be in (`de`, `zh`); decides the tokenizer.
        """

    @abstractmethod
    def score(self, total_K: NDArray[np.float64]) -> float:
        """The metric of the pairs whose rows add up to `total_K`, in `unit`. Cheap: called thousands of times."""

    @abstractmethod
    def signature(self, language: str) -> str:
        """All that can change the number, with library versions, so that two scores can be known comparable."""


PLUGIN = Metric
