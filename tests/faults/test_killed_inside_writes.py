"""SIGKILL inside every write of `generate`: with half of a record written, before an fsync, after a rename.

`tests/die.c` is preloaded into a process that has opened everything; it forks a child for each kill, and one to finish.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from radistill import seeds

KILLED = """
import ctypes, json, os, sys
from pathlib import Path
from radistill import models, pipeline
from radistill.config import config_from
from radistill.ledger_care import looked_through
from radistill.ledger_export import export
from radistill.speaker import untouched

config, log = config_from(json.loads(sys.argv[1])), Path(os.environ["DIE_LOG"])

def in_a_child(folder, chosen=""):
    there = folder / "ledger"
    here = config.model_copy(update={
        "output_dir": str(folder / "run"),
        "generate": config.generate.model_copy(update={"ledger": str(there)}),
    })
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        ctypes.CDLL(None).die_at(chosen.encode())
        pipeline.run(here, stages=("generate",))
        os._exit(0)
    return os.waitpid(child, 0)[1]

def found(folder):
    rows = export(folder / "run", folder / "rows.jsonl")
    seen = looked_through(folder / "ledger")
    answers = (folder / "rows.jsonl").read_text()
    return {"rows": rows, "answers": answers, "doubled": seen.doubled, "problems": seen.problems,
            "torn": seen.unfinished_bytes, "left": sorted(p.name for p in folder.rglob("*.part"))}

untouched(config), models.device_name()  # opens what is heavy
print("ready", flush=True)
for line in sys.stdin:
    folder, *kills = json.loads(line)
    log.write_text("")
    ends = [in_a_child(Path(folder), chosen) for chosen in kills]
    ends.append(in_a_child(Path(folder)))
    print(json.dumps({"ends": ends, "calls": log.read_text().splitlines(), **found(Path(folder))}), flush=True)
"""


class Killer:
    """Runs `generate` in folders of their own, with kills."""

    def __init__(self, raw: dict[str, Any], folder: Path) -> None:
        compiler = shutil.which("cc")
        if compiler is None or sys.platform != "linux":
            pytest.skip("killing inside a write needs Linux and a C compiler")
        library, source = folder / "die.so", Path(__file__).resolve().parents[1] / "die.c"
        subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
        self.below = folder / "runs"
        env = {"LD_PRELOAD": str(library), "DIE_BELOW": str(self.below), "DIE_LOG": str(folder / "calls")}
        command = [sys.executable, "-c", KILLED, json.dumps(raw)]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, env={**os.environ, **env}, **pipes)
        assert self._said() == "ready"

    def run(self, name: str, *kills: str) -> dict[str, Any]:
        """Killed there, one process after the other, and then finished."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([str(self.below / name), *kills]) + "\n")
        self.process.stdin.flush()
        found: dict[str, Any] = json.loads(self._said())
        return found

    def _said(self) -> str:
        assert self.process.stdout is not None
        return str(self.process.stdout.readline()).strip()

    def close(self) -> None:
        self.process.communicate(timeout=60)


@pytest.fixture
def labels() -> str:
    return "hard"


@pytest.fixture
def killer(raw_config: dict[str, Any], tmp_path: Path, labels: str) -> Iterator[Killer]:
    raw_config["train"]["labels"] = labels
    raw_config["data"]["train"]["limit"] = 12
    raw_config["generate"]["backend"] = {"name": "echo", "batch_size": 4}
    opened = Killer(raw_config, tmp_path)
    yield opened
    opened.close()


def places(calls: list[str]) -> list[str]:
    """Every moment of every call."""
    found = []
    for number, call in enumerate(calls, 1):
        hows = ("before", "half", "after") if call.split(" ")[1] == "write" else ("before", "after")
        found += [f"any / {number} {how}" for how in hows]
    return found


def check(found: dict[str, Any], quiet: dict[str, Any], kills: int) -> None:
    """As if nothing had happened."""
    assert found["ends"] == [*[9] * kills, 0]
    assert found["answers"] == quiet["answers"]
    assert (found["rows"], found["doubled"], found["problems"]) == (quiet["rows"], 0, [])
    # A shard of log-probabilities that was half written; nobody reads it.
    assert [name for name in found["left"] if ".parquet." not in name] == []


def test_a_run_killed_inside_writes_ends_as_if_nothing_had_happened(killer: Killer) -> None:
    quiet = killer.run("quiet")
    assert (quiet["ends"], quiet["rows"]) == ([0], 12)
    shard = [f"write /shards/ {number} half" for number in (1, 2, 3)]
    torn = killer.run("torn", *shard[:1], *shard[:1], shard[1], shard[0])
    check(torn, quiet, 4)
    assert torn["torn"] > 0
    check(killer.run("manifest", "write manifest.json 1 half", "write manifest.json 2 half"), quiet, 2)
    rng = seeds.generator(0, "kill")
    everywhere = places(quiet["calls"])
    for number in range(3):
        check(killer.run(str(number), str(rng.choice(everywhere))), quiet, 1)


@pytest.mark.slow
@pytest.mark.parametrize("labels", ["hard", "stored"])
def test_a_run_may_be_killed_inside_every_single_write(killer: Killer, labels: str) -> None:
    quiet = killer.run("quiet")
    wrong = {}
    for number, place in enumerate(places(quiet["calls"])):
        found = killer.run(str(number), place)
        try:
            check(found, quiet, 1)
        except AssertionError as error:
            wrong[place] = (quiet["calls"][int(place.split(" ")[2]) - 1], str(error)[:200])
    assert wrong == {}
