"""Parallel text in columns divided by tabs, with or without a header. A quotation mark is a quotation mark.

With a header, the columns are found by language code (`de`, `en`) or as `source` and `target`, and others may stand
beside them. Without one there are two columns in the order of the pair, or source and target where there is no pair.
"""

from collections.abc import Iterator
from pathlib import Path

from radistill.formats._objects import numbered_lines
from radistill.formats.base import Format, Pair, Reject, Row, reject

SIDES = {"source": 0, "src": 0, "target": 1, "tgt": 1}


class TSV(Format):
    """Columns divided by tabs."""

    shape = "two columns with a tab between: source and target"

    def rows(self, files: tuple[Path, ...], columns: Pair | None) -> Iterator[Row | Reject]:
        """All lines but the header."""
        assert columns is not None, "whoever finds a TSV file knows its languages"
        for file in files:
            names: tuple[str, ...] | None = None
            for number, line in numbered_lines(file):
                cells = line.split("\t")
                if number == 1 and (names := header(cells, columns)):
                    continue
                expected = len(names) if names else 2
                if len(cells) != expected:
                    yield reject(file, number, number, f"{len(cells)} columns where {expected} should be", line)
                else:
                    yield Row(file, number, number, dict(zip(names or columns, cells, strict=True)), line)


def header(cells: list[str], columns: Pair) -> tuple[str, ...] | None:
    """Names of the columns, `source` and `target` replaced by their language; None if the cells are no header."""
    names = [cell.strip() for cell in cells]
    if {name.lower() for name in names} >= {"source", "target"} or {n.lower() for n in names} >= {"src", "tgt"}:
        return tuple(columns[SIDES[name.lower()]] if name.lower() in SIDES else name for name in names)
    return tuple(names) if set(names) >= set(columns) else None
