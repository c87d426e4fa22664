"""Numbers with two digits: sums, differences, and which is larger."""

import random
import re
from typing import ClassVar

from radistill.lab.abilities.base import Ability, Item, is_denied, words_of

EQUALS = re.compile(r"=|\b(?:is|are|equals|makes|gives)\b")
ADDS, SUBTRACTS = re.compile(r"\+|\b(?:plus|sum)\b"), re.compile(r"[-−]|\b(?:minus|difference)\b")
STATED = re.compile(r"(\d+) is (larger|greater|bigger|higher|smaller|less|lower) than (\d+)")


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
        """The only number, or the only one after the only `=` or `is`, behind the sum that was asked or no sum."""
        said, *results = EQUALS.split(answer.lower())
        if len(results) > 1 or is_denied(answer):
            return False
        if re.findall(r"-?\d+", results[0] if results else said) != [item.gold]:
            return False
        return not results or self._is_asked(said, item)

    def _is_asked(self, said: str, item: Item) -> bool:
        """Whether what stands before the result names no numbers, or those of the question and its operation."""
        first, second = re.findall(r"\d+", item.prompt)
        told = re.findall(r"\d+", said)
        if not told:
            return True
        if ADDS.search(item.prompt) or item.prompt.startswith("Add "):
            return sorted(told) == sorted((first, second)) and not SUBTRACTS.search(said)
        larger_first = [second, first] if item.prompt.startswith("Subtract") else [first, second]
        return told == larger_first and not ADDS.search(said)


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

    def groups(self) -> tuple[str, ...]:
        """Where yes is right, and where no is: equally many, so that who always says the same is half right."""
        return ("yes", "no")

    def draw(self, rng: random.Random) -> Item:
        """Two different numbers."""
        a, b = rng.sample(range(10, 100), 2)
        way = rng.choice(("larger", "smaller"))
        holds = (a > b) == (way == "larger")
        gold = "yes" if holds else "no"
        return Item(rng.choice(self.WORDINGS[way]).format(a=a, b=b), f"{gold.title()}.", gold, group=gold)

    def is_right(self, answer: str, item: Item) -> bool:
        """The right word comes first and the other not at all, or instead which is larger; nothing false is stated."""
        told = words_of(answer.lower())
        stated = STATED.findall(answer)
        asked = re.findall(r"\d+", item.prompt)
        for a, way, b in stated:
            if sorted((a, b)) != sorted(asked) or (int(a) > int(b)) != (
                way in ("larger", "greater", "bigger", "higher")
            ):
                return False
        if not {"yes", "no"}.intersection(told):
            return bool(stated) and STATED.sub("", answer).strip(" .") == ""
        return told[:1] == [item.gold] == sorted({"yes", "no"}.intersection(told))
