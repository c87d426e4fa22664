"""Files that appear whole or not at all, and what names their content."""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from filelock import FileLock, Timeout

from radistill.errors import RunFolderError, writing_into


@contextmanager
def atomic(path: Path) -> Iterator[IO[bytes]]:
    """Open `path` for writing so that it appears whole or not at all, and survives a power cut once it appears."""
    with writing_into(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        part = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            part.chmod(0o666 & ~_umask())  # mkstemp makes files that only their owner may read
            part.replace(path)
            sync_folder(path.parent)
        finally:
            part.unlink(missing_ok=True)


@contextmanager
def part_folder(path: Path) -> Iterator[Path]:
    """An empty folder `.NAME.part` beside `path`, to make it in; gone at the end, whatever is still in it.

    A process that is killed leaves it, and the next empties it.

    Raises:
        RunFolderError: another process is at work in it.
    """
    part = path.parent / f".{path.name}.part"
    with writing_into(path.parent):
        part.mkdir(parents=True, exist_ok=True)
        lock, ours = FileLock(part / ".lock"), part.stat().st_ino
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise RunFolderError(f"another radistill process is writing {path}. Wait for it, or stop it.") from error
        try:
            _empty(part)
            yield part
        finally:
            # If it was renamed, one of that name is another process's.
            if part.exists() and part.stat().st_ino == ours:
                shutil.rmtree(part, ignore_errors=True)
            lock.release()


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A folder to be filled, which gets the name `path` as a whole or not at all.

    What is at `path` already stays until the new one is whole, and is then replaced.

    Raises:
        RunFolderError: another process is filling it.
    """
    with part_folder(path) as part:
        yield part
        for child in (p for p in part.rglob("*") if p.is_file()):
            settle(child)
        sync_folder(part)
        gone = path.parent / f".{path.name}.old.part"
        shutil.rmtree(gone, ignore_errors=True)
        if path.exists():
            path.rename(gone)
        part.rename(path)
        (path / ".lock").unlink(missing_ok=True)
        sync_folder(path.parent)
        shutil.rmtree(gone, ignore_errors=True)


def settle(file: Path) -> None:
    """Put a file that somebody else has written onto the disk, readable for whoever may read files here."""
    file.chmod(0o666 & ~_umask())  # safetensors makes files that only their owner may read
    handle = os.open(file, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _empty(part: Path) -> None:
    for child in part.iterdir():
        if child.is_dir():
            shutil.rmtree(child)
        elif child.name != ".lock":
            child.unlink()


def sync_folder(path: Path) -> None:
    """Make the names in a folder survive a power cut, where the system can."""
    with contextlib.suppress(OSError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, as UTF-8."""
    with atomic(path) as file:
        file.write(text.encode())


def write_json(path: Path, value: object) -> None:
    """Write a JSON file atomically, indented, for people and programs."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def sha256(path: Path) -> str:
    """Hexadecimal sha256 of a file, or of a folder: its files' names and contents, in the order of their names."""
    digest = hashlib.sha256()
    if path.is_dir():
        for child in sorted(p for p in path.rglob("*") if p.is_file()):
            name = os.fsencode(child.relative_to(path).as_posix())
            digest.update(name + f"\0{sha256(child)}\n".encode())
        return digest.hexdigest()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
