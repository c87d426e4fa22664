"""A server that is busy, wrong, silent or killed: every row is there once and the same, or failed with its reason."""

import json
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fakes_server import FAULTS, Behaviour, serving
from radistill import models, pipeline
from radistill.ask import answers_to, ask
from radistill.backends.openai import OpenAI
from radistill.chat import ChatSettings, load_chat
from radistill.config import config_from
from radistill.ledger import Ledger, open_ledger
from radistill.ledger_care import looked_through
from radistill.records import Generation, Message, Request, Sampling
from radistill.speaker import Speaker
from radistill.tables import read_records

SCRIPT = Path(__file__).resolve().parents[1] / "fakes_server.py"
PLAN = Sampling(temperature=1.0, max_new_tokens=12, seed=3)


@pytest.fixture(scope="module")
def speaker(tiny_model: Path) -> Speaker:
    return Speaker(weights=models.resolve(str(tiny_model)), chat=load_chat(tiny_model, ChatSettings()))


def asked(speaker: Speaker, ledger: Ledger, url: str, count: int, **settings: Any) -> list[Generation]:
    """So many rows, through the ledger, in the order of the plan."""
    with OpenAI(base_url=(url,), **settings).open(speaker) as generator:
        plan = []
        for n in range(count):
            opening = speaker.chat.opening((Message("user", f"The old dog sees tree {n}."),), f"Good day {n}.", "\n\n")
            plan.append(Request(purpose="rationale", prompt_ids=opening.ids, spans=opening.spans, sampling=PLAN))
        plan = [request.addressed_to(generator.identity) for request in plan]
        ask(plan, generator, ledger, title="")
        stored = answers_to(plan, ledger)
    return [row for request in plan for row in stored[request.key]]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_server_that_fails_at_times_gives_the_rows_of_one_that_never_does(
    speaker: Speaker, tmp_path: Path, fault: str
) -> None:
    with serving(speaker.chat) as well, open_ledger(tmp_path / "quiet") as ledger:
        quiet = asked(speaker, ledger, well.url, 12)
    behaviour = Behaviour(fault=lambda number: fault if number > 2 and number % 4 == 0 else None)
    with serving(speaker.chat, behaviour) as server, open_ledger(tmp_path / "disturbed") as ledger:
        disturbed = asked(speaker, ledger, server.url, 12, timeout=0.4, tries=10)
        assert server.requests > 2 + 12
    assert disturbed == quiet
    assert looked_through(tmp_path / "disturbed").doubled == 0


def answer(ids: str = "[5]", reason: str = '"stop"', usage: str = "") -> str:
    return f'{{"choices": [{{"finish_reason": {reason}, "token_ids": {ids}}}]{usage}}}'


N = ', "usage": {"prompt_tokens": N}'
SHAPES = {
    "null": ("null", "no choices"),
    "half a surrogate pair": ('"\\ud800"', "no choices"),
    "a number for a choice": ('{"choices": [5]}', "no choices"),
    "no text": ("\xff\xfe\x00", "no JSON"),
    "too deep": ("[" * 100_000, "no JSON"),
    "usage": (answer(usage=', "usage": 7'), r"no usage\.prompt_tokens"),
    "prompt_tokens": (answer(usage=', "usage": {"prompt_tokens": "many"}'), r"no usage\.prompt_tokens"),
    "prompt_token_ids": (answer("{}", usage=f'{N}, "prompt_token_ids": 7'), "no token_ids"),
    "finish_reason": (answer(reason='"abort"', usage=N), "'abort'"),
    **{
        f"token_ids {ids}": (answer(ids, usage=N), "token_ids that are none")
        for ids in ('["a"]', "[1.5]", "[null]", "[[1]]", "[true]", "[-1]", "[999999]")
    },
}


