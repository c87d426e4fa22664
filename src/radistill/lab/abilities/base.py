"""What an ability of the pocket model is: items without end, a side of the split for each, and a scorer."""

import random
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from radistill.lab.world import World

TRIES = 300
"""Draws per wanted item, after which all that exist are taken to be found."""


@dataclass(frozen=True, slots=True)
class Item:
    """One question."""

    prompt: str
    answer: str
    """What the upbringing teaches to say."""
    gold: str
    """What the scorer looks for."""
    key: str = ""
    """What decides on which side of the split it is; "" = the prompt."""
    group: str = ""
    """Where an ability is scored in parts: the direction of a translation, harmful or not."""
    sentences: tuple[str, ...] = ()
    """Held-out sentences within prompt or answer."""


class Ability(ABC):
    """One ability in one world."""

    name: ClassVar[str]
    chance: ClassVar[float] = 0.0
    """Score of who does not read the question and always gives the most frequent answer, 0 to 100."""
    share: ClassVar[float]
    """Its weight among the chats of the upbringing, in about percent (`upbringing.SHARES` is all of them)."""
    in_rationales: ClassVar[bool] = False
    """Whether rationales may touch it."""

    def __init__(self, world: World) -> None:
        self.world = world

    @abstractmethod
    def draw(self, rng: random.Random) -> Item:
        """Any item, of either side of the split."""

    @abstractmethod
    def is_right(self, answer: str, item: Item) -> bool:
        """Whether the answer is right, by rule."""

    def is_test(self, item: Item) -> bool:
        """Whether the item is held out."""
        return self.world.is_test(item.key or item.prompt)

    def train_item(self, rng: random.Random) -> Item:
        """An item to learn from."""
        while self.is_test(item := self.draw(rng)):
            pass
        return item

    def test_items(self, count: int) -> list[Item]:
        """The first so many test items, or all that exist; groups in equal parts. Always the same."""
        rng = self.world.rng("test", self.name)
        found: dict[str, dict[str, Item]] = {group: {} for group in self.groups()}
        wanted = -(-count // len(found))
        for _ in range(TRIES * count):
            item = self.draw(rng)
            of_group = found[item.group]
            if len(of_group) < wanted and self.is_test(item):
                of_group.setdefault(item.prompt, item)
            if all(len(of) == wanted for of in found.values()):
                break
        fewest = min(map(len, found.values()))
        return [item for of in found.values() for item in list(of.values())[: min(wanted, fewest)]][:count]

    def groups(self) -> tuple[str, ...]:
        """Names of the groups."""
        return ("",)


def is_denied(text: str) -> bool:
    """Whether it says of something that it is not so."""
    told = text.lower().replace("’", "'")
    return bool(re.search(r"\b(?:not|no|never|neither|cannot)\b|n't\b", told))


def words_of(text: str) -> list[str]:
    """Words and numbers, without punctuation; `look-alike` is one."""
    return re.findall(r"[^\W_]+(?:['-][^\W_]+)*", text)
