"""Examples and what was written → records, before any is scored, dropped or stored.

Used by `generate`, which must know the records whose tokens are to be scored, and by `assemble`, which stores them;
both come to the same records, because every step is a function of the settings and of the ledger.
"""

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from radistill import lengths, models, seeds
from radistill.ask import answers_to
from radistill.chat import LOST, Chat, RowError
from radistill.config import RunConfig
from radistill.errors import RunFolderError
from radistill.filtering import Filtering, Judged, Rationale
from radistill.filters import OFF, FilterSettings
from radistill.ledger import Ledger
from radistill.methods._composed import flag
from radistill.methods.base import Whole, reference_alone
from radistill.progress import progress
from radistill.records import (
    SELF,
    Example,
    Generation,
    Labels,
    Purpose,
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
    judged: Sequence[Judged] = ()
    """The rationales among the generations, with the filters that they fail; empty without filters."""
    probes: Sequence[Request] = ()
    """What the untouched model was asked to know their perplexity."""
    prompt_tokens: Mapping[str, int] = field(default_factory=dict)
    """Key → tokens that were read to write its generations."""
    shortened: int = 0
    """So many rationales were cut because their records were too long (`train.on_long`)."""


@dataclass(frozen=True, slots=True)
class _Written:
    """What was written for one example."""

    example: Example
    about: Example
    """Whom it was written about: the example itself, unless examples exchange what was written."""
    purposes: Mapping[str, Purpose] = field(default_factory=dict)
    """Of each request, by its key."""
    generations: Sequence[Generation] = ()
    prompt_tokens: Mapping[str, int] = field(default_factory=dict)
    """Key → tokens that were read to write its generations."""
    problem: str | None = None
    """Why nothing could be asked."""


def filters_of(config: RunConfig) -> FilterSettings:
    """The filters that act on a run: none on methods that let no rationales be written."""
    return config.generate.filters if flag(config.method, "writes_rationales") else OFF


def scores_records(config: RunConfig) -> bool:
    """Whether the untouched model is asked how probable the records are to it, which hang on the filters."""
    return flag(config.method, "is_scored") or config.train.labels == "stored"


@dataclass
class Making:
    """The way of one run."""

    config: RunConfig
    chat: Chat
    """Of the model that is trained."""
    examples: Sequence[Example]
    writer: Chat | None = None
    """Of the model that writes about the examples, if it is another (`generate.teacher`)."""
    _judging: tuple[str, Filtering] | None = None
    """Who wrote, and the filters with what they found over all that was written."""

    @cached_property
    def sampling(self) -> Sampling:
        """How answers are drawn, with the run's seed."""
        return self.config.generate.sampling.model_copy(update={"seed": self.config.seed})

    @cached_property
    def cut_at(self) -> int | None:
        """Rationales are cut where their records have so many ids; None = they are not."""
        if self.config.train.on_long != "cut_rationale":
            return None
        config = self.config
        known = models.resolve(config.model, revision=config.revision, trust_remote_code=config.trust_remote_code)
        return models.length_limit(known.folder, config.train.max_length)

    @property
    def whole(self) -> Whole:
        """The run, for hooks that are not about one example."""
        return Whole(self.chat, self.sampling, len(self.examples), self.config.seed, self.config.data.task)

    @property
    def needs_scores(self) -> bool:
        """Whether the untouched model is asked how probable texts are to it."""
        return scores_records(self.config) or self.filters.needs_perplexity

    @property
    def filters(self) -> FilterSettings:
        """Those that act on this run."""
        return filters_of(self.config)

    def plan(self, example: Example) -> list[Request]:
        """What is to be written about an example.

        Raises:
            RowError: the example cannot be put into ids.
        """
        if not self._is_chosen(example):
            self.chat.opening(example.messages, example.reference, "")
            return []
        return list(self.config.method.plan(example, self.writer or self.chat, self.sampling))

    def of_examples(self, ledger: Ledger, identity: str, own: str = "") -> Iterator[Made]:
        """The records of every example, in the order of the examples.

        Args:
            ledger: holds what was written.
            identity: of who wrote about the examples.
            own: of the untouched model, whose scores tell a rationale's perplexity.

        Raises:
            RunFolderError: the ledger has lost what was written.
        """
        donors = self._donors()
        filtering = self._filtering(ledger, identity, own)
        # Only where examples exchange what was written is one's place not that of whom it was written about.
        places = {example.id: place for place, example in enumerate(self.examples)} if donors else {}
        for place, written in enumerate(self._written(ledger, identity, donors)):
            judged: list[Judged] = []
            if filtering is not None:
                rationales = self._rationales(written, ledger, own)
                judged = filtering.judge(places.get(written.about.id, place), rationales)
            yield self._made(written, judged)

    def probes(self, ledger: Ledger, identity: str) -> Iterator[Request]:
        """What the untouched model is asked to know the perplexity of each rationale, if that is filtered by.

        It is asked of all of them, whatever other filters say, so that these can be changed afterwards.
        """
        if self.filters.needs_perplexity:
            for written in self._written(ledger, identity, {}):
                yield from (request for request, _ in self._probed(written).values())

    def _filtering(self, ledger: Ledger, identity: str, own: str) -> Filtering | None:
        if not self.filters.active:
            return None
        if self._judging is None or self._judging[0] != identity:
            filtering = Filtering(self.filters, self.config.seed)
            if self.filters.is_corpus_wide:
                filtering.judge_all(self._all_rationales(ledger, identity, own))
            self._judging = identity, filtering
        return self._judging[1]

    def _all_rationales(self, ledger: Ledger, identity: str, own: str) -> Iterator[list[Rationale]]:
        """What was written about every example, in the order of the examples."""
        with progress("filter", len(self.examples)) as shown:
            for written in self._written(ledger, identity, {}):
                yield self._rationales(written, ledger, own)
                shown.advance(1)

    def _written(self, ledger: Ledger, identity: str, donors: Mapping[str, Example]) -> Iterator[_Written]:
        """What was written for every example, in the order of the examples."""
        for start in range(0, len(self.examples), CHUNK):
            chunk = self.examples[start : start + CHUNK]
            planned: dict[str, list[Request]] = {}
            problems: dict[str, str] = {}
            for example in chunk:
                try:
                    requests = self.plan(donors.get(example.id, example))
                except RowError as error:
                    problems[example.id] = str(error)
                else:
                    planned[example.id] = _addressed(requests, identity)
            stored = ledger.read(request.key for of in planned.values() for request in of)
            for example in chunk:
                about = donors.get(example.id, example)
                if example.id in problems:
                    yield _Written(example, about, problem=problems[example.id])
                else:
                    of = planned[example.id]
                    answers = [g for request in of for g in self._answers(stored, request.key)]
                    yield _Written(example, about, {r.key: r.purpose for r in of}, answers, _tokens_read(of))

    def _rationales(self, written: _Written, ledger: Ledger, own: str) -> list[Rationale]:
        """What was written about one example after its reference; nothing if any of it failed."""
        taken = self._taken(written)
        if taken is None:
            return []
        known: dict[int, float] = {}
        unscored: set[int] = set()
        if self.filters.needs_perplexity and (probed := self._probed(written)):
            asked = {n: (request.addressed_to(own), at) for n, (request, at) in probed.items()}
            stored = answers_to([request for request, _ in asked.values()], ledger)
            for n, (request, at) in asked.items():
                answer = stored[request.key][0]
                if answer.logprobs is not None:
                    known[n] = math.exp(min(-float(answer.logprobs.given_T[at].mean()), 700.0))
                elif not answer.is_beyond_context:
                    unscored.add(n)
        return [
            Rationale(written.about, g, taken[n], known.get(n), n in unscored)
            for n, g in enumerate(written.generations)
            if written.purposes[g.key] == "rationale"
        ]

    def _probed(self, written: _Written) -> dict[int, tuple[Request, slice]]:
        """For each rationale with tokens, by its number: what is asked about its record, and where in that it stands.

        It is what is asked about the record anyway where its tokens get soft labels or weights.
        """
        taken = self._taken(written)
        if taken is None:
            return {}
        try:
            records = [self._labelled(r) for r in self._assembled(written.about, taken)[0]]
        except RowError:
            return {}
        found: dict[int, tuple[Request, slice]] = {}
        for record in records:
            for segment in record.segments:
                at = slice(segment.start, segment.stop)
                for n, generation in enumerate(taken):
                    if segment.origin == "rationale" and record.token_ids[at] == generation.token_ids:
                        found.setdefault(n, (self._score(record), at))
        return found

    def _taken(self, written: _Written) -> list[Generation] | None:
        """What would be trained on of what was written; None if nothing could be."""
        if written.problem is not None or any(g.finish_reason == "error" for g in written.generations):
            return None
        try:
            taken = [self._cut(self._respelled(g)) for g in written.generations]
            return self._assembled(written.about, taken)[1] if self.cut_at is not None else taken
        except RowError:
            return None

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
        tokens: dict[str, int] = {}
        while planned := self.config.method.plan_more(self.whole, rounds):
            addressed = _addressed(planned, identity)
            stored = ledger.read(request.key for request in addressed)
            rounds.append([g for request in addressed for g in self._answers(stored, request.key)])
            tokens |= _tokens_read(addressed)
        records = [self._labelled(r) for r in self.config.method.assemble_more(self.whole, rounds)]
        return Made(None, [g for answers in rounds for g in answers], records, prompt_tokens=tokens)

    def scores(self, made: Made) -> dict[str, Request]:
        """Record id → what the untouched model is asked about it; nothing about a record that needs no answer."""
        weighed = made.example is not None and flag(self.config.method, "is_scored")
        return {record.id: self._score(record) for record in made.records if weighed or _is_soft(record)}

    def _score(self, record: TrainingRecord) -> Request:
        top_k = self.config.train.label_top_k if _is_soft(record) else 0
        return Request(purpose="score", prompt_ids=record.token_ids, sampling=self.sampling, top_k=top_k)

    def _is_chosen(self, example: Example) -> bool:
        """Whether something is written about it."""
        return self.config.data.fraction >= 1 or example.id in self._chosen

    @cached_property
    def _chosen(self) -> frozenset[str]:
        """The examples about which something is written: `data.fraction` of them; a larger share has these too."""
        ids = sorted((e.id for e in self.examples), key=lambda i: (seeds.number(self.config.seed, "fraction", i), i))
        return frozenset(ids[: round(self.config.data.fraction * len(ids))])

    def _made(self, written: _Written, judged: Sequence[Judged]) -> Made:
        example, generations = written.example, written.generations
        tokens = written.prompt_tokens
        if written.problem is not None:
            return Made(example, problem=("cannot be put into ids", written.problem))
        failed = next((g for g in generations if g.finish_reason == "error"), None)
        if failed is not None:
            problem = ("generation failed", failed.error or "")
            return Made(example, generations, problem=problem, prompt_tokens=tokens)
        # In the place of a filtered rationale the method is given an empty one.
        emptied = {(g.key, g.index): g for g in (j.used for j in judged if j.failed)}
        shortened = 0
        try:
            if not self._is_chosen(example):
                records: Sequence[TrainingRecord] = [reference_alone(example, self.chat)]
            else:
                taken = [emptied.get((g.key, g.index)) or self._cut(self._respelled(g)) for g in generations]
                records, kept = self._assembled(example, taken)
                shortened = sum(short is not long for short, long in zip(kept, taken, strict=True))
        except RowError as error:
            problem = ("cannot be put into ids", str(error))
            return Made(example, generations, problem=problem, prompt_tokens=tokens)
        probes = [request for request, _ in self._probed(written).values()] if self.filters.needs_perplexity else ()
        labelled = [self._labelled(r) for r in records]
        return Made(
            example, generations, labelled, judged=judged, probes=probes, prompt_tokens=tokens, shortened=shortened
        )  # fmt: skip

    def _assembled(
        self, example: Example, taken: Sequence[Generation]
    ) -> tuple[Sequence[TrainingRecord], list[Generation]]:
        """The records and what they are made of: if the run says so, rationales are cut where records are too long."""
        records = self.config.method.assemble(example, self.chat, taken)
        if self.cut_at is None:
            return records, list(taken)
        kept = lengths.cut(records, taken, self.chat, self.cut_at)
        same = all(short is long for short, long in zip(kept, taken, strict=True))
        return (records if same else self.config.method.assemble(example, self.chat, kept)), kept

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
        return lengths.shortened(generation, self.chat, limit)

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

    def _answers(self, stored: Mapping[str, list[Generation]], key: str) -> list[Generation]:
        if key not in stored:
            raise RunFolderError(
                f"the ledger {self.config.generate.ledger} no longer holds what was generated for this run (key "
                f"{key}). Point generate.ledger to where it lies, or generate again with --redo generate."
            )
        return stored[key]


def _addressed(requests: Sequence[Request], identity: str) -> list[Request]:
    return [request.addressed_to(identity) for request in requests]


def _tokens_read(requests: Iterable[Request]) -> dict[str, int]:
    return {request.key: len(request.prompt_ids) * request.sampling.n for request in requests}


def _is_soft(record: TrainingRecord) -> bool:
    return any(segment.labels == "stored" for segment in record.segments)