@pytest.mark.parametrize("shape", SHAPES)
def test_an_answer_of_another_shape_is_a_failed_row_with_its_reason(
    speaker: Speaker, tmp_path: Path, shape: str
) -> None:
    body, said = SHAPES[shape]

    def fault(number: int) -> str | None:
        prompt = server.bodies[-1]["prompt"]
        return body.replace("N", str(len(prompt))) if number > 2 else None

    with serving(speaker.chat, Behaviour(fault=fault)) as server, open_ledger(tmp_path) as ledger:
        (row,) = asked(speaker, ledger, server.url, 1, tries=2, form="ids")
        assert row.finish_reason == "error"
        assert row.error is not None
        assert re.search(said, row.error), row.error
        server.behaviour.fault = lambda _: None
        (row,) = asked(speaker, ledger, server.url, 1, form="ids")
        assert row.error is None


def test_as_long_as_a_server_says_so_it_is_left_in_peace(speaker: Speaker, tmp_path: Path) -> None:
    busy = Behaviour(fault=lambda number: "429 0.5" if number == 3 else None)
    with serving(speaker.chat, busy) as server, open_ledger(tmp_path) as ledger:
        asked(speaker, ledger, server.url, 3, concurrency=1)
    assert server.times[3] - server.times[2] >= 0.5


@contextmanager
def process(port: int, log: Path) -> Iterator["subprocess.Popen[str]"]:
    """A server of its own."""
    command = [sys.executable, str(SCRIPT), "--port", str(port), "--log", str(log), "--delay", "0.01"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        try:
            yield server
        finally:
            server.kill()


def test_answers_that_come_steadily_are_committed_soon(speaker: Speaker, tmp_path: Path) -> None:
    with serving(speaker.chat, Behaviour(delay=0.05)) as server, open_ledger(tmp_path) as ledger:
        asked(speaker, ledger, server.url, 40, concurrency=1)
        (shard,) = ledger.files()
        assert shard.read_bytes().count(b'{"commit"') > 2


def test_a_server_process_that_is_killed_and_started_again_costs_no_row(speaker: Speaker, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url, found = f"http://127.0.0.1:{port}/v1", []

    def client() -> None:
        with open_ledger(tmp_path / "disturbed") as ledger:
            found.append(asked(speaker, ledger, url, 100, concurrency=1, timeout=5))

    shards = tmp_path / "disturbed" / "shards"
    thread = threading.Thread(target=client)
    with process(port, tmp_path / "log"):
        thread.start()
        while not any(shard.stat().st_size for shard in shards.glob("*.jsonl")):
            thread.join(0.01)
            assert thread.is_alive()
    assert thread.is_alive()
    with process(port, tmp_path / "log"):
        thread.join(60)
        with open_ledger(tmp_path / "quiet") as ledger:
            quiet = asked(speaker, ledger, url, 100)
    assert found == [quiet]
    assert len(quiet) == 100
    assert {row.error for row in quiet} == {None}
    assert looked_through(tmp_path / "disturbed").doubled == 0


def test_what_a_server_never_answers_well_is_kept_with_its_error_tried_again_and_then_reported(
    raw_config: dict[str, Any], speaker: Speaker
) -> None:
    raw_config["generate"]["max_attempts"] = 2
    raw_config["data"]["train"]["limit"] = 6
    probes = 8

    def fault(number: int) -> str | None:
        return "500" if number > probes and server.bodies[-1]["prompt"] == server.bodies[probes]["prompt"] else None

    def generated() -> tuple[int, int, int]:
        facts = pipeline.run(config, stages=("generate",))[0].record.facts
        return facts["failed"], facts["given_up"], server.requests

    with serving(speaker.chat, Behaviour(fault=fault)) as server:
        backend = {"name": "openai", "base_url": server.url, "tries": 3, "concurrency": 1}
        raw_config["generate"]["backend"] = backend
        config = config_from(raw_config)
        rows, tries = 6, 3
        once = probes + rows - 1 + tries
        assert generated() == (1, 0, once)
        assert generated() == (1, 0, once + probes + tries)
        failed, given_up, requests = generated()
        assert (failed, given_up, requests) == (1, 1, once + 2 * probes + tries)
        assert generated() == (1, 1, requests)
    pipeline.run(config, stages=("assemble",))
    folder = Path(raw_config["output_dir"])
    assert len(list(read_records(folder / "records.parquet"))) == rows - 1
    (reject,) = map(json.loads, (folder / "rejects.jsonl").read_text(encoding="utf-8").splitlines())
    assert "says 500: too much (3 times)" in json.dumps(reject)
