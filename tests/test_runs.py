"""The run folder: atomic writes, fingerprints, locks, and when a stage is skipped, refused, resumed or done again."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from radistill import runs
from radistill.errors import RunFolderError
from radistill.files import atomic, sha256, write_json, write_text
from radistill.records import StageRecord
from radistill.runs import RunFolder, Stage, begin, require, working


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "runs" / "a")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "train.txt"
    path.write_text("one\n")
    return path


def started(run: RunFolder, name: str, settings: dict[str, Any], *inputs: Path, redo: bool = False) -> Stage:
    stage = begin(run, name, settings, inputs, redo=redo)
    assert stage is not None
    return stage


def finished(run: RunFolder, name: str, settings: dict[str, Any], *inputs: Path, redo: bool = False) -> StageRecord:
    stage = started(run, name, settings, *inputs, redo=redo)
    output = run.path / f"{name}.out"
    write_text(output, f"{name} {settings}")
    return stage.finish([output])


def test_a_file_appears_whole_with_the_rights_of_any_new_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "a.txt"
    mask = os.umask(0o027)
    try:
        write_text(path, "Grüße\n")
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(mask)
    assert path.read_bytes() == "Grüße\n".encode()
    assert path.stat().st_mode & 0o777 == 0o640
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def fail() -> None:
        with atomic(path) as file:
            file.write(b"new")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_who_reads_the_old_file_goes_on_reading_it(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old" * 1000)
    with path.open() as reader:
        first = reader.read(2)
        write_text(path, "new")
        assert first + reader.read() == "old" * 1000
    assert path.read_text() == "new"


def test_a_file_is_not_there_before_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with atomic(path) as file:
        file.write(b"x")
        assert not path.exists()
    assert path.read_bytes() == b"x"


def test_the_sha256_of_a_file_is_the_one_everybody_computes(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"ab" * (3 << 19))
    assert sha256(path) == hashlib.sha256(b"ab" * (3 << 19)).hexdigest()


def test_the_sha256_of_a_folder_depends_on_names_and_contents_alone(tmp_path: Path) -> None:
    def folder(name: str, files: dict[str, bytes]) -> str:
        for file, content in files.items():
            (tmp_path / name / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / file).write_bytes(content)
        return sha256(tmp_path / name)

    first = folder("first", {"a": b"1", "sub/b": b"2"})
    assert folder("second", {"sub/b": b"2", "a": b"1"}) == first
    others = [
        folder("content", {"a": b"1", "sub/b": b"3"}),
        folder("name", {"a": b"1", "sub/c": b"2"}),
        folder("place", {"a": b"1", "b": b"2"}),
        folder("swapped", {"a": b"2", "sub/b": b"1"}),
        folder("more", {"a": b"1", "sub/b": b"2", "c": b""}),
        folder("less", {"a": b"1"}),
    ]
    assert len({first, *others}) == 7


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_a_file_whose_name_is_no_text_can_be_hashed(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9")).write_bytes(b"1")
    assert len(sha256(tmp_path)) == 64


def test_a_finished_stage_is_skipped_while_settings_and_inputs_are_the_same(run: RunFolder, source: Path) -> None:
    record = finished(run, "generate", {"a": 1, "b": (1, 2), "path": source}, source)
    assert begin(run, "generate", {"path": str(source), "b": [1, 2], "a": 1}, [source], redo=False) is None
    assert run.stages()["generate"] == record
    assert record.status == "finished"
    assert record.outputs == {"generate.out": sha256(run.path / "generate.out")}
    assert record.inputs == {str(source): sha256(source)}
    assert record.versions["radistill"]
    os.utime(source, (0, 0))
    assert begin(run, "generate", {"path": str(source), "b": [1, 2], "a": 1}, [source], redo=False) is None


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "value": ({"lr": 2, "deep": {"x": {"y": 1}}, "tasks": [{"n": 1}]}, r"lr: 1 there, 2 now"),
    "nested": ({"lr": 1, "deep": {"x": {"y": "ä"}}, "tasks": [{"n": 1}]}, r'deep\.x\.y: 1 there, "ä" now'),
    "in a list": ({"lr": 1, "deep": {"x": {"y": 1}}, "tasks": [{"n": 2}]}, r"tasks\.0\.n: 1 there, 2 now"),
    "longer list": ({"lr": 1, "deep": {"x": {"y": 1}}, "tasks": []}, r'tasks: \[\{"n": 1\}\] there, \[\] now'),
    "new": ({"lr": 1, "deep": {"x": {"y": 1}}, "tasks": [{"n": 1}], "z": True}, r"z: null there, true now"),
    "gone": ({"deep": {"x": {"y": 1}}, "tasks": [{"n": 1}]}, r"lr: 1 there, null now"),
    "no section": ({"lr": 1, "deep": None, "tasks": [{"n": 1}]}, r'deep: \{"x": \{"y": 1\}\} there, null now'),
}


@pytest.mark.parametrize(("changed", "told"), CHANGES.values(), ids=CHANGES.keys())
@pytest.mark.parametrize("status", ["finished", "started"])
def test_another_config_is_refused_by_the_name_of_the_field(
    run: RunFolder, source: Path, status: str, changed: dict[str, Any], told: str
) -> None:
    settings = {"lr": 1, "deep": {"x": {"y": 1}}, "tasks": [{"n": 1}]}
    (finished if status == "finished" else started)(run, "train", settings, source)
    before = run.manifest.read_bytes()
    with pytest.raises(RunFolderError, match=told) as refused:
        begin(run, "train", changed, [source], redo=False)
    assert str(run.path) in str(refused.value)
    assert "--redo train" in str(refused.value)
    assert len(str(refused.value).splitlines()) == 3, "what is equal is not told"
    assert run.manifest.read_bytes() == before


def test_changed_new_and_missing_inputs_are_refused_by_their_names(
    run: RunFolder, source: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.txt"
    other.write_text("two\n")
    finished(run, "generate", {}, source)
    with pytest.raises(RunFolderError, match=r"other\.txt: was not an input there"):
        begin(run, "generate", {}, [source, other], redo=False)
    with pytest.raises(RunFolderError, match=r"train\.txt: was an input there, is none now"):
        begin(run, "generate", {}, [], redo=False)
    source.write_text("changed\n")
    with pytest.raises(RunFolderError, match=r"train\.txt: the file has changed since"):
        begin(run, "generate", {}, [source], redo=False)
    finished(run, "generate", {}, source, redo=True)
    assert begin(run, "generate", {}, [source], redo=False) is None


def test_an_input_that_was_deleted_is_a_message_that_names_the_stage_that_makes_it(
    run: RunFolder, tmp_path: Path
) -> None:
    finished(run, "assemble", {})
    made = run.path / "assemble.out"
    finished(run, "train", {}, made)
    made.unlink()
    with pytest.raises(RunFolderError, match=r"assemble\.out is needed .* --redo assemble"):
        begin(run, "train", {}, [made], redo=False)
    with pytest.raises(RunFolderError, match=r"nowhere\.txt is needed here and is not there"):
        begin(run, "generate", {}, [tmp_path / "nowhere.txt"], redo=False)


def test_a_run_folder_that_was_moved_goes_on(run: RunFolder, tmp_path: Path) -> None:
    finished(run, "assemble", {})
    finished(run, "train", {}, run.path / "assemble.out")
    moved = RunFolder(run.path.rename(tmp_path / "moved"))
    assert begin(moved, "train", {}, [moved.path / "assemble.out"], redo=False) is None


def test_a_stage_whose_output_is_gone_is_done_again(run: RunFolder, source: Path) -> None:
    finished(run, "generate", {"a": 1}, source)
    (run.path / "generate.out").unlink()
    assert begin(run, "generate", {"a": 1}, [source], redo=False) is not None


def test_a_stage_whose_output_was_changed_is_done_again(run: RunFolder, source: Path) -> None:
    finished(run, "generate", {"a": 1}, source)
    (run.path / "generate.out").write_text("changed")
    assert begin(run, "generate", {"a": 1}, [source], redo=False) is not None


def test_redo_does_a_finished_stage_again_whatever_has_changed(run: RunFolder, source: Path) -> None:
    finished(run, "train", {"lr": 1}, source)
    stage = started(run, "train", {"lr": 2}, redo=True)
    assert (stage.settings, stage.inputs, stage.spent_before) == ({"lr": 2}, {}, 0.0)
    assert run.stages()["train"].status == "started"


def test_finishing_a_stage_forgets_those_after_it_and_keeps_those_before(run: RunFolder) -> None:
    for name in runs.STAGES:
        finished(run, name, {})
    assert list(run.stages()) == list(runs.STAGES)
    stage = started(run, "assemble", {}, redo=True)
    assert list(run.stages()) == list(runs.STAGES), "nothing is lost before the new work is done"
    stage.finish([])
    assert list(run.stages()) == ["generate", "assemble"]


def test_stages_stand_in_the_manifest_in_their_order_and_are_read_back(run: RunFolder) -> None:
    stage = started(run, "train", {"a": {"b": [1, None, "ä"]}})
    stage.facts["steps"] = 7
    record = stage.finish([], device="cpu")
    finished(run, "generate", {})
    assert run.stages()["generate"].status == "finished"
    assert "train" not in run.stages(), "it came after"
    assert record.facts == {"steps": 7}
    assert (record.device, record.settings) == ("cpu", {"a": {"b": [1, None, "ä"]}})
    stored = json.loads(run.manifest.read_text(encoding="utf-8"))
    assert stored["schema"] == 1
    assert list(stored["stages"]) == ["generate"]


class Clock:
    """A clock that goes when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr("radistill.runs.time.monotonic", lambda: self.now)


