"""What a report page is made of: plain pieces that the templates print."""

from dataclasses import dataclass

from radistill.plots import Drawing
from radistill.report_tables import Table


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Figures and tables that belong together."""

    title: str = ""
    texts: tuple[str, ...] = ()
    drawings: tuple[Drawing, ...] = ()
    tables: tuple[Table, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One heading of the page."""

    id: str
    title: str
    texts: tuple[str, ...] = ()
    parts: tuple[Part, ...] = ()
    items: tuple["Titled", ...] = ()
    """Answers to test items, by group."""
    rows: tuple["Titled", ...] = ()
    """Training rows, by run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Coloured text: where it comes from, and what it spells."""

    look: str
    label: str
    text: str
    language: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One system's reply to one item."""

    system: str
    size: str
    mark: str
    """`right`, `wrong`, or nothing where answers are not simply one of the two."""
    labels: tuple[str, ...]
    pieces: tuple[Piece, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One test item, with every system's answer."""

    title: str
    source: str
    reference: str
    language: str
    looks: tuple[str, ...]
    """`differs`: not all systems answer alike; `lost`, `gained`: a run is wrong where the untouched model is right, or
    the other way round."""
    answers: tuple[Answer, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One training row in its segments."""

    title: str
    pieces: tuple[Piece, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Titled:
    """Things under one heading. Not all fields are used everywhere."""

    title: str
    items: tuple[Item, ...] | tuple[Row, ...] = ()
    text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """All that the templates print."""

    title: str
    subtitle: str
    summary: tuple[str, ...]
    notes: tuple[str, ...]
    sections: tuple[Section, ...]
    has_predictions: bool
    """There is a page with all of them beside this one."""
    command: str
    files: tuple[Titled, ...]
    footer: str

    @property
    def drawings(self) -> list[Drawing]:
        """Every figure of the page."""
        return [d for section in self.sections for part in section.parts for d in part.drawings]
