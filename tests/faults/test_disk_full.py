"""No space left, a file that may not grow, a folder that may not be written to: a message, and nothing is lost."""

import os
import resource
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from radistill import ledger as ledger_module
from radistill.errors import DiskFullError, RadistillError, RunFolderError
from radistill.files import write_text
from radistill.ledger import Ledger, open_ledger
from radistill.records import Generation
from radistill.runs import RunFolder, begin
from radistill.tables import write_jsonl

TEXT = "abcdefgh" * 60


def row(key: str) -> Generation:
    return Generation(key=key, index=0, token_ids=(1, 2, 3), text=TEXT, finish_reason="stop")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB of its own."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.name != "posix" or os.geteuid() != 0:
        pytest.skip("only root may mount a small disk")
    mounting = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    try:
        mounted = subprocess.run(mounting, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if mounted.returncode:
        pytest.skip(f"no disk can be mounted here: {mounted.stderr.strip()}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@contextmanager
def files_of_at_most(n_bytes: int) -> Iterator[None]:
    """No file of this process may grow beyond."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


@contextmanager
def as_somebody_else() -> Iterator[None]:
    """Without root's right to write everywhere."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def read_only() -> Iterator[Path]:
    """A folder that its reader may not write to; outside tmp_path, which others may not even enter."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o555)
        yield folder
        folder.chmod(0o755)


def append_for_ever(ledger: Ledger, done: list[str]) -> None:
    """Commit four rows at a time; `done` gets the keys of what was committed."""
    for n in range(5000):
        keys = [f"{n}.{i}" for i in range(4)]
        ledger.append([row(key) for key in keys])
        done += keys


def fill(folder: Path) -> list[str]:
    """Append until nothing more fits; returns the keys of what was committed."""
    done: list[str] = []
    with open_ledger(folder) as ledger, pytest.raises(DiskFullError, match="no space left on the disk that holds"):
        append_for_ever(ledger, done)
    assert len(done) > 40
    return done


def check(folder: Path, done: list[str]) -> None:
    """All that was committed is there, and the ledger goes on."""
    with open_ledger(folder) as ledger:
        assert ledger.missing(done) == set()
        assert ledger.read(done) == {key: [row(key)] for key in done}
        ledger.append([row("one more")])
        assert ledger.missing(["one more"]) == set()


def test_a_full_disk_is_a_message_and_what_was_committed_stays(small_disk: Path) -> None:
    done = fill(small_disk / "ledger")
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    check(small_disk / "ledger", done)


def test_a_ledger_on_a_full_disk_goes_on_in_the_same_process_once_there_is_room(small_disk: Path) -> None:
    ballast = small_disk / "ballast"
    with open_ledger(small_disk / "ledger") as ledger:
        ledger.append([row("a")])
        ballast.write_bytes(b"x" * (150 << 10))
        done: list[str] = []
        with pytest.raises(DiskFullError):
            append_for_ever(ledger, done)
        ballast.unlink()
        ledger.append([row("b")])
        assert ledger.read("ab") == {"a": [row("a")], "b": [row("b")]}
    with open_ledger(small_disk / "ledger") as ledger:
        assert ledger.missing(["a", "b", *done]) == set()


def test_a_full_disk_leaves_the_old_file_and_no_part_of_the_new_one(small_disk: Path) -> None:
    write_text(small_disk / "manifest.json", "old")
    with pytest.raises(DiskFullError, match=str(small_disk)):
        write_text(small_disk / "manifest.json", "new" * (200 << 10))
    with pytest.raises(DiskFullError):
        write_jsonl(small_disk / "rejects.jsonl", ({"text": TEXT} for _ in range(5000)))
    assert [(p.name, p.read_text()) for p in small_disk.iterdir()] == [("manifest.json", "old")]


def test_a_stage_on_a_full_disk_says_so(small_disk: Path) -> None:
    (small_disk / "ballast").write_bytes(b"x" * (256 << 10))
    with pytest.raises(DiskFullError):
        begin(RunFolder(small_disk / "run"), "generate", {}, [], redo=False)


def test_a_ledger_whose_shard_may_not_grow_is_a_message_and_keeps_what_was_committed(tmp_path: Path) -> None:
    with files_of_at_most(90_000):
        done = fill(tmp_path)
    check(tmp_path, done)


def test_an_index_that_may_not_grow_is_a_message_and_no_row_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    def append_to_many_shards(ledger: Ledger) -> None:
        for n in range(5000):
            tiny = Generation(key=f"{n:032}", index=0, token_ids=(), text="", finish_reason="stop")
            done.append(tiny.key)
            ledger.append([tiny])

    monkeypatch.setattr(ledger_module, "SHARD_BYTES", 0)  # so that the index is what grows
    with (
        open_ledger(tmp_path) as ledger,
        files_of_at_most(40_000),
        pytest.raises(DiskFullError, match=r"index\.sqlite"),
    ):
        append_to_many_shards(ledger)
    assert len(done) > 40
    with open_ledger(tmp_path) as ledger:
        assert ledger.missing(done) == set()


def test_a_run_folder_that_may_not_be_written_to_is_a_message(read_only: Path) -> None:
    run = RunFolder(read_only / "run")
    writers: list[Callable[[], object]] = [
        lambda: open_ledger(read_only).__enter__(),
        lambda: open_ledger(read_only / "ledger").__enter__(),
        lambda: run.lock().__enter__(),
        lambda: RunFolder(read_only).lock().__enter__(),
        lambda: write_text(read_only / "a.txt", "a"),
        lambda: begin(run, "generate", {}, [], redo=False),
    ]
    for writer in writers:
        with (
            as_somebody_else(),
            pytest.raises(RunFolderError, match=r"nothing can be written into .*[Pp]ermission denied"),
        ):
            writer()
    assert list(read_only.iterdir()) == []


def test_what_was_written_can_be_read_where_nothing_may_be_written_any_more(read_only: Path) -> None:
    read_only.chmod(0o755)
    write_text(read_only / "manifest.json", '{"schema": 1, "stages": {}}')
    read_only.chmod(0o555)
    with as_somebody_else():
        assert RunFolder(read_only).stages() == {}


def test_every_disk_error_is_one_that_the_command_line_prints() -> None:
    assert issubclass(DiskFullError, RadistillError)
    assert issubclass(RunFolderError, RadistillError)
