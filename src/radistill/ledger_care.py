"""Looking after a ledger: what is in it, whether it is whole, and writing it anew without what nobody reads."""

import json
import shlex
import sqlite3
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence, Set
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from radistill import ledger_shards as files
from radistill.errors import RunFolderError
from radistill.ledger import SCHEMA, Ledger, enter, first_place, open_ledger
from radistill.ledger_shards import ARRAYS, TEXT
from radistill.records import Generation

CHUNK = 1000
"""Rows that are read, or committed, together."""
ABANDONED = 3600.0
"""Seconds after which a part of a file is nobody's any more."""
BIG = 64 << 20
"""Bytes of log-probabilities in one shard, about."""

Wanted = dict[str, list[tuple[int, str]]]
"""By shard: where rows begin, and of failures, where they were written first."""


@dataclass
class Found:
    """What is in a ledger."""

    path: str
    shards: int = 0
    bytes: int = 0
    rows: int = 0
    """Answers the index leads to, failed ones too."""
    keys: int = 0
    failed: int = 0
    """Requests that have no good answer."""
    tokens: int = 0
    finish_reasons: dict[str, int] = field(default_factory=dict)
    """Of the rows as they lie in the shards, doubled ones too."""
    scored: int = 0
    """Rows of log-probabilities."""
    doubled: int = 0
    """Rows of which the same is there once more: asked by two processes at once."""
    unfinished_bytes: int = 0
    """Bytes at the ends of shards that no commit closes; an interrupted write leaves some behind, never to be read."""
    damaged_bytes: int = 0
    """Bytes that are not what was committed."""
    lost: list[str] = field(default_factory=list)
    """Shards that are not what was committed, and rows the index has in other places."""

    @property
    def problems(self) -> list[str]:
        """What should not be."""
        return self.lost


def looked_through(path: Path) -> Found:
    """Read every byte of a ledger.

    Raises:
        RunFolderError: there is none.
    """
    with _there(path) as ledger:
        found = Found(str(path))
        good = 0
        """Rows that did not fail, doubled ones too; in the index each of them is there once."""
        reasons: Counter[str] = Counter()
        known = ledger.scanned()
        found.rows, found.keys, once, found.failed = ledger.counts()
        for shard in ledger.files():
            found.shards += 1
            found.bytes += (size := shard.stat().st_size)
            whole, (damaged, problem) = 0, _damage(shard, known.get(shard.name, 0))
            for block in files.blocks(shard):
                whole += _bytes_of(shard, block)
                if block.end <= known.get(shard.name, 0):  # others may write meanwhile
                    good += sum(not place.failed for place in block.places)
                found.scored += len(block.places) if shard.suffix == ARRAYS else 0
                if shard.suffix == TEXT:
                    for generation in files.read(shard, [p.start for p in block.places]):
                        reasons[generation.finish_reason] += 1
                        found.tokens += generation.n_tokens
            if problem:
                found.lost.append(problem)
            found.damaged_bytes += damaged
            found.unfinished_bytes += max(0, size - whole - damaged)
        found.finish_reasons = dict(sorted(reasons.items()))
        found.doubled = max(0, good - once)  # less, where something is damaged
        found.lost += _misplaced(ledger)
        return found


def _bytes_of(shard: Path, block: files.Block) -> int:
    """How many bytes of a shard a commit takes."""
    return block.end - block.places[0].start if shard.suffix == TEXT and block.places else block.end


def _damage(shard: Path, known: int) -> tuple[int, str]:
    """How many bytes of a shard are not what was committed, where, and what to do; 0 and nothing if all are.

    Args:
        shard: to be looked at.
        known: so many bytes of it the index has read.
    """
    if shard.suffix == ARRAYS:
        if files.is_whole(shard):
            return 0, ""
        return shard.stat().st_size, f"{shard.name} is damaged: delete it, and what it holds is asked for again"
    if not (found := files.damages(shard, known)):
        return 0, ""
    places, lines = ", ".join(map(str, found)), ";".join(f"{part.first},{part.last}d" for part in found)
    cut = shlex.join(["sed", "-i", lines, str(shard)])
    forget = shlex.join(["rm", "-f", str(shard.parent.parent / "index.sqlite")])
    return sum(part.end - part.start for part in found), (
        f"{shard.name} is damaged: {places} are not what was committed there, and any row in them may be wrong. Delete "
        f"them and the index while nothing runs (`{cut} && {forget}`): what they answered is asked for again, and all "
        "else is kept"
    )


