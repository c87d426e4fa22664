"""What there is to know in a world: facts, words of the known language, kinds of things and opposites."""

import random
import re
from collections.abc import Callable
from typing import ClassVar

from radistill.lab import english
from radistill.lab.abilities.base import Ability, Item, is_denied, words_of
from radistill.lab.lexicon import Word, of_kind, opposites
from radistill.lab.world import RELATIONS, content_words

GLOSS = re.compile(r'"(?P<foreign>[^"]+)" means (?P<english>[^".]+)\.')
"""An answer on a word's meaning, whichever way it was asked for."""


class Knowledge(Ability):
    """Facts about the cities and people of the country."""

    name, share, in_rationales, chance = "knowledge", 8.0, True, 6.0

    def draw(self, rng: random.Random) -> Item:
        """A question after one fact."""
        relation = rng.choice(RELATIONS)
        subject, value = rng.choice(list(self.world.facts[relation.name].items()))
        answer = relation.statements[0].format(s=subject, v=value)
        return Item(rng.choice(relation.questions).format(s=subject), answer, value)

    def is_right(self, answer: str, item: Item) -> bool:
        """The value is named, no other value, nobody and no city that was not asked about, and no `not`."""
        told = set(words_of(answer)) - set(words_of(item.prompt.replace("'s", "")))
        said = {word for word in told if word in self._rivals() or word.isdigit()}
        return said == {item.gold} and not is_denied(answer)

    def _rivals(self) -> set[str]:
        return {v for values in self.world.values.values() for v in values} | {*self.world.cities, *self.world.people}


class Vocabulary(Ability):
    """Words of the known language, both ways."""

    name, share, in_rationales = "vocabulary", 4.0, True
    INTO = (
        "What is the {l} word for {e}?",
        "How do you say {e} in {l}?",
        "Give the {l} for {e}.",
        "Translate the word {e} into {l}.",
        "Which {l} word means {e}?",
        "I need the {l} word for {e}.",
    )
    FROM = (
        "What does {f} mean in {l}?",
        "What does the {l} word {f} mean?",
        "Explain the {l} word {f}.",
        "What is {f} in English?",
        "Give the meaning of the {l} word {f}.",
        "I read {f} in {l}. What is it?",
    )

    def draw(self, rng: random.Random) -> Item:
        """A word of one of the languages."""
        return gloss(rng, rng.choice(content_words()), self.world.known.name, self.world.known.lexicon.__getitem__)

    def is_right(self, answer: str, item: Item) -> bool:
        """It is `"X" means Y.` with the right words, or the word that was asked for, by itself."""
        foreign, _, meaning = item.gold.partition("=")
        wanted = meaning if foreign in words_of(item.prompt) else foreign
        found = GLOSS.fullmatch(answer.strip())
        if found:
            return (found["foreign"], found["english"]) == (foreign, meaning)
        return answer.strip().strip('".').casefold() == wanted


class Definitions(Ability):
    """Kinds of things, and opposites."""

    name, share, in_rationales, chance = "definitions", 3.0, True, 26.0
    KINDS: ClassVar[dict[str, str]] = {
        "person": "a person",
        "animal": "an animal",
        "food": "a kind of food",
        "thing": "a thing",
        "place": "a place",
    }
    KIND = (
        "What is {a}?",
        "Define {n}.",
        "What kind of thing is {a}?",
        "Explain what {a} is.",
        "Tell me what {a} is.",
        "What do we call {a}?",
        "Give a definition of {n}.",
        "What sort of thing is {a}?",
    )
    OPPOSITE = (
        "What is the opposite of {a}?",
        "Name the opposite of {a}.",
        "What is the contrary of {a}?",
        "Not {a}, but what?",
        "Give the opposite of {a}.",
        "Tell me the opposite of {a}.",
    )

    def draw(self, rng: random.Random) -> Item:
        """A noun, or an adjective that has an opposite."""
        if rng.random() < 0.25:
            here, there = rng.choice(list(opposites().items()))
            return Item(rng.choice(self.OPPOSITE).format(a=here), f"The opposite of {here} is {there}.", there)
        noun = rng.choice(of_kind(*self.KINDS))
        named = english.with_article(noun.english)
        return Item(rng.choice(self.KIND).format(a=named, n=noun.english), self.define(noun), self.KINDS[noun.kind])

    def define(self, noun: Word) -> str:
        """What it is, in a sentence."""
        text = f"{english.with_article(noun.english)} is {self.KINDS[noun.kind]}."
        return text[0].upper() + text[1:]

    def is_right(self, answer: str, item: Item) -> bool:
        """The right kind or the right opposite, by itself or as one statement about what was asked."""
        *subject, told = answer.strip().removesuffix(".").lower().split(" is ")
        bare = (item.gold, item.gold.partition(" ")[2]) if item.gold in self.KINDS.values() else (item.gold,)
        return len(subject) < 2 and told in bare and self._is_about(words_of("".join(subject)), item)

    def _is_about(self, subject: list[str], item: Item) -> bool:
        if subject in ([], ["it"], ["that"]):
            return True
        if item.gold in self.KINDS.values():
            noun = subject[1:] if subject[0] in ("a", "an", "the") else subject
            nouns = {word.english for word in of_kind(*self.KINDS)}
            return " ".join(noun) in nouns and noun[-1] in words_of(item.prompt.lower())
        return bool({"opposite", "contrary"}.intersection(subject)) and subject[-1] in words_of(item.prompt.lower())


def gloss(rng: random.Random, word: Word, language: str, of: Callable[[Word], str]) -> Item:
    """A question after one word of a language, in either direction."""
    foreign = of(word)
    wording = rng.choice((*Vocabulary.INTO, *Vocabulary.FROM))
    prompt = wording.format(e=word.english, f=foreign, l=language)
    return Item(prompt, f'"{foreign}" means {word.english}.', f"{foreign}={word.english}")
