"""Every error a user can repair is one kind, and says what to do."""

import errno
import inspect
import os
from pathlib import Path

import pytest

from radistill import errors
from radistill.errors import (
    DiskFullError,
    RadistillError,
    RunFolderError,
    did_you_mean,
    disk_full_is_a_message,
    writing_into,
)


def failing(number: int) -> OSError:
    return OSError(number, os.strerror(number), "some/file")


def test_every_error_of_ours_can_be_caught_by_one_name_and_keeps_its_message() -> None:
    ours = [cls for _, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, Exception)]
    assert len(ours) >= 9
    for cls in ours:
        assert issubclass(cls, RadistillError)
        assert cls.__doc__
        assert str(cls("what is wrong, and what to do")) == "what is wrong, and what to do"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
@pytest.mark.parametrize("guard", [disk_full_is_a_message, writing_into])
def test_no_space_left_is_a_message_that_names_the_folder(number: int, guard: type) -> None:
    with pytest.raises(DiskFullError, match="the disk that holds runs/a") as told, guard(Path("runs/a")):
        raise failing(number)
    assert isinstance(told.value.__cause__, OSError)


@pytest.mark.parametrize(
    "said",
    [
        "Error while serializing: I/O error: No space left on device (os error 28)",
        "[enforce fail at inline_container.cc:858] . PytorchStreamWriter failed writing file data/0: file write failed",
        "[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0",
    ],
)
def test_no_space_left_is_known_in_the_words_of_safetensors_and_torch(said: str) -> None:
    with pytest.raises(DiskFullError, match="the disk that holds runs/a"), writing_into(Path("runs/a")):
        raise RuntimeError(said)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR])
def test_a_place_that_may_not_be_written_to_is_a_message_that_names_it(number: int) -> None:
    with (
        pytest.raises(RunFolderError, match=r"nothing can be written into runs/a: .* \(some/file\)"),
        writing_into(Path("runs/a")),
    ):
        raise failing(number)
    with pytest.raises(OSError, match=os.strerror(number)) as told, disk_full_is_a_message(Path("runs/a")):
        raise failing(number)
    assert not isinstance(told.value, RadistillError)


@pytest.mark.parametrize("guard", [disk_full_is_a_message, writing_into])
def test_every_other_error_passes_as_it_is(guard: type) -> None:
    for error in (failing(errno.EIO), failing(errno.ENOENT), ZeroDivisionError(), KeyboardInterrupt()):
        with pytest.raises(type(error)) as told, guard(Path("runs/a")):
            raise error
        assert told.value is error


@pytest.mark.parametrize("guard", [disk_full_is_a_message, writing_into])
def test_an_error_of_ours_is_told_once(guard: type) -> None:
    first = DiskFullError(errno.ENOSPC, "the first message")
    with pytest.raises(DiskFullError) as told, guard(Path("outer")):
        raise first
    assert told.value is first


def test_only_what_is_close_is_suggested() -> None:
    assert did_you_mean("raddis", ["radis", "vanilla"]) == " Did you mean 'radis'?"
    assert did_you_mean("quantum", ["radis", "vanilla"]) == ""
    assert did_you_mean("x", []) == ""
    assert did_you_mean("radis", iter(["vanilla", "radis"])) == " Did you mean 'radis'?"
