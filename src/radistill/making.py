"""Examples and what was written → records, before any is scored, dropped or stored.

Used by `generate`, which must know the records whose tokens are to be scored, and by `assemble`, which stores them;
both come to the same records, because every step is a function of the settings and of the ledger.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from radistill import seeds
from radistill.chat import LOST, Chat, RowError
from radistill.config import RunConfig
from radistill.errors import RunFolderError
from radistill.ledger import Ledger
from radistill.methods._composed import flag
from radistill.methods.base import Whole, reference_alone
from radistill.records import (
    SELF,
    Example,
    Generation,
    Labels,
    Request,
    Sampling,
    TrainingRecord,
    pools,
)

CHUNK = 1000
"""So many examples are held at once, with all that was written about them."""


@dataclass(frozen=True, slots=True)
class Made:
    """What became of one example, or, without one, of what is trained on beside the examples."""

    example: Example | None
    generations: Sequence[Generation] = ()
    records: Sequence[TrainingRecord] = ()
    problem: tuple[str, str] | None = None
    """Kind and reason, if no record could be made."""


@dataclass
class Making:
    """The way of one run."""

    config: RunConfig
    chat: Chat
    """Of the model that is trained."""
    examples: Sequence[Example]
    writer: Chat | None = None
    """Of the model that writes about the examples, if it is another (`generate.teacher`)."""
    planned_tokens: dict[str, int] = field(default_factory=dict)
    """Request key → tokens of its prompt, of all that was planned so far."""

    @cached_property
    def sampling(self) -> Sampling:
        """How answers are drawn, with the run's seed."""
        return self.config.generate.sampling.model_copy(update={"seed": self.config.seed})

    @property
    def whole(self) -> Whole:
        """The run, for hooks that are not about one example."""
        return Whole(self.chat, self.sampling, len(self.examples), self.config.seed, self.config.data.task)

    @property
    def needs_scores(self) -> bool:
        """Whether the untouched model is asked how probable the records are to it."""
        return flag(self.config.method, "is_scored") or self.config.train.labels == "stored"

    def plan(self, example: Example) -> list[Request]:
        """What is to be written about an example.

        Raises:
            RowError: the example cannot be put into ids.
        """
        if not self._is_chosen(example):
            self.chat.opening(example.messages, example.reference, "")
            return []
        return list(self.config.method.plan(example, self.writer or self.chat, self.sampling))

    def of_examples(self, ledger: Ledger, identity: str) -> Iterator[Made]:
        """The records of every example, in the order of the examples.

        Raises:
            RunFolderError: the ledger has lost what was written.
        """
        donors = self._donors()
        for start in range(0, len(self.examples), CHUNK):
            chunk = self.examples[start : start + CHUNK]
            keys: dict[str, list[str]] = {}
            problems: dict[str, str] = {}
            for example in chunk:
                try:
                    keys[example.id] = self._addressed(self.plan(donors.get(example.id, example)), identity)
                except RowError as error:
                    problems[example.id] = str(error)
            stored = ledger.read(key for of in keys.values() for key in of)
            for example in chunk:
                if example.id in problems:
                    yield Made(example, problem=("cannot be put into ids", problems[example.id]))
                else:
                    answers = [g for key in keys[example.id] for g in self._answers(stored, key)]
                    yield self._made(example, answers)

    def _donors(self) -> dict[str, Example]:
        """Whose generations an example is assembled with, where they are not its own."""
        if not self.config.method.exchanges():
            return {}
        usable: dict[str, Example] = {}
        for example in self.examples:
            with contextlib.suppress(RowError):
                if self._is_chosen(example):
                    self.plan(example)
                    usable[example.id] = example
        given = self.config.method.donors(sorted(usable), seeds.generator(self.config.seed, "donors")) if usable else {}
        return {example_id: usable[donor] for example_id, donor in given.items()}

    def beside(self, ledger: Ledger, identity: str) -> Made:
        """The records that belong to no example."""
        rounds: list[list[Generation]] = []
        while planned := self.config.method.plan_more(self.whole, rounds):
            keys = self._addressed(planned, identity)
            stored = ledger.read(keys)
            rounds.append([g for key in keys for g in self._answers(stored, key)])
        records = [self._labelled(r) for r in self.config.method.assemble_more(self.whole, rounds)]
        return Made(None, [g for answers in rounds for g in answers], records)

    def scores(self, made: Made) -> dict[str, Request]:
        """Record id → what the untouched model is asked about it; nothing about a record that needs no answer."""
        weighed = made.example is not None and flag(self.config.method, "is_scored")
        asked = {}
        for record in made.records:
            is_soft = any(segment.labels == "stored" for segment in record.segments)
            if weighed or is_soft:
                top_k = self.config.train.label_top_k if is_soft else 0
                asked[record.id] = Request(
                    purpose="score", prompt_ids=record.token_ids, sampling=self.sampling, top_k=top_k
                )
        return asked

    def _is_chosen(self, example: Example) -> bool:
        """Whether something is written about it."""
        return self.config.data.fraction >= 1 or example.id in self._chosen

    @cached_property
    def _chosen(self) -> frozenset[str]:
        """The examples about which something is written: `data.fraction` of them; a larger share has these too."""
        ids = sorted((e.id for e in self.examples), key=lambda i: (seeds.number(self.config.seed, "fraction", i), i))
        return frozenset(ids[: round(self.config.data.fraction * len(ids))])

    def _made(self, example: Example, generations: list[Generation]) -> Made:
        failed = next((g for g in generations if g.finish_reason == "error"), None)
        if failed is not None:
            return Made(example, generations, problem=("generation failed", failed.error or ""))
        try:
            if not self._is_chosen(example):
                records: Sequence[TrainingRecord] = [reference_alone(example, self.chat)]
            else:
                taken = [self._cut(self._respelled(g)) for g in generations]
                records = self.config.method.assemble(example, self.chat, taken)
        except RowError as error:
            return Made(example, generations, problem=("cannot be put into ids", str(error)))
        return Made(example, generations, [self._labelled(record) for record in records])

    def _respelled(self, generation: Generation) -> Generation:
        """What another model wrote, in the ids of the one that is trained."""
        if self.writer is None or self.writer.identity == self.chat.identity:
            return generation
        # Cut inside a character, the text ends in a mark for what is lost, which nobody wrote.
        text = generation.text.rstrip(LOST) if generation.finish_reason == "length" else generation.text
        return replace(generation, token_ids=self.chat.ids_of(text), text=text)

    def _cut(self, generation: Generation) -> Generation:
        limit = self.config.generate.keep_tokens
        if limit is None or generation.n_tokens <= limit:
            return generation
        ids = generation.token_ids[:limit]
        return replace(generation, token_ids=ids, text=self.chat.spell((), ids), finish_reason="length")

    def _labelled(self, record: TrainingRecord) -> TrainingRecord:
        """What the model wrote itself is compared with as `train.labels` says; all else with the token itself."""
        labels: Labels = self.config.train.labels
        if labels == "hard":
            return record
        pooled = pools(record.segments)
        segments = (
            replace(s, labels=labels) if pool in SELF and s.weight > 0 else s
            for s, pool in zip(record.segments, pooled, strict=True)
        )
        return replace(record, segments=tuple(segments))

    def _addressed(self, requests: Sequence[Request], identity: str) -> list[str]:
        keys = []
        for request in requests:
            keys.append(request.addressed_to(identity).key)
            self.planned_tokens[keys[-1]] = len(request.prompt_ids) * request.sampling.n
        return keys

    def _answers(self, stored: Mapping[str, list[Generation]], key: str) -> list[Generation]:
        if key not in stored:
            raise RunFolderError(
                f"the ledger {self.config.generate.ledger} no longer holds what was generated for this run (key "
                f"{key}). Point generate.ledger to where it lies, or generate again with --redo generate."
            )
        return stored[key]
