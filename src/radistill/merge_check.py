"""Does the merged model answer as base and adapter did? Logits and greedy answers, before and after.

Three differences are told apart, all of them in logits, over places spread evenly over up to 20 texts:

- *the sum*: merged and unmerged, both in float32. They are the same function; only the order of additions differs;
- *merged and unmerged* in the precision that is written, the merged one as it was read back from the disk;
- *rounding*: what that precision does to the unmerged model, against float32. Merging may not do much more.
"""

import gc
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from radistill.chat import Chat, RowError
from radistill.errors import SharingError
from radistill.models import Weights
from radistill.records import Generation, Message, Request, Sampling

if TYPE_CHECKING:
    from torch import Tensor

PROMPTS = 20
PLACES = 16
"""Logits are compared at so many places of a text: with 20 texts and 128,000 tokens that is 160 MB a model."""
LONGEST = 512
"""Texts are cut to so many tokens."""
ANSWER = 48
"""Greedy answers are cut to so many tokens."""
SAME = 5e-4
"""Of the largest logit: what another order of additions may do in float32. Seen: 1e-6."""
ROUNDED = 4.0
"""Merging may cost at most so many times what rounding the unmerged model costs. Seen: 1.05 to 1.15
(adapters of the pocket model, bfloat16 and float16)."""
QUESTIONS = (
    "Hello! Who are you?",
    "What is the capital of France?",
    "Name three colours.",
    "What is 17 + 25?",
    "Write one sentence about the sea.",
    "Translate into German: The house is old.",
    "Why is the sky blue?",
    "Give a synonym of happy.",
    "Is a whale a fish?",
    "List the days of the week.",
    "How do I boil an egg?",
    "What comes after spring?",
    "Explain in one sentence what a verb is.",
    "Reverse the word: stone.",
    "Which is larger, 9 or 11?",
    "Write a short greeting to a neighbour.",
    "What do bees make?",
    "Complete: Once upon a time",
    "How many legs has a spider?",
    "Say something kind.",
)
"""Asked where there are no texts of a run."""


@dataclass(frozen=True)
class Probe:
    """A text to compare on."""

    prompt_ids: tuple[int, ...]
    """What is answered."""
    ids: tuple[int, ...]
    """Where logits are looked at: the prompt with the answer that was trained on, or the prompt."""


@dataclass(frozen=True)
class Asked:
    """What a model says to the probes."""

    logits_PV: "Tensor"
    """P places of all texts, in float32 on the CPU."""
    texts: tuple[Generation, ...]
    """Greedy answers."""


@dataclass(frozen=True)
class Exact:
    """In float32; logits are (P, V)."""

    unmerged: Asked
    untouched_PV: "Tensor"
    """Of the base without the adapter."""
    merged_PV: "Tensor"


@dataclass(frozen=True)
class Comparison:
    """Differences are absolute, between logits."""

    texts: int
    places: int
    largest: float
    """Between merged and unmerged, in the precision that was written."""
    mean: float
    rounding_mean: float
    """Between the unmerged model in that precision and in float32."""
    sum_largest: float
    """Between merged and unmerged, both in float32."""
    adapter_mean: float
    """Between base with and without the adapter, in float32: what there is to lose."""
    same_first: float
    """Share of the places where both find the same token most probable."""
    answers: int
    equal_answers: int
    """Of them, those that are the same to the last token."""
    rounding_equal_answers: int
    """The same, of the unmerged model in that precision and in float32: what a precision does to greedy answers."""


def probes(records: Path | None, chat: Chat, context: int | None) -> list[Probe]:
    """Up to 20 different prompts: the first of the run's records, and questions where those do not suffice.

    Args:
        records: of the run; None, or a file that is not there, if there are none.
        chat: puts questions into ids.
        context: positions of the model, if it says.
    """
    longest = min(LONGEST, (context or LONGEST) - 1)
    found: dict[tuple[int, ...], Probe] = {}
    for probe in chain(_of_records(records), _of_questions(chat)):
        if 0 < len(probe.prompt_ids) < longest:
            found.setdefault(probe.prompt_ids, Probe(probe.prompt_ids, probe.ids[:longest]))
        if len(found) == PROMPTS:
            break
    return list(found.values())


def _of_records(records: Path | None) -> Iterator[Probe]:
    if records is None or not records.exists():
        return
    from radistill.tables import read_records

    for record in islice(read_records(records), 50 * PROMPTS):
        first = record.segments[0] if record.segments else None
        if first is not None and first.origin == "prompt":
            yield Probe(record.token_ids[: first.stop], record.token_ids)


def _of_questions(chat: Chat) -> Iterator[Probe]:
    for question in QUESTIONS:
        try:
            ids = chat.prompt([Message("user", question)]).ids
        except RowError:  # a template may want a system message
            continue
        yield Probe(ids, ids)


def asked(model: Any, texts: Sequence[Probe], chat: Chat, weights: Weights) -> Asked:
    """Logits and greedy answers of a loaded model."""
    return Asked(logits(model, texts), tuple(_answers(model, texts, chat, weights)))


