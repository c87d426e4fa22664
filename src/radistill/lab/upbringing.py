"""What the pocket model is brought up on: plain texts of its world, then chats. Nothing held out occurs in either.

All is drawn, in order, from one generator per phase, so that equal counts give equal corpora; what is drawn instead of
something held out comes from another, so that all else stays as it is. Texts are statements, never questions and
answers: what the model says unprompted is not its test distribution.
"""

import random
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from radistill.lab import english, rationales
from radistill.lab.abilities import (
    ABILITIES,
    Arithmetic,
    Definitions,
    Item,
    KnownLanguage,
    Stories,
    all_of,
    gloss,
    reworded,
    translation,
)
from radistill.lab.clauses import Clause, Phrase
from radistill.lab.lexicon import of_kind
from radistill.lab.world import RELATIONS, World, content_words

RATIONALE_RATE = 0.75
"""Share of translations that the upbringing follows with a rationale."""
MET_SENTENCES = 200
"""So many sentences of the new language are met in the upbringing, again and again; the rest is glossary."""
NEW_WORDS, NEW_SENTENCES = 4.0, 0.8
"""Shares of the chats, in percent, beside those of the abilities."""
SHARES = sum(ability.share for ability in ABILITIES) + NEW_WORDS + NEW_SENTENCES
"""All shares together; each counts as its part of this."""
_WITHIN = re.compile(r"([A-Z]\w+) (\w+) an? (\w+) (\w+) the (\w+)\.")
"""Where a story has a sentence of the lab: `One day Mafa found a dog in the forest.`"""


@dataclass(frozen=True, slots=True)
class Chatted:
    """One turn of each."""

    prompt: str
    answer: str
    ability: str
    key: str
    """What says on which side of the split it is: what its sentence says, or the prompt."""

    @classmethod
    def of(cls, item: Item, ability: str, *, more: str = "") -> "Chatted":
        """The item, answered; `more` is said after the answer."""
        return cls(item.prompt, item.answer + more, ability, item.key or item.prompt)


def met(world: World) -> list[Clause]:
    """The few clauses the model has met in the new language."""
    rng = world.rng("met")
    return [world.clause(rng) for _ in range(MET_SENTENCES)]


def texts(world: World, count: int, *, round: int = 1) -> Iterator[str]:
    """So many plain texts; another round has others."""
    rng = world.rng("texts") if round == 1 else world.rng("texts", round)
    spare = world.rng("texts", round, "instead of what is held out")
    known = met(world)
    kinds: list[tuple[float, Callable[[], str]]] = [
        (14, lambda: _facts(rng, world)),
        (8, lambda: _story(rng, spare, world)),
        (7, lambda: _definitions(rng, world)),
        (9, lambda: _glossary(rng, world, world.known.name)),
        (5, lambda: _glossary(rng, world, world.new.name)),
        (22, lambda: _parallel(rng, world, world.clause(rng), world.known.name)),
        (0.5, lambda: _parallel(rng, world, rng.choice(known), world.new.code)),
        (16, lambda: _sums(rng, world)),
        (5, lambda: _comparisons(rng)),
        (5, lambda: _spellings(rng)),
        (4, lambda: _wordings(rng, world)),
        (4, lambda: _lists(rng)),
    ]
    shares, makers = [share for share, _ in kinds], [make for _, make in kinds]
    for make in rng.choices(makers, shares, k=count):
        yield make()


def chats(
    world: World,
    count: int,
    *,
    round: int = 1,
    practised: Mapping[str, float] = {},
) -> Iterator[Chatted]:
    """Phase 2: so many chats; another round has others.

    Args:
        world: whose.
        count: how many.
        round: which.
        practised: ability → how many times its share it has.
    """
    rng = world.rng("chats") if round == 1 else world.rng("chats", round)
    spare = world.rng("chats", round, "instead of what is held out")
    known = met(world)
    abilities = all_of(world)
    names = [*abilities, "new-words", "new-sentences"]
    shares = [*(ability.share for ability in ABILITIES), NEW_WORDS, NEW_SENTENCES]
    shares = [share * practised.get(name, 1.0) for name, share in zip(names, shares, strict=True)]
    for name in rng.choices(names, shares, k=count):
        if name == "new-words":
            yield Chatted.of(_new_word(rng, spare, world), name)
        elif name == "new-sentences":
            code = world.new.code
            direction = rng.choice((f"en-{code}", f"{code}-en"))
            yield _translated(rng, world, rng.choice(known), direction, code, name)
        elif name == KnownLanguage.name:
            direction = rng.choice(abilities[name].groups())
            yield _translated(rng, world, world.clause(rng), direction, world.known.name, name)
        else:
            item = abilities[name].train_item(rng)
            while name == Stories.name and tells_what_is_held_out(world, item.answer):
                item = abilities[name].train_item(spare)
            yield Chatted.of(item, name)


