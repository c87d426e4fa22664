"""Progress of long work: a bar on a terminal, plain lines elsewhere; rate, tokens per second and time left."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from radistill.report_text import visible

SECONDS_BETWEEN_LINES = 15.0


class Progress(Protocol):
    """Told how much more is done."""

    def advance(self, rows: int, tokens: int = 0, note: str = "", *, before: bool = False) -> None:
        """So many more rows (and tokens) are done; `before`: by an earlier process, so they tell nothing of time."""


@contextmanager
def progress(title: str, total: int, *, unit: str = "rows") -> Iterator[Progress]:
    """Show progress on standard error while the block runs."""
    if sys.stderr.isatty():
        with _bar(title, total, unit) as bar:
            yield bar
    else:
        lines = _Lines(title, total, unit)
        yield lines
        lines.show(last=True)


class Silence:
    """Progress that somebody else shows."""

    def advance(self, rows: int, tokens: int = 0, note: str = "", *, before: bool = False) -> None:
        """Nothing."""


def rate(tokens: int, seconds: float) -> str:
    """`1,234 tokens/s`, or nothing when there is nothing to divide."""
    return f"{tokens / seconds:,.0f} tokens/s" if tokens and seconds > 0 else ""


def say(text: str) -> None:
    """One line on standard error, beside the progress of work."""
    print(visible(text), file=sys.stderr, flush=True)  # noqa: T201


class _Lines:
    def __init__(self, title: str, total: int, unit: str) -> None:
        self.title, self.total, self.unit = title, total, unit
        self.rows = self.tokens = 0
        self.note = ""
        self.before = 0
        self.started = self.shown = time.monotonic()

    def advance(self, rows: int, tokens: int = 0, note: str = "", *, before: bool = False) -> None:
        self.before += rows if before else 0
        self.rows += rows
        self.tokens += tokens
        self.note = note or self.note
        if time.monotonic() - self.shown >= SECONDS_BETWEEN_LINES:
            self.show()

    def show(self, *, last: bool = False) -> None:
        self.shown = time.monotonic()
        spent = self.shown - self.started
        now = self.rows - self.before
        left = spent / now * (self.total - self.rows) if now else None
        parts = [
            f"{self.rows:,}/{self.total:,} {self.unit}",
            rate(self.tokens, spent),
            self.note,
            f"{spent:.0f} s" if last else ("" if left is None else f"{_clock(left)} left"),
        ]
        print(f"{self.title}: " + ", ".join(p for p in parts if p), file=sys.stderr, flush=True)  # noqa: T201


@contextmanager
def _bar(title: str, total: int, unit: str) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Rich

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TextColumn("{task.fields[tokens]}"),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
    )
    with Rich(*columns, console=Console(stderr=True)) as bars:
        task = bars.add_task(title, total=total, tokens="", note="")
        started, done = time.monotonic(), 0

        class Bar:
            def advance(self, rows: int, tokens: int = 0, note: str = "", *, before: bool = False) -> None:
                nonlocal done
                done += 0 if before else tokens
                spent = time.monotonic() - started
                fields = {"tokens": rate(done, spent)} | ({"note": note} if note else {})
                bars.update(task, advance=rows, **fields)  # type: ignore[arg-type] # rich takes any fields

        yield Bar()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
