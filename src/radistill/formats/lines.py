"""Aligned line files: line n of `train.de-en.de` and line n of `train.de-en.en` translate each other.

Without languages they are `train.source` and `train.target`.
"""

from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

from radistill.errors import DataError
from radistill.formats._objects import numbered_lines
from radistill.formats.base import Format, Pair, Reject, Row


class Lines(Format):
    """Two files of plain text with as many lines each."""

    shape = "FILE.de + FILE.en (or FILE.source + FILE.target), one text per line"

    def rows(self, files: tuple[Path, ...], columns: Pair | None) -> Iterator[Row | Reject]:
        """The lines, paired by their numbers.

        Raises:
            DataError: the files do not have the same number of lines.
        """
        source, target = files
        assert columns is not None, "whoever finds two line files knows their languages"
        for first, second in zip_longest(numbered_lines(source), numbered_lines(target)):
            if first is None or second is None:
                counts = [sum(1 for _ in numbered_lines(file)) for file in files]
                raise DataError(
                    f"{source} has {counts[0]} lines, {target} has {counts[1]} lines: they are not aligned. "
                    "Line n of one must belong to line n of the other; write an empty line where there is nothing."
                )
            texts = {columns.source: first[1], columns.target: second[1]}
            yield Row(source, first[0], first[0], texts, texts)