def _misplaced(ledger: Ledger) -> list[str]:
    wrong = 0
    for keys in _chunks(ledger.keys()):
        found = ledger.read_indexed(keys)
        wrong += len(set(keys) - found.keys())
    if not wrong:
        return []
    return [f"index.sqlite leads to {wrong:,} rows that are not there; delete it, and it is built again"]


def compact(path: Path) -> dict[str, int]:
    """Write everything that is read into as few shards as need be, and delete the others.

    What is dropped: failed rows that a good one has followed, doubled rows, and what no commit answers for. A crash in
    between leaves rows twice, which does no harm, and loses none. Shards that another process writes into are left.

    Returns:
        Bytes and shards before and after.

    Raises:
        RunFolderError: something is damaged, or would be lost, or another process does this; nothing is deleted then.
    """
    with _there(path) as ledger, _alone(path), ExitStack() as held:
        old = [shard for shard in ledger.files() if _is_free(ledger, shard, held)]
        ledger.refresh()  # may know less than the shards hold by now
        _refuse_damage(ledger)
        held.enter_context(closing(known := ledger.copied_index()))
        before = {"bytes_before": sum(s.stat().st_size for s in old), "shards_before": len(old)}
        seen: set[tuple[str, int, str]] = set()
        wanted = {shard.name: list(_live(ledger, shard, seen)) for shard in old}
        written = Ledger(path)  # a writer of its own: its shards come after the old ones
        try:
            for copies in _whole_requests(_texts(old, wanted)):
                written.append([row for row, _ in copies], [first for _, first in copies])
            for rows in _by_size(_scores(old, wanted)):
                written.append(rows)
        finally:
            written.close()
        _refuse_loss(ledger, known, {shard.name for shard in old}, written.begun)
        ledger.delete([*old, *_abandoned(ledger)])
        ledger.refresh(forget=True)
        after = ledger.files()
        return {**before, "bytes_after": sum(s.stat().st_size for s in after), "shards_after": len(after)}


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """No other process compacts that ledger meanwhile; two would copy, and delete, what the other has written."""
    lock = FileLock(path / ".compact.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise RunFolderError(
            f"{path} is being compacted by another radistill process. Wait for it, or stop it: nothing is lost by that."
        ) from error
    try:
        yield
    finally:
        lock.release()


def _refuse_damage(ledger: Ledger) -> None:
    known = ledger.scanned()
    problems = [problem for shard in ledger.files() if (problem := _damage(shard, known.get(shard.name, 0))[1])]
    if problems:
        raise RunFolderError(
            "\n".join([f"{ledger.path} is damaged and was left as it is; nothing was written or deleted.", *problems])
        )


def _refuse_loss(ledger: Ledger, known: sqlite3.Connection, old: Set[str], written: Sequence[str]) -> None:
    """Compare what the index held with what it will hold when the old shards are gone.

    Args:
        ledger: with both the old and the new shards.
        known: its index before the new ones were written.
        old: names of the shards that are to be deleted.
        written: names of those that take their place.
    """
    ends = {name: end for name, end in known.execute("select name, scanned from shards") if name not in old}
    with closing(sqlite3.connect("")) as index:
        index.executescript(SCHEMA)
        for shard in ledger.files():
            # What other processes have written meanwhile was not known before either.
            end = shard.stat().st_size if shard.name in written else ends.get(shard.name, 0)
            for block in files.blocks(shard) if end else ():
                if block.end <= end:
                    enter(index, shard.name, block)
        query = "select key, idx, failures from rows order by key, idx"
        pairs = zip_longest(known.execute(query), index.execute(query))
        if differing := next((before or after for before, after in pairs if before != after), None):
            raise RunFolderError(
                f"compacting {ledger.path} would lose or change row {differing[1]} of {differing[0]}, so nothing was "
                "deleted. See what `radistill ledger verify` says of it."
            )


