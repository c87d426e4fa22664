"""Text from a Hugging Face model in this process.

Determinism: the token at position p of request k is drawn with a number that depends on (k, p) alone, so it does not
depend on the batch, its order or a restart. The unit of work is a batch cut from the plan sorted by length, committed
as a whole. In fp32 a row's text does not depend on its batch; in bf16 near-ties may flip when the batch changes.
"""

import gc
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby, islice
from typing import Any, Literal, TypeVar

from pydantic import Field

from radistill import models, seeds
from radistill.backends import _scoring as scoring
from radistill.backends.base import Backend, Generator, InUnits, kind
from radistill.chat import Chat
from radistill.errors import BackendError
from radistill.records import FinishReason, Generation, Request, Sampling
from radistill.speaker import Speaker

Item = TypeVar("Item")

LOOK = 16
"""After so many tokens a batch is first looked at for rows that have ended."""
BATCHES = 4
"""So many batches are committed together; rows that write on when nearly all others of their batch have ended are set
aside and finished together, because a few rows take nearly as long as many."""
FEW = 8
"""A batch of which no more than one row in so many is left sets it aside."""


class Transformers(Backend):
    """`transformers` generate with length-sorted, left-padded batches."""

    batch_size: int = Field(32, ge=1)
    """Rows per batch; halved by itself where a batch does not fit into memory."""
    batch_tokens: int = Field(65_536, ge=1)
    """At most so many tokens per batch, counted as rows times the longest prompt and answer that there may be."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """`auto`: as the weights are stored."""
    attn_implementation: str | None = None
    """transformers' name of an attention kernel (`sdpa`, `eager`, `flash_attention_2`); null = its choice."""

    @contextmanager
    def open(self, speaker: Speaker) -> Iterator[Generator]:
        """Load the model; free its memory on exit."""
        model = models.load(
            speaker.weights,
            dtype=self.dtype,
            attention=self.attn_implementation,
            trust_remote_code=speaker.trust_remote_code,
        )
        generator = TransformersGenerator(self, model, speaker.chat, speaker.weights)
        try:
            yield generator
        finally:
            generator.model = None
            del model
            gc.collect()
            _empty_cache()


