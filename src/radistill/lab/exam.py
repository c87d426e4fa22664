"""The pocket model's table: every ability on fresh items, the new language, and rationales when it is let go on."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from radistill import models, scoring, stats
from radistill.ask import answers_to, ask
from radistill.backends.base import Generator
from radistill.backends.transformers import Transformers
from radistill.chat import Chat, ChatSettings, load_chat
from radistill.columns import MACRO
from radistill.lab import rationales, upbringing
from radistill.lab.abilities import ABILITIES, KnownLanguage, translation
from radistill.lab.world import World, WorldSettings, world_of
from radistill.ledger import Ledger, open_ledger
from radistill.records import Example, Message, Request, Sampling
from radistill.speaker import Speaker
from radistill.tasks.base import Task
from radistill.tasks.lab import Lab
from radistill.tasks.translation import Translation


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """One line of the table, in points of 100."""

    name: str
    value: float
    low: float
    high: float
    n: int
    chance: float = 0.0
    share: float | None = None
    """Of the chats of the upbringing, in percent."""
    is_rehearsed: bool | None = None
    metric: str = "right"
    groups: Mapping[str, float] = field(default_factory=dict)
    """The score of each part where there are several: sums and differences, both directions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exam:
    """A model's marks."""

    abilities: tuple[Mark, ...]
    general: stats.Interval
    """Mean over all abilities but the known language. The interval is a bootstrap over the items."""
    new_language: tuple[Mark, ...]
    """BLEU of each direction, and their mean."""
    rationales: Mark
    """Well-formed rationales after right translations into and from the new language, drawn as RaDis draws them."""


def exam(model: str, settings: WorldSettings, *, items: int = 500, say: Callable[[str], None] = lambda _: None) -> Exam:
    """Examine a model on the held-out items of a world; nothing is written.

    Args:
        model: folder, run folder, hub id or `pocket`.
        settings: the world.
        items: so many items per ability, or all that exist.
        say: told what is going on.

    Raises:
        ModelError: the model is not there.
    """
    world = world_of(settings)
    weights = models.resolve(model)
    chat = load_chat(weights.tokenizer_folder, ChatSettings(), name=model)
    backend = Transformers(batch_size=128, dtype="float32")
    with (
        tempfile.TemporaryDirectory() as scratch,
        open_ledger(Path(scratch)) as ledger,
        backend.open(Speaker(weights=weights, chat=chat, trust_remote_code=False)) as generator,
    ):
        candidate = _Candidate(chat, generator, ledger)
        marks = []
        parts = []
        for ability in ABILITIES:
            say(ability.name)
            task = Lab(ability=ability.name, world=settings, items=items)
            mark, resampled = candidate.mark(task, task.examples())
            share = 100 * ability.share / upbringing.SHARES
            marks.append(replace(mark, share=share, chance=task.chance, is_rehearsed=task.is_rehearsed))
            if ability is not KnownLanguage:
                parts.append(resampled)
        say(world.new.name)
        return Exam(
            abilities=tuple(marks),
            general=stats.mean_of(parts).interval(),
            new_language=candidate.new_language(world, items),
            rationales=candidate.rationales(world, items),
        )


@dataclass(frozen=True)
class _Candidate:
    chat: Chat
    generator: Generator
    ledger: Ledger

    def mark(self, task: Task, examples: Sequence[Example]) -> tuple[Mark, stats.Resampled]:
        """The task's score over all groups, and of each."""
        scored = self._scored(task, examples)
        metric = next(iter(scored.rows))
        found = {s.group: s for s in scored.scores if s.metric == metric}
        score = found.pop(MACRO)
        groups = {name: of.value for name, of in found.items()} if len(found) > 1 else {}
        low, high = score.low, score.high
        if metric == "lab_accuracy":
            # A bootstrap of answers that are all right would be sure of it.
            parts = [stats.wilson(round(of.value * of.n / 100), of.n) for of in found.values()]
            share = stats.mean_of_proportions(parts)
            low, high = 100 * share.low, 100 * share.high
        mark = Mark(name=task.title, value=score.value, low=low, high=high, n=score.n, metric=metric, groups=groups)
        return mark, scoring.resampled(scored, system="model", metric=metric)

    def new_language(self, world: World, items: int) -> tuple[Mark, ...]:
        """BLEU from and into the new language."""
        scored = self._scored(Translation(max_new_tokens=96), _sentences(world, items))
        found = [score for score in scored.scores if score.metric == "bleu"]
        return tuple(Mark(name=s.group, value=s.value, low=s.low, high=s.high, n=s.n, metric="bleu") for s in found)

    def rationales(self, world: World, items: int) -> Mark:
        """How often what is drawn after reference and separator is a well-formed rationale."""
        sampling = Sampling(temperature=0.7, top_p=0.95, max_new_tokens=128)
        requests = []
        for example in _sentences(world, items):
            opening = self.chat.opening(example.messages, example.reference, rationales.SEPARATOR)
            requests.append(self._request(opening.ids, example, sampling))
        ask(requests, self.generator, self.ledger, title="rationales")
        answers = answers_to(requests, self.ledger)
        good = sum(rationales.is_well_formed(answers[r.key][0].text, world) for r in requests)
        share = stats.wilson(good, len(requests))
        return Mark(
            name="rationales",
            value=100 * share.value,
            low=100 * share.low,
            high=100 * share.high,
            n=len(requests),
            metric="well-formed",
        )

    def _scored(self, task: Task, examples: Sequence[Example]) -> scoring.Scored:
        sampling = task.sampling()
        requests = [self._request(self.chat.prompt(e.messages).ids, e, sampling) for e in examples]
        ask(requests, self.generator, self.ledger, title=task.title)
        answers = answers_to(requests, self.ledger)
        read = [task.read("model", e, answers[r.key][0]) for e, r in zip(examples, requests, strict=True)]
        return scoring.score(read, task, task.title, seed=0)

    def _request(self, ids: tuple[int, ...], example: Example, sampling: Sampling) -> Request:
        return Request(
            purpose="prediction",
            prompt_ids=ids,
            sampling=sampling,
            example_id=example.id,
            model=self.generator.identity,
        )


def _sentences(world: World, items: int) -> list[Example]:
    """Held-out sentences, half in each direction, in all wordings."""
    rng = world.rng("exam")
    code = world.new.code
    found = []
    for number in range(items):
        direction = (f"en-{code}", f"{code}-en")[number % 2]
        clause = world.clause(rng, test=True)
        item = translation(rng, world, clause, direction)
        source = world.translators[direction.partition("-")[0]](clause)
        found.append(
            Example.of("translation", [Message("user", item.prompt)], item.gold, {"pair": direction, "source": source})
        )
    return found
