"""What every format gives: rows, each from a file and a line, and the rows it had to refuse, with the reason.

A format reads one way in which rows lie in files. It knows nothing of pairs asked for, wordings or limits: that is
`radistill.data`.
"""

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from radistill.errors import DataError
from radistill.formats import _objects
from radistill.records import Message

CODE = r"[A-Za-z]{2,3}(?:_[A-Za-z0-9]+)*"
"""A language code as used in names of files and pairs: `de`, `zh`, `pt_BR`, `deu_Latn`."""
_PAIR = re.compile(f"({CODE})-({CODE})")
# Tab and line ends are text. Everything else below the space, the C1 block (a sign of a wrong encoding) and halves of
# surrogate pairs cannot be shown, and some tokenizers drop them in silence.
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


class BadRow(Exception):
    """A row that cannot be used; `str(error)` is the reason."""


class Pair(NamedTuple):
    """A direction of translation."""

    source: str
    target: str

    @classmethod
    def of(cls, text: str) -> "Pair":
        """The pair written as `de-en`.

        Raises:
            DataError: the text is not two language codes with a hyphen between.
        """
        match = _PAIR.fullmatch(text)
        if match is None or match[1] == match[2]:
            raise DataError(
                f"{text!r} is not a pair of languages. Write SOURCE-TARGET with two language codes, as de-en; script "
                "or region follows an underscore, as in en-zh_Hans."
            )
        return cls(match[1], match[2])

    @property
    def back(self) -> "Pair":
        """The other direction."""
        return Pair(self.target, self.source)

    def __str__(self) -> str:
        return f"{self.source}-{self.target}"


UNNAMED = Pair("source", "target")
"""The sides of a task that has no languages. No `Pair.of` gives it: these are no language codes."""


@dataclass(frozen=True, slots=True)
class Reject:
    """A row of the input that is not used."""

    file: str
    line: int
    """Counted from 1; in a parquet file the number of the row."""
    reason: str
    row: Any
    """The row as it was read; text that UTF-8 cannot hold is shown escaped."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """What leads to the last answer, and that answer."""

    messages: tuple[Message, ...]
    reference: str
    source: str
    """The input proper, without the instruction around it where the format tells them apart."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a file, read but, in parallel text, not yet checked: that needs the pair asked for."""

    file: Path
    line: int
    number: int
    """Which row of the file it is; in a JSON list that lies on one line, this tells the rows apart."""
    content: Conversation | Mapping[str, object]
    """A conversation, or the text of each language by its code."""
    raw: object

    def rejected(self, reason: str) -> Reject:
        """This row, refused."""
        return reject(self.file, self.line, self.number, reason, self.raw)


class Format(ABC):
    """One way in which rows lie in files. Has the name of its module."""

    shape: ClassVar[str]
    """What a row looks like, for messages."""

    @abstractmethod
    def rows(self, files: tuple[Path, ...], columns: Pair | None) -> Iterator[Row | Reject]:
        """All rows, in the order of the files.

        Args:
            files: what to read; aligned line files come as source and target.
            columns: languages of the files or columns, for formats that do not name them row by row.
        """


class ObjectFormat(Format):
    """A format whose rows are objects: in a JSON list, in JSON Lines or in parquet."""

    @abstractmethod
    def fits(self, row: Mapping[str, object]) -> bool:
        """Whether the keys are this format's; decides `format: auto`."""

    @abstractmethod
    def content(self, row: Mapping[str, object]) -> Conversation | Mapping[str, object]:
        """What the row says.

        Raises:
            BadRow: it cannot be used.
        """

    def rows(self, files: tuple[Path, ...], columns: Pair | None) -> Iterator[Row | Reject]:
        """All rows, in the order of the files; the columns have names, so none need be told."""
        for file in files:
            for item in _objects.items(file):
                try:
                    if item.error:
                        raise BadRow(item.error)
                    if not isinstance(item.value, dict):
                        raise BadRow(f"a row must be an object, this is a {type(item.value).__name__}")
                    content = self.content(item.value)
                except BadRow as error:
                    yield reject(file, item.line, item.number, str(error), item.value)
                else:
                    yield Row(file, item.line, item.number, content, item.value)


def reject(file: Path, line: int, number: int, reason: str, raw: object) -> Reject:
    """A refused row, with its number where the line alone does not find it, and in a form that can be written."""
    try:
        json.dumps(raw, ensure_ascii=False).encode()
        row = raw
    except (UnicodeEncodeError, TypeError, ValueError):
        row = json.dumps(raw, default=str)
    return Reject(str(file), line, reason if number == line else f"row {number}: {reason}", row)


def text(value: object, name: str) -> str:
    """The value, known to be text with something in it; `name` says which text, for the reason.

    Raises:
        BadRow: it is no text, is empty, or holds control characters.
    """
    if not isinstance(value, str):
        raise BadRow(f"{name} is {'missing' if value is None else 'no text but ' + type(value).__name__}")
    if not value.strip():
        raise BadRow(f"{name} is empty")
    if found := _CONTROL.search(value):
        raise BadRow(f"{name} holds the control character U+{ord(found[0]):04X}")
    return value
