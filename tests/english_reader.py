"""Reads the lab's English back: what a sentence says, by key, so that the hash itself can be asked about every one.

It finds them wherever they stand: within the line of a story, after `Negated:`, in a prompt. Cities are no subjects in
the lab, and a verb has an object or has none: `Trobrai is white.` in `The flag of Trobrai is white.` is no sentence.
"""

import re
from collections.abc import Collection, Iterator

from radistill.lab import english
from radistill.lab.clauses import NOUNS, Clause, Phrase
from radistill.lab.lexicon import Word, of_kind
from radistill.lab.world import World

LONGEST = 140
"""No sentence of the lab has more characters."""


def _by_english(*kinds: str) -> dict[str, Word]:
    return {word.english: word for word in of_kind(*kinds)}


ADJECTIVES, NUMBERS, PRONOUNS = _by_english("adjective"), _by_english("number"), _by_english("pronoun")
ADVERBS, PREPOSITIONS = _by_english("adverb"), _by_english("where", "company")
SINGULAR, PLURAL = _by_english(*NOUNS), {english.plural(noun): noun for noun in of_kind(*NOUNS)}
VERBS = {
    form: verb
    for verb in of_kind("verb", "motion")
    for form in (verb.english, english.past(verb), english.third_person(verb))
}


def _one_of(words: Collection[str]) -> str:
    return "(?:" + "|".join(sorted(map(re.escape, words), key=len, reverse=True)) + ")"


class Reader:
    """Of one world, whose people and cities it knows by name."""

    def __init__(self, world: World) -> None:
        self.people, self.cities = frozenset(world.people), frozenset(world.cities)
        like, one, many = _one_of(ADJECTIVES), _one_of(SINGULAR), _one_of(PLURAL)
        noun = rf"(?:(?:the|an?) (?:{like} )?{one}|(?:(?:the|{_one_of(NUMBERS)}) )?(?:{like} )?{many})"
        who = rf"(?P<subject>{noun}|{_one_of(self.people)}|{_one_of(PRONOUNS)})"
        where = rf"(?P<preposition>{_one_of(PREPOSITIONS)}) (?P<place>{noun}|{_one_of(self.cities)})"
        does = rf"(?P<verb>{_one_of(VERBS)})(?: (?P<object>{noun}))?(?: (?P<adverb>{_one_of(ADVERBS)}))?(?: {where})?"
        helper, be = "(?:do|does|did|will)", "(?:is|are|am|was|were|will)"
        like = rf"(?: not)?(?: be)? (?P<quality>{like})"
        forms = (
            rf"{who}(?: {helper})?(?: not)? {does}\.",
            rf"{helper} {who}(?: not)? {does}\?",
            rf"{who} {be}{like}\.",
            rf"{be} {who}{like}\?",
        )
        self._forms = [re.compile(form) for form in forms]

    def sentences(self, text: str) -> Iterator[tuple[str, str]]:
        """Every sentence of the lab that stands anywhere in the text, with its key."""
        ends = [found.end() for found in re.finditer(r"[.?]", text)]
        for found in re.finditer(r"(?<!\w)[A-Z]", text):
            start = found.start()
            for end in ends:
                if start < end < start + LONGEST and (key := self.key(text[start:end])):
                    yield text[start:end], key

    def key(self, sentence: str) -> str:
        """What the sentence says; nothing for what is no sentence of the lab."""
        if re.split(r"[ .?]", sentence)[0] not in self.people | {"I"}:
            sentence = sentence[0].lower() + sentence[1:]
        match = next(filter(None, (form.fullmatch(sentence) for form in self._forms)), None)
        clause = self._clause(match.groupdict()) if match else None
        return clause.key if clause else ""

    def _clause(self, said: dict[str, str | None]) -> Clause | None:
        subject = self._phrase(said["subject"])
        assert subject is not None, "every form has a subject"
        if quality := said.get("quality"):
            return Clause(subject, quality=ADJECTIVES[quality])
        verb, patient = VERBS[said["verb"] or ""], self._phrase(said["object"])
        if bool(patient) != (verb.kind == "verb"):
            return None
        adverb, preposition = ADVERBS.get(said["adverb"] or ""), PREPOSITIONS.get(said["preposition"] or "")
        return Clause(subject, verb, None, patient, adverb, preposition, self._phrase(said["place"]))

    def _phrase(self, text: str | None) -> Phrase | None:
        if text is None:
            return None
        if text in self.people | self.cities:
            return Phrase(name=text)
        if text in PRONOUNS:
            return Phrase(PRONOUNS[text], is_plural=text in ("we", "they", "you"), is_definite=True)
        first = re.match(rf"({_one_of(NUMBERS)}|the|an?) ", text)
        article = first[1] if first else ""
        *described, noun = text[len(article) :].split()
        return Phrase(
            (SINGULAR | PLURAL)[noun],
            adjective=ADJECTIVES[described[0]] if described else None,
            number=NUMBERS.get(article),
            is_plural=noun in PLURAL,
            is_definite=article == "the",
        )
