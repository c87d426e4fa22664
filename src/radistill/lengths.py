"""How long records are: what becomes of those that are too long, and how much padding the others bring.

`train.on_long` says what becomes of a record that is longer than `train.max_length` or than the model's context. A
reference is never cut: what is cut is a rationale, at its end, as `generate.keep_tokens` cuts it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from radistill.records import Generation, Request, TrainingRecord

if TYPE_CHECKING:
    from radistill.chat import Chat

EDGES = (0, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
SAMPLED = 2000
"""So many batches tell the share of padding of all."""
BECOMES = {
    "error": "the model stops writing at its context, and a record that is longer than train.max_length stops the run",
    "drop": "the model stops writing at its context, and records that are longer than train.max_length are dropped and "
    "counted",
    "cut_rationale": "rationales are cut there",
}
"""What is done about records that may become too long, by `train.on_long`."""
WORDS = "(train.max_length or the model's context)"


def histogram(lengths: Sequence[int]) -> dict[str, int]:
    """How many lie between two powers of two; what is empty is left out."""
    counts, _ = np.histogram(lengths, bins=[*EDGES, 1 << 31])
    names = [*(f"{low}-{high - 1}" for low, high in pairwise(EDGES)), f"{EDGES[-1]}+"]
    return {name: int(count) for name, count in zip(names, counts, strict=True) if count}


@dataclass(frozen=True)
class Spread:
    """The lengths of what is trained on, and the share of padding in its batches."""

    lengths: Sequence[int]
    padding: float
    """Share of the places in all rows that hold no token, with the run's `train.packing`."""
    padding_unpacked: float
    """The same, had every record a row of its own."""

    @classmethod
    def of(cls, lengths: Sequence[int], *, batch_size: int, packing: bool, seed: int) -> "Spread":
        """Estimated from batches of shuffled records, at most SAMPLED of them."""
        order = np.random.default_rng(seed).permutation(len(lengths))[: batch_size * SAMPLED]
        batches = [[lengths[i] for i in order[at : at + batch_size]] for at in range(0, len(order), batch_size)]
        packed, alone = padding(batches, packing=True), padding(batches, packing=False)
        return cls(lengths, packed if packing else alone, alone)

    def facts(self) -> dict[str, Any]:
        """For the manifest; padding as shares between 0 and 1."""
        return {
            "lengths": {
                "min": min(self.lengths),
                "median": float(np.median(self.lengths)),
                "p95": float(np.quantile(self.lengths, 0.95)),
                "max": max(self.lengths),
                "histogram": histogram(self.lengths),
            },
            "padding": round(self.padding, 4),
            "padding_unpacked": round(self.padding_unpacked, 4),
        }

    def __str__(self) -> str:
        found = self.facts()["lengths"]
        counted = ", ".join(f"{name}: {count:,}" for name, count in found["histogram"].items())
        # Where records are not packed, both are the same number.
        unpacked = f", {self.padding_unpacked:.1%} without packing" if self.padding != self.padding_unpacked else ""
        return (
            f"{len(self.lengths):,} records of {found['min']:,} to {found['max']:,} tokens, median "
            f"{found['median']:,.0f} ({counted}); {self.padding:.1%} of what is computed is padding{unpacked}"
        )


def padding(batches: Sequence[Sequence[int]], *, packing: bool) -> float:
    """Share of places without a token, given the lengths of the records of each batch."""
    from radistill.packing import pack  # which brings torch

    places = sum((len(pack(batch, max(batch))) if packing else len(batch)) * max(batch) for batch in batches)
    return 1.0 - sum(map(sum, batches)) / places if places else 0.0


def cut(
    records: Sequence[TrainingRecord],
    taken: Sequence[Generation],
    chat: "Chat",
    limit: int,
) -> list[Generation]:
    """What was written, rationales shortened so far that the records which hold them have no more ids than `limit`.

    A shortened rationale has no end-of-turn. One of which nothing would be left becomes an empty one, as if the model
    had had nothing to add.

    Args:
        records: made of it as it is.
        taken: what was written.
        chat: spells what is left.
        limit: the longest that may be trained on.
    """
    keep: dict[int, int] = {}
    for record in records:
        over = len(record.token_ids) - limit
        if over <= 0:
            continue
        ends = sum(s.stop - s.start for s in record.segments if s.origin == "end")
        held = {record.token_ids[s.start : s.stop] for s in record.segments if s.origin == "rationale"}
        for n, generation in enumerate(taken):
            if generation.token_ids in held:
                keep[n] = max(0, min(keep.get(n, generation.n_tokens), generation.n_tokens - over + ends))
    return [shortened(g, chat, keep[n]) if n in keep else g for n, g in enumerate(taken)]


def shortened(generation: Generation, chat: "Chat", tokens: int) -> Generation:
    """Its first tokens, without an end-of-turn; without any, an empty one that ends by itself."""
    if not tokens:
        return replace(generation, token_ids=(), text="", finish_reason="stop")
    ids = generation.token_ids[:tokens]
    return replace(generation, token_ids=ids, text=chat.spell((), ids), finish_reason="length")


def too_long(limit: int | None, requests: Iterable[Request]) -> list[str | None]:
    """Ids of the examples whose prompt and reference alone are too long, with the end-of-turn that closes them."""
    if limit is None:
        return []
    return [
        request.example_id
        for request in requests
        if any(span.origin == "reference" and span.stop + 1 > limit for span in request.spans)
    ]


def refusal(limit: int | None, count: int, first: str) -> str:
    """The message of `train.on_long: error`."""
    return (
        f"{count} records are longer than {limit} tokens {WORDS}, the first {first}, and train.on_long is error. Raise "
        "train.max_length, take a model with a longer context, or set train.on_long to drop (leaves such records out "
        "and counts them) or cut_rationale (cuts their rationales first, never a reference)."
    )
