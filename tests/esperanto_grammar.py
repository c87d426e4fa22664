"""A reader of simple Esperanto sentences that knows nothing of how the lab forms them.

It knows the closed classes by heart, tells the open ones by their endings, and enforces the rules of the *Fundamenta
Gramatiko* (Zamenhof 1905), cited by number where they are applied.
"""

from collections.abc import Collection
from dataclasses import dataclass, field

PREPOSITIONS = frozenset(
    {"en", "sur", "sub", "apud", "malantaŭ", "antaŭ", "ĉirkaŭ", "super", "ĉe", "trans", "tra"}
    | {"kun", "sen", "por", "post", "kontraŭ", "anstataŭ"}
)
NUMERALS = frozenset({"du", "tri", "kvar", "kvin", "ses", "sep", "ok", "naŭ", "dek", "dudek", "cent", "mil"})
PRONOUNS = {"mi": False, "li": False, "ŝi": False, "ni": True, "ili": True, "vi": True}
"""Whether it stands for several: `vi` is treated as the polite plural, as English `you` is."""
TENSES = {"as": "present", "is": "past", "os": "future"}


class Ungrammatical(Exception):
    """A rule is broken; the message cites it."""


@dataclass(frozen=True)
class Noun:
    """A noun with what stands before it; or a pronoun; or a name."""

    word: str
    is_plural: bool = False
    is_accusative: bool = False
    is_definite: bool = False
    numeral: str = ""
    adjective: str = ""


@dataclass
class Sentence:
    """What was read."""

    subject: Noun
    verb: str
    tense: str
    is_negated: bool = False
    is_question: bool = False
    quality: str = ""
    object: Noun | None = None
    adverb: str = ""
    preposition: str = ""
    place: Noun | None = None


def read(text: str, names: Collection[str]) -> Sentence:
    """The parts of the sentence.

    Args:
        text: one sentence with subject, verb and object in this order.
        names: of people and places, which stay as they are.

    Raises:
        Ungrammatical: a rule is broken.
    """
    return _Reader(text, names).sentence()


@dataclass
class _Reader:
    text: str
    names: Collection[str]
    words: list[str] = field(default_factory=list)

    def sentence(self) -> Sentence:
        self._tokenise()
        is_question = self._take("ĉu")
        _need(is_question == self.text.endswith("?"), "a yes-no question begins with ĉu and ends in ?")
        subject = self._noun()
        _need(not subject.is_accusative, "2: the subject stands in the nominative")
        # `ne` stands before what it denies, here the verb.
        is_negated = self._take("ne")
        verb = self._word("a verb")
        _need(verb[-2:] in TENSES and len(verb) > 3, f"6: {verb} is neither present, past nor future")
        found = Sentence(subject, verb[:-2], TENSES[verb[-2:]], is_negated, is_question)
        if found.verb == "est":
            found.quality = self._predicate(subject)
        elif self.words and self._opens_a_noun(self.words[0]):
            found.object = self._noun()
            is_marked = found.object.is_accusative
            _need(is_marked, f"2 and 5: the object {found.object.word} stands in the accusative")
        if self.words and self.words[0].endswith("e") and self.words[0] not in ("ĉe", "ne"):
            found.adverb = self._word("an adverb")[:-1]
        if self.words and self.words[0] in PREPOSITIONS:
            found.preposition = self._word("a preposition")
            found.place = self._noun()
            _need(not found.place.is_accusative, "8: prepositions take the nominative")
        _need(not self.words, f"nothing may follow: {' '.join(self.words)}")
        return found

    def _tokenise(self) -> None:
        _need(self.text[-1:] in (".", "?"), "a sentence ends in a full stop or a question mark")
        self.words = self.text[:-1].split(" ")
        _need(all(word.isalpha() for word in self.words), "words are of letters")
        _need(self.words[0][0].isupper(), "a sentence begins with a capital")
        if self.words[0] not in self.names:
            self.words[0] = self.words[0][0].lower() + self.words[0][1:]
        _need(all(word.islower() for word in self.words if word not in self.names), "only names are capitalised")

    def _noun(self) -> Noun:
        if self.words and self.words[0] in self.names:
            return Noun(self._word("a name"))
        if self.words and self.words[0].removesuffix("n") in PRONOUNS:
            word = self._word("a pronoun")
            stem = word.removesuffix("n")
            return Noun(stem, is_plural=PRONOUNS[stem], is_accusative=word != stem, is_definite=True)
        is_definite = self._take("la")
        numerals = []
        while self.words and self.words[0] in NUMERALS:
            numerals.append(self._word("a numeral"))
        word = self._word("a noun")
        adjective = ""
        if _ending(word)[0] == "a":
            adjective, word = word, self._word("a noun")
        stem, ending = _cut(word)
        _need(ending[:1] == "o", f"2: the noun {word} ends in -o")
        if adjective:
            _need(_cut(adjective)[1][1:] == ending[1:], f"3: {adjective} agrees with {word} in number and case")
        if numerals:
            _need("j" in ending, f"2: of {' '.join(numerals)} there are several, so {word} is in the plural")
        return Noun(stem, "j" in ending, "n" in ending, is_definite, " ".join(numerals), _cut(adjective)[0])

    def _predicate(self, subject: Noun) -> str:
        word = self._word("a predicate")
        stem, ending = _cut(word)
        _need(ending in ("a", "aj"), f"3: the predicate {word} is an adjective in the nominative")
        _need((ending == "aj") == subject.is_plural, f"3: the predicate {word} agrees with the subject in number")
        return stem

    def _opens_a_noun(self, word: str) -> bool:
        closed = {"la", *NUMERALS, *self.names, *PRONOUNS, *(f"{p}n" for p in PRONOUNS)}
        return word in closed or (word not in PREPOSITIONS and _ending(word)[0] in ("o", "a"))

    def _take(self, word: str) -> bool:
        if self.words and self.words[0] == word:
            self.words.pop(0)
            return True
        return False

    def _word(self, wanted: str) -> str:
        _need(bool(self.words), f"{wanted} is missing")
        return self.words.pop(0)


def _ending(word: str) -> str:
    """Grammatical ending: `ojn`, `a`, …; `?` for what has none."""
    stem = word.removesuffix("n").removesuffix("j")
    return word[len(stem) - 1 :] if stem[-1:] in ("o", "a") and len(stem) > 2 else "?"


def _cut(word: str) -> tuple[str, str]:
    ending = _ending(word) if word else ""
    return word.removesuffix(ending), ending


def _need(holds: bool, rule: str) -> None:
    if not holds:
        raise Ungrammatical(rule)
