"""What the sentences of the lab say, before they are said in any language.

A `Clause` is one statement or yes-no question. Its `key` names what it says without tense, negation and question, so
that all ways of saying the same belong to the same side of the split between training and test.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from radistill.lab.lexicon import Word, named, of_kind

Tense = Literal["present", "past", "future"]
TENSES: tuple[Tense, ...] = ("present", "past", "future")
NOUNS = ("person", "animal", "food", "thing", "place")
LIVING = ("person", "animal")


@dataclass(frozen=True, slots=True)
class Phrase:
    """A noun with what goes with it; or a name; or a pronoun."""

    noun: Word | None = None
    name: str = ""
    adjective: Word | None = None
    number: Word | None = None
    is_plural: bool = False
    is_definite: bool = False

    @property
    def key(self) -> str:
        """Equal for equal phrases, different for different ones."""
        parts = (self.noun, self.adjective, self.number)
        words = ",".join(word.english if word else "" for word in parts)
        return f"{words},{self.name},{int(self.is_plural)}{int(self.is_definite)}"


@dataclass(frozen=True, slots=True)
class Clause:
    """Who does what to whom, how, where; or what somebody is like."""

    subject: Phrase
    verb: Word | None = None
    """None: the subject *is* `quality`."""
    quality: Word | None = None
    object: Phrase | None = None
    adverb: Word | None = None
    preposition: Word | None = None
    place: Phrase | None = None
    tense: Tense = "present"
    is_negated: bool = False
    is_question: bool = False

    @property
    def key(self) -> str:
        """What is said, without tense, negation and question."""
        words = (self.verb, self.quality, self.adverb, self.preposition)
        parts = [self.subject.key, *(p.key if p else "" for p in (self.object, self.place))]
        return "|".join([*parts, *(word.english if word else "" for word in words)])

    @property
    def words(self) -> tuple[Word, ...]:
        """All words with a meaning of their own, in the order of an English sentence; pronouns are left out."""
        found: list[Word | None] = [self.subject.number, self.subject.adjective, self.subject.noun]
        found += [self.verb, self.quality]
        for phrase in (self.object, self.place):
            found += [] if phrase is None else [phrase.number, phrase.adjective, phrase.noun]
        found += [self.adverb, self.preposition]
        return tuple(dict.fromkeys(word for word in found if word is not None and word.kind != "pronoun"))

    @property
    def names(self) -> tuple[str, ...]:
        """People and cities."""
        return tuple(phrase.name for phrase in (self.subject, self.object, self.place) if phrase and phrase.name)

    def said(self, **changes: Any) -> "Clause":
        """The same in another `tense`, negated (`is_negated`), or asked (`is_question`)."""
        return replace(self, **changes)


def draw(rng: random.Random, *, people: Sequence[str], cities: Sequence[str]) -> Clause:
    """Any clause.

    Args:
        rng: where it comes from.
        people: names that may be subjects.
        cities: names that may be places.
    """
    tense = rng.choices(TENSES, (5, 4, 2))[0]
    is_negated, is_question = rng.random() < 0.15, rng.random() < 0.15
    said = partial(Clause, tense=tense, is_negated=is_negated, is_question=is_question)
    if rng.random() < 0.15:
        subject = _subject(rng, people, ("person", "animal", "thing", "place"))
        return said(subject=subject, quality=rng.choice(of_kind("adjective")))
    preposition, place = _where(rng, cities)
    adverb = rng.choice(of_kind("adverb")) if rng.random() < 0.25 else None
    said = partial(said, adverb=adverb, preposition=preposition, place=place)
    if rng.random() < 0.25:
        verb = rng.choice(of_kind("motion"))
        return said(subject=_subject(rng, people, LIVING), verb=verb)
    verb = rng.choice(of_kind("verb"))
    patient = noun_phrase(rng, rng.choice(of_kind(*verb.objects)))
    return said(subject=_subject(rng, people, LIVING), verb=verb, object=patient)


def noun_phrase(rng: random.Random, noun: Word, *, plain: bool = False) -> Phrase:
    """The noun with article or number, singular or plural; `plain` without an adjective."""
    adjective = rng.choice(of_kind("adjective")) if not plain and rng.random() < 0.35 else None
    if rng.random() < 0.12:
        return Phrase(noun, adjective=adjective, number=rng.choice(of_kind("number")), is_plural=True)
    return Phrase(noun, adjective=adjective, is_plural=rng.random() < 0.3, is_definite=rng.random() < 0.6)


def _subject(rng: random.Random, people: Sequence[str], kinds: tuple[str, ...]) -> Phrase:
    chance = rng.random()
    if chance < 0.15 and "person" in kinds:
        return Phrase(name=rng.choice(people))
    if chance < 0.3 and "person" in kinds:
        pronoun = rng.choice(of_kind("pronoun"))
        return Phrase(noun=pronoun, is_plural=pronoun.english in ("we", "they", "you"), is_definite=True)
    return noun_phrase(rng, rng.choice(of_kind(*kinds)))


def _where(rng: random.Random, cities: Sequence[str]) -> tuple[Word | None, Phrase | None]:
    chance = rng.random()
    if chance < 0.2:
        return named("in", "where"), Phrase(name=rng.choice(cities))
    if chance < 0.45:
        return rng.choice(of_kind("where")), noun_phrase(rng, rng.choice(of_kind("place")), plain=True)
    if chance < 0.55:
        return rng.choice(of_kind("company")), noun_phrase(rng, rng.choice(of_kind("person")), plain=True)
    return None, None
