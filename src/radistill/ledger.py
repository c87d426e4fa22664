"""Every generation of all runs, stored once by the key of its request.

The truth is append-only shard files, one writer each: rows as JSON Lines, closed by a commit line with their number and
checksum. Rows that no commit line follows (a killed process, a full disk) do not exist. Each commit is flushed to the
disk before it counts. `index.sqlite` only says where a row lies; it can be deleted at any time and is then rebuilt.
"""

import json
import os
import sqlite3
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO

from radistill.errors import disk_full_is_a_message
from radistill.records import Generation

SHARD_BYTES = 256 << 20
SCHEMA = """
create table if not exists shards (name text primary key, scanned integer not null);
create table if not exists rows (
    key text not null, idx integer not null, shard text not null, start integer not null, failed integer not null,
    primary key (key, idx)
) without rowid;
"""


class Ledger:
    """A folder of shards with its index. Open it with `open_ledger`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.shards = path / "shards"
        self._writing: IO[bytes] | None = None
        self._index = self._open_index()
        self.refresh()

    def refresh(self) -> None:
        """Read what other processes, or an earlier one, have committed since."""
        for shard in sorted(self.shards.glob("*.jsonl")):
            if self._writing is None or shard.name != Path(self._writing.name).name:
                self._scan(shard)

    def missing(self, keys: Iterable[str]) -> set[str]:
        """Those keys that have no answer, or only a failed one."""
        wanted = list(dict.fromkeys(keys))
        done: set[str] = set()
        for chunk in _chunks(wanted):
            marks = ",".join("?" * len(chunk))
            query = f"select key from rows where key in ({marks}) group by key having max(failed) = 0"
            done.update(key for (key,) in self._index.execute(query, chunk))
        return set(wanted) - done

    def read(self, keys: Iterable[str]) -> dict[str, list[Generation]]:
        """The stored generations of those keys, in order of their index; keys without any are left out."""
        places: list[tuple[str, int]] = []
        for chunk in _chunks(list(dict.fromkeys(keys))):
            marks = ",".join("?" * len(chunk))
            places += self._index.execute(f"select shard, start from rows where key in ({marks})", chunk)
        found: dict[str, list[Generation]] = {}
        open_name, file = "", None
        try:
            for name, start in sorted(places):
                if name != open_name:
                    if file:
                        file.close()
                    open_name, file = name, (self.shards / name).open("rb")
                assert file is not None
                file.seek(start)
                generation = _generation(file.readline())
                found.setdefault(generation.key, []).append(generation)
        finally:
            if file:
                file.close()
        return {key: sorted(rows, key=lambda g: g.index) for key, rows in found.items()}

    def append(self, generations: Sequence[Generation]) -> None:
        """Commit these rows together: after a crash either all of them are there or none."""
        if not generations:
            return
        with disk_full_is_a_message(self.path):
            file = self._shard()
            start = file.tell()
            lines = [_line(generation) for generation in generations]
            block = b"".join(lines)
            commit = json.dumps({"commit": len(lines), "crc32": zlib.crc32(block)}).encode() + b"\n"
            try:
                file.write(block + commit)
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                # What was half written has no commit line; another shard is begun, so that nothing follows it.
                self._writing = None
                raise
        places = []
        for generation, line in zip(generations, lines, strict=True):
            places.append((generation, start))
            start += len(line)
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
        return self._writing

    def _scan(self, shard: Path) -> None:
        stored = self._index.execute("select scanned from shards where name = ?", (shard.name,)).fetchone()
        scanned = int(stored[0]) if stored else 0
        if shard.stat().st_size <= scanned:
            return
        with shard.open("rb") as file:
            file.seek(scanned)
            for places, end in _commits(file):
                self._enter(shard.name, places, scanned=end)

    def _enter(self, shard: str, places: list[tuple[Generation, int]], *, scanned: int) -> None:
        rows = [(g.key, g.index, shard, start, int(g.finish_reason == "error")) for g, start in places]
        with self._index:
            # A failed row gives way to a later one; a good row is never replaced.
            self._index.executemany(
                "insert into rows values (?, ?, ?, ?, ?) on conflict (key, idx) do update set shard = excluded.shard, "
                "start = excluded.start, failed = excluded.failed where rows.failed = 1",
                rows,
            )
            self._index.execute("insert or replace into shards values (?, ?)", (shard, scanned))

    def _open_index(self) -> sqlite3.Connection:
        file = self.path / "index.sqlite"
        with disk_full_is_a_message(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        for attempt in range(2):
            index = sqlite3.connect(file, timeout=60)
            try:
                # The index can be rebuilt, so it need not survive a power cut; WAL does not work on network drives.
                index.execute("pragma synchronous = off")
                index.executescript(SCHEMA)
                known = [name for (name,) in index.execute("select name from shards")]
                if all((self.shards / name).exists() for name in known):
                    return index
            except sqlite3.DatabaseError:
                if attempt:
                    raise
            index.close()
            file.unlink(missing_ok=True)
        raise AssertionError("an index that was just deleted knows shards")


@contextmanager
def open_ledger(path: Path) -> Iterator[Ledger]:
    """The ledger in that folder, made if it is not there."""
    ledger = Ledger(path)
    try:
        yield ledger
    finally:
        ledger.close()


def _commits(file: IO[bytes]) -> Iterator[tuple[list[tuple[Generation, int]], int]]:
    """Committed blocks from the file's place on: rows with the place each begins at, and the block's end."""
    places: list[tuple[Generation, int]] = []
    checksum = 0
    while line := file.readline():
        if not line.endswith(b"\n"):
            return  # torn: still being written, or never finished
        if line.startswith(b'{"commit"'):
            commit = json.loads(line)
            if commit["commit"] != len(places) or commit["crc32"] != checksum:
                return
            yield places, file.tell()
            places, checksum = [], 0
            continue
        try:
            places.append((_generation(line), file.tell() - len(line)))
        except (ValueError, TypeError):
            return
        checksum = zlib.crc32(line, checksum)


def _line(generation: Generation) -> bytes:
    return json.dumps(asdict(generation), ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace") + b"\n"


def _generation(line: bytes) -> Generation:
    row = json.loads(line)
    return Generation(**{**row, "token_ids": tuple(row["token_ids"])})


def _chunks(keys: Sequence[str], size: int = 500) -> Iterator[Sequence[str]]:
    for start in range(0, len(keys), size):
        yield keys[start : start + size]
