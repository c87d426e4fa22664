"""Many requests on their way at once: windows of a plan flow into one another, and every end is an end."""

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import pytest

from radistill.backends import _asking
from radistill.backends._asking import EventLoop
from radistill.backends.base import Window
from radistill.errors import BackendError
from radistill.records import Generation, Request, Sampling

LONG = 60.0
"""Seconds after which what should happen at once has not happened."""


def request_of(number: int) -> Request:
    return Request(purpose="rationale", prompt_ids=(number,), sampling=Sampling(), model="m")


def answer_to(request: Request) -> list[Generation]:
    return [Generation(key=request.key, index=0, token_ids=request.prompt_ids, text="", finish_reason="stop")]


def windows(count: int, size: int = 4) -> Iterator[Window]:
    for start in range(0, count, size):
        plan = [request_of(number) for number in range(start, start + size)]
        yield Window(plan, {r.key for r in plan})


def numbers(answers: Iterator[list[Generation]]) -> list[int]:
    return [g.token_ids[0] for together in answers for g in together]


@pytest.mark.parametrize("width", [1, 3, 100])
def test_all_that_is_lacking_is_answered_once(width: int) -> None:
    def some() -> Iterator[Window]:
        for n, window in enumerate(windows(40)):
            yield Window(window.plan, {r.key for r in window.plan if n != 3 and r.prompt_ids[0] % 4 != 2})

    async def answer(request: Request) -> list[Generation]:
        await asyncio.sleep(0)
        return answer_to(request)

    with EventLoop() as loop:
        found = numbers(loop.answers(some(), width, answer))
    assert sorted(found) == [n for n in range(40) if n // 4 != 3 and n % 4 != 2]


def test_the_next_window_begins_while_the_last_is_on_its_way() -> None:
    """Else an engine would fall idle at the end of each window, until its longest answer is written."""
    later = asyncio.Event()

    async def answer(request: Request) -> list[Generation]:
        match request.prompt_ids[0]:
            case 0:
                await asyncio.wait_for(later.wait(), LONG)  # the first waits for one of the second window
            case 5:
                later.set()
        return answer_to(request)

    with EventLoop() as loop:
        assert sorted(numbers(loop.answers(windows(8), 2, answer))) == list(range(8))


def test_windows_are_taken_only_as_they_are_needed() -> None:
    taken = 0

    def counted() -> Iterator[Window]:
        nonlocal taken
        for window in windows(400):
            taken += 1
            yield window

    async def answer(request: Request) -> list[Generation]:
        if request.prompt_ids[0] >= 4:
            await asyncio.sleep(LONG)
        return answer_to(request)

    with EventLoop() as loop:
        answers = loop.answers(counted(), 8, answer)
        next(answers)
        assert taken <= 5  # eight that wait, eight on their way, and the four that were answered
        answers.close()  # type: ignore[attr-defined] # it is a generator, which is closed as `ask` does by leaving it


def test_what_was_answered_comes_before_the_reason_why_no_more_does() -> None:
    async def answer(request: Request) -> list[Generation]:
        if request.prompt_ids[0] == 3:
            await asyncio.sleep(0.05)
            raise BackendError("the engine is lost")
        return answer_to(request)

    found: list[int] = []
    with EventLoop() as loop:
        answers = loop.answers(windows(4), 2, answer)
        with pytest.raises(BackendError, match="is lost"):
            found.extend(g.token_ids[0] for together in answers for g in together)
    assert found == [0, 1, 2]


def test_a_plan_that_cannot_be_read_ends_what_is_on_its_way() -> None:
    cancelled: list[int] = []

    def broken() -> Iterator[Window]:
        yield from windows(4)
        raise OSError("no more")

    async def answer(request: Request) -> list[Generation]:
        try:
            await asyncio.sleep(LONG)
        except asyncio.CancelledError:
            cancelled.append(request.prompt_ids[0])
            raise
        return answer_to(request)

    with EventLoop() as loop:
        with pytest.raises(OSError, match="no more"):
            list(loop.answers(broken(), 100, answer))
        # Whatever had begun was told to end before the error came out.
        assert sorted(cancelled) == list(range(len(cancelled)))

        async def well(request: Request) -> list[Generation]:
            return answer_to(request)

        assert sorted(numbers(loop.answers(windows(4), 2, well))) == [0, 1, 2, 3]  # the loop is still there
        assert numbers(loop.answers(iter(()), 2, well)) == []


def test_it_is_said_when_there_is_something_to_do_after_there_was_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("radistill.backends._asking.TOGETHER", 4)
    monkeypatch.setattr("radistill.backends._asking.SOON", LONG)
    real, has_filled = _asking._fill, asyncio.Event()

    def fill(line: Any, *rest: Any) -> None:
        real(line, *rest)
        line.loop.call_soon_threadsafe(has_filled.set)

    monkeypatch.setattr(_asking, "_fill", fill)
    begun: list[int] = []
    answered: list[int] = []

    def begins() -> None:
        begun.append(len(answered))

    def slow() -> Iterator[Window]:
        for n, window in enumerate(windows(12)):
            yield Window(window.plan, set() if n == 1 else {r.key for r in window.plan})

    async def answer(request: Request) -> list[Generation]:
        await asyncio.wait_for(has_filled.wait(), LONG)  # or all windows would be taken at once
        return answer_to(request)

    with EventLoop() as loop:
        for together in loop.answers(slow(), 1, answer, begins):
            answered += [g.token_ids[0] for g in together]
    assert begun == [0, 4]  # the second window had nothing in it
    assert len(answered) == 8


def test_an_engine_faster_than_the_disk_waits_for_it() -> None:
    answered = 0

    async def answer(request: Request) -> list[Generation]:
        nonlocal answered
        answered += 1
        return answer_to(request)

    with EventLoop() as loop:
        handed = 0
        for together in loop.answers(windows(4000), 8, answer):
            time.sleep(0.005)
            handed += len(together)
            assert answered - handed <= 4 * 8 + 4
    assert handed == 4000


def test_a_request_that_an_engine_gives_up_is_not_lost_in_silence() -> None:
    async def answer(request: Request) -> list[Generation]:
        if request.prompt_ids[0] == 2:
            raise asyncio.CancelledError
        return answer_to(request)

    with EventLoop() as loop, pytest.raises(BackendError, match="gave up a request"):
        list(loop.answers(windows(8), 1, answer))
