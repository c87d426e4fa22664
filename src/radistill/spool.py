"""Rows that may be more than memory holds: the first in memory, the others in an unnamed temporary file.

The file is private to the process and gone with it, whatever becomes of the process. It lies where the system keeps
such files; `TMPDIR=DIR` puts it elsewhere.
"""

import marshal
import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from os import pread
from pathlib import Path
from typing import IO, Any, Generic, TypeVar, overload

from radistill.errors import writing_into

T = TypeVar("T")
IN_MEMORY = 16_384


class Spool(Sequence[T], Generic[T]):
    """A list that only grows at its end.

    Args:
        pack: a row as a value of plain types (str, int, float, bytes, tuple, dict, None).
        unpack: the row again.
        in_memory: so many rows are kept as they are.
    """

    def __init__(self, pack: Callable[[T], Any], unpack: Callable[[Any], T], *, in_memory: int = IN_MEMORY) -> None:
        self._pack, self._unpack, self._in_memory = pack, unpack, in_memory
        self._first: list[T] = []
        self._ends = array("Q", [0])
        """Of the rows in the file, where each ends."""
        self._file: IO[bytes] | None = None
        self._is_flushed = True

    def append(self, row: T) -> None:
        """One more row.

        Raises:
            DiskFullError: there is no room for it.
        """
        if len(self._first) < self._in_memory:
            self._first.append(row)
            return
        if self._file is None:
            with writing_into(_place()):
                self._file = tempfile.TemporaryFile(buffering=1 << 20)  # noqa: SIM115 (closed with the spool)
        written = marshal.dumps(self._pack(row))
        with writing_into(_place()):
            self._file.write(written)
        self._ends.append(self._ends[-1] + len(written))
        self._is_flushed = False

    def extend(self, rows: Iterable[T]) -> None:
        """More rows."""
        for row in rows:
            self.append(row)

    def __len__(self) -> int:
        return len(self._first) + len(self._ends) - 1

    @overload
    def __getitem__(self, at: int) -> T: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[T]: ...
    def __getitem__(self, at: int | slice) -> T | Sequence[T]:
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(len(self)))]
        if not -len(self) <= at < len(self):
            raise IndexError(f"{at} of {len(self)} rows")
        at %= len(self)
        if at < len(self._first):
            return self._first[at]
        return self._stored(at - len(self._first))

    def __iter__(self) -> Iterator[T]:
        yield from self._first
        at = 0
        while at < len(self._ends) - 1:  # rows may be added meanwhile
            yield self._stored(at)
            at += 1

    def _stored(self, at: int) -> T:
        assert self._file is not None
        if not self._is_flushed:
            with writing_into(_place()):
                self._file.flush()
            self._is_flushed = True
        start, end = self._ends[at], self._ends[at + 1]
        return self._unpack(marshal.loads(pread(self._file.fileno(), end - start, start)))


def _place() -> Path:
    return Path(tempfile.gettempdir())


class Picked(Sequence[T], Generic[T]):
    """Some rows of others, in an order of their own, without copies of them."""

    def __init__(self, rows: Sequence[T], places: Sequence[int]) -> None:
        self._rows, self._places = rows, array("Q", places)

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, at: int) -> T: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[T]: ...
    def __getitem__(self, at: int | slice) -> T | Sequence[T]:
        if isinstance(at, slice):
            return [self._rows[place] for place in self._places[at]]
        return self._rows[self._places[at]]
