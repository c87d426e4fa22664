"""Looking after a ledger: what is counted, what is found damaged, and that compacting loses nothing."""

import json
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from radistill import ledger_care as care
from radistill import ledger_shards as files
from radistill.cli import app
from radistill.errors import RunFolderError
from radistill.ledger import Ledger, open_ledger
from radistill.ledger_export import export
from radistill.logprobs import LogProbs
from radistill.records import Generation


def good(key: str, text: str = "one two", index: int = 0) -> Generation:
    return Generation(key=key, index=index, token_ids=(1, 2), text=text, finish_reason="stop")


def failed(key: str) -> Generation:
    return Generation(key=key, index=0, token_ids=(), text="", finish_reason="error", error="no")


def scored(key: str, size: int = 5) -> Generation:
    rng = np.random.default_rng(size)
    top = LogProbs(
        rng.normal(size=size).astype(np.float32),
        rng.integers(0, 99, (size, 3)).astype(np.int32),
        rng.normal(size=(size, 3)).astype(np.float16),
    )
    return Generation(key=key, index=0, token_ids=(), text="", finish_reason="stop", logprobs=top)


KEYS = ["a", "b", "c", "d", "s", "t", "u"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three writers: doubled rows, failures with and without a good row after them, a torn end, log-probabilities."""
    path = tmp_path / "ledger"
    with open_ledger(path) as first, open_ledger(path) as second:
        first.append([good("a"), failed("b"), failed("c")])
        second.append([good("a"), good("d"), good("d", "more", 1)])
        first.append([good("b", "better"), failed("c")])
        first.append([scored("s", 4), scored("t", 90)])
        second.append([scored("u")])
    shard = next(iter(sorted((path / "shards").glob("*.jsonl"))))
    with shard.open("ab") as file:
        file.write(b'{"key": "z", "index": 0')
    return path


def everything(path: Path) -> tuple[dict[str, list[Generation]], set[str], dict[str, int]]:
    with open_ledger(path) as ledger:
        return ledger.read(KEYS), ledger.missing(KEYS), ledger.failures(KEYS)


def test_what_is_there_is_counted(folder: Path) -> None:
    found = care.looked_through(folder)
    assert (found.shards, found.keys, found.rows, found.failed, found.scored, found.doubled) == (4, 7, 8, 1, 3, 1)
    assert found.finish_reasons == {"error": 3, "stop": 5}
    assert (found.tokens, found.unfinished_bytes) == (10, len(b'{"key": "z", "index": 0'))
    assert (found.damaged_bytes, found.problems) == (0, [])
    assert found.bytes == sum(f.stat().st_size for f in (folder / "shards").iterdir())


def test_compacting_drops_what_nobody_reads_and_changes_nothing_else(folder: Path) -> None:
    before = everything(folder)
    assert before[2] == {"c": 2}
    done = care.compact(folder)
    assert (done["shards_before"], done["shards_after"]) == (4, 2)
    assert done["bytes_after"] < done["bytes_before"]
    assert everything(folder) == before
    (folder / "index.sqlite").unlink()
    assert everything(folder) == before
    found = care.looked_through(folder)
    assert (found.doubled, found.unfinished_bytes, found.finish_reasons) == (0, 0, {"error": 2, "stop": 4})
    assert care.compact(folder)["shards_after"] == 2
    assert everything(folder) == before


def test_compacting_takes_away_what_killed_processes_have_left_of_files(folder: Path) -> None:
    before = everything(folder)
    old, young = (folder / "shards" / f".{name}.parquet.x.part" for name in ("old", "young"))
    for part in (old, young):
        part.write_bytes(b"half of a file")
    os.utime(old, (0, 0))
    care.compact(folder)
    assert (old.exists(), young.exists()) == (False, True), "another process may be writing the young one"
    assert everything(folder) == before


def test_all_answers_to_a_request_stay_together_in_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else damage to one block would leave a request with some of its answers, which nobody would miss."""
    monkeypatch.setattr(care, "CHUNK", 3)
    keys = [f"{n:032x}" for n in range(7)]
    with open_ledger(tmp_path) as ledger:
        ledger.append([good(key, f"answer {index}", index) for key in keys for index in range(2)])
    care.compact(tmp_path)
    (shard,) = (tmp_path / "shards").glob("*.jsonl")
    blocks = [{place.key for place in block.places} for block in files.blocks(shard)]
    assert len(blocks) > 1
    assert sum(map(len, blocks)) == len(keys)


def killed(path: Path, at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A compaction that ends before it deletes its shard of that number."""
    unlink, left = Path.unlink, at

    def unlinked(file: Path, missing_ok: bool = False) -> None:
        nonlocal left
        if file.parent == path / "shards" and not file.name.endswith(".part"):
            if left == 0:
                raise KeyboardInterrupt
            left -= 1
        unlink(file, missing_ok=missing_ok)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", unlinked)
        with pytest.raises(KeyboardInterrupt):
            care.compact(path)


@pytest.mark.parametrize("at", [0, 1, 2])
@pytest.mark.parametrize("index", ["kept", "deleted"])
def test_a_compaction_that_was_killed_counts_no_failure_twice(
    folder: Path, at: int, index: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = everything(folder)
    for _ in range(3):
        killed(folder, at, monkeypatch)
        if index == "deleted":
            (folder / "index.sqlite").unlink()
        assert everything(folder) == before
    assert before[2] == {"c": 2}
    with open_ledger(folder) as ledger:
        ledger.append([failed("c")])
        assert ledger.failures("c") == {"c": 3}
    care.compact(folder)
    assert care.looked_through(folder).finish_reasons == {"error": 3, "stop": 4}
    with open_ledger(folder) as ledger:
        assert ledger.failures("c") == {"c": 3}
        ledger.append([good("c")])
        assert ledger.missing(KEYS) == set()
    care.compact(folder)
    assert care.looked_through(folder).finish_reasons == {"stop": 5}


def test_failures_are_counted_as_they_were_while_copies_are_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = []
    append = Ledger.append

    def watched(ledger: Ledger, *rows: Any) -> None:
        append(ledger, *rows)
        counts.append(ledger.failures(KEYS))

    monkeypatch.setattr(Ledger, "append", watched)
    care.compact(folder)
    assert counts == [{"c": 2}, {"c": 2}]


def test_an_index_that_does_not_know_the_tries_is_built_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sqlite3

    before = everything(folder)
    with sqlite3.connect(folder / "index.sqlite") as index:
        index.execute("drop table tries")
        index.execute("pragma user_version = 0")
    index.close()
    killed(folder, 0, monkeypatch)
    assert everything(folder) == before


def during_the_copying(monkeypatch: pytest.MonkeyPatch, happens: Callable[[], None]) -> None:
    append = Ledger.append

    def appended(ledger: Ledger, *rows: Any) -> None:
        append(ledger, *rows)
        monkeypatch.setattr(Ledger, "append", append)
        happens()

    monkeypatch.setattr(Ledger, "append", appended)


def test_a_second_compaction_at_once_is_refused_and_the_first_goes_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, refused = everything(folder), []

    def second() -> None:
        with pytest.raises(RunFolderError, match=r"is being compacted by another radistill process") as error:
            care.compact(folder)
        refused.append(error)

    during_the_copying(monkeypatch, second)
    assert care.compact(folder)["shards_after"] == 2
    assert len(refused) == 1
    assert everything(folder) == before
    assert care.compact(folder)["shards_after"] == 2


def test_what_is_taken_away_or_written_meanwhile_does_not_stop_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = everything(folder)

    def meanwhile() -> None:
        with open_ledger(folder) as other:
            other.append([scored("s", 4), scored("t", 90), good("new"), failed("c")])

    delete = Ledger.delete

    def deleted(ledger: Ledger, shards: list[Path]) -> None:
        shards[0].unlink()
        delete(ledger, shards)

    monkeypatch.setattr(Ledger, "delete", deleted)
    during_the_copying(monkeypatch, meanwhile)
    care.compact(folder)
    assert everything(folder) == (before[0], before[1], {"c": 3})
    with open_ledger(folder) as ledger:
        assert ledger.read(["new"]) == {"new": [good("new")]}


def test_what_another_process_has_just_written_and_not_indexed_is_kept(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = care._alone

    def opened(path: Path) -> AbstractContextManager[None]:
        with open_ledger(path) as other, monkeypatch.context() as patched:
            patched.setattr(Ledger, "_entered", lambda *_: None)
            other.append([good("v"), scored("w")])
        return alone(path)

    monkeypatch.setattr(care, "_alone", opened)
    care.compact(folder)
    with open_ledger(folder) as ledger:
        assert ledger.missing([*KEYS, "v", "w"]) == {"c"}


def test_a_shard_that_is_being_written_into_is_left(folder: Path) -> None:
    with open_ledger(folder) as writer:
        writer.append([good("w")])
        mine = max(f.name for f in (folder / "shards").glob("*.jsonl"))
        care.compact(folder)
        assert (folder / "shards" / mine).exists()
        writer.append([good("x")])
    with open_ledger(folder) as ledger:
        assert ledger.missing([*KEYS, "w", "x"]) == {"c"}
    assert list((folder / ".writers").iterdir()) == []


@pytest.mark.parametrize("at", [0.0, 0.3, 0.6, 0.999])
def test_a_changed_byte_in_log_probabilities_is_found_and_they_are_missing(folder: Path, at: float) -> None:
    shard = min((folder / "shards").glob("*.parquet"))
    whole = bytearray(shard.read_bytes())
    whole[int(at * len(whole))] ^= 1
    shard.write_bytes(whole)
    found = care.looked_through(folder)
    assert any("is damaged" in problem for problem in found.problems)
    (folder / "index.sqlite").unlink()
    with open_ledger(folder) as ledger:
        assert ledger.missing(KEYS) == {"c", "s", "t"}
        assert ledger.read("u")["u"] == [scored("u")]


def test_an_index_that_leads_astray_is_a_problem(folder: Path) -> None:
    import sqlite3

    with sqlite3.connect(folder / "index.sqlite") as index:
        index.execute("update rows set start = start + 1 where key = 'd'")
    found = care.looked_through(folder)
    assert found.problems == ["index.sqlite leads to 1 rows that are not there; delete it, and it is built again"]


def invoked(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["ledger", *map(str, arguments)])


def test_the_verbs_say_what_they_found(folder: Path) -> None:
    said = invoked("status", folder)
    assert said.exit_code == 0
    assert "7 requests, 8 rows (3 error, 5 stop; 3 scored)" in said.stdout
    assert json.loads(invoked("status", folder, "--json").stdout)["tokens"] == 10
    assert "8 rows in 4 shards: whole" in invoked("verify", folder).stdout
    assert "4 shards" in invoked("compact", folder).stdout
    shard = min((folder / "shards").glob("*.parquet"))
    shard.write_bytes(shard.read_bytes()[:-1])
    broken = invoked("verify", folder)
    assert broken.exit_code == 2
    assert f"problem: {shard.name} is damaged" in broken.stdout


def test_a_folder_without_a_ledger_is_a_message(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"is no ledger: it has no folder `shards`"):
        care.looked_through(tmp_path)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(RunFolderError, match=r"is no run folder"):
        export(tmp_path, tmp_path / "out.jsonl")
