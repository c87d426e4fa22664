"""Operations on lists and letters, and answers in a given format."""

import json
import random
from typing import ClassVar

from radistill.lab.abilities.base import Ability, Item, words_of
from radistill.lab.lexicon import of_kind


class Lists(Ability):
    """Operations on short lists of words."""

    name, share = "lists", 8.0
    WORDINGS: ClassVar[dict[str, tuple[str, ...]]] = {
        "reverse": ("Reverse this list: {l}.", "Write the list backwards: {l}.", "Turn the order round: {l}."),
        "first": (
            "What is the first word of this list: {l}.",
            "Give the first item: {l}.",
            "Which item comes first: {l}.",
        ),
        "last": ("What is the last word of this list: {l}.", "Give the last item: {l}.", "Which item comes last: {l}."),
        "without": ("Take {x} out of this list: {l}.", "Write the list without {x}: {l}.", "Remove {x}: {l}."),
        "twice": ("Double every item: {l}.", "Write each item twice: {l}.", "Repeat each word of the list: {l}."),
    }

    def draw(self, rng: random.Random) -> Item:
        """Three or four words and an operation."""
        items = [word.english for word in rng.sample(of_kind("animal", "food", "thing"), rng.choice((3, 4)))]
        kind = rng.choice(list(self.WORDINGS))
        x = rng.choice(items)
        results = {
            "reverse": items[::-1],
            "first": items[:1],
            "last": items[-1:],
            "without": [i for i in items if i != x],
            "twice": [i for item in items for i in (item, item)],
        }
        answer = ", ".join(results[kind])
        return Item(rng.choice(self.WORDINGS[kind]).format(l=", ".join(items), x=x), answer, answer)

    def is_right(self, answer: str, item: Item) -> bool:
        """The same words in the same order."""
        return words_of(answer) == words_of(item.gold)


class Strings(Ability):
    """Letters of words."""

    name, share, chance = "strings", 8.0, 5.0
    WORDINGS: ClassVar[dict[str, tuple[str, ...]]] = {
        "spell": ("Spell the word {w}.", "How is {w} spelled?", "Write {w} letter by letter."),
        "first": (
            "What is the first letter of {w}?",
            "With which letter does {w} begin?",
            "Give the first letter of {w}.",
        ),
        "last": ("What is the last letter of {w}?", "With which letter does {w} end?", "Give the last letter of {w}."),
        "upper": ("Write {w} in capital letters.", "Put {w} into capitals.", "Say {w} in upper case."),
    }

    def draw(self, rng: random.Random) -> Item:
        """One word and an operation."""
        word = rng.choice(of_kind("person", "animal", "food", "thing", "place", "adjective")).english
        kind = rng.choice(list(self.WORDINGS))
        results = {"spell": "-".join(word), "first": word[0], "last": word[-1], "upper": word.upper()}
        return Item(rng.choice(self.WORDINGS[kind]).format(w=word), results[kind], results[kind])

    def is_right(self, answer: str, item: Item) -> bool:
        """Exactly that, but for a full stop."""
        return answer.strip().removesuffix(".") == item.gold


class Formats(Ability):
    """Answers in JSON, as bullets, as a numbered list."""

    name, share = "formats", 2.0
    WORDINGS: ClassVar[dict[str, tuple[str, ...]]] = {
        "json": ("Write as JSON: {f}.", "Give me this as a JSON object: {f}.", "JSON please: {f}."),
        "bullets": ("Write as bullet points: {l}.", "Make a bullet list of: {l}.", "Bullets please: {l}."),
        "numbers": ("Write as a numbered list: {l}.", "Number these: {l}.", "Make a numbered list of: {l}."),
    }

    def draw(self, rng: random.Random) -> Item:
        """Fields of a person, or three things."""
        kind = rng.choice(list(self.WORDINGS))
        fields = {
            "name": rng.choice(self.world.people),
            "city": rng.choice(self.world.cities),
            "age": str(rng.randint(10, 99)),
        }
        items = [word.english for word in rng.sample(of_kind("animal", "food", "thing"), 3)]
        results = {
            "json": json.dumps(fields),
            "bullets": "\n".join(f"- {i}" for i in items),
            "numbers": "\n".join(f"{n}. {i}" for n, i in enumerate(items, start=1)),
        }
        told = ", ".join(f"{key} {value}" for key, value in fields.items())
        return Item(rng.choice(self.WORDINGS[kind]).format(f=told, l=", ".join(items)), results[kind], results[kind])

    def is_right(self, answer: str, item: Item) -> bool:
        """JSON with the same content; lists with the same lines."""
        if not item.gold.startswith("{"):
            return [line.strip() for line in answer.strip().splitlines()] == item.gold.splitlines()
        try:
            return bool(json.loads(answer, object_pairs_hook=sorted) == sorted(json.loads(item.gold).items()))
        except (ValueError, RecursionError, TypeError):  # TypeError: a key twice, with values of two kinds
            return False
