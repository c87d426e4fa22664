"""What a user can repair.

A `RadistillError` carries one finished message: what is wrong, where, what is allowed, what to do. The command
line prints it without a traceback and exits with code 2. Every other exception is a bug and keeps its traceback.
"""

import difflib
import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


class RadistillError(Exception):
    """Something the user can repair; `str(error)` is the whole message."""


class ConfigError(RadistillError, ValueError):
    """The run file or a command-line override is wrong; lists every problem found, one per line."""


class DataError(RadistillError, ValueError):
    """A data file is missing, empty, unaligned or not in the stated format."""


class ChatTemplateError(RadistillError, ValueError):
    """The tokenizer's chat template is missing, or cannot hold a continued answer."""


class ModelError(RadistillError, ValueError):
    """A model cannot be found, or holds something that must not be loaded."""


class RunFolderError(RadistillError):
    """The run folder belongs to another config, or another process works in it."""


class BackendError(RadistillError, RuntimeError):
    """An engine that writes text is lost or refuses to work."""


class SharingError(RadistillError, RuntimeError):
    """A model cannot be merged, converted or uploaded; nothing half-done is left."""


class MissingPackageError(RadistillError, ImportError):
    """An optional package is not installed; the message holds the command that installs it."""


class DiskFullError(RadistillError, OSError):
    """Nothing more can be written; what was finished is kept."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """` Did you mean 'x'?` for the closest known word, or an empty string when nothing is close."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" Did you mean {close[0]!r}?" if close else ""


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR)


@contextmanager
def disk_full_is_a_message(where: Path) -> Iterator[None]:
    """Turn the operating system's "no space left" into a message that names the folder."""
    try:
        yield
    except Exception as error:
        if isinstance(error, RadistillError) or not _is_disk_full(error):
            raise
        raise DiskFullError(
            f"no space left on the disk that holds {where}. What was finished is kept: make room there, "
            "or name another place with output_dir=DIR, and run the same command again."
        ) from error


def _is_disk_full(error: Exception) -> bool:
    if isinstance(error, OSError):
        return error.errno in FULL
    # safetensors and torch.save say it in errors of their own.
    # The last is what torch says when it closes the file, in the place of what it said first.
    said = (*(f"os error {number}" for number in FULL), "PytorchStreamWriter failed", "unexpected pos ")
    return any(words in str(error) for words in said)


@contextmanager
def writing_into(where: Path) -> Iterator[None]:
    """Turn it into a message that nothing more can be written into a folder, or nothing at all.

    Raises:
        DiskFullError: there is no space left.
        RunFolderError: the folder, or what stands in its place, may not be written to.
    """
    try:
        with disk_full_is_a_message(where):
            yield
    except OSError as error:
        if error.errno not in REFUSED or isinstance(error, RadistillError):
            raise
        raise RunFolderError(
            f"nothing can be written into {where}: {error.strerror} ({error.filename or where}). Name another place "
            "(output_dir=DIR, generate.ledger=DIR), or change whose it is."
        ) from error
