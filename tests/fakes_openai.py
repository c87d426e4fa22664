"""Requests to servers, and what comes back."""

from collections.abc import Sequence
from typing import Any

from fakes_server import FakeServer
from radistill.backends.base import Generator
from radistill.backends.openai import OpenAI
from radistill.records import Generation, Message, Request, Sampling
from radistill.speaker import Speaker

PLAN = Sampling(temperature=1.0, max_new_tokens=12, seed=3)


def requests(speaker: Speaker, count: int, sampling: Sampling = PLAN, *, model: str = "") -> list[Request]:
    found = []
    for n in range(count):
        messages = (Message("user", f"The old dog sees tree {n}."),)
        opening = speaker.chat.opening(messages, f"Good day {n}.", "\n\n")
        found.append(
            Request(
                purpose="rationale",
                prompt_ids=opening.ids,
                spans=opening.spans,
                messages=messages,
                sampling=sampling,
                model=model,
            )
        )
    return found


def answered(server: FakeServer, speaker: Speaker, plan: Sequence[Request], **settings: Any) -> list[Generation]:
    with OpenAI(base_url=(server.url,), **settings).open(speaker) as generator:
        found = [g for together in generator.answers(plan, {r.key for r in plan}) for g in together]
    order = {r.key: n for n, r in enumerate(plan)}
    return sorted(found, key=lambda g: (order[g.key], g.index))


def answers_of(generator: Generator, plan: Sequence[Request]) -> list[Generation]:
    return [g for together in generator.answers(plan, {r.key for r in plan}) for g in together if not g.error]
