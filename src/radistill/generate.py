"""Stage 1: the untouched model writes what the method plans, into the ledger.

Not here: what is done with it (`assemble.py`), and how text is drawn (`backends/`).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from itertools import islice
from pathlib import Path

from radistill import contamination, data, models
from radistill.ask import Answered, answers_to, ask
from radistill.backends.base import Generator
from radistill.chat import Chat, RowError
from radistill.config import RunConfig, plugin_settings
from radistill.data import Loaded
from radistill.errors import DataError
from radistill.ledger import Ledger, open_ledger
from radistill.making import Making
from radistill.methods._composed import parts_of
from radistill.records import Example, Generation, Request, StageRecord
from radistill.runs import RunFolder, before_work, begin, working
from radistill.speaker import Speaker, teacher, untouched
from radistill.tables import put_rejects

REHEARSED = 3
"""So many examples are rendered as finished conversations before anything is generated."""


def generate(config: RunConfig, run: RunFolder, *, redo: bool = False) -> StageRecord | None:
    """Write every planned generation; None if that was done before and nothing has changed.

    Raises:
        RadistillError: data, model or template cannot be used, or the test set is in the training data.
    """
    speaker = untouched(config)
    writer = teacher(config) or speaker
    train = data.load(config.data, "train", seed=config.seed)
    stage = begin(run, "generate", settings(config, speaker, writer), train.files, redo=redo)
    if stage is None:
        return None
    with working(stage):
        with before_work(stage):
            _refuse_contaminated_tests(config, train)
            rehearse(config, speaker.chat, train.examples[:REHEARSED])
            making = Making(config, speaker.chat, train.examples, None if writer is speaker else writer.chat)
            config.method.plan_more(making.whole, [])  # a method that cannot do its part says so here
            requests, refused = plan(making)
            refused = [*({**asdict(r), "file": str(r.file)} for r in train.rejects), *refused]
            put_rejects(run.rejects, "generate", refused)
            if len(refused) >= len(train.examples) + len(train.rejects):
                raise DataError(f"all {len(refused)} rows were refused; the reasons stand in {run.rejects}.")
        answered, identities = _write(config, speaker, writer, making, requests)
        stage.facts |= {**asdict(answered), "rejected": len(refused), **identities}
        return stage.finish([], device=models.device_name() if answered.requests else "")


def settings(config: RunConfig, speaker: Speaker, writer: Speaker) -> dict[str, object]:
    """All that can change what is generated."""
    by_another = {} if writer is speaker else {"teacher": writer.weights.identity}
    scored = {"top_k": config.train.label_top_k} if config.train.labels == "stored" else {}
    return {
        "model": speaker.weights.identity,
        "seed": config.seed,
        "data": {**config.data.model_dump(mode="json", include={"task", "train", "template", "system", "fraction"})},
        "chat": {**config.chat.model_dump(mode="json"), "identity": speaker.chat.identity},
        "method": plugin_settings(config.method),
        "backend": plugin_settings(config.generate.backend),
        "sampling": config.generate.sampling.model_dump(exclude={"seed"}),
        "keep_tokens": config.generate.keep_tokens,
        **by_another,
        **scored,
    }


def plan(making: Making) -> tuple[list[Request], list[dict[str, object]]]:
    """All requests about examples, and the rows that cannot be put into ids."""
    requests: list[Request] = []
    refused: list[dict[str, object]] = []
    for example in making.examples:
        try:
            requests += making.plan(example)
        except RowError as error:
            refused.append({"example_id": example.id, "reason": str(error), "row": asdict(example)})
    return requests, refused


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
    ledger: Ledger
    done: list[Answered] = field(default_factory=list)

    def about_examples(self, requests: Sequence[Request], generator: Generator) -> None:
        """What the method plans for each example."""
        self._ask(requests, generator, "generate")

    def beside(self, generator: Generator) -> None:
        """What it plans beside that, round by round."""
        rounds: list[list[Generation]] = []
        while planned := self.config.method.plan_more(self.making.whole, rounds):
            rounds.append(self._ask(planned, generator, "generate beside the examples"))

    def scores(self, generator: Generator, identity: str) -> None:
        """How probable the records are to the untouched model."""
        made = [*self.making.of_examples(self.ledger, identity), self.making.beside(self.ledger, generator.identity)]
        self._ask([request for one in made for request in self.making.scores(one).values()], generator, "score")

    @property
    def total(self) -> Answered:
        """All rounds together."""
        return Answered(*(sum(getattr(a, f.name) for a in self.done) for f in fields(Answered)))

    def _ask(self, requests: Sequence[Request], generator: Generator, title: str) -> list[Generation]:
        if not requests:
            return []
        addressed = [request.addressed_to(generator.identity) for request in requests]
        self.done.append(ask(addressed, generator, self.ledger, title=title))
        answers = answers_to(addressed, self.ledger)
        return [generation for request in addressed for generation in answers[request.key]]


def _write(
    config: RunConfig, speaker: Speaker, writer: Speaker, making: Making, requests: list[Request]
) -> tuple[Answered, dict[str, str]]:
    """Ask whoever is needed; nobody is opened for nothing.

    Returns:
        What asking came to, and who answered: `identity` about the examples, `own` beside them and for scores.
    """
    identities = {"identity": "", "own": ""}
    needs_own = making.needs_scores or bool(config.method.plan_more(making.whole, []))
    with open_ledger(Path(config.generate.ledger)) as ledger:
        writing = _Writing(config, making, ledger)
        if requests and writer is not speaker:
            with config.generate.backend.open(writer) as generator:
                identities["identity"] = generator.identity
                writing.about_examples(requests, generator)
        if needs_own or (requests and writer is speaker):
            with config.generate.backend.open(speaker) as generator:
                identities["own"] = generator.identity
                if writer is speaker:
                    identities["identity"] = generator.identity
                    writing.about_examples(requests, generator)
                writing.beside(generator)
                if making.needs_scores:
                    writing.scores(generator, identities["identity"])
        return writing.total, identities


def _refuse_contaminated_tests(config: RunConfig, train: Loaded) -> None:
    """Before anything is generated, not only where the tests are used."""
    if config.data.test is not None:
        contamination.facts(config.data, train, data.load(config.data, "test", seed=config.seed))
