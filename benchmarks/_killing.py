"""Processes that are killed, where it hit them, and what they leave in the ledger.

Where a process writes is known from `tests/die.c`, which is preloaded into it and kills it at a chosen call.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 900.0
"""No process of this test takes longer."""
FILES = {
    "a shard": "/shards/",
    "the index": "/index.sqlite$",
    "the index's journal": "/index.sqlite-journal",
    "the manifest": "manifest.json",
    "the config": "config.yaml",
    "the rejects": "rejects.jsonl",
    "the events": "events.jsonl",
    "the run's folder": "/run$",
    "the shards' folder": "/shards$",
    "a shard's lock": ".lock",
}
"""What is written, and how its path is known to `die.c`."""
OF_LEDGER = ("a shard", "the index", "the index's journal")
START_UP, GENERATING, WRITING, ENDED = "start-up", "generation", "inside a write", "after the end"
NOT_KILLED = "not killed: the process had ended"


def shim(folder: Path) -> Path | None:
    """`tests/die.c` as a library; None where that cannot be."""
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        return None
    library = folder / "die.so"
    source = str(ROOT / "tests" / "die.c")
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", str(library), source], check=True)
    return library


@dataclass(frozen=True)
class Call:
    """A write, or what makes one last."""

    seconds: float
    name: str
    path: str

    @property
    def file(self) -> str:
        """One of FILES."""
        for file, part in FILES.items():
            if self.path.endswith(part[:-1]) if part.endswith("$") else part in self.path:
                return file
        return "another file"


def calls(log: Path) -> list[Call]:
    """What a process wrote, in order."""
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    found = (line.split(" ", 2) for line in lines)
    return [Call(float(seconds), name, path) for seconds, name, path in found]


@dataclass(frozen=True)
class Kill:
    """When a process is to be killed."""

    mode: str
    """`at any time`, `while rows are written`, `inside a write`."""
    seconds: float = 0.0
    """After its start, or after its first row."""
    at: str = ""
    """For `die.c`."""


@dataclass(frozen=True)
class Quiet:
    """A run that nobody disturbed."""

    seconds: float
    seconds_of_rows: float
    """From its first row to its last."""
    calls: Mapping[str, int]
    """`CALL FILE` → how many of them."""
    sha256: str
    keys: frozenset[str]

    def kill(self, rng: np.random.Generator, *, kills: int, share: bool) -> Kill:
        """One at random, so early that so many find something to disturb."""
        mode = str(rng.choice(["at any time", "while rows are written", "inside a write"], p=[0.25, 0.25, 0.5]))
        if mode == "at any time":
            return Kill(mode, seconds=float(rng.uniform(0, self.seconds)))
        if mode == "while rows are written":
            return Kill(mode, seconds=float(rng.uniform(0, self.seconds_of_rows / kills)))
        of_ledger = share or rng.random() < 0.7
        kinds = sorted(kind for kind in self.calls if (kind.partition(" ")[2] in OF_LEDGER) == of_ledger)
        kind = str(rng.choice(kinds))
        name, _, file = kind.partition(" ")
        most = self.calls[kind] // (kills * (2 if share else 1)) if self.calls[kind] > 4 else self.calls[kind]
        how = str(rng.choice(["before", "half", "half", "after"] if name == "write" else ["before", "after"]))
        return Kill(mode, at=f"{name} {FILES[file]} {rng.integers(1, max(1, most) + 1)} {how}")


@dataclass
class Runs:
    """Starts `radistill generate` in a folder of its own."""

    place: Path
    config: Path
    library: Path
    settings: Sequence[str] = ()
    started: int = 0

    def start(self, *more: str, at: str = "") -> tuple["subprocess.Popen[bytes]", Path]:
        """The process, and the log of its calls."""
        self.started += 1
        log = self.place.with_name(f"{self.place.name}.calls.{self.started}")
        log.unlink(missing_ok=True)
        where = [f"output_dir={self.place / 'run'}", f"generate.ledger={self.place / 'ledger'}"]
        command = [sys.executable, "-m", "radistill.cli", "generate", str(self.config), *where, *self.settings, *more]
        env = {**os.environ, "LD_PRELOAD": str(self.library), "DIE_BELOW": f"{self.place}/", "DIE_LOG": str(log)}
        said = self.place.with_name(f"{self.place.name}.said")
        with said.open("ab") as file:
            return subprocess.Popen(command, env=env | {"DIE_AT": at}, stdout=file, stderr=file), log

    def kill(self, kill: Kill, *more: str) -> dict[str, Any]:
        """Start it, kill it, and say where it was hit."""
        before = self._shards()
        process, log = self.start(*more, at=kill.at)
        if not kill.at:
            if kill.mode == "while rows are written":
                while self._shards() == before and process.poll() is None:
                    time.sleep(0.01)
            try:
                process.wait(kill.seconds)
            except subprocess.TimeoutExpired:
                process.kill()
        status = process.wait(SECONDS)
        done = calls(log)
        log.unlink(missing_ok=True)
        journal = (self.place / "ledger" / "index.sqlite-journal").exists()
        found: dict[str, Any] = {"mode": kill.mode, "at": kill.at, "journal_left": journal}
        return found | {"fell": _fell(status, kill, done), "status": status, "before": len(done)}

    def finish(self, *more: str) -> int:
        """Start it and leave it alone; its exit status."""
        process, log = self.start(*more)
        status = process.wait(SECONDS)
        log.unlink(missing_ok=True)
        return status

    def failed(self) -> int:
        """Rows without a good answer, when the stage is finished; else -1."""
        manifest = self.place / "run" / "manifest.json"
        stages = json.loads(manifest.read_text(encoding="utf-8"))["stages"] if manifest.exists() else {}
        record = stages.get("generate", {"status": ""})
        return int(record["facts"]["failed"]) if record["status"] == "finished" else -1

    def _shards(self) -> int:
        return len(list((self.place / "ledger" / "shards").glob("*.jsonl")))


def _fell(status: int, kill: Kill, done: Sequence[Call]) -> str:
    if status != -signal.SIGKILL:
        return NOT_KILLED
    if kill.at:
        return WRITING
    if sum(call.name == "rename" and call.file == "the manifest" for call in done) > 1:
        return ENDED
    return GENERATING if any(call.file == "a shard" for call in done) else START_UP


@dataclass
class Kept:
    """What the shards hold; read without radistill."""

    good: Counter[str]
    """Key → complete rows that a commit answers for."""
    failed: int = 0
    unfinished_rows: int = 0
    """Whole rows that no commit answers for."""
    unfinished_bytes: int = 0


def kept(ledger: Path) -> Kept:
    """Read every shard."""
    found = Kept(Counter())
    for shard in sorted((ledger / "shards").glob("*.jsonl")):
        block: list[bytes] = []
        for line in shard.read_bytes().splitlines(keepends=True):
            if not line.startswith(b'{"commit": ') or not line.endswith(b"\n"):
                block.append(line)
                continue
            commit = json.loads(line)
            mine = block[len(block) - commit["commit"] :]
            assert zlib.crc32(b"".join(mine)) == commit["crc32"], f"{shard} is damaged"
            rows = [json.loads(row) for row in mine]
            found.good.update(f"{row['key']} {row['index']}" for row in rows if row["finish_reason"] != "error")
            found.failed += sum(row["finish_reason"] == "error" for row in rows)
            block = block[: len(block) - commit["commit"]]
        found.unfinished_rows += sum(line.endswith(b"}\n") for line in block)
        found.unfinished_bytes += sum(map(len, block))
    return found
