"""A run over a Ray cluster that loses workers, a node or the process that leads it ends with the rows of a quiet run.

The cluster is a real one: two nodes, each with its own processes, on this machine.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("ray", reason="the backend ray needs radistill[ray]")
pytestmark = pytest.mark.slow

ROWS, GROUP = 120, 4
PATIENCE = 300.0
"""Seconds that a step of a test may take on a busy machine."""


class Pair:
    """Two nodes with one actor's room each; the process that leads the run belongs to the first."""

    def __init__(self, *, spare: bool) -> None:
        from ray.cluster_utils import Cluster

        self.cluster = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 2 if spare else 1, "include_dashboard": False}
        )
        self.second = self.cluster.add_node(num_cpus=1)

    def actors(self, node: Any, but: AbstractSet[int] = frozenset()) -> list[int]:
        """Processes of the run's actors on that node."""
        (raylet,) = node.all_processes["raylet"]
        return [pid for pid in _children(raylet.process.pid) if "MapWorker" in _command(pid) and pid not in but]


@contextmanager
def two_nodes(*, spare: bool) -> Iterator[Pair]:
    pair = Pair(spare=spare)
    try:
        yield pair
    finally:
        pair.cluster.shutdown()


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


class Run:
    """One run folder with a ledger of its own."""

    def __init__(self, folder: Path, raw: dict[str, Any], backend: dict[str, Any]) -> None:
        self.folder = folder / "run"
        self.ledger = folder / "ledger"
        self.file = folder / "run.yaml"
        folder.mkdir()
        raw = {**raw, "output_dir": str(self.folder)}
        raw["generate"] = {**raw["generate"], "backend": backend, "ledger": str(self.ledger)}
        self.file.write_text(yaml.safe_dump(raw), encoding="utf-8")

    def begin(self, address: str | None = None) -> "subprocess.Popen[str]":
        environment = {**os.environ, **({"RAY_ADDRESS": address} if address else {})}
        return subprocess.Popen(
            [sys.executable, "-m", "radistill.cli", "generate", str(self.file)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )

    def finish(self, process: "subprocess.Popen[str]") -> None:
        said, _ = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, said

    def grow(self, process: "subprocess.Popen[str]") -> None:
        """Wait for rows that were not there."""
        before = len(self.keys())
        until(lambda: len(self.keys()) > before, process)

    def keys(self) -> list[str]:
        """Of every row that was ever written, in any order."""
        lines = [line for shard in self.ledger.glob("shards/*.jsonl") for line in shard.read_bytes().splitlines()]
        return [json.loads(line)["key"] for line in lines if line.startswith(b'{"key"') and line.endswith(b"}")]

    def export(self) -> bytes:
        file = self.folder.parent / "rows.jsonl"
        command = [sys.executable, "-m", "radistill.cli", "ledger", "export", str(self.folder), "--output", str(file)]
        subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE)
        return file.read_bytes()


def until(condition: Callable[[], Any], process: "subprocess.Popen[str]") -> Any:
    """What the condition says as soon as it says something, while the run goes on."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if found := condition():
            return found
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    pytest.fail("nothing has happened")


@pytest.fixture
def raw(raw_config: dict[str, Any]) -> dict[str, Any]:
    raw_config["data"]["train"]["limit"] = ROWS
    raw_config["generate"]["sampling"] = {"temperature": 1.0, "max_new_tokens": 12}
    return raw_config


@pytest.fixture
def quiet(raw: dict[str, Any], tmp_path: Path) -> bytes:
    """What a run without Ray exports that nobody disturbs."""
    run = Run(tmp_path / "quiet", raw, {"name": "echo"})
    run.finish(run.begin())
    rows = run.export()
    assert len(rows.splitlines()) == len(run.keys()) > 0.9 * ROWS, "some sentences are drawn twice"
    return rows


def over_ray(folder: Path, raw: dict[str, Any], **settings: Any) -> Run:
    echo = {"name": "echo", "rows_per_second": 6}
    return Run(folder, raw, {"name": "ray", "backend": echo, "rows_per_task": GROUP, **settings})


def check(run: Run, quiet: bytes) -> None:
    assert run.export() == quiet
    assert len(run.keys()) == len(set(run.keys())) == len(quiet.splitlines()), "nothing is lost, nothing is there twice"


def test_workers_are_killed(raw: dict[str, Any], quiet: bytes, tmp_path: Path) -> None:
    run = over_ray(tmp_path / "disturbed", raw, actors=2)
    with two_nodes(spare=False) as pair:
        process = run.begin(pair.cluster.address)
        killed: set[int] = set()
        for node in (pair.second, pair.cluster.head_node, pair.second):
            run.grow(process)
            victim = until(partial(pair.actors, node, killed), process).pop()
            os.kill(victim, signal.SIGKILL)
            killed.add(victim)
        assert len(run.keys()) < 0.8 * ROWS, "it was killed before the end"
        run.finish(process)
    check(run, quiet)


@pytest.mark.parametrize("spare", [True, False], ids=["with room elsewhere", "without room elsewhere"])
def test_a_node_is_lost(raw: dict[str, Any], quiet: bytes, tmp_path: Path, spare: bool) -> None:
    run = over_ray(tmp_path / "disturbed", raw, actors=2)
    with two_nodes(spare=spare) as pair:
        process = run.begin(pair.cluster.address)
        until(lambda: pair.actors(pair.second) and len(run.keys()) > ROWS // 6, process)
        pair.cluster.remove_node(pair.second, allow_graceful=False)
        assert len(run.keys()) < 0.8 * ROWS, "it was lost before the end"
        run.finish(process)
    check(run, quiet)


def test_the_process_that_leads_is_killed_and_begun_again(raw: dict[str, Any], quiet: bytes, tmp_path: Path) -> None:
    run = over_ray(tmp_path / "disturbed", raw, actors=2)
    with two_nodes(spare=False) as pair:
        for _ in range(2):
            written = len(run.keys())
            process = run.begin(pair.cluster.address)
            run.grow(process)
            process.kill()
            process.communicate()
            assert written < len(run.keys()) < 0.8 * ROWS, "it has gone on, and was killed before the end"
        run.finish(run.begin(pair.cluster.address))
    check(run, quiet)


def _children(pid: int) -> list[int]:
    try:
        return [int(p) for t in Path(f"/proc/{pid}/task").iterdir() for p in (t / "children").read_text().split()]
    except OSError:
        return []


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""
