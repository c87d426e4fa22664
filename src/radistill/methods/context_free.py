"""Context-free samples: what the untouched model says unprompted is learned beside the examples.

Source: Bansal, Sanghavi: "Context-Free Synthetic Data Mitigates Forgetting", arXiv 2505.13811. Samples of the untouched
model p from the empty context are added to the training data, with cross-entropy. As

    KL(p || q) = E_{x ~ p} [log p(x) - log q(x)],

the mean negative log-likelihood of whole samples under the model in training q is, but for a constant, an estimate of
how far q has gone from p over all texts, not only over those of the task. Of the paper the abstract was read. The
second start is that of Magpie (Xu et al., arXiv 2406.08464): the model is given what its chat template writes before a
user's message, writes the message, and then the answer to it.

Samples are drawn at temperature 1 with top_p 1, or the estimate would be of another distribution; `generate.sampling`
is not used. With `train.labels: stored` or `live` each token is compared with all that the model expected there.

Departures, ours: the two starts in one method, half of the samples each; a sample is cut where the model writes markup
of its template by itself; equal samples are kept once; a user's message is learned like the answer to it; where the
model stopped by itself, the end-of-turn stands for whichever of its stop tokens it wrote. A model without a BOS begins
a text after the token that ends one (`_beside.empty_context`). A model that was never trained on what follows there, or
on users' messages, has nothing to say from that start; it is then no method for that model.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pydantic import Field

from radistill.chat import Chat
from radistill.methods._beside import Part, Turn, empty_context, end_of_turn, joined, user_turn
from radistill.methods.base import Method, Rounds, Whole
from radistill.records import Generation, Request, Sampling, Span, TrainingRecord

PER_REQUEST = 32
"""So many samples share a request, and with it a batch. All but the last request are the same at every ratio."""


class ContextFree(Method):
    """Train on samples of the untouched model too, from the empty context and from the opening of a user's turn."""

    ratio: float = Field(1.0, gt=0)
    """Samples per training example."""
    start: Literal["empty", "user", "both"] = "both"
    """`empty`: a text that nothing precedes; `user`: a user's message and the answer to it; `both`: half of each."""
    weight: float = Field(1.0, gt=0)
    """Loss weight of each token that the model wrote, ends of turns included; a reference token weighs 1."""
    max_new_tokens: int = Field(256, ge=1)
    """At most so many tokens are written of a text, of a user's message, and of the answer to it."""
    min_new_tokens: int = Field(1, ge=1)
    """Samples of which the model wrote fewer tokens than this are dropped."""

    def plan_more(self, whole: Whole, rounds: Rounds) -> Sequence[Request]:
        """First texts and users' messages; then an answer to each message that the model has brought to its end."""
        if len(rounds) > 1:
            return ()
        turn = user_turn(whole.chat)
        if rounds:
            _, messages = self._first(_Sorting(whole.chat, turn), whole, rounds[0])
            return [self._answer(whole, turn, message) for message in messages if message.is_closed]
        n_empty, n_user = self._numbers(whole)
        return [
            *self._samples(whole, "empty", empty_context(whole.chat), n_empty),
            *self._samples(whole, "user", turn.opening, n_user),
        ]

    def assemble_more(self, whole: Whole, rounds: Rounds) -> Iterable[TrainingRecord]:
        """A record for each text, and one for each message, with its answer if it has one."""
        return self.sorted_out(whole, rounds)[0]

    def sorted_out(self, whole: Whole, rounds: Rounds) -> tuple[list[TrainingRecord], Counter[str]]:
        """The records, and what became of all that was written.

        Counted are the generations that `failed`, were `empty`, `equal` to an earlier one or `cut at markup`, and the
        samples that were too `short` or `kept`.
        """
        turn = user_turn(whole.chat)
        sorting = _Sorting(whole.chat, turn)
        texts, messages = self._first(sorting, whole, rounds[0])
        samples = [self._text(whole.chat, text) for text in texts]
        answers = iter(rounds[1] if len(rounds) > 1 else ())
        for message in messages:
            answer = sorting.read(next(answers)) if message.is_closed else None
            samples.append(self._conversation(whole.chat, turn, message, answer))
        kept: dict[str, TrainingRecord] = {}
        for parts in samples:
            if sum(len(part.ids) for part in parts if part.origin == "free") < self.min_new_tokens:
                sorting.counts["short"] += 1
                continue
            record = joined(parts, "free")
            # Where a template writes nothing before a message, a text and a message may be the same.
            sorting.counts["equal"] += record.id in kept
            kept.setdefault(record.id, record)
        sorting.counts["kept"] += len(kept)
        return list(kept.values()), sorting.counts

    def _numbers(self, whole: Whole) -> tuple[int, int]:
        """How many samples begin with nothing, and how many with a user's turn."""
        total = max(1, round(self.ratio * whole.examples))
        n_empty = {"empty": total, "user": 0, "both": total // 2}[self.start]
        return n_empty, total - n_empty

    def _samples(self, whole: Whole, start: str, ids: tuple[int, ...], count: int) -> list[Request]:
        """Requests of many samples, each with a seed of its own: a backend batches what has one way of sampling."""
        from radistill import seeds

        return [
            Request(
                purpose="free",
                prompt_ids=ids,
                spans=(Span("prompt", 0, len(ids)),),
                sampling=self._sampling(
                    seeds.number(whole.seed, "context_free", start, at // PER_REQUEST),
                    n=min(PER_REQUEST, count - at),
                ),
            )
            for at in range(0, count, PER_REQUEST)
        ]

    def _answer(self, whole: Whole, turn: Turn, message: "_Written") -> Request:
        """One answer; all have the same seed, as their prompts differ."""
        ids = (*turn.opening, *message.ids, *turn.closing)
        opened, closed = len(turn.opening), len(ids) - len(turn.closing)
        spans = (Span("prompt", 0, opened), Span("free", opened, closed), Span("prompt", closed, len(ids)))
        return Request(purpose="free", prompt_ids=ids, spans=spans, sampling=self._sampling(whole.seed, n=1))

    def _sampling(self, seed: int, *, n: int) -> Sampling:
        return Sampling(temperature=1.0, top_p=1.0, max_new_tokens=self.max_new_tokens, n=n, seed=seed)

    def _first(
        self, sorting: "_Sorting", whole: Whole, answers: Sequence[Generation]
    ) -> tuple[list["_Written"], list["_Written"]]:
        """Texts and messages of the first round, each kind without its copies."""
        n_empty, n_user = self._numbers(whole)
        assert len(answers) == n_empty + n_user, "one answer for each sample that was asked for"
        return sorting.distinct(answers[:n_empty]), sorting.distinct(answers[n_empty:])

    def _text(self, chat: Chat, text: "_Written") -> list[Part]:
        context = empty_context(chat)
        return [Part("prompt", context, chat.spell((), context)), *self._trained(chat, text)]

    def _conversation(self, chat: Chat, turn: Turn, message: "_Written", answer: "_Written | None") -> list[Part]:
        """Without an answer the message alone, as far as the model wrote it."""
        is_own_end = message.is_stopped and turn.closing[:1] in {(i,) for i in chat.stop_ids}
        own, rest = turn.closing[:is_own_end], turn.closing[is_own_end:]
        parts = [
            Part("prompt", turn.opening, chat.spell((), turn.opening)),
            Part("free", message.ids, message.text, self.weight),
            Part("end", own, chat.spell(message.ids, own), self.weight),
        ]
        if answer is None:
            return parts
        return [*parts, Part("prompt", rest, chat.spell(message.ids, rest)), *self._trained(chat, answer)]

    def _trained(self, chat: Chat, written: "_Written") -> list[Part]:
        end = [end_of_turn(chat, written.ids, self.weight)] if written.is_stopped else []
        return [Part("free", written.ids, written.text, self.weight), *end]


@dataclass(frozen=True, slots=True)
class _Written:
    """What is left of a generation."""

    ids: tuple[int, ...]
    text: str
    is_stopped: bool
    """The model ended it with a token at which it stops."""
    is_closed: bool
    """It did, or it wrote what its template writes after a user's message."""


@dataclass
class _Sorting:
    """Takes from generations what can be trained on."""

    chat: Chat
    turn: Turn
    counts: Counter[str] = field(default_factory=Counter)

    def distinct(self, generations: Iterable[Generation]) -> list[_Written]:
        """Each different one once, in the order in which they first came."""
        found: dict[tuple[int, ...], _Written] = {}
        for written in filter(None, map(self.read, generations)):
            self.counts["equal"] += written.ids in found
            if written.ids not in found or written.is_stopped:
                found[written.ids] = written
        return list(found.values())

    def read(self, generation: Generation) -> _Written | None:
        """Up to the first markup; None if nothing was written."""
        if generation.finish_reason == "error":
            self.counts["failed"] += 1
            return None
        ids, text, mark = self._before_markup(generation)
        self.counts["cut at markup"] += mark is not None
        if not text.strip():
            self.counts["empty"] += 1
            return None
        is_stopped = mark is None and generation.finish_reason == "stop"
        return _Written(ids, text, is_stopped, is_stopped or (mark is not None and mark == self.turn.end))

    def _before_markup(self, generation: Generation) -> tuple[tuple[int, ...], str, str | int | None]:
        """Ids and text before the first markup, and that markup if there is any."""
        ids, text = generation.token_ids, generation.text
        mark: str | int | None = None
        at = next((i for i, token in enumerate(ids) if token in self.turn.markup), None)
        if at is not None:
            mark, ids = ids[at], ids[:at]
            text = self._spelled(ids)
        for words in self.turn.marks:
            if words in text:
                # Blanks before the mark go with it: they are the template's.
                size = len(text[: text.index(words)].rstrip())
                kept = max(n for n in range(len(ids)) if len(self._spelled(ids[:n])) <= size)
                mark, ids = words, ids[:kept]
                text = self._spelled(ids)
        return ids, text, mark

    def _spelled(self, ids: Sequence[int]) -> str:
        return self.chat.spell(self.turn.opening, ids)
