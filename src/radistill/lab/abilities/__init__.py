"""What the pocket model can do and could lose: prompts, right answers, and exact scorers.

Every ability draws items without end from its world. A prompt (wording x item) is held out for tests by its hash, a
sentence by the hash of what it says; nothing held out is ever trained on. `is_right` judges an answer by rule.
"""

from typing import Annotated

from pydantic import AfterValidator

from radistill.errors import did_you_mean
from radistill.lab.abilities.base import Ability, Item
from radistill.lab.abilities.facts import Definitions, Knowledge, Vocabulary, gloss
from radistill.lab.abilities.numbers import Arithmetic, Comparison
from radistill.lab.abilities.refusal import Refusal
from radistill.lab.abilities.sentences import Counting, KnownLanguage, Rewording, counted, reworded, translation
from radistill.lab.abilities.stories import Stories
from radistill.lab.abilities.texts import Formats, Lists, Strings
from radistill.lab.world import World

__all__ = [
    "ABILITIES",
    "Ability",
    "AbilityName",
    "Arithmetic",
    "Comparison",
    "Counting",
    "Definitions",
    "Formats",
    "Item",
    "Knowledge",
    "KnownLanguage",
    "Lists",
    "Refusal",
    "Rewording",
    "Stories",
    "Strings",
    "Vocabulary",
    "all_of",
    "counted",
    "gloss",
    "reworded",
    "touched",
    "translation",
]

ABILITIES: tuple[type[Ability], ...] = (
    Knowledge,
    Vocabulary,
    Definitions,
    Rewording,
    Counting,
    Arithmetic,
    Comparison,
    Lists,
    Strings,
    Formats,
    Stories,
    Refusal,
    KnownLanguage,
)
"""All, in the order in which the upbringing draws them: another order is another corpus."""


def all_of(world: World) -> dict[str, Ability]:
    """Every ability of the world by name."""
    return {ability.name: ability(world) for ability in ABILITIES}


def _known(name: str) -> str:
    known = [ability.name for ability in ABILITIES]
    if name not in known:
        raise ValueError(f"no ability is named {name!r}; known: {', '.join(known)}.{did_you_mean(name, known)}")
    return name


AbilityName = Annotated[str, AfterValidator(_known)]
"""The name of an ability in a run file."""


def touched(world: World) -> tuple[str, ...]:
    """Names of the abilities that this world's rationales touch: the first share of those they may.

    With the vocabulary come words of the known language, so that translating it is touched as well.
    """
    may = [ability.name for ability in ABILITIES if ability.in_rationales]
    found = may[: int(world.settings.rationale_overlap * len(may) + 0.5)]
    return (*found, KnownLanguage.name) if Vocabulary.name in found else tuple(found)