def logits(model: Any, texts: Sequence[Probe]) -> "Tensor":
    """(P, V), in float32 on the CPU; text by text, so that no batch changes them."""
    import torch

    found = []
    with torch.inference_mode():
        for probe in texts:
            out = model(input_ids=torch.tensor([probe.ids], device=model.device), use_cache=False)
            size = len(probe.ids)
            places = torch.linspace(0, size - 1, min(PLACES, size)).round().long()
            found.append(out.logits[0].cpu()[places].float())
    return torch.cat(found)


def _answers(model: Any, texts: Sequence[Probe], chat: Chat, weights: Weights) -> list[Generation]:
    from radistill.backends.transformers import Transformers, TransformersGenerator

    generator = TransformersGenerator(Transformers(batch_size=PROMPTS), model, chat, weights)
    sampling = Sampling(temperature=0.0, max_new_tokens=ANSWER)
    found = generator.answer([Request(purpose="prediction", prompt_ids=p.prompt_ids, sampling=sampling) for p in texts])
    generator.model = None
    gc.collect()
    return found


def refuse_inexact(exact: Exact) -> None:
    """Refuse a sum that is another function than its parts.

    Raises:
        SharingError: logits differ by more than another order of additions explains.
    """
    largest = _largest(exact.merged_PV, exact.unmerged.logits_PV)
    allowed = SAME * float(exact.unmerged.logits_PV.abs().max())
    if not largest <= allowed:  # nan is not
        raise SharingError(
            f"merged and unmerged differ by {largest:.3g} in their logits, in float32, where {allowed:.3g} is "
            "explained by rounding: this kind of adapter cannot be added to the weights. Nothing was kept; use base "
            "and adapter as they are."
        )


def compared(exact: Exact, unmerged: Asked, merged: Asked, *, dtype: str) -> Comparison:
    """What merging has changed.

    Args:
        exact: in float32.
        unmerged: base and adapter in the precision that was written.
        merged: what was read back.
        dtype: that precision.

    Raises:
        SharingError: it is more than rounding explains.
    """
    before_PV, after_PV = unmerged.logits_PV, merged.logits_PV
    mean, rounding = _mean(after_PV, before_PV), _mean(before_PV, exact.unmerged.logits_PV)
    allowed = ROUNDED * rounding + SAME * float(exact.unmerged.logits_PV.abs().mean())
    if not math.isfinite(mean):
        raise SharingError(
            f"in {dtype} the logits are not finite (inf or nan), so nothing was kept. The numbers of this model are "
            "too large for it: merge with --dtype bfloat16 or float32."
        )
    if mean > allowed:
        raise SharingError(
            f"merged and unmerged differ by {mean:.3g} in their logits on average, where rounding to {dtype} explains "
            f"{allowed:.3g}. Nothing was kept; merge with --dtype float32, or use base and adapter as they are."
        )
    return Comparison(
        texts=len(merged.texts),
        places=len(before_PV),
        largest=_largest(after_PV, before_PV),
        mean=mean,
        rounding_mean=rounding,
        sum_largest=_largest(exact.merged_PV, exact.unmerged.logits_PV),
        adapter_mean=_mean(exact.unmerged.logits_PV, exact.untouched_PV),
        same_first=float((before_PV.argmax(-1) == after_PV.argmax(-1)).float().mean()),
        answers=len(merged.texts),
        equal_answers=_equal(unmerged, merged),
        rounding_equal_answers=_equal(unmerged, exact.unmerged),
    )


def in_words(found: Comparison, dtype: str) -> list[str]:
    """For a model card: one line of Markdown each."""
    is_rounded = dtype != "float32"
    alone = f" (of the unmerged model in {dtype} and in float32: {found.rounding_equal_answers})" if is_rounded else ""
    rounded = [
        f"| merged and unmerged, both in float32 | | {found.sum_largest:.2g} |",
        f"| the unmerged model in {dtype} and in float32 | {found.rounding_mean:.2g} | |",
    ]
    return [
        f"Compared on {found.texts} prompts, the merged model as it was read back from the disk. Differences are",
        "absolute, between logits:",
        "",
        "| | mean | largest |",
        "|---|---|---|",
        f"| merged and unmerged, both in {dtype} | {found.mean:.2g} | {found.largest:.2g} |",
        *(rounded if is_rounded else ()),
        f"| base with and without the adapter | {found.adapter_mean:.2g} | |",
        "",
        f"- places where both find the same token most probable: {100 * found.same_first:.1f} % of {found.places}",
        f"- greedy answers of up to {ANSWER} tokens that are equal: {found.equal_answers} of {found.answers}{alone}",
    ]


def _equal(one: Asked, other: Asked) -> int:
    pairs = zip(one.texts, other.texts, strict=True)
    return sum((a.token_ids, a.finish_reason) == (b.token_ids, b.finish_reason) for a, b in pairs)


def _largest(a_PV: "Tensor", b_PV: "Tensor") -> float:
    return float((a_PV - b_PV).abs().max())


def _mean(a_PV: "Tensor", b_PV: "Tensor") -> float:
    return float((a_PV - b_PV).abs().mean())