def interrupted(stage: Stage, clock: Clock, seconds: float, error: BaseException) -> None:
    with working(stage):
        clock.now += seconds
        raise error


def test_seconds_add_up_over_interruptions(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    first = started(run, "train", {})
    for seconds, error in ((3.0, KeyboardInterrupt()), (4.5, ValueError())):
        with pytest.raises(type(error)):
            interrupted(started(run, "train", {}), clock, seconds, error)
        clock.now += 1000
    last = started(run, "train", {})
    clock.now += 2.0
    record = last.finish([])
    assert record.seconds == 9.5
    assert record.started_at == first.started_at
    with pytest.raises(KeyboardInterrupt):
        interrupted(started(run, "train", {}, redo=True), clock, 5.0, KeyboardInterrupt())
    again = started(run, "train", {}, redo=True)
    clock.now += 1.0
    assert again.finish([]).seconds == 1.0


def test_an_error_on_the_way_out_does_not_hide_the_first_one(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = started(run, "train", {})
    monkeypatch.setattr(runs, "write_json", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(KeyError, match="first"):
        interrupted(stage, Clock(monkeypatch), 1.0, KeyError("first"))


def test_a_later_stage_needs_the_earlier_one_finished(run: RunFolder) -> None:
    with pytest.raises(RunFolderError, match="`generate` is not finished"):
        require(run, "generate")
    stage = started(run, "generate", {})
    with pytest.raises(RunFolderError, match="`generate` is not finished"):
        require(run, "generate")
    assert require(run, stage.finish([]).stage).status == "finished"


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "3", "null", "{}", '{"stages": []}', '{"stages": {"train": 3}}', '{"stages": {"train": {}}}'],
)
def test_a_manifest_that_is_none_is_a_message(run: RunFolder, text: str) -> None:
    run.path.mkdir(parents=True)
    run.manifest.write_text(text)
    with pytest.raises(RunFolderError, match=r"manifest\.json is not a manifest of this version"):
        run.stages()


def test_a_manifest_of_bytes_is_a_message(run: RunFolder) -> None:
    run.path.mkdir(parents=True)
    run.manifest.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RunFolderError, match="is not a manifest"):
        begin(run, "generate", {}, [], redo=False)


