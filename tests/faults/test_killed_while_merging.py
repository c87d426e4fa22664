"""A merge that is killed leaves no half model; the same command then makes a whole one."""

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from radistill.errors import RunFolderError
from radistill.files import atomic_folder
from radistill.merge import merge

STOPS = {
    "before the weights are written": "radistill.merge_check.refuse_inexact",
    "when they are written": "radistill.merge_check.compared",
    "when the card is written": "radistill.files.settle",
}
MERGING = """
import importlib, signal, sys, time
from radistill.merge import merge

module, _, name = sys.argv[2].rpartition(".")

def stop(*_, **__):
    print("here", flush=True)
    time.sleep(600)

setattr(importlib.import_module(module), name, stop)
merge(sys.argv[1])
"""


@pytest.mark.parametrize("where", STOPS.values(), ids=STOPS.keys())
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_merge_leaves_nothing_that_looks_like_a_model(
    run_folder: Path, where: str, number: signal.Signals
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", MERGING, str(run_folder), where], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"here\n"
    assert not (run_folder / "merged").exists()
    process.send_signal(number)
    process.communicate()
    assert process.returncode != 0
    assert not (run_folder / "merged").exists()
    left = [p.name for p in run_folder.iterdir() if p.name.endswith(".part")]
    assert left == ([".merged.part"] if number == signal.SIGKILL else [])
    assert merge(str(run_folder)).comparison.equal_answers == 20
    assert [p.name for p in run_folder.iterdir() if p.name.endswith(".part")] == []


def test_an_earlier_model_stays_until_the_new_one_is_whole(run_folder: Path) -> None:
    before = (merge(str(run_folder)).folder / "merge.json").read_bytes()
    with pytest.raises(FileNotFoundError), atomic_folder(run_folder / "merged") as part:
        shutil.copyfile(run_folder / "none", part / "half")
    assert (run_folder / "merged" / "merge.json").read_bytes() == before
    assert not (run_folder / ".merged.part").exists()


def test_two_processes_do_not_write_one_folder(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "out") as part:
        (part / "file").write_text("first", encoding="utf-8")
        with (
            pytest.raises(RunFolderError, match="another radistill process is writing"),
            atomic_folder(tmp_path / "out"),
        ):
            pass
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["file"]


def test_what_was_made_beforehand_is_replaced_as_a_whole(tmp_path: Path) -> None:
    for names in (("a", "b"), ("c",)):
        with atomic_folder(tmp_path / "out") as part:
            for name in names:
                (part / name).write_text(str(time.time()), encoding="utf-8")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["c"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
