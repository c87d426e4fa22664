"""Damaged shards: they are found whatever byte was changed, named with what to do, and never deleted."""

import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from radistill import ledger_care as care
from radistill.cli import app
from radistill.errors import RunFolderError
from radistill.ledger import Ledger, open_ledger
from radistill.records import Generation

KEYS = [f"{i:02}" for i in range(40)]


def row(key: str) -> Generation:
    return Generation(key=key, index=0, token_ids=(5, 6, int(key)), text="one two", finish_reason="stop")


def written(path: Path, *blocks: Iterable[str]) -> Path:
    """The only shard of a new ledger with these blocks."""
    with open_ledger(path) as ledger:
        for keys in blocks:
            ledger.append([row(key) for key in keys])
    (shard,) = (path / "shards").iterdir()
    return shard


def invoked(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["ledger", *map(str, arguments)])


def bytes_of(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (path / "shards").iterdir()}


def test_a_changed_digit_is_a_problem_and_nothing_is_deleted(tmp_path: Path) -> None:
    shard = written(tmp_path, KEYS)
    shard.write_bytes(shard.read_bytes().replace(b"6,17]", b"6,18]", 1))
    assert b"6,18]" in shard.read_bytes()
    before = bytes_of(tmp_path)
    said = invoked("verify", tmp_path)
    assert said.exit_code == 2
    assert f"problem: {shard.name} is damaged: lines 1 to 41 (bytes 0 to {shard.stat().st_size})" in said.stdout
    assert "40 rows in 1 shards: damaged" in said.stdout
    assert "are damaged: see `radistill ledger verify" in invoked("status", tmp_path).stdout
    with pytest.raises(RunFolderError, match=r"is damaged and was left as it is.*\n.*lines 1 to 41"):
        care.compact(tmp_path)
    assert bytes_of(tmp_path) == before


def test_what_the_message_says_keeps_all_other_rows(tmp_path: Path) -> None:
    shard = written(tmp_path, KEYS[:10], KEYS[10:20], KEYS[20:30], KEYS[30:])
    shard.write_bytes(shard.read_bytes().replace(b"6,11]", b"6,12]", 1).replace(b"6,33]", b"6,3]", 1))
    (problem,) = care.looked_through(tmp_path).problems
    assert "lines 12 to 22 (bytes " in problem
    assert ", lines 34 to 44 (bytes " in problem
    subprocess.run(problem.split("`")[1], shell=True, check=True)
    with open_ledger(tmp_path) as ledger:
        assert ledger.missing(KEYS) == {*KEYS[10:20], *KEYS[30:]}
        assert ledger.read(KEYS) == {key: [row(key)] for key in [*KEYS[:10], *KEYS[20:30]]}
        ledger.append([row(key) for key in (*KEYS[10:20], *KEYS[30:])])
    assert care.looked_through(tmp_path).problems == []
    assert care.compact(tmp_path)["shards_after"] == 1
    with open_ledger(tmp_path) as ledger:
        assert ledger.read(KEYS) == {key: [row(key)] for key in KEYS}


@pytest.mark.parametrize("index", ["kept", "deleted"])
def test_every_changed_byte_is_found_and_none_is_lost_by_compacting(tmp_path: Path, index: str) -> None:
    shard = written(tmp_path, ["01"], ["02", "03"], ["04"])
    whole, at_first = shard.read_bytes(), (tmp_path / "index.sqlite").read_bytes()
    # Without its index, a shard whose last line break is gone is one that is still being written.
    for at in range(len(whole) - (index == "deleted")):
        shard.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        (tmp_path / "index.sqlite").write_bytes(at_first)
        if index == "deleted":
            (tmp_path / "index.sqlite").unlink()
        assert len(care.looked_through(tmp_path).problems) >= 1, at
        before = bytes_of(tmp_path)
        with pytest.raises(RunFolderError, match="is damaged"):
            care.compact(tmp_path)
        assert bytes_of(tmp_path) == before


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9, 0.99])
def test_a_write_that_was_cut_off_is_no_damage(tmp_path: Path, kept: float) -> None:
    shard = written(tmp_path, KEYS[:20])
    more = written(tmp_path / "other", KEYS[20:]).read_bytes()
    with shard.open("ab") as file:
        file.write(more[: int(kept * len(more))])
    found = care.looked_through(tmp_path)
    assert (found.problems, found.damaged_bytes, found.unfinished_bytes) == ([], 0, int(kept * len(more)))
    care.compact(tmp_path)
    with open_ledger(tmp_path) as ledger:
        assert ledger.read(KEYS) == {key: [row(key)] for key in KEYS[:20]}


def test_rows_that_would_be_lost_stop_the_compaction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, KEYS)
    append = Ledger.append
    monkeypatch.setattr(Ledger, "append", lambda ledger, rows, firsts: append(ledger, rows[1:], firsts[1:]))
    before = bytes_of(tmp_path)
    with pytest.raises(RunFolderError, match=r"would lose or change row 0 of 00, so nothing was deleted"):
        care.compact(tmp_path)
    assert before.items() <= bytes_of(tmp_path).items()


def test_an_index_that_leads_astray_stops_the_compaction(tmp_path: Path) -> None:
    import sqlite3

    shard = written(tmp_path, KEYS)
    with sqlite3.connect(tmp_path / "index.sqlite") as index:
        index.execute("update rows set start = start + 1 where key = '07'")
    with pytest.raises(RunFolderError, match=r"row 0 of 07, so nothing was deleted"):
        care.compact(tmp_path)
    assert shard.exists()
    (tmp_path / "index.sqlite").unlink()
    care.compact(tmp_path)
    with open_ledger(tmp_path) as ledger:
        assert ledger.read(KEYS) == {key: [row(key)] for key in KEYS}
