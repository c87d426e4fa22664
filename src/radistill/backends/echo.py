"""A backend without a model, for tests and dry runs.

Its answers are a pure function of the request: words drawn from the vocabulary by the request's key. So the whole
pipeline can be run, killed and compared without a model, at any speed (`rows_per_second`).
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import ClassVar

from pydantic import Field

from radistill import seeds
from radistill.backends.base import Backend, Generator, InUnits
from radistill.chat import Chat
from radistill.records import Generation, Request
from radistill.speaker import Speaker


class Echo(Backend):
    """Answers with tokens of the prompt, in an order that depends on the request alone."""

    speed_only: ClassVar[frozenset[str]] = frozenset({"rows_per_second", "batch_size"})

    rows_per_second: float | None = Field(None, gt=0)
    """Not faster than this; null = as fast as it goes."""
    batch_size: int = Field(256, ge=1)
    """Rows that are committed together."""
    empty_share: float = Field(0.05, ge=0, le=1)
    """So many answers are empty, as some of a model's are."""

    @contextmanager
    def open(self, speaker: Speaker) -> Iterator[Generator]:
        """Nothing to load."""
        yield EchoGenerator(self, speaker.chat)


@dataclass
class EchoGenerator(InUnits):
    """See `Echo`."""

    settings: Echo
    chat: Chat

    @cached_property
    def markup(self) -> frozenset[int]:
        """Ids that are no text."""
        tokenizer = self.chat.tokenizer
        added = (i for i, token in tokenizer.added_tokens_decoder.items() if token.special)
        return frozenset({*added, *tokenizer.all_special_ids, *self.chat.stop_ids})

    @property
    def identity(self) -> str:
        """Settings that can change an answer."""
        return f"echo:{self.settings.empty_share}"

    def units(self, requests: Sequence[Request]) -> Iterator[Sequence[Request]]:
        """Batches in the order of the plan."""
        for _, same in groupby(requests, key=lambda r: r.purpose == "score"):
            rows = list(same)
            for start in range(0, len(rows), self.settings.batch_size):
                yield rows[start : start + self.settings.batch_size]

    def answer(self, unit: Sequence[Request]) -> list[Generation]:
        """Some of the prompt's own ids, shuffled."""
        if self.settings.rows_per_second:
            time.sleep(len(unit) / self.settings.rows_per_second)
        if unit and unit[0].purpose == "score":
            return [self._scored(request) for request in unit]
        return [self._one(request, index) for request in unit for index in range(request.sampling.n)]

    def _scored(self, request: Request) -> Generation:
        """As if each id had half of the probability, and those after it in the vocabulary most of the rest."""
        import numpy as np

        from radistill.logprobs import LogProbs

        ids, k = np.asarray(request.prompt_ids, dtype=np.int32), request.top_k
        others = np.log([0.5, *[0.4 / max(1, k - 1)] * (k - 1)])[:k]
        top = LogProbs(
            np.where(np.arange(len(ids)) > 0, np.log(0.5), 0.0).astype(np.float32),
            (ids[:, None] + np.arange(k)).astype(np.int32) % len(self.chat.tokenizer),
            np.tile(others.astype(np.float16), (len(ids), 1)),
        )
        return Generation(key=request.key, index=0, token_ids=(), text="", finish_reason="stop", logprobs=top)

    def _one(self, request: Request, index: int) -> Generation:
        draw = seeds.number(index, request.key)
        plain = [i for i in request.prompt_ids if i not in self.markup]
        length = min(request.sampling.max_new_tokens, 1 + draw % 24)
        empty = seeds.uniform(request.key, index) < self.settings.empty_share or not plain
        ids = () if empty else tuple(plain[(draw >> 8) * (i + 1) % len(plain)] for i in range(length))
        cut = length == request.sampling.max_new_tokens and not empty
        return Generation(
            key=request.key,
            index=index,
            token_ids=ids,
            text=self.chat.spell(request.prompt_ids, ids),
            finish_reason="length" if cut else "stop",
        )
