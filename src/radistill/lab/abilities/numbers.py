"""Numbers with two digits: sums, differences, and which is larger."""

import random
import re
from typing import ClassVar

from radistill.lab.abilities.base import Ability, Item, words_of


class Arithmetic(Ability):
    """Sums and differences of numbers with two digits."""

    name, share, chance = "arithmetic", 30.0, 2.0
    ADD = (
        "What is {a} + {b}?",
        "Calculate {a} + {b}.",
        "Add {a} and {b}.",
        "How much is {a} plus {b}?",
        "What is the sum of {a} and {b}?",
        "Work out {a} + {b}.",
    )
    SUBTRACT = (
        "What is {a} - {b}?",
        "Calculate {a} - {b}.",
        "Subtract {b} from {a}.",
        "How much is {a} minus {b}?",
        "What is the difference of {a} and {b}?",
        "Work out {a} - {b}.",
    )

    def groups(self) -> tuple[str, ...]:
        """Both operations."""
        return ("addition", "subtraction")

    def draw(self, rng: random.Random) -> Item:
        """One of the two operations."""
        a, b = rng.randint(10, 99), rng.randint(10, 99)
        if rng.random() < 0.5:
            prompt = rng.choice(self.ADD).format(a=a, b=b)
            return Item(prompt, f"{a} + {b} = {a + b}", str(a + b), group="addition")
        a, b = max(a, b), min(a, b)
        prompt = rng.choice(self.SUBTRACT).format(a=a, b=b)
        return Item(prompt, f"{a} - {b} = {a - b}", str(a - b), group="subtraction")

    def is_right(self, answer: str, item: Item) -> bool:
        """The only number, or the only one after the only `=`, is the result; what stands before that was asked."""
        said, equals, result = answer.rpartition("=")
        asked = set(re.findall(r"\d+", item.prompt))
        of_the_question = "=" not in said and set(re.findall(r"\d+", said)) <= asked
        return (of_the_question or not equals) and re.findall(r"-?\d+", result) == [item.gold]


class Comparison(Ability):
    """Which of two numbers is larger, by yes or no."""

    name, share, chance = "comparison", 5.0, 50.0
    WORDINGS: ClassVar[dict[str, tuple[str, ...]]] = {
        "larger": (
            "Is {a} larger than {b}?",
            "Is it true that {a} is larger than {b}?",
            "{a} is larger than {b}, right?",
        ),
        "smaller": (
            "Is {a} smaller than {b}?",
            "Is it true that {a} is smaller than {b}?",
            "{a} is smaller than {b}, right?",
        ),
    }

    def draw(self, rng: random.Random) -> Item:
        """Two different numbers."""
        a, b = rng.sample(range(10, 100), 2)
        way = rng.choice(("larger", "smaller"))
        holds = (a > b) == (way == "larger")
        return Item(
            rng.choice(self.WORDINGS[way]).format(a=a, b=b), "Yes." if holds else "No.", "yes" if holds else "no"
        )

    def is_right(self, answer: str, item: Item) -> bool:
        """The first word is the right one, and the other is not said at all."""
        told = words_of(answer.lower())
        return told[:1] == [item.gold] == sorted({"yes", "no"}.intersection(told))
