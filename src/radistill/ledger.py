"""Every generation of all runs, stored once by the key of its request.

The truth is append-only shard files, one writer each (`ledger_shards.py`). Each commit is flushed to the disk (fsync)
before it counts. `index.sqlite` only says where a row lies; it can be deleted at any time and is then rebuilt, and
survives a crash of the process, not a power cut.
"""

import contextlib
import os
import sqlite3
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import IO, Any

from filelock import FileLock

from radistill import ledger_shards as files
from radistill.errors import DiskFullError, RunFolderError, writing_into
from radistill.files import atomic, sync_folder
from radistill.ledger_shards import ARRAYS, TEXT, Block, Place
from radistill.records import Generation

SHARD_BYTES = 256 << 20
LOCK_SECONDS = 60.0
SCHEMA = """
create table if not exists shards (id integer primary key, name text not null unique, scanned integer not null);
create table if not exists rows (
    key text not null, idx integer not null, shard integer not null, start integer not null, failures integer not null,
    primary key (key, idx)
) without rowid;
create table if not exists tries (
    key text not null, idx integer not null, first text not null, primary key (key, idx, first)
) without rowid;
"""
VERSION = 2
"""Of the tables; an index of another one is built again."""
COLUMNS = "select id, name, scanned from shards limit 1; select key, idx, shard, start, failures from rows limit 1;"
ENTER = """
insert into rows values (?, ?, ?, ?, ?) on conflict (key, idx) do update set shard = excluded.shard,
start = excluded.start, failures = iif(excluded.failures = 0, 0, rows.failures + 1) where rows.failures > 0
"""
"""A failed row gives way to a later one, and failures are counted; a good row is never replaced."""
CACHE_KIB = 32 << 10
CHUNK = 500
"""So many keys are asked for in one query; SQLite takes a limited number of values."""
DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)


