"""The foreign language the pocket model already knows: its words drawn by a seed, its grammar by rule.

Subject, object, verb; the verb last, adjectives and numbers after their noun, prepositions as endings of the noun. All
that is marked in English is marked here, so that every sentence has one translation each way.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass

from radistill.lab.clauses import Clause, Phrase
from radistill.lab.lexicon import Word, words

ONSETS = ("b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z", "sh", "th", "br", "dr", "tr", "kl")
VOWELS = ("a", "e", "i", "o", "u", "ai", "ou")
CODAS = ("", "", "l", "m", "n", "r", "s", "x")
ENGLISH = frozenset(
    {"a", "an", "and", "be", "but", "do", "go", "he", "in", "is", "it", "no", "not", "of", "on", "or", "so", "soul"}
    | {"am", "are", "did", "does", "were", "will", "the", "they", "thou", "to", "us", "was", "we", "who"}
)
"""Small English words that a word drawn from syllables may not be."""
MARKS = ("the", "plural", "object", "present", "past", "future", "not", "question", "be")


@dataclass(frozen=True)
class KnownLanguage:
    """The words of one world's language."""

    name: str
    lexicon: Mapping[Word, str]
    marks: Mapping[str, str]

    @classmethod
    def of(cls, seed: int, name: str, others: frozenset[str] = frozenset()) -> "KnownLanguage":
        """The language of that seed, none of whose words is an English one or one of the others, in small letters."""
        rng = random.Random(seed)
        taken = {word.english for word in words()} | ENGLISH | others
        marks = {mark: _new(rng, taken, 1) for mark in MARKS}
        return cls(name, {word: _new(rng, taken, 2) for word in words()}, marks)

    def sentence(self, clause: Clause) -> str:
        """The clause as a sentence of the language."""
        parts = [self.phrase(clause.subject)]
        if clause.preposition and clause.place:
            parts.append(f"{self.phrase(clause.place)} {self.lexicon[clause.preposition]}")
        if clause.adverb:
            parts.append(self.lexicon[clause.adverb])
        if clause.object:
            parts.append(f"{self.phrase(clause.object)} {self.marks['object']}")
        if clause.quality:
            parts.append(self.lexicon[clause.quality])
        verb = self.lexicon[clause.verb] if clause.verb else self.marks["be"]
        parts.append(f"{verb} {self.marks[clause.tense]}")
        parts += [self.marks["not"]] if clause.is_negated else []
        parts += [self.marks["question"]] if clause.is_question else []
        text = " ".join(parts)
        return text[0].upper() + text[1:] + ("?" if clause.is_question else ".")

    def phrase(self, found: Phrase) -> str:
        """A noun phrase: noun, adjective, number, plural, article."""
        if found.name:
            return found.name
        assert found.noun is not None, "a phrase without name has a noun"
        parts = [found.noun, found.adjective, found.number]
        said = [self.lexicon[word] for word in parts if word]
        if found.noun.kind != "pronoun":
            said += [self.marks["plural"]] if found.is_plural and not found.number else []
            said += [self.marks["the"]] if found.is_definite else []
        return " ".join(said)


def syllables(rng: random.Random, count: int) -> str:
    """So many syllables that can be pronounced."""
    return "".join(rng.choice(ONSETS) + rng.choice(VOWELS) for _ in range(count)) + rng.choice(CODAS)


def _new(rng: random.Random, taken: set[str], count: int) -> str:
    while (word := syllables(rng, count)) in taken:
        pass
    taken.add(word)
    return word
