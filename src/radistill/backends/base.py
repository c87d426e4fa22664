"""What can write text.

A backend is settings; `open` loads the model or connects to the server and yields a generator that lives only inside
the `with`. Ids in, ids out: a backend never renders a template. The foreign package is imported inside `open`.
No backend keeps anything by itself: `ask.py` does, for all of them.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from radistill import plugins
from radistill.records import Generation, Request, sampling_key
from radistill.settings import Settings
from radistill.speaker import Speaker


class Generator(Protocol):
    """A model that is loaded and ready."""

    @property
    def identity(self) -> str:
        """All that can change an answer but the request: weights, engine, precision, stop ids."""

    def answers(self, plan: Sequence[Request], lacking: AbstractSet[str]) -> Iterator[Sequence[Generation]]:
        """Answer those requests of a plan whose keys are lacking; what is yielded together is committed together.

        The answers come in any order, `sampling.n` for every request, which are yielded together. A request the engine
        refuses becomes a generation with `finish_reason="error"`; an engine that is lost raises BackendError. What was
        yielded before is kept, so that nothing is asked twice.

        Args:
            plan: different requests, all that are asked for at once. How they are cut into batches may depend on these
                alone, never on what is lacking: a run that was killed goes on with the same batches.
            lacking: keys of those that have no answer yet.
        """


def kind(request: Request) -> tuple[bool, int, list[object]]:
    """What the requests of one batch have in common; can be sorted by."""
    return request.purpose == "score", request.top_k, sampling_key(request.sampling)


def scoring_problem(generator: Generator, top_k: int) -> str:
    """Why that generator cannot tell the `top_k` most probable tokens of a prompt; nothing if it can."""
    return generator.scoring_problem(top_k) if isinstance(generator, MayNotScore) else ""


class MayNotScore(ABC):
    """A generator that may be unable to answer requests for scores."""

    @abstractmethod
    def scoring_problem(self, top_k: int) -> str:
        """Why; nothing if it can."""


class InUnits(ABC):
    """A generator that works off batches, one after another."""

    @abstractmethod
    def units(self, requests: Sequence[Request]) -> Iterator[Sequence[Request]]:
        """Cut a plan into batches."""

    @abstractmethod
    def answer(self, unit: Sequence[Request]) -> list[Generation]:
        """`sampling.n` generations for every request, in the order of the unit."""

    def answers(self, plan: Sequence[Request], lacking: AbstractSet[str]) -> Iterator[Sequence[Generation]]:
        """See `Generator.answers`."""
        for unit in self.units(plan):
            if todo := [request for request in unit if request.key in lacking]:
                yield self.answer(todo)


@dataclass(frozen=True)
class Window:
    """Different requests of a plan that are held in memory together."""

    plan: Sequence[Request]
    lacking: AbstractSet[str]
    """Keys of those that have no answer yet."""

    @property
    def todo(self) -> list[Request]:
        """Those without an answer, in the order of the plan."""
        return [request for request in self.plan if request.key in self.lacking]


class Flowing(ABC):
    """A generator whose requests do not wait for each other: it takes more while the last are still on their way."""

    @abstractmethod
    def flow(self, windows: Iterator[Window]) -> Iterator[Sequence[Generation]]:
        """As `Generator.answers`, for a plan of any length.

        Args:
            windows: of the plan; taken one by one, when there is little left to do, in the thread of the caller.
        """

    def answers(self, plan: Sequence[Request], lacking: AbstractSet[str]) -> Iterator[Sequence[Generation]]:
        """See `Generator.answers`."""
        return self.flow(iter([Window(plan, lacking)]))


class Backend(Settings, ABC):
    """Where and how a model runs."""

    speed_only: ClassVar[frozenset[str]] = frozenset()
    """Settings that cannot change an answer: what was begun with others may be gone on with."""

    @property
    def may_not_score(self) -> bool:
        """Whether its generators may be unable to tell log-probabilities, which is cheap to find out."""
        return False

    def only_untouched(self) -> str | None:
        """Why it cannot be opened with a model that this run trains and then predicts with; None if it can."""
        return None

    def missing(self) -> str | None:
        """What must be installed before this backend can be opened, told without opening it; None if nothing."""
        return None

    @property
    def telling(self) -> dict[str, Any]:
        """Its name, and the settings that may change an answer."""
        given = self.model_dump(mode="json", exclude=set(self.speed_only))
        return {"name": plugins.name_of(self), **given}

    @abstractmethod
    def open(self, speaker: Speaker) -> AbstractContextManager[Generator]:
        """Load the model or connect to the server, and release it on exit whatever happened."""


PLUGIN = Backend
