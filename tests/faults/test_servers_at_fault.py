"""Several servers of which one is bad, requests that no server answers, and what a run makes of them."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fakes_openai import requests
from fakes_server import Behaviour, serving
from radistill import models
from radistill.ask import ask
from radistill.backends.base import Window
from radistill.backends.openai import OpenAI
from radistill.chat import ChatSettings, load_chat
from radistill.errors import BackendError
from radistill.ledger import open_ledger
from radistill.speaker import Speaker


@pytest.fixture(scope="module")
def speaker(tiny_model: Path) -> Speaker:
    return Speaker(weights=models.resolve(str(tiny_model)), chat=load_chat(tiny_model, ChatSettings()))


@pytest.mark.parametrize("fault", ["500", "404", "malformed"])
def test_a_bad_server_among_several_costs_no_row(speaker: Speaker, tmp_path: Path, fault: str) -> None:
    """It fails fastest, and so has always most room."""
    with (
        serving(speaker.chat) as bad,
        serving(speaker.chat, Behaviour(delay=0.01)) as good,
        OpenAI(base_url=(bad.url, good.url), concurrency=16).open(speaker) as generator,
        open_ledger(tmp_path) as ledger,
    ):
        bad.behaviour.fault = lambda _: fault
        before = bad.requests
        done = ask(requests(speaker, 120, model=generator.identity), generator, ledger, title="")
        assert (done.written, done.failed) == (120, 0)
        assert bad.requests - before < 60


@pytest.mark.parametrize(("fault", "at_once"), [("hang", 1), ("502", 1), ("reset", 1)])
def test_a_request_that_no_server_answers_fails_and_does_not_stop_the_others(
    speaker: Speaker, tmp_path: Path, fault: str, at_once: int
) -> None:
    plan = requests(speaker, 12)
    poison = list(plan[7].prompt_ids)
    settings: dict[str, Any] = {"patience": 1.5, "timeout": 0.5, "tries": 2, "concurrency": at_once}
    with serving(speaker.chat) as server, open_ledger(tmp_path) as ledger:
        server.behaviour.fault = lambda _: fault if server.bodies[-1].get("prompt") == poison else None
        with OpenAI(base_url=(server.url,), **settings).open(speaker) as generator:
            plan = [request.addressed_to(generator.identity) for request in plan]
            done = ask(plan, generator, ledger, title="")
            assert (done.written, done.failed) == (12, 1)
            (row,) = ledger.read([plan[7].key])[plan[7].key]
            assert row.error is not None
            assert "while others are answered" in row.error
            assert server.url not in row.error, "equal runs would differ by the port"


def test_a_pause_in_which_nothing_was_asked_is_no_silence_of_the_server(speaker: Speaker) -> None:
    plan = requests(speaker, 10)
    bad = 0

    def fault(_: int) -> str | None:
        nonlocal bad
        bad -= 1
        return "503 0.01" if bad >= 0 else None

    def windows() -> Iterator[Window]:
        nonlocal bad
        yield Window(plan[:1], {plan[0].key})
        for _ in range(4):
            time.sleep(0.3)  # what is in the ledger already is looked up meanwhile
            yield Window(plan[1:9], set())
        bad = 2
        yield Window(plan[9:], {plan[9].key})

    with serving(speaker.chat, Behaviour(fault=fault)) as server:
        settings: dict[str, Any] = {"patience": 1.0, "concurrency": 4}
        with OpenAI(base_url=(server.url,), **settings).open(speaker) as generator:
            found = [g for together in generator.flow(windows()) for g in together]  # type: ignore[attr-defined]
    assert [g.error for g in found] == [None, None]


def test_servers_that_can_do_different_things_are_refused(speaker: Speaker) -> None:
    with serving(speaker.chat) as one, serving(speaker.chat, Behaviour(greedy=True)) as other:
        backend = OpenAI(base_url=(one.url, other.url))
        with pytest.raises(BackendError, match=r"the servers differ .*it draws nothing"), backend.open(speaker):
            pass