HOLD = """
import sys
from pathlib import Path
from radistill.runs import RunFolder
with RunFolder(Path(sys.argv[1])).lock():
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("end", [subprocess.Popen.kill, subprocess.Popen.communicate], ids=["killed", "finished"])
def test_a_second_process_is_refused_until_the_first_has_gone(
    run: RunFolder, end: Callable[[subprocess.Popen[bytes]], object]
) -> None:
    command = [sys.executable, "-c", HOLD, str(run.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(RunFolderError, match="is in use by another radistill process"), run.lock():
            pass
        end(holder)
        holder.wait()
    with run.lock():
        assert run.path.is_dir()


def test_what_a_killed_process_had_begun_to_write_is_cleared_away(run: RunFolder) -> None:
    left = [
        run.path / ".scores.json.abc123.part",
        run.predictions("translation").parent / ".translation.parquet.x.part",
    ]
    other = run.path / "notes.part"
    for file in (*left, other):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("half")
    with run.lock():
        assert not any(file.exists() for file in left)
    assert other.exists()


def test_who_takes_the_lock_deletes_what_a_killed_process_had_begun_to_write(run: RunFolder) -> None:
    write_text(run.config, "whole")
    for folder in (run.path, run.model, run.figures):
        folder.mkdir(exist_ok=True)
        (folder / ".config.yaml.x1y2.part").write_text("half")
    with run.lock():
        assert not list(run.path.rglob("*.part"))
        assert run.config.read_text() == "whole"


def test_the_lock_is_given_back_after_an_error(run: RunFolder) -> None:
    def fail() -> None:
        with run.lock():
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with run.lock():
        pass


def test_a_file_in_the_place_of_the_run_folder_is_a_message(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(RunFolderError, match="nothing can be written into"), RunFolder(path).lock():
            pass


def test_making_a_run_folder_touches_no_file_and_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert RunFolder(tmp_path / "x" / "my-run").name == "my-run"
    monkeypatch.chdir(tmp_path)
    assert RunFolder(Path()).name == tmp_path.name
    assert list(tmp_path.iterdir()) == []