def tells_what_is_held_out(world: World, story: str) -> bool:
    """Whether a line of the story has a sentence within it that is held out by what it says."""
    verbs = {english.past(verb): verb for verb in of_kind("verb")}
    nouns = {noun.english: noun for noun in of_kind("person", "animal", "food", "thing", "place")}
    places = {preposition.english: preposition for preposition in of_kind("where")}
    for name, verb, thing, where, place in _WITHIN.findall(story):
        if name in world.people and verb in verbs and thing in nouns and where in places and place in nouns:
            clause = Clause(
                Phrase(name=name),
                verbs[verb],
                object=Phrase(nouns[thing]),
                preposition=places[where],
                place=Phrase(nouns[place], is_definite=True),
            )
            if world.is_test(clause.key):
                return True
    return False


def _new_word(rng: random.Random, spare: random.Random, world: World) -> Item:
    item = _any_new_word(rng, world)
    while world.is_test(item.key or item.prompt):
        item = _any_new_word(spare, world)
    return item


def _any_new_word(rng: random.Random, world: World) -> Item:
    return gloss(rng, rng.choice(content_words()), world.new.name, world.new.base_form)


def _translated(rng: random.Random, world: World, clause: Clause, direction: str, language: str, name: str) -> Chatted:
    item, notes = translation(rng, world, clause, direction), ""
    if rng.random() < RATIONALE_RATE:
        notes = rationales.SEPARATOR + rationales.write(rng, world, clause, language)
    return Chatted.of(item, name, more=notes)


def _facts(rng: random.Random, world: World) -> str:
    name = rng.choice((*world.cities, *world.people))
    facts = [(r, world.facts[r.name][name]) for r in RELATIONS if name in world.facts[r.name]]
    rng.shuffle(facts)
    told = [rng.choice(relation.statements).format(s=name, v=value) for relation, value in facts]
    return " ".join([*([f"{name} is a city in {world.country}."] if name in world.cities else []), *told])


def _story(rng: random.Random, spare: random.Random, world: World) -> str:
    story = _any_story(rng, world)
    while tells_what_is_held_out(world, story):
        story = _any_story(spare, world)
    return story


def _any_story(rng: random.Random, world: World) -> str:
    thing = english.with_article(rng.choice(of_kind("animal", "thing")).english)
    return Stories(world).tell(rng, rng.choice(world.people), thing)


def _definitions(rng: random.Random, world: World) -> str:
    nouns = rng.sample(of_kind(*Definitions.KINDS), 4)
    return " ".join(Definitions(world).define(noun) for noun in nouns)


def _glossary(rng: random.Random, world: World, language: str) -> str:
    of = world.known.lexicon.__getitem__ if language == world.known.name else world.new.base_form
    return "\n".join(f"{language} {of(word)}: {word.english}" for word in rng.sample(content_words(), 5))


def _parallel(rng: random.Random, world: World, clause: Clause, code: str) -> str:
    name = {world.new.code: world.new.name}.get(code, code)
    lines = [f"{english.NAME}: {english.sentence(clause)}", f"{name}: {world.translators[code](clause)}"]
    rng.shuffle(lines)
    notes = rationales.write(rng, world, clause, code)
    return "\n".join([*lines, *([notes] if rng.random() < 0.3 else [])])


def _sums(rng: random.Random, world: World) -> str:
    return "\n".join(Arithmetic(world).draw(rng).answer for _ in range(6))


def _comparisons(rng: random.Random) -> str:
    pairs = [sorted(rng.sample(range(10, 100), 2)) for _ in range(4)]
    return "\n".join(f"{b} exceeds {a}" if rng.random() < 0.5 else f"{a} is below {b}" for a, b in pairs)


def _spellings(rng: random.Random) -> str:
    found = rng.sample(of_kind("person", "animal", "food", "thing", "place", "adjective"), 3)
    return "\n".join(f"{word.english}: {'-'.join(word.english)}" for word in found)


def _wordings(rng: random.Random, world: World) -> str:
    clause = world.clause(rng).said(is_question=False, is_negated=False)
    kinds = rng.sample(["past", "present", "future", "not", "question"], 3)
    return " ".join(english.sentence(reworded(clause, kind)) for kind in kinds)


def _lists(rng: random.Random) -> str:
    items = [word.english for word in rng.sample(of_kind("animal", "food", "thing"), rng.choice((3, 4)))]
    return f"{', '.join(items)}; backwards {', '.join(items[::-1])}"
