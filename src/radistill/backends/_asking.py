"""Many requests on their way at once: an event loop in a thread of its own, whose answers come back through a queue."""

import asyncio
import queue
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, contextmanager
from typing import Any, TypeVar

from radistill import seeds
from radistill.chat import Chat
from radistill.records import FinishReason, Generation, Request

TOGETHER = 256
"""At most so many answers are committed together."""
SOON = 0.5
"""Seconds after which what has come is committed, though more comes all the time: a kill costs no more than that."""

Result = TypeVar("Result")
Put = Callable[[list[Generation]], None]
"""Hands in the answers to one request."""


class EventLoop:
    """Runs for as long as the `with` lasts."""

    def __enter__(self) -> "EventLoop":
        is_ready = threading.Event()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._stay(is_ready)), name="radistill-asking", daemon=True
        )
        self._thread.start()
        is_ready.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._is_over.set)
        self._thread.join()

    async def _stay(self, is_ready: threading.Event) -> None:
        self._loop, self._is_over = asyncio.get_running_loop(), asyncio.Event()
        is_ready.set()
        await self._is_over.wait()

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """What a coroutine returns, or raises."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    @contextmanager
    def entered(self, manager: AbstractAsyncContextManager[Result]) -> Iterator[Result]:
        """What an asynchronous context manager gives, entered and left in this loop."""
        stack = AsyncExitStack()
        found = self.run(stack.enter_async_context(manager))
        try:
            yield found
        finally:
            self.run(stack.aclose())

    def results(self, work: Callable[[Put], Coroutine[Any, Any, None]]) -> Iterator[list[Generation]]:
        """What `work` hands in, several requests together where they come fast.

        When nobody takes more, the work is cancelled and its end is waited for.

        Raises:
            BaseException: what `work` raises, or the first of several; after what was handed in before.
        """
        done: queue.Queue[list[Generation] | None] = queue.Queue()
        ended = threading.Event()

        async def watched() -> None:
            try:
                await work(done.put)
            finally:
                done.put(None)
                ended.set()

        future = asyncio.run_coroutine_threadsafe(watched(), self._loop)
        try:
            yield from _grouped(done)
            _raise_first(future.exception())
        finally:
            if not future.done():
                future.cancel()
                ended.wait()


async def each(
    requests: Sequence[Request], width: int, answer: Callable[[Request], Awaitable[list[Generation]]], put: Put
) -> None:
    """Answer all of them, at most so many at once.

    Raises:
        BaseExceptionGroup: one of many said that the engine is lost, and so will all.
    """
    waiting = iter(requests)

    async def worker() -> None:
        for request in waiting:
            put(await answer(request))

    # So many tasks as may ever be on their way: a task for each of millions of requests would be too many.
    async with asyncio.TaskGroup() as group:
        for _ in range(min(len(requests), width)):
            group.create_task(worker())


def seed_of(request: Request, index: int) -> int:
    """31 bits for an engine that draws its own numbers; they depend on the request and the number of the answer."""
    return seeds.number(index, request.key) % (1 << 31)


def written(chat: Chat, request: Request, index: int, ids: Sequence[int], *, has_stopped: bool = False) -> Generation:
    """The answer that ends before the first id at which the model stops; without one it was cut, unless it is told."""
    stops = set(chat.stop_ids)
    end = next((i for i, token in enumerate(ids) if token in stops), None)
    kept = tuple(ids if end is None else ids[:end])
    reason: FinishReason = "stop" if end is not None or has_stopped else "length"
    text = chat.spell(request.prompt_ids, kept)
    return Generation(key=request.key, index=index, token_ids=kept, text=text, finish_reason=reason)


def failed(request: Request, index: int, error: str) -> Generation:
    """The answer that could not be had."""
    return Generation(key=request.key, index=index, token_ids=(), text="", finish_reason="error", error=error)


def _grouped(done: "queue.Queue[list[Generation] | None]") -> Iterator[list[Generation]]:
    found = done.get()
    while found is not None:
        together, until = list(found), time.monotonic() + SOON
        while len(together) < TOGETHER and (left := until - time.monotonic()) > 0:
            try:
                found = done.get(timeout=left)
            except queue.Empty:
                break
            if found is None:
                break
            together += found
        yield together
        if found is not None:
            found = done.get()


def _raise_first(error: BaseException | None) -> None:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if error is not None:
        raise error
