"""Objects from a JSON list, from JSON Lines or from parquet, each with its place in the file.

What is covered: lists written on one line or over many, a byte-order mark, blank lines between JSON Lines, a broken
line (reported, the rest is read). What is not: a list that breaks off, because nothing says where its next row starts.
"""

import json
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from radistill.errors import DataError

SUFFIXES = (".json", ".jsonl", ".ndjson", ".parquet")
_SPACE = re.compile(r"[ \t\r\n]*")
_PROBE = 20


class Item(NamedTuple):
    """One row, or why there is none at this place."""

    line: int
    number: int
    value: object
    error: str = ""


def items(file: Path) -> Iterator[Item]:
    """The rows of a file.

    Raises:
        DataError: the file is in none of these formats, breaks off, or is not UTF-8.
    """
    if file.suffix == ".parquet":
        return _parquet(file)
    start = next((line.lstrip()[:1] for _, line in numbered_lines(file) if line.strip()), "")
    if start == "[":
        return _list(file)
    if start == "{" and file.suffix not in (".jsonl", ".ndjson") and not _has_an_object_per_line(file):
        raise DataError(
            f"{file} is neither a JSON list nor JSON Lines: it starts an object that does not end on its line. "
            "Write [{...}, {...}], or one object per line."
        )
    return _lines(file)


def numbered_lines(file: Path) -> Iterator[tuple[int, str]]:
    """Lines with their numbers from 1, without the line end. U+2028 and the like end no line: they are text.

    Raises:
        DataError: a line is not UTF-8.
    """
    with file.open("rb") as stream:
        for number, raw in enumerate(stream, start=1):
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{file}, line {number}: not UTF-8 (byte 0x{raw[error.start]:02x} at position {error.start + 1}). "
                    f"{_repair(raw if number == 1 else b'')}"
                ) from error
            yield number, line.rstrip("\r\n")


def _repair(start: bytes) -> str:
    if start.startswith((b"\x1f\x8b", b"PK\x03\x04", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")):
        return "It is compressed: unpack it first."
    encoding = "UTF-16" if start.startswith((b"\xff\xfe", b"\xfe\xff")) else "LATIN1"
    return f"Convert the file; if it is {encoding}, with: iconv -f {encoding} -t UTF-8 FILE > NEW"


def _has_an_object_per_line(file: Path) -> bool:
    lines = (line for _, line in numbered_lines(file) if line.strip())
    return any(isinstance(_parse(line)[0], dict) for line in islice(lines, _PROBE))


def _lines(file: Path) -> Iterator[Item]:
    row = 0
    for number, line in numbered_lines(file):
        if not line.strip():
            continue
        row += 1
        value, error = _parse(line)
        # The number counts blank lines too, so that it equals the line and is not shown beside it.
        yield Item(number, number, line if error else value, error)


def _parse(line: str) -> tuple[object, str]:
    try:
        return json.loads(line), ""
    except json.JSONDecodeError as error:
        return None, f"broken JSON at column {error.colno}: {error.msg}"
    except RecursionError:
        return None, "broken JSON: nested too deeply"


def _list(file: Path) -> Iterator[Item]:
    whole = "\n".join(line for _, line in numbered_lines(file))
    decoder = json.JSONDecoder()
    at, line, number = _after_space(whole, _after_space(whole, 0) + 1), 1, 0
    counted = 0
    try:
        while whole[at : at + 1] != "]":
            line, counted = line + whole.count("\n", counted, at), at
            value, end = decoder.raw_decode(whole, at)
            number += 1
            yield Item(line, number, value)
            at = _after_space(whole, end)
            if whole[at : at + 1] == ",":
                at = _after_space(whole, at + 1)
            elif whole[at : at + 1] != "]":
                raise json.JSONDecodeError("Expecting ',' or ']'", whole, at)
        if rest := whole[at + 1 :].strip():
            raise json.JSONDecodeError(f"The list has ended, but {rest[:20]!r} follows", whole, at + 1)
    except (json.JSONDecodeError, RecursionError) as error:
        where = f", line {error.lineno}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        what = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply"
        raise DataError(f"{file}{where}: broken JSON list ({what}). Was the file cut off? Write it again.") from error


def _after_space(whole: str, at: int) -> int:
    match = _SPACE.match(whole, at)
    assert match is not None  # the pattern also matches nothing
    return match.end()


def _parquet(file: Path) -> Iterator[Item]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        number = 0
        with pq.ParquetFile(file) as table:
            for batch in table.iter_batches(batch_size=4096):
                for value in batch.to_pylist():
                    number += 1
                    yield Item(number, number, value)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{file} is not a readable parquet file: {error}") from error
