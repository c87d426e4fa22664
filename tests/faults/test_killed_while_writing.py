"""SIGKILL at any moment: what was committed is there, once; what was not is simply missing; files are whole or old."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from radistill.ledger import open_ledger

ROUNDS = 20

APPENDING = """
import os, signal, sys, time
from pathlib import Path
from radistill import seeds
from radistill.ledger import open_ledger
from radistill.records import Generation

folder, rounds = Path(sys.argv[1]), int(sys.argv[2])

def append_for_ever(told):
    with open_ledger(folder) as ledger:
        for n in range(1_000_000):
            keys = [f"{os.getpid()}.{n}.{i}" for i in range(n % 5 + 1)]
            text = "ÄÖ " * (n % 200)
            rows = [
                Generation(key=k, index=i, token_ids=tuple(range(n % 300)), text=text, finish_reason="stop")
                for k in keys
                for i in range(2)
            ]
            ledger.append(rows)
            os.write(told, (" ".join(keys) + "\\n").encode())

rng = seeds.generator(0, "kill")
for _ in range(rounds):
    heard, told = os.pipe()
    child = os.fork()
    if child == 0:
        append_for_ever(told)
    os.close(told)
    waiting = os.fdopen(heard, "rb")
    sys.stdout.write(waiting.readline().decode())
    time.sleep(float(rng.uniform(0, 0.03)))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    # A line that is torn was told after its commit all the same, but its last key may be cut.
    sys.stdout.write("".join(line.decode() for line in waiting if line.endswith(b"\\n")))
"""

REPLACING = """
import os, sys
from pathlib import Path
from radistill.files import write_json
path = Path(sys.argv[1])
for n in range(1_000_000):
    write_json(path, {"n": n, "text": "x" * (n % 7) * 40_000})
    if n == 0:
        print("begun", flush=True)
"""


def run(code: str, *arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("index", ["kept", "deleted"])
def test_a_ledger_whose_writers_are_killed_loses_and_doubles_nothing(tmp_path: Path, index: str) -> None:
    committed = run(APPENDING, tmp_path, ROUNDS).split()
    assert len(committed) > 4 * ROUNDS
    assert len(set(committed)) == len(committed)
    if index == "deleted":
        (tmp_path / "index.sqlite").unlink()
    with open_ledger(tmp_path) as ledger:
        assert ledger.missing(committed) == set()
        found = ledger.read(committed)
    for key, rows in found.items():
        n = int(key.split(".")[1])
        assert [(g.key, g.index, len(g.token_ids), g.text) for g in rows] == [
            (key, i, n % 300, "ÄÖ " * (n % 200)) for i in range(2)
        ]


def test_every_row_that_the_ledger_shows_belongs_to_a_whole_block(tmp_path: Path) -> None:
    run(APPENDING, tmp_path, ROUNDS)
    shards = sorted((tmp_path / "shards").glob("*.jsonl"))
    rows = [json.loads(line) for shard in shards for line in shard.read_bytes().splitlines(keepends=True)[:-1]]
    everything = {row["key"] for row in rows if "key" in row}
    with open_ledger(tmp_path) as ledger:
        shown = ledger.read(everything)
        lacking = ledger.missing(everything)
    for key in everything:
        pid, n, _ = key.split(".")
        block = {f"{pid}.{n}.{i}" for i in range(int(n) % 5 + 1)}
        assert block <= shown.keys() or not block & shown.keys(), f"half of the block of {key} is shown"
    assert shown.keys() == everything - lacking


@pytest.mark.parametrize("round_number", range(4))
def test_a_file_that_is_written_when_the_process_is_killed_is_the_old_or_the_new_one(
    tmp_path: Path, round_number: int
) -> None:
    path = tmp_path / "manifest.json"
    process = subprocess.Popen([sys.executable, "-c", REPLACING, str(path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=0.01 + 0.013 * round_number)
    process.kill()
    process.wait()
    process.stdout.close()
    found = json.loads(path.read_text(encoding="utf-8"))
    assert found["text"] == "x" * (found["n"] % 7) * 40_000
