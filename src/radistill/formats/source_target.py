"""Source and target under their own names: `{"source": "…", "target": "…"}`.

Tasks other than translation have such rows, and so have the examples that ALMA prompts with. The languages are those of
the file's name or of the pair asked for, if any.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from radistill.formats.base import UNNAMED, BadRow, ObjectFormat, Pair, Reject, Row


class SourceTarget(ObjectFormat):
    """Rows of a text and what is to be made of it; other keys are not read."""

    shape = '{"source", "target"}'

    def fits(self, row: Mapping[str, object]) -> bool:
        """Both keys are there."""
        return set(row) >= set(UNNAMED)

    def content(self, row: Mapping[str, object]) -> Mapping[str, object]:
        """Both sides."""
        if not set(row) & set(UNNAMED):
            raise BadRow("neither 'source' nor 'target'")
        return {side: row.get(side) for side in UNNAMED}

    def rows(self, files: tuple[Path, ...], columns: Pair | None) -> Iterator[Row | Reject]:
        """All rows, in the order of the files; the sides get the languages of the columns, where there are any."""
        for row in super().rows(files, columns):
            if isinstance(row, Row) and isinstance(row.content, Mapping) and columns is not None:
                sides = zip(columns, UNNAMED, strict=True)
                row = replace(row, content={code: row.content[side] for code, side in sides})
            yield row
