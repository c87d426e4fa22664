"""A run that is killed again and again ends with the same bytes as one that nobody disturbed."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from radistill import seeds
from radistill.cli import app
from radistill.runs import RunFolder
from radistill.tables import read_records

DISTURBED = """
import json, os, signal, sys, time
from pathlib import Path
from radistill import pipeline, seeds
from radistill.config import config_from

raw = json.loads(sys.argv[1])
config, kills = config_from(raw), int(sys.argv[2])
shards = Path(config.generate.ledger) / "shards"

def committed():
    return sum(shard.read_bytes().count(b'{"commit"') for shard in shards.glob("*.jsonl"))

rng = seeds.generator(0, "kill")
for _ in range(kills):
    before, child = committed(), os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        pipeline.run(config, stages=("generate",))
        os._exit(0)
    while committed() <= before and not os.waitpid(child, os.WNOHANG)[0]:
        time.sleep(0.002)
    time.sleep(float(rng.uniform(0, 0.05)))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    print(committed(), flush=True)
pipeline.run(config, stages=("generate", "assemble"))
"""


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["echo", "transformers"])
def test_a_run_killed_while_it_generates_ends_as_if_nothing_had_happened(
    raw_config: dict[str, Any], tmp_path: Path, backend: str
) -> None:
    settings: dict[str, Any] = {"name": backend, "batch_size": 2}
    settings |= {"rows_per_second": 100} if backend == "echo" else {"dtype": "float32"}
    raw_config["generate"]["backend"] = settings
    raw_config["data"]["train"]["limit"] = 80  # so many that no child is done before it is killed
    raw_config["generate"]["sampling"] = {"temperature": 1.0, "max_new_tokens": 12, "n": 1}
    folders = []
    for name, kills in (("disturbed", 4), ("quiet", 0)):
        raw = {**raw_config, "output_dir": str(tmp_path / name)}
        raw["generate"] = {**raw_config["generate"], "ledger": str(tmp_path / f"{name} ledger")}
        command = [sys.executable, "-c", DISTURBED, json.dumps(raw), str(kills)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        if kills:
            units = [int(count) for count in done.stdout.split()]
            assert len(units) == kills
            assert units == sorted(set(units)), "every time some more was kept"
            assert units[-1] < 40, "it was killed before the end"
        folders.append(RunFolder(tmp_path / name))
    disturbed, quiet = folders
    assert list(read_records(disturbed.records)) == list(read_records(quiet.records))
    assert disturbed.records.read_bytes() == quiet.records.read_bytes()
    shards = list((tmp_path / "disturbed ledger" / "shards").glob("*.jsonl"))
    assert len(shards) > 2
    keys = [
        json.loads(line)["key"] for s in shards for line in s.read_bytes().splitlines() if line.startswith(b'{"key"')
    ]
    assert len(keys) <= 80 + 4 * 2, "at most the unit in which it was killed is asked again"


@pytest.fixture
def written(raw_config: dict[str, Any], tmp_path: Path) -> Callable[[str], tuple[Path, dict[str, Any]]]:
    """A run of some hundred slow rows under a name of its own: its run file, and its values."""
    raw_config["generate"]["backend"] = {"name": "echo", "batch_size": 4, "rows_per_second": 80}
    raw_config["data"]["train"]["limit"] = 200

    def write(name: str) -> tuple[Path, dict[str, Any]]:
        raw = {**raw_config, "output_dir": str(tmp_path / name)}
        raw["generate"] = {**raw_config["generate"], "ledger": str(tmp_path / f"{name} ledger")}
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(raw), encoding="utf-8")
        return path, raw

    return write


def committed(raw: dict[str, Any]) -> int:
    """Units that are on the disk."""
    shards = (Path(raw["generate"]["ledger"]) / "shards").glob("*.jsonl")
    return sum(shard.read_bytes().count(b'{"commit"') for shard in shards)


def killed(command: list[str], raw: dict[str, Any], units: int) -> None:
    """Start the command and kill it when it has committed so many units."""
    goal = committed(raw) + units
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as child:
        while committed(raw) < goal and child.poll() is None:
            time.sleep(0.002)
        child.kill()
    assert child.returncode == -signal.SIGKILL, "it was done, or failed, before it was killed"


def test_the_command_killed_twice_ends_with_the_export_of_one_that_nobody_disturbed(
    written: Callable[[str], tuple[Path, dict[str, Any]]], tmp_path: Path
) -> None:
    disturbed, raw = written("disturbed")
    rng = seeds.generator(0, "kill the command")
    for _ in range(2):
        command = [sys.executable, "-m", "radistill.cli", "generate", str(disturbed)]
        killed(command, raw, units=int(rng.integers(2, 9)))
        assert RunFolder(Path(raw["output_dir"])).stages()["generate"].status == "started"
    exports = []
    for path, values in ((disturbed, raw), written("quiet")):
        exports.append(tmp_path / f"{path.stem}.jsonl")
        for arguments in (
            ["generate", str(path)],
            ["ledger", "export", values["output_dir"], "--output", str(exports[-1])],
        ):
            assert CliRunner().invoke(app, arguments, catch_exceptions=False).exit_code == 0
    assert exports[0].read_bytes() == exports[1].read_bytes()
    assert len(exports[0].read_bytes().splitlines()) > 190
