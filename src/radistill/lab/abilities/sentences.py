"""What can be done with a sentence: say it otherwise, count its words, translate it."""

import random
import re
from typing import ClassVar

from radistill.instructions import WORDINGS
from radistill.lab import english
from radistill.lab.abilities.base import Ability, Item, is_denied
from radistill.lab.clauses import Clause
from radistill.lab.world import World


class Rewording(Ability):
    """The same sentence in another tense, negated, or asked."""

    name, share, in_rationales = "rewording", 8.0, True
    WORDINGS: ClassVar[dict[str, tuple[str, ...]]] = {
        "past": ("Put this into the past tense: {s}", "Say it in the past: {s}", "Rewrite in the past tense. {s}"),
        "future": (
            "Put this into the future tense: {s}",
            "Say it in the future: {s}",
            "Rewrite in the future tense. {s}",
        ),
        "present": (
            "Put this into the present tense: {s}",
            "Say it in the present: {s}",
            "Rewrite in the present tense. {s}",
        ),
        "not": ("Negate this sentence: {s}", "Say the contrary: {s}", "Put a not into it: {s}"),
        "question": ("Turn this into a question: {s}", "Ask it: {s}", "Make a question of this: {s}"),
    }

    def draw(self, rng: random.Random) -> Item:
        """A statement and what is to be made of it."""
        clause = self.world.clause(rng, test=rng.random() < 0.5)
        clause = clause.said(is_question=False, is_negated=False)
        kind = rng.choice([kind for kind in self.WORDINGS if kind != clause.tense])
        asked, answer = english.sentence(clause), english.sentence(reworded(clause, kind))
        prompt = rng.choice(self.WORDINGS[kind]).format(s=asked)
        return Item(prompt, answer, answer, key=clause.key, sentences=(asked, answer))

    def is_right(self, answer: str, item: Item) -> bool:
        """The one right sentence."""
        return answer.strip() == item.gold


class Counting(Ability):
    """How many words a text has."""

    name, share, in_rationales, chance = "counting", 4.0, True, 17.0
    WORDINGS = (
        "How many words are in this sentence? {s}",
        "Count the words: {s}",
        "{s} How many words is that?",
        "What is the number of words in: {s}",
    )

    def draw(self, rng: random.Random) -> Item:
        """A sentence of at most ten words."""
        while True:
            clause = self.world.clause(rng, test=rng.random() < 0.5)
            sentence = english.sentence(clause)
            if (length := len(sentence.split())) <= 10:
                prompt = rng.choice(self.WORDINGS).format(s=sentence)
                return Item(prompt, counted(sentence), str(length), key=clause.key, sentences=(sentence,))

    def is_right(self, answer: str, item: Item) -> bool:
        """The only number in the answer is the right one."""
        return re.findall(r"\d+", answer) == [item.gold] and not is_denied(answer)


class KnownLanguage(Ability):
    """Sentences between English and the known foreign language; scored by BLEU."""

    name, share = "known-language", 15.0

    def groups(self) -> tuple[str, ...]:
        """Both directions."""
        name = self.world.known.name
        return (f"en-{name}", f"{name}-en")

    def draw(self, rng: random.Random) -> Item:
        """A sentence and its only translation."""
        clause = self.world.clause(rng, test=rng.random() < 0.5)
        return translation(rng, self.world, clause, rng.choice(self.groups()))

    def is_right(self, answer: str, item: Item) -> bool:
        """The very sentence."""
        return answer.strip() == item.gold


def counted(sentence: str) -> str:
    """The note on how many words a sentence has."""
    return f"The sentence has {len(sentence.split())} words."


def reworded(clause: Clause, kind: str) -> Clause:
    """The clause in another tense, negated, or asked."""
    if kind == "not":
        return clause.said(is_negated=True)
    return clause.said(is_question=True) if kind == "question" else clause.said(tense=kind)


def translation(rng: random.Random, world: World, clause: Clause, direction: str) -> Item:
    """The clause to be translated, in one of the usual wordings of instructions."""
    source, _, target = direction.partition("-")
    names = {english.CODE: english.NAME, world.new.code: world.new.name}
    text, gold = (world.translators[code](clause) for code in (source, target))
    prompt = rng.choice(list(WORDINGS.values()))
    for key, value in (
        ("source_language", names.get(source, source)),
        ("target_language", names.get(target, target)),
        ("source", text),
    ):
        prompt = prompt.replace(f"{{{key}}}", value)
    return Item(prompt, gold, gold, key=clause.key, group=direction, sentences=(text, gold))
