"""Stage 1: the untouched model writes what the method plans, into the ledger.

Not here: what is done with it (`assemble.py`), and how text is drawn (`backends/`). Neither examples nor requests are
held in memory: a million of them takes little more than ten thousand.
"""

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import reduce
from itertools import islice
from operator import add
from pathlib import Path
from typing import Any

from radistill import contamination, data, lengths, models
from radistill.ask import Answered, answers_to, ask
from radistill.backends.base import Generator, scoring_problem
from radistill.chat import Chat, RowError
from radistill.config import RunConfig, plugin_settings
from radistill.data import Loaded
from radistill.errors import BackendError, DataError
from radistill.events import Events
from radistill.filtering import files_of, refuse_unusable
from radistill.ledger import Ledger, open_ledger
from radistill.making import Making, filters_of, scores_records
from radistill.methods._composed import flag, parts_of
from radistill.records import Example, Generation, Message, Request, Sampling, Span, StageRecord
from radistill.runs import RunFolder, begin, working
from radistill.shares import Share
from radistill.speaker import Speaker, teacher, untouched
from radistill.spool import Spool
from radistill.tables import put_rejects

REHEARSED = 3
"""So many examples are rendered as finished conversations before anything is generated."""


def generate(config: RunConfig, run: RunFolder, *, redo: bool = False, by_itself: bool = True) -> StageRecord | None:
    """Write every planned generation; None if that was done before and nothing has changed.

    Rows that failed are tried again, while the record of what was finished stands. That starts an engine and may make
    hours of later work stale: among other stages (not `by_itself`) it is done only while none after it has a record.

    Raises:
        RadistillError: data, model or template cannot be used, or the test set is in the training data.
    """
    speaker = untouched(config)
    writer = teacher(config) or speaker
    train = data.load(config.data, "train", seed=config.seed)
    refuse_unusable(filters_of(config))
    wanted = settings(config, speaker, writer)
    files = [*train.files, *(files_of(filters_of(config)) if scores_records(config) else ())]
    stage, retried = begin(run, "generate", wanted, files, redo=redo, late=True), None
    if stage is None and _has_more_tries(run, config.generate.max_attempts) and (by_itself or not _later(run)):
        stage, retried = begin(run, "generate", wanted, files, redo=True, late=True), run.stages()["generate"]
    if stage is None:
        return None
    with working(stage):
        making, requests, refused = _planned(config, speaker, writer, train)
        put_rejects(run.rejects, "generate", refused)
        writing = _Writing(config, making, Events(run.events, stage="generate"))
        if retried is None:
            writing.begun = stage.record
        answered, identities = _write(speaker, writer, writing, requests)
        stage.facts |= {**asdict(answered), "rejected": len(refused), **identities}
        stage.facts["max_attempts"] = config.generate.max_attempts
        # What failed once more changes nothing for the stages after this one.
        if retried is None:
            is_new = answered.written > answered.failed - answered.given_up or redo
        else:  # compared with what was finished: an earlier try may have been killed when it had won some
            won = answered.requests - answered.failed - _good(retried)
            is_new = won != 0
            stage.facts |= {"won": won, "stale": _later(run)} if is_new else {}
        return stage.finish([], device=models.device_name() if answered.requests else "", forget_later=is_new)


def generate_share_of(config: RunConfig, run: RunFolder, share: Share) -> Answered:
    """Write a share of what is planned into the ledger and nothing into the run folder but its log.

    So any number of processes, on any machines that see the ledger, can work at once; `generate` then finds all of it.

    Raises:
        RadistillError: as `generate`.
    """
    speaker = untouched(config)
    writer = teacher(config) or speaker
    train = data.load(config.data, "train", seed=config.seed)
    refuse_unusable(filters_of(config))
    making, requests, _ = _planned(config, speaker, writer, train)
    events = Events(run.events, stage=f"generate {share}")
    return _write(speaker, writer, _Writing(config, making, events, share), requests)[0]


def _planned(
    config: RunConfig, speaker: Speaker, writer: Speaker, train: Loaded
) -> tuple[Making, Sequence[Request], list[dict[str, object]]]:
    """Everything that can fail before a model is loaded."""
    if missing := config.generate.backend.missing():
        raise BackendError(missing)
    _refuse_contaminated_tests(config, train)
    rehearse(config, speaker.chat, train.examples[:REHEARSED])
    making = Making(config, speaker.chat, train.examples, None if writer is speaker else writer.chat)
    config.method.plan_more(making.whole, [])  # a method that cannot do its part says so here
    requests, refused = plan(making)
    refused = [*({**asdict(r), "file": str(r.file)} for r in train.rejects), *refused]
    if config.train.on_long == "error" and writer is speaker:  # a teacher's ids are not those that are trained on
        limit = models.length_limit(speaker.weights.folder, config.train.max_length)
        if long := lengths.too_long(limit, requests):
            raise DataError(lengths.refusal(limit, len(long), f"about example {long[0]}"))
    if len(refused) >= len(train.examples) + len(train.rejects):
        raise DataError(f"all {len(refused)} rows were refused, the first because {refused[0]['reason']}.")
    return making, requests, refused