def _live(ledger: Ledger, shard: Path, seen: set[tuple[str, int, str]]) -> Iterator[tuple[int, str]]:
    """Where the rows of a shard begin that are read, or counted as failures, and where those were written first.

    Args:
        ledger: that has read the shard.
        shard: one of its shards.
        seen: failures that were found so far; a compaction that was killed leaves each of them twice.
    """
    for block in files.blocks(shard):
        read = ledger.places([place.key for place in block.places])
        for place in block.places:
            name, start, failures = read[place.key, place.index]
            if place.failed:
                failure = (place.key, place.index, first_place(shard.name, place))
                if failures and failure not in seen:
                    seen.add(failure)
                    yield place.start, failure[-1]
            elif (name, start) == (shard.name, place.start):
                yield place.start, ""


def _abandoned(ledger: Ledger) -> Iterator[Path]:
    """Parts of files that a killed process has left behind; one that is being written is young."""
    for part in ledger.shards.glob(".*.part"):
        with suppress(FileNotFoundError):
            if time.time() - part.stat().st_mtime > ABANDONED:
                yield part


def _is_free(ledger: Ledger, shard: Path, held: ExitStack) -> bool:
    if shard.suffix == ARRAYS:
        return True
    (ledger.path / ".writers").mkdir(exist_ok=True)
    lock = ledger.lock_of(shard.name)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    held.callback(Path(lock.lock_file).unlink, missing_ok=True)
    held.callback(lock.release)
    return True


def _texts(shards: Sequence[Path], wanted: Wanted) -> Iterator[tuple[Generation, str]]:
    for shard in (s for s in shards if s.suffix == TEXT):
        places = wanted[shard.name]
        for row, (_, first) in zip(files.read(shard, [start for start, _ in places]), places, strict=True):
            yield row, first


def _scores(shards: Sequence[Path], wanted: Wanted) -> Iterator[Generation]:
    for shard in (s for s in shards if s.suffix == ARRAYS):
        yield from files.read(shard, [start for start, _ in wanted[shard.name]])


def _by_size(rows: Iterable[Generation]) -> Iterator[list[Generation]]:
    together: list[Generation] = []
    size = 0
    for row in rows:
        assert row.logprobs is not None
        together.append(row)
        size += row.logprobs.top_ids_TK.nbytes + row.logprobs.top_values_TK.nbytes + row.logprobs.given_T.nbytes
        if size > BIG:
            yield together
            together, size = [], 0
    if together:
        yield together


def _there(path: Path) -> Any:
    if not (path / "shards").is_dir():
        raise RunFolderError(f"{path} is no ledger: it has no folder `shards`. Runs keep theirs at generate.ledger.")
    return open_ledger(path)


def _whole_requests(copies: Iterable[tuple[Generation, str]]) -> Iterator[list[tuple[Generation, str]]]:
    """Chunks that hold all answers to a request which lie together: what is damaged later is asked for as a whole."""
    together: list[tuple[Generation, str]] = []
    for copy in copies:
        if len(together) >= CHUNK and together[-1][0].key != copy[0].key:
            yield together
            together = []
        together.append(copy)
    if together:
        yield together


def _chunks(rows: Iterable[Any]) -> Iterator[list[Any]]:
    rest = iter(rows)
    while some := list(islice(rest, CHUNK)):
        yield some


def as_json(found: Found) -> str:
    """For `--json`."""
    from dataclasses import asdict

    return json.dumps({**asdict(found), "problems": found.problems})


def size_of(count: int) -> str:
    """`1.2 MB`."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            break
        size /= 1000
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
