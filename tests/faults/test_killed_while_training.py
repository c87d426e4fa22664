"""SIGKILL at any moment of `train`, inside the writing of a checkpoint too: losses and weights end equal to the bit.

As in `test_killed_inside_writes.py`, `tests/die.c` is preloaded into a process that has imported everything; it forks a
child for each kill, and one to finish.
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

from radistill import pipeline, seeds
from radistill.config import config_from

TRAINING = """
import ctypes, json, os, signal, sys, time
from pathlib import Path
from radistill import files, pipeline
from radistill.config import config_from
from radistill.runs import RunFolder

config, log = config_from(json.loads(sys.argv[1])), Path(os.environ["DIE_LOG"])

def in_a_child(folder, kill=""):
    here = config.model_copy(update={"output_dir": str(folder)})
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        if isinstance(kill, str):
            ctypes.CDLL(None).die_at(kill.encode())
        pipeline.run(here, stages=("train",))
        os._exit(0)
    if not isinstance(kill, str):
        time.sleep(kill)
        os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]

def found(folder):
    run = RunFolder(folder)
    lines = [json.loads(line) for line in run.train_log.read_text().splitlines()]
    losses = [{k: v for k, v in line.items() if k != "tokens_per_second"} for line in lines]
    weights = {p.name: files.sha256(p) for p in sorted(run.model.glob("*.safetensors"))}
    return {"losses": losses, "weights": weights, "left": sorted(p.name for p in folder.glob(".model*.part"))}

print("ready", flush=True)
for line in sys.stdin:
    folder, *kills = json.loads(line)
    log.write_text("")
    began, steps = time.monotonic(), []
    for kill in kills:
        end = in_a_child(Path(folder), kill)
        steps.append([end, RunFolder(Path(folder)).train_log.exists()])
    end = in_a_child(Path(folder))
    calls = [call.replace(folder, "") for call in log.read_text().splitlines()]
    print(json.dumps({"seconds": time.monotonic() - began, "kills": steps, "end": end, "calls": calls,
                      **found(Path(folder))}), flush=True)
"""


class Trainings:
    """Runs `train` in folders of their own, with kills."""

    def __init__(self, raw: dict[str, Any], folder: Path) -> None:
        compiler = shutil.which("cc")
        if compiler is None or sys.platform != "linux":
            pytest.skip("killing inside a write needs Linux and a C compiler")
        library, source = folder / "die.so", Path(__file__).resolve().parents[1] / "die.c"
        subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
        self.below, self.records = folder / "runs", folder / "records"
        pipeline.run(config_from({**raw, "output_dir": str(self.records)}), stages=("generate", "assemble"))
        env = {"LD_PRELOAD": str(library), "DIE_BELOW": str(self.below), "DIE_LOG": str(folder / "calls")}
        command = [sys.executable, "-c", TRAINING, json.dumps(raw)]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, env={**os.environ, **env, "OMP_NUM_THREADS": "1"}, **pipes)
        assert self._said() == "ready"

    def run(self, name: str, *kills: str | float) -> dict[str, Any]:
        """Killed there, or so many seconds after the start, one process after the other, and then finished."""
        assert self.process.stdin is not None
        shutil.copytree(self.records, self.below / name)
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
def trainings(raw_config: dict[str, Any], tmp_path: Path) -> Iterator[Trainings]:
    # Dropout, so that the state of the random numbers matters; a schedule, so that the step does.
    raw_config["train"] |= {
        "lora": {"r": 4, "dropout": 0.1},
        "max_steps": 12,
        "per_device_train_batch_size": 2,
        "save_steps": 2,
        "save_total_limit": 1,
        "logging_steps": 1,
        "lr_scheduler_type": "cosine",
    }
    opened = Trainings(raw_config, tmp_path)
    yield opened
    opened.close()


def moments(calls: list[str]) -> list[str]:
    """A moment of each kind of call on each file: one that is written by many calls is not chosen more often."""
    of_file: dict[str, list[str]] = {}
    for number, call in enumerate(calls, 1):
        _, kind, path = call.split(" ", 2)
        hows = ("before", "half", "after") if kind == "write" else ("before", "after")
        of_file.setdefault(f"{kind} {path}", []).extend(f"any / {number} {how}" for how in hows)
    rng = seeds.generator(0, "kill", "training")
    return [str(rng.choice(places)) for places in of_file.values()]


def check(found: dict[str, Any], quiet: dict[str, Any]) -> None:
    """As if nothing had happened."""
    assert found["end"] == 0
    assert (found["losses"], found["weights"]) == (quiet["losses"], quiet["weights"])
    assert found["left"] == []


def disturb(trainings: Trainings, inside: int, anywhere: int) -> None:
    """So many trainings are killed inside writes, and so many at any time."""
    quiet = trainings.run("quiet")
    assert [line["step"] for line in quiet["losses"]] == list(range(1, 13))
    check(quiet, quiet)
    rng = seeds.generator(0, "kill", "moments")
    places = moments(quiet["calls"])
    of_checkpoints = [at for at in places if "/checkpoint-" in quiet["calls"][int(at.split(" ")[2]) - 1]]
    assert len(of_checkpoints) > 20
    chosen = [of_checkpoints, places]
    for number in range(inside):
        place = str(rng.choice(chosen[number % 2]))
        found = trainings.run(f"inside-{number}", place)
        assert [end for end, _ in found["kills"]] == [9], place
        check(found, quiet)
    for number in range(anywhere):
        # Twice: a training that goes on is killed like one that begins.
        after = [float(rng.uniform(0.0, 0.9)) * quiet["seconds"] for _ in range(2)]
        check(trainings.run(f"anywhere-{number}", *after), quiet)


def test_a_training_killed_at_any_moment_ends_as_if_nothing_had_happened(trainings: Trainings) -> None:
    disturb(trainings, inside=2, anywhere=1)


@pytest.mark.slow
def test_twenty_trainings_killed_at_any_moment_end_as_if_nothing_had_happened(trainings: Trainings) -> None:
    disturb(trainings, inside=14, anywhere=6)
