"""The ledger: what is committed is there, whatever became of the process, the shard's tail or the index."""

import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from radistill import ledger as module
from radistill.errors import RunFolderError
from radistill.ledger import Ledger, open_ledger
from radistill.records import Generation


def row(key: str, index: int = 0, text: str = "Good day.", *, failed: bool = False) -> Generation:
    if failed:
        return Generation(key=key, index=index, token_ids=(), text="", finish_reason="error", error="too long")
    return Generation(key=key, index=index, token_ids=(5, 6, 300), text=text, finish_reason="stop")


def write(folder: Path, *blocks: Iterable[Generation]) -> Path:
    """A ledger of one shard with these blocks; returns the shard."""
    before = set((folder / "shards").glob("*"))
    with open_ledger(folder) as ledger:
        for block in blocks:
            ledger.append(list(block))
    (shard,) = set((folder / "shards").glob("*")) - before
    return shard


def everything(folder: Path, keys: Iterable[str]) -> dict[str, list[Generation]]:
    with open_ledger(folder) as ledger:
        return ledger.read(keys)


def drop_index(folder: Path) -> None:
    (folder / "index.sqlite").unlink()


def leave(folder: Path) -> None:
    assert (folder / "index.sqlite").exists()


@pytest.fixture(params=["index kept", "index deleted"])
def reopened(request: pytest.FixtureRequest) -> Callable[[Path], None]:
    """What happens between two openings."""
    return leave if request.param == "index kept" else drop_index


def test_rows_come_back_by_key_in_order_of_their_index(tmp_path: Path, reopened: Callable[[Path], None]) -> None:
    rows = {key: [row(key, i, f"{key} {i}") for i in range(3)] for key in "abc"}
    write(tmp_path, [rows["b"][2], rows["a"][1], rows["b"][0]], [rows["a"][2], rows["b"][1], rows["a"][0], *rows["c"]])
    reopened(tmp_path)
    assert everything(tmp_path, ["b", "a", "b"]) == {"a": rows["a"], "b": rows["b"]}


def test_a_key_that_was_never_answered_is_missing_and_left_out(tmp_path: Path) -> None:
    write(tmp_path, [row("a")])
    with open_ledger(tmp_path) as ledger:
        assert ledger.missing(["z", "a", "y", "z"]) == {"y", "z"}
        assert ledger.read(["z"]) == {}
        assert ledger.missing([]) == set()