def _has_more_tries(run: RunFolder, attempts: int) -> bool:
    """Whether the stage is finished but for rows that failed and may be tried again, so often at most."""
    before = run.stages().get("generate")
    if before is None or before.status != "finished":
        return False
    failed, given_up = (int(before.facts.get(name, 0)) for name in ("failed", "given_up"))
    return failed > given_up or (given_up > 0 and attempts > int(before.facts.get("max_attempts", attempts)))


def _later(run: RunFolder) -> list[str]:
    """The stages after this one that have a record."""
    return [name for name in run.stages() if name != "generate"]


def _good(record: StageRecord) -> int:
    """Requests with a good answer."""
    return int(record.facts.get("requests", 0)) - int(record.facts.get("failed", 0))


def settings(config: RunConfig, speaker: Speaker, writer: Speaker) -> dict[str, object]:
    """All that can change what is generated."""
    by_another = {} if writer is speaker else {"teacher": writer.weights.identity}
    filters = filters_of(config)
    scored: dict[str, object] = {"top_k": config.train.label_top_k} if config.train.labels == "stored" else {}
    if filters.needs_perplexity:
        scored["perplexity"] = True
    if (scored or flag(config.method, "is_scored")) and config.train.on_long == "cut_rationale":
        scored["cut_at"] = models.length_limit(speaker.weights.folder, config.train.max_length)
    if scores_records(config) and filters.active:
        scored["filters"] = filters.plain()  # they decide which records there are to be scored
    return {
        "model": speaker.weights.identity,
        "seed": config.seed,
        "data": {**config.data.model_dump(mode="json", include={"task", "train", "template", "system", "fraction"})},
        "chat": {**config.chat.model_dump(mode="json"), "identity": speaker.chat.identity},
        "method": plugin_settings(config.method),
        "backend": config.generate.backend.telling,
        "sampling": config.generate.sampling.model_dump(exclude={"seed"}),
        "keep_tokens": config.generate.keep_tokens,
        **by_another,
        **scored,
    }


def plan(making: Making) -> tuple[Sequence[Request], list[dict[str, object]]]:
    """All requests about examples, and the rows that cannot be put into ids."""
    requests = _requests()
    refused: list[dict[str, object]] = []
    for example in making.examples:
        try:
            requests.extend(making.plan(example))
        except RowError as error:
            refused.append({"example_id": example.id, "reason": str(error), "row": asdict(example)})
    return requests, refused


def _requests() -> Spool[Request]:
    """Requests that are not addressed yet; they share their few samplings."""
    samplings: list[Sampling] = []
    numbers: dict[Sampling, int] = {}

    def pack(request: Request) -> tuple[object, ...]:
        at = numbers.setdefault(request.sampling, len(samplings))
        if at == len(samplings):
            samplings.append(request.sampling)
        spans = tuple((s.origin, s.start, s.stop) for s in request.spans)
        turns = tuple((m.role, m.content) for m in request.messages)
        ids = array("I", request.prompt_ids).tobytes()
        return request.purpose, ids, at, request.example_id, spans, request.top_k, turns

    def unpack(packed: tuple[Any, ...]) -> Request:
        purpose, ids, at, example_id, spans, top_k, turns = packed
        return Request(
            purpose=purpose,
            prompt_ids=tuple(array("I", ids)),
            sampling=samplings[at],
            example_id=example_id,
            spans=tuple(Span(*span) for span in spans),
            top_k=top_k,
            messages=tuple(Message(role, content) for role, content in turns),
        )

    return Spool(pack, unpack)


def rehearse(config: RunConfig, chat: Chat, examples: Sequence[Example]) -> list[str]:
    """Render a few finished conversations through the template; what differs, once."""
    notes: list[str] = list(chat.shape.notes)
    separator = next((p.separator for p in parts_of(config.method) if hasattr(p, "separator")), "")
    for example in islice(examples, REHEARSED):
        answer = example.reference.strip() + (f"{separator}Note: a word." if separator else "")
        note = chat.check_rerendering(example.messages, answer)
        if note:
            return [*notes, note]
    return notes


