"""What can write text.

A backend is settings; `open` loads the model or connects to the server and yields a generator that lives only inside
the `with`. Ids in, ids out: a backend never renders a template. The foreign package is imported inside `open`.
No backend keeps or retries anything by itself: `ask.py` does, for all of them.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from radistill.records import Generation, Request
from radistill.settings import Settings
from radistill.speaker import Speaker


class Generator(Protocol):
    """A model that is loaded and ready."""

    @property
    def identity(self) -> str:
        """All that can change an answer but the request: weights, engine, precision, stop ids."""

    def units(self, requests: Sequence[Request]) -> Iterator[Sequence[Request]]:
        """Cut a plan into units of work. The cut depends on the plan alone, never on what is already answered."""

    def answer(self, unit: Sequence[Request]) -> list[Generation]:
        """`sampling.n` generations for every request, in the order of the unit.

        A request the engine refuses becomes a generation with `finish_reason="error"`; an engine that is lost raises
        BackendError.
        """


class Backend(Settings, ABC):
    """Where and how a model runs."""

    @abstractmethod
    def open(self, speaker: Speaker) -> AbstractContextManager[Generator]:
        """Load the model or connect to the server, and release it on exit whatever happened."""


PLUGIN = Backend
