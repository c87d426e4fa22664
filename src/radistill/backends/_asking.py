"""Many requests on their way at once: an event loop in a thread of its own, whose answers come back through a queue."""

import asyncio
import queue
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, contextmanager
from functools import partial
from typing import Any, TypeVar

from radistill import seeds
from radistill.backends.base import Window
from radistill.chat import Chat
from radistill.errors import BackendError
from radistill.records import FinishReason, Generation, Request

TOGETHER = 256
"""When so many requests are answered, their answers are committed, with whatever else is there by then."""
SOON = 0.5
"""Seconds after which what has come is committed, though more comes all the time: a kill costs little more."""

Result = TypeVar("Result")
Answer = Callable[[Request], Awaitable[list[Generation]]]


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

    def answers(
        self, windows: Iterator[Window], width: int, answer: Answer, begins: Callable[[], None] = lambda: None
    ) -> Iterator[list[Generation]]:
        """Answer all that is lacking, at most `width` requests at once; several together where answers come fast.

        The next window is taken while there is still enough to do, and in the thread of the caller.
        When nobody takes more, what is on its way is cancelled and its end is waited for.

        Args:
            windows: of a plan.
            width: more than the engine can work on, so that it never waits.
            answer: one request.
            begins: called before there is something to do after there was nothing.

        Raises:
            BaseException: what `answer` raises, or the first of several; after what was answered before.
        """
        line = _Line(self._loop)
        task = self.run(line.begin(width, answer))
        try:
            yield from _grouped(line, partial(_fill, line, windows, width, begins))
            _raise_first(task.exception())
        finally:
            if not task.done():
                self.run(_cancelled(task))


class _Line:
    """Requests that wait for their turn: put in by one thread, taken by tasks of a loop in another."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.put_in = 0
        """So many requests so far."""
        self.taken = 0
        self.answered = 0
        self.handed_on = 0
        """To whoever asked, with their answers."""
        self.is_closed = False
        self.done: queue.Queue[list[Generation] | None] = queue.Queue()
        """What was answered; None when no more will come."""
        self._waiting: deque[Request | None] = deque()
        self._more = asyncio.Event()

    def put(self, requests: Sequence[Request], *, is_last: bool = False) -> None:
        """To be answered."""
        self.put_in += len(requests)
        self.is_closed = is_last
        self.loop.call_soon_threadsafe(self._let_in, [*requests, None] if is_last else requests)

    def _let_in(self, requests: Sequence[Request | None]) -> None:
        self._waiting.extend(requests)
        self._more.set()

    async def begin(self, width: int, answer: Answer) -> "asyncio.Task[None]":
        """Answer what is put in, until the last."""
        task = asyncio.create_task(self._work(width, answer))
        task.add_done_callback(lambda _: self.done.put(None))
        return task

    async def _work(self, width: int, answer: Answer) -> None:
        # So many tasks as may ever be on their way: a task for each of millions of requests would be too many.
        async with asyncio.TaskGroup() as group:
            for _ in range(width):
                group.create_task(self._one_by_one(answer))

    async def _one_by_one(self, answer: Answer) -> None:
        while True:
            while not self._waiting:
                self._more.clear()
                await self._more.wait()
            request = self._waiting[0]
            if request is None:
                return  # it stays, for the others
            self._waiting.popleft()
            self.taken += 1
            try:
                found = await answer(request)
            except asyncio.CancelledError as error:
                if (task := asyncio.current_task()) is not None and task.cancelling():
                    raise  # by us
                raise BackendError("the engine gave up a request; what was written is kept: run it again.") from error
            self.answered += 1
            self.done.put(found)


def _fill(line: _Line, windows: Iterator[Window], width: int, begins: Callable[[], None]) -> None:
    """Take windows until enough requests wait, or there are none any more; answers that have come go first.

    What is answered and not handed on counts as waiting: where commits are slower than the engine, it must wait.
    """
    while line.put_in - line.handed_on < 2 * width and line.put_in - line.taken < width and not line.is_closed:
        window = next(windows, None)
        todo = window.todo if window else []
        if todo and line.answered == line.put_in:
            begins()
        line.put(todo, is_last=window is None)
        if not line.done.empty():
            return


async def _cancelled(task: "asyncio.Task[None]") -> None:
    task.cancel()
    await asyncio.wait([task])


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


def _grouped(line: _Line, fill: Callable[[], None]) -> Iterator[list[Generation]]:
    fill()
    found = line.done.get()
    while found is not None:
        line.handed_on += 1
        together, until = list(found), time.monotonic() + SOON
        while len(together) < TOGETHER and (left := until - time.monotonic()) > 0:
            try:
                found = line.done.get(timeout=left)
            except queue.Empty:
                break
            if found is None:
                break
            line.handed_on += 1
            together += found
        while found is not None and not line.done.empty():
            found = line.done.get()
            if found is not None:
                line.handed_on += 1
                together += found
        yield together
        fill()
        if found is not None:
            found = line.done.get()


def _raise_first(error: BaseException | None) -> None:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if error is not None:
        raise error
