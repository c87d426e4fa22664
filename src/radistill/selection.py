"""Which rationales are trained on where there is a budget of tokens.

`random`: in a seeded order. `coverage`: greedily those that add most to

    f(S) = sum over terms u of sqrt(number of texts in S that hold u)

for each of their tokens, where the terms of a text are its words and pairs of words (characters and pairs of them where
a script sets no words apart), each counted once. f grows with every text, by less the more often its terms are there
already (it is monotone and submodular), so that what has been evaluated before is an upper bound and most texts need
not be looked at again (lazy evaluation). Either order is gone through until the next text would exceed the budget: what
a smaller budget selects is a part of what a larger one does.

Source: Kirchhoff and Bilmes: "Submodularity for Data Selection in Statistical Machine Translation", EMNLP 2014,
D14-1014 (the square root of counts of n-grams); the greedy choice by gain and cost: Lin and Bilmes, NAACL 2010,
N10-1134; lazy evaluation: Minoux 1978. Departures: terms are not weighted by their rarity, and are told apart by 22
bits of a hash.

Memory: about 140 bytes a text; its terms (4 bytes each) lie in a temporary file (`TMPDIR`).
"""

import heapq
import zlib
from array import array
from collections.abc import Iterable, Iterator
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from radistill import seeds
from radistill.contamination import normalise, words
from radistill.filters import SelectSettings
from radistill.spool import Spool

BITS = 22


def terms(text: str) -> NDArray[np.uint32]:
    """Numbers of the different words and word pairs of a text, below 2 to the power of 22, in order."""
    said = words(normalise(text))
    found = {*said, *map(" ".join, pairwise(said))}
    numbers = {zlib.crc32(term.encode("utf-8", "surrogatepass")) >> (32 - BITS) for term in found}
    return np.array(sorted(numbers), dtype="<u4")


class Selection:
    """Texts are put in; then it is told which of them are selected."""

    def __init__(self, settings: SelectSettings, seed: int) -> None:
        self.settings, self.seed = settings, seed
        self._tokens = array("Q")
        self._terms: Spool[NDArray[np.uint32]] = Spool(lambda row: row.tobytes(), _unpacked)

    def add(self, text: str, n_tokens: int) -> None:
        """One more text, with its cost."""
        self._tokens.append(n_tokens)
        if self.settings.by == "coverage":
            self._terms.append(terms(text))

    def left_out(self, gone_N: NDArray[np.bool_]) -> NDArray[np.intp]:
        """Places of the texts that are not selected, counted from 0, in order.

        Args:
            gone_N: for each text whether it is out already; it is neither selected nor told.
        """
        places = np.flatnonzero(~gone_N)
        order = self._by_coverage(places) if self.settings.by == "coverage" else self._at_random(places)
        left_N = ~gone_N
        left_N[np.fromiter(_within(order, self._tokens, self.settings.tokens), dtype=np.intp)] = False
        return np.flatnonzero(left_N)

    def _at_random(self, places: NDArray[np.intp]) -> Iterator[int]:
        return map(int, seeds.generator(self.seed, "select").permutation(places))

    def _by_coverage(self, places: NDArray[np.intp]) -> Iterator[int]:
        counts_U = np.zeros(1 << BITS, dtype=np.uint32)
        heap = [(-self._gain(place, counts_U), place) for place in map(int, places)]
        heapq.heapify(heap)
        while heap:
            place = heapq.heappop(heap)[1]
            now = (-self._gain(place, counts_U), place)
            if heap and now > heap[0]:
                heapq.heappush(heap, now)
                continue
            counts_U[self._terms[place]] += 1
            yield place

    def _gain(self, place: int, counts_U: NDArray[np.uint32]) -> float:
        """What the text would add to f, for each of its tokens."""
        counts = counts_U[self._terms[place]].astype(np.float64)
        return float((np.sqrt(counts + 1) - np.sqrt(counts)).sum()) / self._tokens[place]


def _within(order: Iterable[int], costs: "array[int]", budget: int) -> Iterator[int]:
    spent = 0
    for place in order:
        spent += costs[place]
        if spent > budget:
            return
        yield place


def _unpacked(stored: bytes) -> NDArray[np.uint32]:
    return np.frombuffer(stored, dtype="<u4")