TEXTS = {
    "empty": "",
    "line breaks": "a\nb\r\n\u2028\u2029\x85",
    "NUL": "zero \0 byte",
    "a commit line": '{"commit": 1, "crc32": 0}',
    "unicode": "日本語 🙂 ÄÖ é",
    "half a pair": "half \ud83d",
    "the other half": "\udfff",
    "a backslash": "\\ud83d",
    "long": "x" * 300_000,
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
def test_any_text_is_read_back_as_it_was_written(tmp_path: Path, reopened: Callable[[Path], None], text: str) -> None:
    rows = [row("a", text=text), replace(row("b", failed=True), error=text)]
    shard = write(tmp_path, rows, [row("c")])
    reopened(tmp_path)
    assert everything(tmp_path, "abc") == {"a": rows[:1], "b": rows[1:], "c": [row("c")]}
    shard.read_bytes().decode("utf-8")  # so that other programs can read it too


def test_ten_thousand_keys_are_found_with_and_without_the_index(tmp_path: Path) -> None:
    keys = [f"{i:08x}" for i in range(10_000)]
    rows = [row(key, text=key) for key in keys]
    write(tmp_path, *(rows[start : start + 256] for start in range(0, 10_000, 256)))
    for _ in range(2):
        with open_ledger(tmp_path) as ledger:
            assert ledger.missing([*keys, "new"]) == {"new"}
            found = ledger.read(keys)
        assert found == {key: [row(key, text=key)] for key in keys}
        drop_index(tmp_path)


def test_a_block_that_was_cut_anywhere_never_counts_and_can_be_written_again(
    tmp_path: Path, reopened: Callable[[Path], None]
) -> None:
    shard = write(tmp_path, [row("a"), row("b")])
    begin = shard.stat().st_size
    with shard.open("ab") as file:
        file.write(write(tmp_path / "other", [row("c"), row("d", failed=True)]).read_bytes())
    whole = shard.read_bytes()
    everything(tmp_path, "c")  # puts the second block into the index
    index = (tmp_path / "index.sqlite").read_bytes()
    for cut in range(begin, len(whole)):
        shard.write_bytes(whole[:cut])
        (tmp_path / "index.sqlite").write_bytes(index)
        reopened(tmp_path)
        with open_ledger(tmp_path) as ledger:
            assert ledger.missing("abcd") == {"c", "d"}, f"cut at {cut} of {len(whole)}"
            assert ledger.read("abcd") == {"a": [row("a")], "b": [row("b")]}
    with open_ledger(tmp_path) as ledger:
        ledger.append([row("c"), row("d")])
    reopened(tmp_path)
    assert everything(tmp_path, "abcd") == {key: [row(key)] for key in "abcd"}


def test_no_byte_of_a_block_can_change_unnoticed(tmp_path: Path) -> None:
    shard = write(tmp_path, [row("a")], [row("b"), row("c")], [row("d")])
    whole = shard.read_bytes()
    begin = whole.index(b"\n", whole.index(b'"commit"')) + 1
    end = whole.index(b"\n", whole.index(b'"commit"', begin)) + 1
    for at in range(begin, end):
        for flip in (0x01, 0x20):
            shard.write_bytes(whole[:at] + bytes([whole[at] ^ flip]) + whole[at + 1 :])
            drop_index(tmp_path)
            found = everything(tmp_path, "abcd")
            # Without its line break, a commit line swallows the row after it.
            around = "a" if at == end - 1 else "ad"
            assert all(found.get(key) == [row(key)] for key in around), f"{at}: the blocks around it are lost"
            assert all(found.get(key, [row(key)]) == [row(key)] for key in "bc"), f"{at}: a changed row is returned"


COMMITS = [
    *(b'{"commit": 2, "crc32": 7}', b'{"commit": 3, "crc32": %d}', b'{"commit": 1, "crc32": %d}', b'{"commit": 2}'),
    *(b'{"commit": "2", "crc32": %d}', b'{"commit": -1, "crc32": 0}', b'{"commit": null}', b'{"commit"'),
    *(b"", b"{}", b"[]"),
]


@pytest.mark.parametrize("commit", COMMITS)
def test_a_block_without_its_own_commit_line_does_not_exist(tmp_path: Path, commit: bytes) -> None:
    shard = write(tmp_path, [row("a"), row("b")], [row("c")])
    rows, (closing, rest) = shard.read_bytes().splitlines(keepends=True)[:2], shard.read_bytes().split(b"\n", 3)[2:]
    crc = json.loads(closing)["crc32"]
    shard.write_bytes(b"".join(rows) + commit.replace(b"%d", str(crc).encode()) + b"\n" + rest)
    drop_index(tmp_path)
    with open_ledger(tmp_path) as ledger:
        assert ledger.missing("abc") == {"a", "b"}
        assert ledger.read("abc") == {"c": [row("c")]}


def test_a_failed_row_counts_as_missing_and_gives_way_to_a_good_one(
    tmp_path: Path, reopened: Callable[[Path], None]
) -> None:
    write(tmp_path, [row("a", 0), row("a", 1, failed=True), row("a", 2), row("b", failed=True)])
    with open_ledger(tmp_path) as ledger:
        assert ledger.missing("ab") == {"a", "b"}
        assert ledger.read("b") == {"b": [row("b", failed=True)]}
        ledger.append([row("a", 0, "again"), row("a", 1, "better"), row("a", 2, "again")])
        assert ledger.missing("ab") == {"b"}
    reopened(tmp_path)
    expected = [row("a", 0), row("a", 1, "better"), row("a", 2)]
    assert everything(tmp_path, "a") == {"a": expected}


def test_a_good_row_is_replaced_neither_by_a_failed_nor_by_another_good_one(
    tmp_path: Path, reopened: Callable[[Path], None]
) -> None:
    write(tmp_path, [row("a")], [row("a", failed=True)], [row("a", text="other")])
    write(tmp_path, [row("a", failed=True)])
    reopened(tmp_path)
    with open_ledger(tmp_path) as ledger:
        assert ledger.missing("a") == set()
        assert ledger.read("a") == {"a": [row("a")]}


def test_what_another_process_commits_is_seen_after_a_refresh(tmp_path: Path) -> None:
    with open_ledger(tmp_path) as ours, open_ledger(tmp_path) as theirs:
        theirs.append([row("a")])
        ours.append([row("b")])
        ours.refresh()
        theirs.refresh()
        for ledger in (ours, theirs):
            assert ledger.missing("abc") == {"c"}
            assert ledger.read("ab") == {"a": [row("a")], "b": [row("b")]}


WRITER = """
import sys
from pathlib import Path
from radistill.ledger import open_ledger
from radistill.records import Generation
folder, first, last = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
with open_ledger(folder) as ledger:
    for key in range(first, last):
        rows = [(str(key), i, (key, i)) for i in (0, 1)]
        ledger.append(
            [Generation(key=k, index=i, token_ids=ids, text="x", finish_reason="stop") for k, i, ids in rows]
        )
        ledger.refresh()
"""


def test_two_processes_write_at_once_and_every_row_is_there_once(tmp_path: Path) -> None:
    bounds = ((0, 60), (40, 100))
    running = [subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), str(a), str(b)]) for a, b in bounds]
    assert [process.wait(timeout=60) for process in running] == [0, 0]
    assert len(list((tmp_path / "shards").glob("*.jsonl"))) == 2
    for _ in range(2):
        found = everything(tmp_path, map(str, range(110)))
        assert {key: [g.token_ids for g in rows] for key, rows in found.items()} == {
            str(key): [(key, 0), (key, 1)] for key in range(100)
        }
        drop_index(tmp_path)


