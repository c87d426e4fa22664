"""Near-duplicates among millions of texts: of texts that are nearly the same, the first is kept.

Two texts are near-duplicates if the Jaccard similarity of their sets of word triples (of characters, where a script
sets no words apart) is estimated to be the threshold or more: the share of 128 min-hashes that agree, whose standard
error is at most 4.4 points. Which texts are compared at all is told by bands of those hashes: at the threshold one pair
in ten may be missed, and above it soon none. A text is compared with what was kept before it, so that a chain of texts,
each near to the next, is not swallowed whole.

Source: Broder: "On the resemblance and containment of documents", SEQUENCES 1997; the bands: Leskovec, Rajaraman,
Ullman: "Mining of Massive Datasets", chapter 3.4. The min-hashes are those of the package datasketch.

Memory: 8 bytes a band and text, and 25 bytes a text while bands are sorted: 200 bytes a text at a threshold of 0.7,
which has 21 bands. The hashes (512 bytes a text) lie in a temporary file (`TMPDIR`).
"""

import hashlib
import zlib
from array import array
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from radistill.contamination import normalise, words
from radistill.errors import MissingPackageError
from radistill.spool import Spool

if TYPE_CHECKING:
    from numpy.typing import NDArray

PERMUTATIONS = 128
SHINGLE = 3
"""Words."""
MISSED = 0.1
"""At most so many pairs at the threshold share no band."""
SEED = 1
"""Of the permutations: not the run's, so that what is a near-duplicate does not change with the seed."""


def shingles(text: str) -> set[bytes]:
    """The word triples of a text without case and punctuation; of shorter texts all their words as one."""
    said = words(normalise(text))
    last = max(1, len(said) - SHINGLE + 1)
    return {" ".join(said[i : i + SHINGLE]).encode("utf-8", "surrogatepass") for i in range(last)}


def bands(threshold: float) -> tuple[int, int]:
    """How many bands of how many hashes: the widest that miss few enough pairs at the threshold."""
    for width in range(PERMUTATIONS, 0, -1):
        number = PERMUTATIONS // width
        if (1 - threshold**width) ** number <= MISSED:
            return number, width
    return PERMUTATIONS, 1


def require() -> None:
    """Make sure that the package is there.

    Raises:
        MissingPackageError: it is not.
    """
    _min_hash()


class NearDuplicates:
    """Texts are put in, in the order in which the first is kept; then it is told which of them are near-duplicates.

    Raises:
        MissingPackageError: datasketch is not installed.
    """

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self._number, self._width = bands(threshold)
        self._bands = [array("Q") for _ in range(self._number)]
        self._hashes: Spool[NDArray[np.uint32]] = Spool(_packed, _unpacked)
        self._empty = _min_hash()(num_perm=PERMUTATIONS, seed=SEED, hashfunc=zlib.crc32, scheme="affine32")

    def add(self, text: str) -> None:
        """One more text."""
        made = self._empty.copy()
        made.update_batch(sorted(shingles(text)))
        hashes_P = np.asarray(made.hashvalues, dtype="<u4")
        self._hashes.append(hashes_P)
        for at, band in enumerate(self._bands):
            part = hashes_P[at * self._width : (at + 1) * self._width].tobytes()
            band.append(int.from_bytes(hashlib.blake2b(part, digest_size=8).digest(), "little"))

    def found(self) -> Iterator[int]:
        """Places of the near-duplicates, counted from 0, in order. Nothing can be added afterwards."""
        earlier_BN = [self._earlier(self._bands.pop()) for _ in range(self._number)]
        is_kept_N = np.ones(len(self._hashes), dtype=bool)
        shares_N = np.zeros(len(self._hashes), dtype=bool)
        for earlier_N in earlier_BN:
            shares_N |= earlier_N >= 0
        for place in np.flatnonzero(shares_N).tolist():
            rivals = {rival for earlier_N in earlier_BN for rival in _kept_before(place, earlier_N, is_kept_N)}
            if any(self._agree(place, rival) for rival in sorted(rivals)):
                is_kept_N[place] = False
                yield place

    def _earlier(self, band: "array[int]") -> "NDArray[np.int64]":
        """For each text the last one before it with the same band; -1 = there is none."""
        values_N = np.frombuffer(band, dtype=np.uint64)
        order_N = np.argsort(values_N, kind="stable")
        same = np.flatnonzero(values_N[order_N[1:]] == values_N[order_N[:-1]])
        earlier_N = np.full(len(values_N), -1, dtype=np.int64)
        earlier_N[order_N[same + 1]] = order_N[same]
        return earlier_N

    def _agree(self, place: int, rival: int) -> bool:
        equal = int((self._hashes[place] == self._hashes[rival]).sum())
        return equal >= self.threshold * PERMUTATIONS


def _kept_before(place: int, earlier_N: "NDArray[np.int64]", is_kept_N: "NDArray[np.bool_]") -> Iterator[int]:
    while place >= 0:
        before = int(earlier_N[place])
        while before >= 0 and not is_kept_N[before]:
            before = int(earlier_N[before])
        earlier_N[place] = before  # or a thousand copies would be gone through a thousand times
        if before >= 0:
            yield before
        place = before


def _min_hash() -> Any:
    try:
        from datasketch import MinHash
    except ImportError as error:
        raise MissingPackageError(
            "generate.filters.near_duplicates needs the package datasketch, which is not installed. Install it with: "
            "pip install 'radistill[filters]'. Or leave near_duplicates out."
        ) from error
    return MinHash


def _packed(hashes_P: "NDArray[np.uint32]") -> bytes:
    return hashes_P.tobytes()


def _unpacked(stored: bytes) -> "NDArray[np.uint32]":
    return np.frombuffer(stored, dtype="<u4")