@dataclass
class _Writing:
    """Asks in rounds, because what is planned next may depend on what was written before."""

    config: RunConfig
    making: Making
    events: Events
    share: Share | None = None
    begun: Callable[[], None] = lambda: None
    """Called whenever something is about to be committed."""
    done: list[Answered] = field(default_factory=list)
    ledger: Ledger = field(init=False)

    def about_examples(self, requests: Sequence[Request], generator: Generator) -> None:
        """What the method plans for each example."""
        self._ask(requests, generator, "generate", total=len(requests))

    def beside(self, generator: Generator) -> None:
        """What it plans beside that, round by round."""
        rounds: list[list[Generation]] = []
        while planned := self.config.method.plan_more(self.making.whole, rounds):
            self._ask(planned, generator, "generate beside the examples", total=len(planned))
            addressed = [request.addressed_to(generator.identity) for request in planned]
            if self.share is not None and self.ledger.missing(r.key for r in addressed):
                return  # what comes next hangs on what other shares write
            answers = answers_to(addressed, self.ledger)
            rounds.append([generation for request in addressed for generation in answers[request.key]])

    def scores(self, generator: Generator, identity: str) -> None:
        """How probable the records are to the untouched model."""
        if self.share is not None:
            return
        total = len(self.making.examples)
        if self.making.filters.needs_perplexity:
            self._ask(self.making.probes(self.ledger, identity), generator, "score rationales", total=total)
        if scores_records(self.config):
            self._ask(self._scored(generator, identity), generator, "score", total=total)

    def _scored(self, generator: Generator, identity: str) -> Iterator[Request]:
        for made in self.making.of_examples(self.ledger, identity, generator.identity):
            yield from self.making.scores(made).values()
        yield from self.making.scores(self.making.beside(self.ledger, generator.identity)).values()

    @property
    def total(self) -> Answered:
        """All rounds together."""
        return reduce(add, self.done, Answered())

    def _ask(self, requests: Iterable[Request], generator: Generator, title: str, *, total: int) -> None:
        addressed: Iterable[Request] = (request.addressed_to(generator.identity) for request in requests)
        if self.share is not None:
            addressed, total = self.share.of(addressed), self.share.size(total)
            title = f"{title}, {self.share}"
        done = ask(
            addressed,
            generator,
            self.ledger,
            title=title,
            total=total,
            attempts=self.config.generate.max_attempts,
            events=self.events,
            begun=self.begun,
        )
        self.done.append(done)


def _write(
    speaker: Speaker, writer: Speaker, writing: _Writing, requests: Sequence[Request]
) -> tuple[Answered, dict[str, str]]:
    """Ask whoever is needed; nobody is opened for nothing.

    Returns:
        What asking came to, and who answered: `identity` about the examples, `own` beside them and for scores.
    """
    config, making = writing.config, writing.making
    identities = {"identity": "", "own": ""}
    needs_own = making.needs_scores or bool(config.method.plan_more(making.whole, []))
    if making.needs_scores and requests and writer is not speaker and config.generate.backend.may_not_score:
        with config.generate.backend.open(speaker) as generator:  # before the teacher writes for hours
            _refuse_without_scores(config, generator)
    with open_ledger(Path(config.generate.ledger)) as ledger:
        writing.ledger = ledger
        if requests and writer is not speaker:
            with config.generate.backend.open(writer) as generator:
                identities["identity"] = generator.identity
                writing.about_examples(requests, generator)
        if needs_own or (requests and writer is speaker):
            with config.generate.backend.open(speaker) as generator:
                identities["own"] = generator.identity
                if making.needs_scores:
                    _refuse_without_scores(config, generator)
                if writer is speaker:
                    identities["identity"] = generator.identity
                    writing.about_examples(requests, generator)
                writing.beside(generator)
                if making.needs_scores:
                    writing.scores(generator, identities["identity"])
        return writing.total, identities


def _refuse_without_scores(config: RunConfig, generator: Generator) -> None:
    """Before the first row, not after the last."""
    top_k = config.train.label_top_k if config.train.labels == "stored" else 0
    if problem := scoring_problem(generator, top_k):
        raise BackendError(
            "this run needs the log-probabilities of what the untouched model reads (soft labels, weights or "
            f"perplexity): {problem}. Serve it with vLLM (--max-logprobs {max(20, top_k)} or more), or set "
            "generate.backend=transformers."
        )


def _refuse_contaminated_tests(config: RunConfig, train: Loaded) -> None:
    """Before anything is generated, not only where the tests are used."""
    if config.data.test is not None:
        contamination.facts(config.data, train, data.load(config.data, "test", seed=config.seed))