class Ledger:
    """A folder of shards with its index. Open it with `open_ledger`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.shards = path / "shards"
        self._writing: IO[bytes] | None = None
        self._mine: FileLock | None = None
        self.begun: list[str] = []
        """Shards that were written through this object."""
        with _messages(path):
            self._index = self._open_index()
            try:
                self.refresh()
            except BaseException:
                self._index.close()
                raise

    def refresh(self, *, forget: bool = False) -> None:
        """Read what other processes, or an earlier one, have committed since; with `forget`, read everything again.

        One transaction, so that other processes never see an index that is half built.
        """
        scanned = self.scanned()
        # After the query: a shard that another process has just begun would otherwise seem to be missing.
        there = files.sizes(self.files())
        if (
            not forget
            and not _lost(scanned, there)
            and all(size <= scanned.get(name, 0) for name, size in there.items())
        ):
            return
        with self._transaction():
            scanned = dict(self._index.execute("select name, scanned from shards").fetchall())
            there = files.sizes(self.files())
            if forget or _lost(scanned, there):
                # The index is another folder's, or shards were taken away, cut or changed. They are the truth.
                self._index.execute("delete from rows")
                self._index.execute("delete from tries")
                self._index.execute("delete from shards")
                scanned = {}
            for name in sorted(name for name, size in there.items() if size > scanned.get(name, 0)):
                for block in files.blocks(self.shards / name, scanned.get(name, 0)):
                    enter(self._index, name, block)

    def delete(self, shards: Iterable[Path]) -> None:
        """Take these shards away while nobody reads them into the index."""
        with _messages(self.path), self._transaction():
            for shard in shards:
                shard.unlink(missing_ok=True)

    def files(self) -> list[Path]:
        """All shards, in the order of their names, which is that of their beginnings."""
        return sorted([*self.shards.glob(f"*{TEXT}"), *self.shards.glob(f"*{ARRAYS}")])

    def missing(self, keys: Iterable[str], *, attempts: int | None = None) -> set[str]:
        """Those keys that have no answer, or only a failed one.

        Args:
            keys: of requests.
            attempts: a key that has failed so often is not missing any more; None = it always is.
        """
        wanted = list(dict.fromkeys(keys))
        allowed = "max(failures) = 0" if attempts is None else f"max(failures) = 0 or max(failures) >= {attempts:d}"
        query = f"select key from rows where key in ({{}}) group by key having {allowed}"
        return set(wanted) - {key for (key,) in self._select_for(query, wanted)}

    def failures(self, keys: Iterable[str]) -> dict[str, int]:
        """How often those keys have failed that have no good answer."""
        query = "select key, max(failures) from rows where key in ({}) group by key having max(failures) > 0"
        return dict(self._select_for(query, list(dict.fromkeys(keys))))

    def read(self, keys: Iterable[str]) -> dict[str, list[Generation]]:
        """The stored generations of those keys, in order of their index; keys without any are left out."""
        wanted = list(dict.fromkeys(keys))
        try:
            return self._read(wanted)
        except (OSError, ValueError, LookupError, TypeError):
            # What the index says is not what the shards hold.
            with _messages(self.path):
                self.refresh(forget=True)
            return self._read(wanted)

    def read_indexed(self, keys: Sequence[str]) -> dict[str, list[Generation]]:
        """As `read`, but what the index leads to in vain is left out."""
        try:
            return self._read(keys)
        except (OSError, ValueError, LookupError, TypeError):
            if len(keys) == 1:
                return {}
            return {k: g for part in (keys[::2], keys[1::2]) for k, g in self.read_indexed(part).items()}

    def keys(self) -> Iterator[str]:
        """All that were ever answered, in their order."""
        last = ""
        query = "select distinct key from rows where key > ? order by key limit 10000"
        while found := [key for (key,) in self._select(query, [last])]:
            yield from found
            last = found[-1]

    def counts(self) -> tuple[int, int, int, int]:
        """Rows, keys, rows that did not fail, and keys without a good answer."""
        query = "select count(*), count(distinct key), count(nullif(failures > 0, 1)) from rows"
        ((rows, keys, good),) = self._select(query)
        ((failed,),) = self._select("select count(distinct key) from rows where failures > 0")
        return rows, keys, good, failed

    def places(self, keys: Sequence[str]) -> dict[tuple[str, int], tuple[str, int, int]]:
        """Key and index → shard, place in it, and how often it has failed without a good answer since."""
        query = (
            "select key, idx, name, start, failures from rows join shards on shards.id = rows.shard where key in ({})"
        )
        return {(key, index): (name, start, bad) for key, index, name, start, bad in self._select_for(query, keys)}

    def scanned(self) -> dict[str, int]:
        """So many bytes of each shard are in the index."""
        return dict(self._select("select name, scanned from shards"))

    def copied_index(self) -> sqlite3.Connection:
        """What the index holds now, in a temporary file."""
        copy = sqlite3.connect("")
        with _messages(self.path):
            self._index.backup(copy)
        return copy

    def _read(self, keys: Sequence[str]) -> dict[str, list[Generation]]:
        found: dict[str, list[Generation]] = {}
        ordered = sorted((name, start, key, index) for (key, index), (name, start, _) in self.places(keys).items())
        for name, of_shard in groupby(ordered, key=lambda place: place[0]):
            places = list(of_shard)
            rows = files.read(self.shards / name, [start for _, start, _, _ in places])
            for (_, start, key, index), generation in zip(places, rows, strict=True):
                if (generation.key, generation.index) != (key, index):
                    raise LookupError(f"{name} holds another row at {start}")
                found.setdefault(key, []).append(generation)
        return {key: sorted(rows, key=lambda g: g.index) for key, rows in found.items()}

    def append(self, generations: Sequence[Generation], firsts: Sequence[str] = ()) -> None:
        """Commit these rows: after a crash all of them are there or none (log-probabilities apart from texts).

        Args:
            generations: rows.
            firsts: of copies of texts, one for each row: where its failure was written first, or nothing.
        """
        if scored := [g for g in generations if g.logprobs is not None]:
            self._append_arrays(scored)
        if plain := [g for g in generations if g.logprobs is None]:
            self._append_rows(plain, firsts)

    def _append_rows(self, generations: Sequence[Generation], firsts: Sequence[str]) -> None:
        with writing_into(self.path):
            file = self._shard()
            start = file.tell()
            written, block = files.block_of(generations, start, firsts)
            try:
                file.write(written)
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                self._abandon(file, start)
                raise
        self._entered(Path(file.name).name, block)
        if file.tell() > SHARD_BYTES:
            self._leave()

    def _append_arrays(self, generations: Sequence[Generation]) -> None:
        written = files.bytes_of_arrays(generations)
        path = self.shards / f"{self._new_name()}-{zlib.crc32(written):08x}{ARRAYS}"
        with atomic(path) as file:
            file.write(written)
        self.begun.append(path.name)
        places = [Place(g.key, g.index, at, False) for at, g in enumerate(generations)]
        self._entered(path.name, Block(places, len(written)))

    def close(self) -> None:
        """Close files; nothing needs to be written."""
        self._leave()
        self._index.close()

    def lock_of(self, shard: str) -> FileLock:
        """Held by the process that writes into that shard."""
        return FileLock(self.path / ".writers" / f"{shard}.lock")

    def _new_name(self) -> str:
        return f"{time.time_ns():020d}-{os.getpid()}-{os.urandom(3).hex()}"

    def _shard(self) -> IO[bytes]:
        if self._writing is None:
            self.shards.mkdir(parents=True, exist_ok=True)
            (self.path / ".writers").mkdir(exist_ok=True)
            name = f"{self._new_name()}{TEXT}"
            self._mine = self.lock_of(name)
            self._mine.acquire()
            self._writing = (self.shards / name).open("xb")
            self.begun.append(name)
            sync_folder(self.shards)
        return self._writing

    def _leave(self) -> None:
        """Write no more into this shard."""
        if self._writing:
            self._writing.close()
            self._writing = None
        if self._mine:
            self._mine.release()
            with contextlib.suppress(OSError):
                Path(self._mine.lock_file).unlink(missing_ok=True)
            self._mine = None

    def _abandon(self, file: IO[bytes], start: int) -> None:
        """Leave a shard that could not be written on; what was half written has no commit line and is cut off."""
        with contextlib.suppress(OSError):
            self._leave()
        self._writing = None
        with contextlib.suppress(OSError):
            os.truncate(file.name, start)

    def _entered(self, shard: str, block: Block) -> None:
        """Put a new commit into the index, unless another process has read it there already."""
        with _messages(self.path), self._transaction():
            scanned = self._index.execute("select scanned from shards where name = ?", (shard,)).fetchone()
            if scanned is None or scanned[0] < block.end:
                enter(self._index, shard, block)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """Nobody else writes into the index meanwhile."""
        self._index.execute("begin immediate")
        with self._index:
            yield

    def _select_for(self, query: str, keys: Sequence[str]) -> list[tuple[Any, ...]]:
        chunks = [keys[start : start + CHUNK] for start in range(0, len(keys), CHUNK)]
        return [row for chunk in chunks for row in self._select(query.format(",".join("?" * len(chunk))), chunk)]

    def _select(self, query: str, values: Sequence[str] = ()) -> list[tuple[Any, ...]]:
        with _messages(self.path):
            return self._index.execute(query, values).fetchall()

    def _open_index(self) -> sqlite3.Connection:
        file = self.path / "index.sqlite"
        with writing_into(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            # Two processes that find it damaged at once would delete each other's new one.
            with FileLock(self.path / ".index.lock"):
                try:
                    return _connected(file)
                except sqlite3.DatabaseError as error:
                    if _code(error) & 0xFF not in DAMAGED:
                        raise
                for suffix in ("", "-journal", "-wal", "-shm"):
                    file.with_name(file.name + suffix).unlink(missing_ok=True)
                return _connected(file)


@contextmanager
def open_ledger(path: Path) -> Iterator[Ledger]:
    """The ledger in that folder, made if it is not there."""
    ledger = Ledger(path)
    try:
        yield ledger
    finally:
        ledger.close()


def first_place(shard: str, place: Place) -> str:
    """Where a failure was written first; copies of it name that place."""
    return place.first or f"{shard}:{place.start}"


def enter(index: sqlite3.Connection, shard: str, block: Block) -> None:
    """Put a commit of that shard into an index."""
    index.execute(
        "insert into shards (name, scanned) values (?, ?) on conflict (name) do update set scanned = excluded.scanned",
        (shard, block.end),
    )
    (number,) = index.execute("select id from shards where name = ?", (shard,)).fetchone()
    counted = [p for p in block.places if not p.failed or _is_new(index, first_place(shard, p), p)]
    index.executemany(ENTER, sorted((p.key, p.index, number, p.start, int(p.failed)) for p in counted))


def _is_new(index: sqlite3.Connection, first: str, failure: Place) -> bool:
    """Whether this is no copy of a failure that was counted already."""
    values = (failure.key, failure.index, first)
    return index.execute("insert or ignore into tries values (?, ?, ?)", values).rowcount > 0


def _connected(file: Path) -> sqlite3.Connection:
    index = sqlite3.connect(file, timeout=LOCK_SECONDS)
    try:
        # The index can be rebuilt, so it need not survive a power cut; WAL does not work on network drives.
        index.execute("pragma synchronous = off")
        index.execute(f"pragma cache_size = -{CACHE_KIB}")
        ((tables,),) = index.execute("select count(*) from sqlite_master")
        ((version,),) = index.execute("pragma user_version")
        if tables and version != VERSION:
            raise _Damaged(f"its tables are those of version {version}")
        index.executescript(SCHEMA + COLUMNS)
        if not tables:
            index.execute(f"pragma user_version = {VERSION}")
        (found,) = index.execute("pragma quick_check(1)").fetchone()
        if found != "ok":
            raise _Damaged(found)
    except sqlite3.Error:
        index.close()
        raise
    return index


def _lost(scanned: Mapping[str, int], there: Mapping[str, int]) -> bool:
    """Whether the index knows of more than there is."""
    return any(there.get(name, -1) < end for name, end in scanned.items())


class _Damaged(sqlite3.DatabaseError):
    sqlite_errorcode = sqlite3.SQLITE_CORRUPT


def _code(error: sqlite3.Error) -> int:
    return int(getattr(error, "sqlite_errorcode", 0))


@contextmanager
def _messages(path: Path) -> Iterator[None]:
    """Turn what the index cannot do into a message; rows in the shards are safe whatever becomes of it."""
    try:
        yield
    except sqlite3.Error as error:
        code = _code(error)
        where, kept = path / "index.sqlite", "What was finished is kept."
        if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE):
            raise DiskFullError(
                f"no space left on the disk that holds {where}. {kept} Make room there, or name another folder with "
                "generate.ledger=DIR, and run the same command again."
            ) from error
        match code & 0xFF:
            case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
                message = (
                    f"another process holds {where} for more than {LOCK_SECONDS:.0f} seconds. {kept} Wait, or stop it."
                )
            case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_PERM | sqlite3.SQLITE_IOERR:
                message = (
                    f"{where} cannot be written to ({error}). {kept} Name another folder with generate.ledger=DIR."
                )
            case _:
                message = f"{where} is damaged ({error}). {kept} Delete it and go on: it is rebuilt from the shards."
        raise RunFolderError(message) from error
