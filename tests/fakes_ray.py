"""Backends for actors of Ray: one that kills its own process over some rows, and one with a bug."""

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from radistill.backends.base import Backend, Generator
from radistill.backends.echo import Echo, EchoGenerator
from radistill.records import Generation, Request
from radistill.speaker import Speaker

BAD_SEED = 13


class Fragile(Echo):
    """Echo, but for requests with an unlucky seed."""

    does: str = "die"
    """`die`: as when the memory is full; `fail`: as when there is a bug."""

    @contextmanager
    def open(self, speaker: Speaker) -> Iterator[Generator]:
        yield FragileGenerator(self, speaker.chat)


class FragileGenerator(EchoGenerator):
    def answer(self, unit: Sequence[Request]) -> list[Generation]:
        assert isinstance(self.settings, Fragile)
        if any(request.sampling.seed == BAD_SEED for request in unit):
            if self.settings.does == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            raise ZeroDivisionError("the bug that was put in")
        return super().answer(unit)


class Moody(Backend):
    """Is another one every time it is opened."""

    @contextmanager
    def open(self, speaker: Speaker) -> Iterator[Generator]:
        yield MoodyGenerator(Echo(), speaker.chat)


class MoodyGenerator(EchoGenerator):
    @property
    def identity(self) -> str:
        return f"process {os.getpid()}"