def overwrite(file: Path) -> None:
    file.write_bytes(b"this is no database" * 400)


def cut_in_half(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def scribble(file: Path) -> None:
    whole = bytearray(file.read_bytes())
    whole[4096:] = b"\xa5" * (len(whole) - 4096)
    file.write_bytes(whole)


def another_programs(file: Path) -> None:
    file.unlink()
    with sqlite3.connect(file) as database:
        database.execute("create table rows (id integer)")


def another_folders(file: Path) -> None:
    write(file.parent / "elsewhere", [row("z"), row("a", text="a wrong one")])
    shutil.copy(file.parent / "elsewhere" / "index.sqlite", file)


def shifted(file: Path) -> None:
    with sqlite3.connect(file) as database:
        database.execute("update rows set start = start + 3")


def crossed(file: Path) -> None:
    with sqlite3.connect(file) as database:
        database.execute("update rows set start = (select max(start) from rows)")


@pytest.mark.parametrize(
    "damage", [overwrite, cut_in_half, scribble, another_programs, another_folders, shifted, crossed, Path.unlink]
)
def test_an_index_that_is_not_the_shards_is_built_again(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    keys = [f"{i:03}" for i in range(300)]
    write(tmp_path, [row(key, text=key) for key in keys[:200]], [row(key, text=key) for key in [*keys[200:], "a"]])
    damage(tmp_path / "index.sqlite")
    with open_ledger(tmp_path) as ledger:
        ledger.append([row("new")])
        assert ledger.read([*keys, "a"]) == {key: [row(key, text=key)] for key in [*keys, "a"]}
        assert ledger.missing([*keys, "new", "z"]) == {"z"}


def test_shards_that_are_taken_away_while_it_is_open_are_missing_afterwards(tmp_path: Path) -> None:
    shard = write(tmp_path, [row("a")])
    with open_ledger(tmp_path) as ledger:
        ledger.append([row("b")])
        shard.unlink()
        assert ledger.read("ab") == {"b": [row("b")]}
        assert ledger.missing("ab") == {"a"}


def test_rows_of_shards_that_were_taken_away_are_missing_at_once(tmp_path: Path) -> None:
    first = write(tmp_path, [row("a"), row("b")])
    write(tmp_path, [row("a", text="the same key elsewhere"), row("c")])
    first.rename(tmp_path / "taken.jsonl")
    with open_ledger(tmp_path) as ledger:
        assert ledger.missing("abc") == {"b"}
        assert ledger.read("abc") == {"a": [row("a", text="the same key elsewhere")], "c": [row("c")]}


def test_an_index_that_another_process_holds_is_waited_for_and_never_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, [row("a")])
    monkeypatch.setattr(module, "LOCK_SECONDS", 0.05)
    holder = sqlite3.connect(tmp_path / "index.sqlite")
    holder.execute("begin exclusive")
    before = (tmp_path / "index.sqlite").stat().st_ino
    with pytest.raises(RunFolderError, match=r"another process holds .*index\.sqlite"):
        Ledger(tmp_path)
    holder.close()
    assert (tmp_path / "index.sqlite").stat().st_ino == before
    assert everything(tmp_path, "a") == {"a": [row("a")]}


def test_a_lock_that_comes_after_the_rows_were_written_loses_none_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOCK_SECONDS", 0.05)
    with open_ledger(tmp_path) as ledger:
        holder = sqlite3.connect(tmp_path / "index.sqlite")
        holder.execute("begin exclusive")
        with pytest.raises(RunFolderError, match="What was finished is kept"):
            ledger.append([row("a")])
        holder.close()
    assert everything(tmp_path, "a") == {"a": [row("a")]}


def test_a_full_shard_is_followed_by_another_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHARD_BYTES", 200)
    with open_ledger(tmp_path) as ledger:
        for key in "abcdef":
            ledger.append([row(key)])
        assert ledger.read("abcdef") == {key: [row(key)] for key in "abcdef"}
    assert len(list((tmp_path / "shards").glob("*.jsonl"))) == 3


def test_nothing_is_written_for_nothing(tmp_path: Path) -> None:
    with open_ledger(tmp_path) as ledger:
        ledger.append([])
    assert not (tmp_path / "shards").exists()


def test_a_file_where_the_folder_should_be_is_a_message(tmp_path: Path) -> None:
    (tmp_path / "ledger").write_text("")
    with pytest.raises(RunFolderError, match=r"nothing can be written into .*ledger"):
        Ledger(tmp_path / "ledger")
    with pytest.raises(RunFolderError, match=r"nothing can be written into .*below"):
        Ledger(tmp_path / "ledger" / "below")
