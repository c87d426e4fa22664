"""The event log of a run: what its long stages are doing, one JSON object a line, for people and programs that watch.

It is a log, not data: no stage reads it, and it is the one file in which two equal runs differ by their clocks.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from radistill.errors import writing_into
from radistill.records import json_line

SECONDS_BETWEEN = 10.0


class Events:
    """Appends to a file, or to nothing if it has none."""

    def __init__(self, path: Path | None = None, *, stage: str = "") -> None:
        self.path = path
        self.stage = stage

    def say(self, event: str, **facts: Any) -> None:
        """One line, with the time."""
        if self.path is None:
            return
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        with writing_into(self.path.parent), self.path.open("ab") as file:
            file.write(json_line({"time": now, "stage": self.stage, "event": event, **facts}))

    @contextmanager
    def of(self, what: str, total: int, counts: Any) -> Iterator[Callable[[], None]]:
        """Begin, progress (not more often than every few seconds, when what is yielded is called), end or failure.

        Args:
            what: is being done.
            total: of how many rows.
            counts: a dataclass whose fields are counted up meanwhile.
        """
        started = shown = time.monotonic()

        def say(event: str, **more: Any) -> None:
            seconds = time.monotonic() - started
            speed = round(counts.tokens / seconds, 1) if counts.tokens and seconds > 0 else None
            rows = counts.written + counts.from_ledger + counts.given_up
            left = (total - rows) * seconds / counts.written if counts.written else None
            facts = {"rows": rows, "of": total, **asdict(counts), "tokens_per_second": speed}
            self.say(event, what=what, seconds=round(seconds, 3), **facts, eta_s=left and round(left), **more)

        def progress() -> None:
            nonlocal shown
            if time.monotonic() - shown >= SECONDS_BETWEEN:
                shown = time.monotonic()
                say("progress")

        say("begin")
        try:
            yield progress
        except BaseException as error:
            say("failed", error=f"{type(error).__name__}: {error}")
            raise
        say("end")
