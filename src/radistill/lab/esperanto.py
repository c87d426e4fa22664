"""The skill to be taught: Esperanto by rule, or a language with its roots and other order or endings.

Rules after Zamenhof, *Fundamento de Esperanto* (1905), "Fundamenta Gramatiko", by number:

1. There is no indefinite article; the definite one is `la`, the same for all genders, cases and numbers.
2. Nouns end in `-o`; the plural adds `-j`; the accusative adds `-n` after that. Other cases use prepositions.
3. Adjectives end in `-a` and agree in case and number with their noun; as predicates they agree in number.
4. Cardinal numerals are not declined; tens and units are written apart (`dek du`), multiples together (`dudek`).
5. Pronouns are `mi`, `vi`, `li`, `ŝi`, `ni`, `ili`; their accusative ends in `-n`.
6. Verbs do not change for person or number: present `-as`, past `-is`, future `-os`; `esti` is to be.
7. Adverbs made of roots end in `-e`.
8. All prepositions take the nominative.
9. Every word is pronounced as it is spelled (there are no irregular forms).
13. The accusative marks the goal of a movement; no clause of the lab has one.
Negation: `ne` before the verb. Yes-no questions: `ĉu` at the beginning, word order unchanged.
"""

from dataclasses import dataclass
from functools import cache
from typing import Literal, get_args

from radistill.lab.clauses import Clause, Phrase
from radistill.lab.lexicon import Word, words

WordOrder = Literal["svo", "sov", "vso"]
Morphology = Literal["suffixes", "prefixes", "particles"]
TENSES = {"present": "as", "past": "is", "future": "os"}
LITTLE = ("la", "ne", "ĉu")
"""Words that stand in no dictionary of the lab, since English says them otherwise."""


@dataclass(frozen=True, slots=True)
class NewLanguage:
    """Esperanto, unless order or morphology is another: then a language that is none, with the same roots."""

    order: WordOrder = "svo"
    morphology: Morphology = "suffixes"

    @property
    def is_esperanto(self) -> bool:
        """Whether what it writes is Esperanto."""
        return (self.order, self.morphology) == ("svo", "suffixes")

    @property
    def name(self) -> str:
        """As instructions call it."""
        return "Esperanto" if self.is_esperanto else "Conlang"

    @property
    def code(self) -> str:
        """ISO 639; `qaa` is reserved for local use."""
        return "eo" if self.is_esperanto else "qaa"

    def sentence(self, clause: Clause) -> str:
        """The clause as a sentence of the language."""
        stem = clause.verb.stem if clause.verb else "est"
        verb = [*(["ne"] if clause.is_negated else []), self._form(stem, TENSES[clause.tense])]
        rest = [self.phrase(clause.object, is_object=True)] if clause.object else []
        if clause.quality:
            rest = [self._form(clause.quality.stem, "a", *(["j"] if clause.subject.is_plural else []))]
        if clause.adverb:
            rest.append(self.base_form(clause.adverb))
        if clause.preposition and clause.place:
            rest += [clause.preposition.stem, self.phrase(clause.place)]
        subject = [self.phrase(clause.subject)]
        ordered = {"svo": [*subject, *verb, *rest], "sov": [*subject, *rest, *verb], "vso": [*verb, *subject, *rest]}
        text = " ".join([*(["ĉu"] if clause.is_question else []), *ordered[self.order]])
        return text[0].upper() + text[1:] + ("?" if clause.is_question else ".")

    def phrase(self, found: Phrase, *, is_object: bool = False) -> str:
        """A noun phrase; an object stands in the accusative."""
        if found.name:
            return found.name
        assert found.noun is not None, "a phrase without name has a noun"
        case = ["n"] if is_object else []
        if found.noun.kind == "pronoun":
            return self._form(found.noun.stem, *case)
        marks = [*(["j"] if found.is_plural else []), *case]
        words = [found.number.stem] if found.number else ["la"] if found.is_definite else []
        words += [self._form(found.adjective.stem, "a", *marks)] if found.adjective else []
        return " ".join([*words, self._form(found.noun.stem, "o", *marks)])

    def base_form(self, word: Word) -> str:
        """The word as a dictionary lists it: nouns `-o`, adjectives `-a`, verbs `-i`, adverbs of roots `-e`."""
        endings = {"adjective": "a", "verb": "i", "motion": "i", "adverb": "e"}
        if word.kind in ("where", "company", "number", "pronoun"):
            return word.stem
        return self._form(word.stem, endings.get(word.kind, "o"))

    def forms(self, word: Word) -> set[str]:
        """All that the word is in sentences, its base form included."""
        marks: list[tuple[str, ...]] = []
        if word.kind in ("verb", "motion"):
            marks = [(tense,) for tense in TENSES.values()]
        elif word.kind == "pronoun":
            marks = [("n",)]
        elif word.kind not in ("adverb", "where", "company", "number"):
            ending = "a" if word.kind == "adjective" else "o"
            marks = [(ending, *more) for more in ((), ("j",), ("n",), ("j", "n"))]
        return {self.base_form(word), *(self._form(word.stem, *of) for of in marks)}

    def _form(self, stem: str, *marks: str) -> str:
        """The stem with its marks: behind it, before it, or as words of their own.

        Particles leave out what says no more than the class of the word, but for adverbs: `rapid` is quick already.
        """
        if self.morphology == "suffixes":
            return stem + "".join(marks)
        if self.morphology == "prefixes":
            return "".join(reversed(marks)) + stem
        return " ".join([*(marks[1:] if marks and marks[0] in ("o", "a", "i") else marks), stem])


@cache
def spelled(*, in_sentences: bool = False) -> frozenset[str]:
    """The new language's words as a dictionary has them: what the words of another language must not look like.

    Whatever morphology a world has, they are all in it: so its other language does not change with that option.

    Args:
        in_sentences: with all their endings too, as they stand beside names.
    """
    found = set(LITTLE)
    for morphology in get_args(Morphology):
        language = NewLanguage(morphology=morphology)
        for word in words():
            found |= language.forms(word) if in_sentences else {language.base_form(word)}
        if in_sentences:
            found |= {language._form("est", tense) for tense in TENSES.values()}
    return frozenset(part for form in found for part in form.split())
