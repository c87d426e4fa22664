"""Every generation of all runs, stored once by the key of its request.

The truth is append-only shard files, one writer each: rows as JSON Lines, closed by a commit line with their number and
checksum. Rows that no commit line follows (a killed process, a full disk) do not exist. Each commit is flushed to the
disk before it counts. `index.sqlite` only says where a row lies; it can be deleted at any time and is then rebuilt.
"""

import contextlib
import json
import os
import sqlite3
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO, Any

from filelock import FileLock

from radistill.errors import DiskFullError, RunFolderError, writing_into
from radistill.files import sync_folder
from radistill.records import Generation, json_line

SHARD_BYTES = 256 << 20
LOCK_SECONDS = 60.0
SCHEMA = """
create table if not exists shards (name text primary key, scanned integer not null);
create table if not exists rows (
    key text not null, idx integer not null, shard text not null, start integer not null, failed integer not null,
    primary key (key, idx)
) without rowid;
"""
COLUMNS = "select name, scanned from shards limit 1; select key, idx, shard, start, failed from rows limit 1;"
CHUNK = 500
"""So many keys are asked for in one query; SQLite takes a limited number of values."""
DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)


class Ledger:
    """A folder of shards with its index. Open it with `open_ledger`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.shards = path / "shards"
        self._writing: IO[bytes] | None = None
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
        scanned: dict[str, int] = dict(self._select("select name, scanned from shards"))
        # After the query: a shard that another process has just begun would otherwise seem to be missing.
        there = {shard.name: shard for shard in sorted(self.shards.glob("*.jsonl"))}
        with self._index:
            if forget or any(name not in there or there[name].stat().st_size < end for name, end in scanned.items()):
                # The index is another folder's, or shards were taken away, cut or changed. They are the truth.
                self._index.execute("delete from rows")
                self._index.execute("delete from shards")
                scanned = {}
            for name, shard in there.items():
                self._scan(shard, scanned.get(name, 0))

    def missing(self, keys: Iterable[str]) -> set[str]:
        """Those keys that have no answer, or only a failed one."""
        wanted = list(dict.fromkeys(keys))
        query = "select key from rows where key in ({}) group by key having max(failed) = 0"
        return set(wanted) - {key for (key,) in self._select_for(query, wanted)}

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

    def _read(self, keys: Sequence[str]) -> dict[str, list[Generation]]:
        places = self._select_for("select shard, start, key, idx from rows where key in ({})", keys)
        found: dict[str, list[Generation]] = {}
        with contextlib.ExitStack() as files:
            open_name = ""
            for name, start, key, index in sorted(places):
                if name != open_name:
                    files.close()
                    open_name, file = name, files.enter_context((self.shards / name).open("rb"))
                file.seek(start)
                generation = _generation(file.readline())
                if (generation.key, generation.index) != (key, index):
                    raise LookupError(f"{name} holds another row at {start}")
                found.setdefault(key, []).append(generation)
        return {key: sorted(rows, key=lambda g: g.index) for key, rows in found.items()}

    def append(self, generations: Sequence[Generation]) -> None:
        """Commit these rows together: after a crash either all of them are there or none."""
        if not generations:
            return
        with writing_into(self.path):
            file = self._shard()
            start = file.tell()
            lines = [json_line(_row(generation), separators=(",", ":")) for generation in generations]
            block = b"".join(lines)
            commit = json.dumps({"commit": len(lines), "crc32": zlib.crc32(block)}).encode() + b"\n"
            try:
                file.write(block + commit)
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                self._abandon(file, start)
                raise
        places = []
        for generation, line in zip(generations, lines, strict=True):
            places.append((generation, start))
            start += len(line)
        with _messages(self.path), self._index:
            self._enter(Path(file.name).name, places, scanned=file.tell())
        if file.tell() > SHARD_BYTES:
            file.close()
            self._writing = None

    def close(self) -> None:
        """Close files; nothing needs to be written."""
        if self._writing:
            self._writing.close()
        self._index.close()

    def _shard(self) -> IO[bytes]:
        if self._writing is None:
            self.shards.mkdir(parents=True, exist_ok=True)
            name = f"{time.time_ns():020d}-{os.getpid()}-{os.urandom(3).hex()}.jsonl"
            self._writing = (self.shards / name).open("xb")
            sync_folder(self.shards)
        return self._writing

    def _abandon(self, file: IO[bytes], start: int) -> None:
        """Leave a shard that could not be written on; what was half written has no commit line and is cut off."""
        self._writing = None
        with contextlib.suppress(OSError):
            file.close()
        with contextlib.suppress(OSError):
            os.truncate(file.name, start)

    def _scan(self, shard: Path, scanned: int) -> None:
        if shard.stat().st_size <= scanned:
            return
        with shard.open("rb") as file:
            file.seek(scanned)
            for places, end in _commits(file):
                self._enter(shard.name, places, scanned=end)

    def _enter(self, shard: str, places: list[tuple[Generation, int]], *, scanned: int) -> None:
        rows = [(g.key, g.index, shard, start, int(g.finish_reason == "error")) for g, start in places]
        # A failed row gives way to a later one; a good row is never replaced.
        self._index.executemany(
            "insert into rows values (?, ?, ?, ?, ?) on conflict (key, idx) do update set shard = excluded.shard, "
            "start = excluded.start, failed = excluded.failed where rows.failed = 1",
            rows,
        )
        self._index.execute("insert or replace into shards values (?, ?)", (shard, scanned))

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


def _connected(file: Path) -> sqlite3.Connection:
    index = sqlite3.connect(file, timeout=LOCK_SECONDS)
    try:
        # The index can be rebuilt, so it need not survive a power cut; WAL does not work on network drives.
        index.execute("pragma synchronous = off")
        index.executescript(SCHEMA + COLUMNS)
        (found,) = index.execute("pragma quick_check(1)").fetchone()
        if found != "ok":
            raise _Damaged(found)
    except sqlite3.Error:
        index.close()
        raise
    return index


class _Damaged(sqlite3.DatabaseError):
    sqlite_errorcode = sqlite3.SQLITE_CORRUPT


def _commits(file: IO[bytes]) -> Iterator[tuple[list[tuple[Generation, int]], int]]:
    """Committed blocks from the file's place on: rows with the place each begins at, and the block's end.

    A commit line answers for the lines right before it, as many as it says. A block that was damaged does not exist;
    those before and after it do.
    """
    lines: list[tuple[bytes, int]] = []
    while line := file.readline():
        if not line.endswith(b"\n"):
            return  # torn: still being written, or never finished
        if not line.startswith(b'{"commit"'):
            lines.append((line, file.tell() - len(line)))
            continue
        with contextlib.suppress(ValueError, TypeError, LookupError):
            yield _block(lines, json.loads(line)), file.tell()
        lines = []


def _block(lines: Sequence[tuple[bytes, int]], commit: Any) -> list[tuple[Generation, int]]:
    block = lines[len(lines) - commit["commit"] :]
    if len(block) != commit["commit"] or zlib.crc32(b"".join(line for line, _ in block)) != commit["crc32"]:
        raise ValueError("the lines before this commit are not those it closed")
    return [(_generation(line), start) for line, start in block]


def _row(generation: Generation) -> dict[str, Any]:
    row = asdict(replace(generation, logprobs=None))
    del row["logprobs"]
    return row if generation.logprobs is None else {**row, "logprobs": generation.logprobs.as_plain()}


def _generation(line: bytes) -> Generation:
    row = json.loads(line)
    if "logprobs" in row:
        from radistill.logprobs import LogProbs

        row["logprobs"] = LogProbs.of_plain(row["logprobs"])
    return Generation(**{**row, "token_ids": tuple(row["token_ids"])})


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
