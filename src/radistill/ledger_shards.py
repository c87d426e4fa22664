"""The files a ledger consists of: rows as JSON Lines closed by commit lines, and log-probabilities as parquet.

A JSON Lines shard grows by commits, each a block of rows closed by a line with their number and checksum. What no such
line follows (a killed process, a full disk) does not exist; lines that one follows which does not answer for them were
changed since. A parquet shard is one commit: it appears whole under a
name that ends in its checksum, or not at all. Log-probabilities are arrays, a hundred times larger than the text they
are about, so they are never written as JSON.
"""

import contextlib
import io
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from radistill.errors import RunFolderError
from radistill.records import Generation, json_line

if TYPE_CHECKING:
    import pyarrow as pa

TEXT, ARRAYS = ".jsonl", ".parquet"
GROUP = 16
"""Rows of a parquet shard that are read together."""
FIELDS = ("key", "index", "token_ids", "text", "finish_reason", "error")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a row lies, and what the index must know of it."""

    key: str
    index: int
    start: int
    """Byte at which its line begins; of a parquet shard, its number."""
    failed: bool
    first: str = ""
    """Of the copy of a failure: where it was written first."""


@dataclass(frozen=True, slots=True)
class Block:
    """Rows that were committed together, and where the commit ends."""

    places: Sequence[Place]
    end: int


@dataclass(frozen=True, slots=True)
class Damage:
    """Lines of a shard that were changed since: a commit line follows them, or did, and does not answer for them."""

    first: int
    last: int
    """Numbers of lines, from 1."""
    start: int
    end: int
    """Bytes, the last one not included."""

    def __str__(self) -> str:
        return f"lines {self.first} to {self.last} (bytes {self.start} to {self.end})"


def block_of(generations: Sequence[Generation], start: int, firsts: Sequence[str] = ()) -> tuple[bytes, Block]:
    """The bytes of a commit that begins at that byte of a shard; `firsts` are those of the places, if any is a copy."""
    firsts = firsts or [""] * len(generations)
    rows_and_firsts = zip(generations, firsts, strict=True)
    lines = [json_line(_plain(g) | ({"first": first} if first else {}), compact=True) for g, first in rows_and_firsts]
    rows = b"".join(lines)
    commit = b'{"commit": %d, "crc32": %d}\n' % (len(lines), zlib.crc32(rows))
    places = []
    at = start
    for generation, line, first in zip(generations, lines, firsts, strict=True):
        places.append(Place(generation.key, generation.index, at, generation.finish_reason == "error", first))
        at += len(line)
    return rows + commit, Block(places, at + len(commit))


def blocks(shard: Path, begin: int = 0) -> Iterator[Block]:
    """The commits of a shard from that byte on; what is torn or damaged is passed over.

    A commit line answers for the lines right before it, as many as it says. A block that was damaged does not exist;
    those before and after it do.
    """
    if shard.suffix == ARRAYS:
        if begin == 0 and is_whole(shard):
            yield Block(_array_places(shard), shard.stat().st_size)
        return
    with shard.open("rb") as file:
        file.seek(begin)
        yield from (part for part in _parts(file) if isinstance(part, Block))


def damages(shard: Path, known: int = 0) -> list[Damage]:
    """What was changed in a JSON Lines shard; lines at its end that no commit line follows yet are only unfinished.

    Args:
        shard: to be read from its beginning.
        known: so many bytes of it were committed once; what is unfinished before that was changed too.
    """
    with shard.open("rb") as file:
        return [part for part in _parts(file, known) if isinstance(part, Damage)]


def sizes(shards: Iterable[Path]) -> dict[str, int]:
    """Bytes of each by its name; one that another process has deleted meanwhile is left out."""
    found = {}
    for shard in shards:
        with contextlib.suppress(FileNotFoundError):
            found[shard.name] = shard.stat().st_size
    return found


def is_whole(shard: Path) -> bool:
    """Whether a parquet shard still is what its name says."""
    return shard.stem.rpartition("-")[2] == f"{zlib.crc32(shard.read_bytes()):08x}"


def read(shard: Path, starts: Sequence[int]) -> Iterator[Generation]:
    """The rows at those places, which are in order.

    Raises:
        OSError, ValueError, LookupError, TypeError: the shard does not hold them.
    """
    if shard.suffix == ARRAYS:
        yield from _read_arrays(shard, starts)
        return
    with shard.open("rb") as file:
        for start in starts:
            file.seek(start)
            yield generation_of(json.loads(file.readline()))


def generation_of(row: dict[str, Any]) -> Generation:
    """The row of a JSON Lines shard."""
    if "logprobs" in row:
        raise RunFolderError(
            "the ledger holds log-probabilities as JSON, as earlier versions wrote them. Name another folder with "
            "generate.ledger=DIR; they are asked for again."
        )
    return Generation(**{**{k: v for k, v in row.items() if k != "first"}, "token_ids": tuple(row["token_ids"])})


def bytes_of_arrays(generations: Sequence[Generation]) -> bytes:
    """A parquet shard of log-probabilities."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    scored = [(g, g.logprobs) for g in generations if g.logprobs is not None]
    assert len(scored) == len(generations), "rows with and without log-probabilities lie in different shards"
    table = pa.table(
        {
            "key": pa.array([g.key for g, _ in scored], pa.string()),
            "index": pa.array([g.index for g, _ in scored], pa.int32()),
            "k": pa.array([p.top_k for _, p in scored], pa.int32()),
            "logprobs": _lists([p.given_T for _, p in scored], pa.float32()),
            "top_ids": _lists([p.top_ids_TK for _, p in scored], pa.int32()),
            "top_logprobs": _lists([p.top_values_TK for _, p in scored], pa.float16()),
        }
    )
    file = io.BytesIO()
    pq.write_table(table, file, row_group_size=GROUP, use_dictionary=False, write_statistics=False)
    return file.getvalue()