@dataclass
class TransformersGenerator(InUnits):
    """See `Transformers`."""

    settings: Transformers
    model: Any
    chat: Chat
    weights: models.Weights
    too_large: float = math.inf
    """Rows x tokens of the smallest batch that did not fit into memory; such a one is not tried again."""

    @property
    def identity(self) -> str:
        """Weights, engine, precision, and where an answer ends."""
        precision = str(next(self.model.parameters()).dtype).removeprefix("torch.")
        return f"{self.weights.identity}|transformers|{precision}|stops {list(self.chat.stop_ids)}"

    @cached_property
    def context(self) -> int:
        """Positions the model was made for."""
        return models.context_length(self.weights.folder) or 1 << 30

    def units(self, requests: Sequence[Request]) -> Iterator[Sequence[Request]]:
        """Batches of rows of similar length; the longest first, so that memory runs out early or not at all."""
        ordered = sorted(requests, key=lambda r: (kind(r), -len(r.prompt_ids), r.key))
        for _, same in groupby(ordered, key=kind):
            rows = list(same)
            batches = self._cut(rows, self._expected)
            together = 1 if rows[0].purpose == "score" else BATCHES
            while unit := [row for batch in islice(batches, together) for row in batch]:
                yield unit

    def answer(self, unit: Sequence[Request]) -> list[Generation]:
        """Generate for one batch; a request that leaves no room in the context becomes an error row."""
        if unit and unit[0].purpose == "score":
            return scoring.score(self.model, unit, pad_id=self.chat.end_id, context=self.context)
        answers: dict[tuple[str, int], Generation] = {}
        fitting = []
        for request in unit:
            if len(request.prompt_ids) >= self.context:
                reason = f"{len(request.prompt_ids)} prompt tokens leave no room in a context of {self.context}"
                failed = Generation(
                    key=request.key, index=0, token_ids=(), text="", finish_reason="error", error=reason
                )
                answers |= {(request.key, i): replace(failed, index=i) for i in range(request.sampling.n)}
            else:
                fitting += [_Row(request, i, self._budget(request)) for i in range(request.sampling.n)]
        for generation in self._in_turn(fitting):
            answers[generation.key, generation.index] = generation
        return [answers[request.key, i] for request in unit for i in range(request.sampling.n)]

    def _cut(self, rows: Sequence[Item], length: Callable[[Item], int]) -> Iterator[list[Item]]:
        """Batches of as many rows as `batch_size` and `batch_tokens` allow; one at least."""
        batch: list[Item] = []
        longest = 0
        for row in rows:
            longest = max(longest, length(row))
            is_full = (len(batch) + 1) * longest > self.settings.batch_tokens
            if batch and (is_full or len(batch) == self.settings.batch_size):
                yield batch
                batch, longest = [], length(row)
            batch.append(row)
        if batch:
            yield batch

    def _expected(self, request: Request) -> int:
        """Tokens that a request may come to."""
        return len(request.prompt_ids) + (0 if request.purpose == "score" else self._budget(request))

    def _budget(self, request: Request) -> int:
        return max(0, min(request.sampling.max_new_tokens, self.context - len(request.prompt_ids)))

    def _in_turn(self, rows: "list[_Row]") -> list[Generation]:
        """Batch by batch, and last those that write longest, together."""
        ended: list[_Row] = []
        aside: list[_Row] = []
        batches = list(self._cut(rows, _length))
        for batch in batches:
            for row in self._in_batches(batch, may_leave=len(batches) > 1):
                (ended if row.has_ended else aside).append(row)
        for batch in self._cut(aside, _length):
            ended += self._in_batches(batch, may_leave=False)
        return [self._read(row) for row in ended]

    def _in_batches(self, rows: "list[_Row]", *, may_leave: bool) -> "list[_Row]":
        """One batch, or two halves of it where memory does not suffice."""
        if not rows:
            return []
        area = len(rows) * max(map(_length, rows))
        if len(rows) > 1 and area >= self.too_large:
            return self._halves(rows, may_leave=may_leave)
        try:
            return self._batch(rows, leave_at=min(len(rows) // FEW, len(rows) - 1) if may_leave else 0)
        except (RuntimeError, MemoryError) as error:
            if not models.is_out_of_memory(error):
                raise
            if len(rows) == 1:
                raise BackendError(
                    f"a single row of {len(rows[0].request.prompt_ids)} tokens does not fit into memory. Lower "
                    "generate.sampling.max_new_tokens, or use generate.backend.dtype=bfloat16."
                ) from error
        # Outside the except block, because the traceback holds the failed batch's tensors.
        self.too_large = area
        _empty_cache()
        return self._halves(rows, may_leave=may_leave)

    def _halves(self, rows: "list[_Row]", *, may_leave: bool) -> "list[_Row]":
        middle = len(rows) // 2
        halves = (rows[:middle], rows[middle:])
        return [row for half in halves for row in self._in_batches(half, may_leave=may_leave)]

    def _batch(self, rows: "list[_Row]", *, leave_at: int) -> "list[_Row]":
        import torch

        longest = max(len(row.ids) for row in rows)
        ids = torch.full((len(rows), longest), self.chat.end_id, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            ids[i, longest - len(row.ids) :] = torch.tensor(row.ids)
            mask[i, longest - len(row.ids) :] = 1
        with torch.inference_mode():
            return self._written(rows, ids.to(self.model.device), mask.to(self.model.device), leave_at)

    def _written(self, rows: "list[_Row]", ids_BT: Any, mask_BT: Any, leave_at: int) -> "list[_Row]":
        """The rows with what was written in each, some of it perhaps behind its end.

        The batch is looked at after a few tokens, then after as many again: rows that have ended leave it with their
        keys and values, so that the others do not drag them along. When no more than `leave_at` are left they are given
        back as they are.
        """
        import torch

        from radistill.backends._growing import growing_cache

        longest = ids_BT.shape[1]
        stops = torch.tensor(sorted(self.chat.stop_ids), device=ids_BT.device)
        done: dict[int, _Row] = {}
        alive, cache = list(range(len(rows))), growing_cache(self.model)
        while len(alive) > leave_at:
            so_far = ids_BT.shape[1] - longest
            # None writes beyond its own limit, which may be that of the context.
            steps = min(max(LOOK, so_far), min(rows[i].left for i in alive) - so_far)
            ids_BT, cache = self._more([rows[i] for i in alive], ids_BT, mask_BT, cache, steps, longest)
            mask_BT = torch.cat([mask_BT, mask_BT.new_ones(len(alive), ids_BT.shape[1] - mask_BT.shape[1])], dim=1)
            so_far = ids_BT.shape[1] - longest
            has_stopped_B = torch.isin(ids_BT[:, longest:], stops).any(dim=1).tolist()
            has_ended_B = [stopped or rows[i].left <= so_far for i, stopped in zip(alive, has_stopped_B, strict=True)]
            kept = [at for at, ended in enumerate(has_ended_B) if not ended]
            for at, ended in enumerate(has_ended_B):
                if ended or len(kept) <= leave_at:
                    done[alive[at]] = rows[alive[at]].and_then(ids_BT[at, longest:].tolist(), has_ended=ended)
            if len(kept) <= leave_at:
                break
            if not _can_select(cache):
                cache = growing_cache(self.model)  # read again, which every architecture can
            if len(kept) < len(alive):
                alive = [alive[at] for at in kept]
                kept_A = torch.tensor(kept, device=ids_BT.device)
                ids_BT, mask_BT = ids_BT[kept_A], mask_BT[kept_A]
                if cache is not None and _can_select(cache):
                    cache.batch_select_indices(kept_A)
        return [done[i] for i in range(len(rows))]

    def _more(
        self, rows: "list[_Row]", ids_BT: Any, mask_BT: Any, cache: Any, steps: int, longest: int
    ) -> tuple[Any, Any]:
        """The ids with up to so many more, and the keys and values of all but the last."""
        from transformers import GenerationConfig

        sampling = rows[0].request.sampling
        keys = [(f"{row.request.key}/{row.index}", len(row.begun)) for row in rows]
        config = GenerationConfig(
            max_new_tokens=steps,
            do_sample=False,  # the draw is made by `_Drawn`, keyed by row and position
            num_beams=1,
            eos_token_id=list(self.chat.stop_ids),
            pad_token_id=self.chat.end_id,
            use_cache=True,
            return_dict_in_generate=True,
        )
        processors = [] if sampling.temperature == 0 else [_Drawn(sampling, keys, longest)]
        out = self.model.generate(
            input_ids=ids_BT,
            attention_mask=mask_BT,
            generation_config=config,
            logits_processor=processors,
            **({} if cache is None else {"past_key_values": cache}),
        )
        return out.sequences, out.past_key_values

    def _read(self, row: "_Row") -> Generation:
        """Everything before the first stop id; without one the row was cut."""
        request, written, stops = row.request, row.begun[: row.budget], set(self.chat.stop_ids)
        end = next((i for i, token in enumerate(written) if token in stops), None)
        ids = written if end is None else written[:end]
        reason: FinishReason = "length" if end is None else "stop"
        text = self.chat.spell(request.prompt_ids, ids)
        return Generation(key=request.key, index=row.index, token_ids=ids, text=text, finish_reason=reason)


@dataclass(frozen=True, slots=True)
class _Row:
    """One answer on its way."""

    request: Request
    index: int
    budget: int
    """At most so many tokens are written."""
    begun: tuple[int, ...] = ()
    """What was written so far."""
    has_ended: bool = False

    @property
    def ids(self) -> tuple[int, ...]:
        """What the model reads next."""
        return self.request.prompt_ids + self.begun

    @property
    def left(self) -> int:
        """So many tokens may still be written."""
        return self.budget - len(self.begun)

    def and_then(self, ids: Sequence[int], *, has_ended: bool) -> "_Row":
        """With these ids more."""
        return replace(self, begun=(*self.begun, *ids), has_ended=has_ended)


def _length(row: _Row) -> int:
    """Tokens that it may come to."""
    return len(row.ids) + row.left


def _can_select(cache: Any) -> bool:
    """Whether rows can be taken out of the keys and values; those of other layers than these hold more than that."""
    from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

    from radistill.backends._growing import GrowingLayer

    plain = (DynamicLayer, DynamicSlidingWindowLayer, GrowingLayer)
    return type(cache) is DynamicCache and all(type(layer) in plain for layer in cache.layers)


class _Drawn:
    """A logits processor that draws the token itself and leaves it as the only one possible.

    The draw inverts the cumulative distribution in the order of the vocabulary, not of the probabilities: two tokens
    that are nearly equal then change nothing when rounding swaps them.
    """

    def __init__(self, sampling: Sampling, keys: list[tuple[str, int]], prompt_length: int) -> None:
        self.sampling = sampling
        self.keys = keys
        """Of each row its key, and how many tokens of what it has read it wrote itself."""
        self.prompt_length = prompt_length

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """(B, T), (B, V) → (B, V), where all but the drawn token are -inf."""
        import torch

        so_far = input_ids.shape[1] - self.prompt_length
        logits_BV = scores.float() - scores.float().amax(dim=-1, keepdim=True)  # else a low temperature overflows
        probs_BV = torch.softmax(logits_BV / self.sampling.temperature, dim=-1)
        if self.sampling.top_p < 1:
            probs_BV = _nucleus(probs_BV, self.sampling.top_p)
        # Not every device has float64, and its sum over a large vocabulary must not lose the tail.
        cumulative_BV = probs_BV.to("cpu", torch.float64).cumsum(dim=-1)
        draws_B = torch.tensor([seeds.uniform(key, n + so_far) for key, n in self.keys], dtype=torch.float64)
        targets_B1 = (draws_B * cumulative_BV[:, -1]).unsqueeze(1)
        chosen_B1 = torch.searchsorted(cumulative_BV, targets_B1, right=True).clamp(max=scores.shape[-1] - 1)
        drawn = torch.full_like(scores, float("-inf"))
        return drawn.scatter(1, chosen_B1.to(scores.device), 0.0)


FIRST = 64
"""So many of the most probable tokens nearly always hold the nucleus; all are sorted only where they do not."""


def _nucleus(probs_BV: Any, top_p: float) -> Any:
    """Zero all but the smallest set of most probable tokens that holds `top_p` (Holtzman et al. 2020); not renormed.

    Tokens as probable as the last of them stay too: which of them it was would depend on the order of sorting.
    """
    size = min(FIRST, probs_BV.shape[-1])
    ordered_BK = probs_BV.topk(size, dim=-1).values
    if size < probs_BV.shape[-1] and bool((ordered_BK.sum(dim=-1) < top_p).any()):
        ordered_BK, _ = probs_BV.sort(dim=-1, descending=True)
    before_BK = ordered_BK.cumsum(dim=-1) - ordered_BK
    # The least probable token that is still kept; the most probable one always is.
    kept_B = (before_BK < top_p).sum(dim=-1, keepdim=True).clamp(min=1)
    threshold_B1 = ordered_BK.gather(1, kept_B - 1)
    return probs_BV.where(probs_BV >= threshold_B1, probs_BV.new_zeros(()))


def _empty_cache() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