def _lists(arrays: Sequence[Any], kind: "pa.DataType") -> "pa.ListArray":
    """One list a row, of all numbers of its array."""
    import numpy as np
    import pyarrow as pa

    ends = np.cumsum([0, *(array.size for array in arrays)], dtype=np.int64)
    flat = np.concatenate([array.ravel() for array in arrays]) if arrays else np.zeros(0)
    return pa.LargeListArray.from_arrays(pa.array(ends), pa.array(flat, type=kind))


def _plain(generation: Generation) -> dict[str, Any]:
    return {name: getattr(generation, name) for name in FIELDS}


def _parts(file: IO[bytes], known: int = 0) -> Iterator[Block | Damage]:
    lines: list[tuple[bytes, int]] = []
    at, number = file.tell(), 0
    for line in file:
        number += 1
        at += len(line)
        if not line.startswith(b'{"commit"') or not line.endswith(b"\n"):
            lines.append((line, at - len(line)))
            continue
        first, start = number - len(lines), at - len(line)
        try:
            places = _committed(lines, json.loads(line))
        except (ValueError, TypeError, LookupError):
            yield Damage(first, number, lines[0][1] if lines else start, at)
        else:
            if loose := len(lines) - len(places):
                yield Damage(first, first + loose - 1, lines[0][1], lines[loose][1] if places else start)
            yield Block(places, at)
        lines = []
    # A write that was not finished consists of rows, and of the beginning of a line.
    if lines and (lines[0][1] < known or not all(_is_row(line) for line, _ in lines if line.endswith(b"\n"))):
        yield Damage(number - len(lines) + 1, number, lines[0][1], at)


def _is_row(line: bytes) -> bool:
    try:
        return "key" in json.loads(line)
    except (ValueError, TypeError):
        return False


def _committed(lines: Sequence[tuple[bytes, int]], commit: Any) -> list[Place]:
    block = lines[len(lines) - commit["commit"] :]
    if len(block) != commit["commit"] or zlib.crc32(b"".join(line for line, _ in block)) != commit["crc32"]:
        raise ValueError("the lines before this commit are not those it closed")
    rows = ((json.loads(line), start) for line, start in block)
    return [
        Place(row["key"], row["index"], start, row["finish_reason"] == "error", row.get("first", ""))
        for row, start in rows
    ]


def _array_places(shard: Path) -> list[Place]:
    import pyarrow.parquet as pq

    names = pq.read_table(shard, columns=["key", "index"]).to_pydict()
    return [Place(k, i, at, False) for at, (k, i) in enumerate(zip(names["key"], names["index"], strict=True))]


def _read_arrays(shard: Path, starts: Iterable[int]) -> Iterator[Generation]:
    import numpy as np
    import pyarrow.parquet as pq

    from radistill.logprobs import LogProbs

    with pq.ParquetFile(shard) as file:
        group, rows = -1, None
        for start in starts:
            if start // GROUP != group:
                group = start // GROUP
                rows = file.read_row_group(group)
            assert rows is not None
            at, flat = start % GROUP, {}
            for name, dtype in (("logprobs", np.float32), ("top_ids", np.int32), ("top_logprobs", np.float16)):
                flat[name] = rows[name][at].values.to_numpy(zero_copy_only=False).astype(dtype, copy=False)
            shape = (len(flat["logprobs"]), rows["k"][at].as_py())
            yield Generation(
                key=rows["key"][at].as_py(),
                index=rows["index"][at].as_py(),
                token_ids=(),
                text="",
                finish_reason="stop",
                logprobs=LogProbs(
                    flat["logprobs"], flat["top_ids"].reshape(shape), flat["top_logprobs"].reshape(shape)
                ),
            )
