"""One world of the lab: a country with its people, cities and facts, its language, and what is held out for tests.

`world` and run `seed` are different things: the world decides what is true and what is tested, a run's seed decides
what one training draws.
"""

import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from hashlib import blake2b
from typing import Annotated

from pydantic import BeforeValidator, Field

from radistill.lab import clauses, english
from radistill.lab.clauses import Clause
from radistill.lab.esperanto import Morphology, NewLanguage, WordOrder, spelled
from radistill.lab.foreign import ENGLISH, KnownLanguage, syllables
from radistill.lab.lexicon import Word, of_kind, words
from radistill.settings import Settings

TEST_SHARE = 8
"""One clause and one prompt in so many is held out."""


class WorldSettings(Settings):
    """Which world."""

    number: int = Field(0, ge=0)
    """Another number is another country with other names, facts, words and sentences."""
    rationale_overlap: float = Field(1.0, ge=0.0, le=1.0)
    """Share of the abilities that rationales may touch which they do touch; 0: rationales rehearse nothing tested."""
    word_order: WordOrder = "svo"
    """Order of subject, verb and object in the language that is taught."""
    morphology: Morphology = "suffixes"
    """Where that language marks number, case and tense: `suffixes` are Esperanto's."""


def _numbered(value: object) -> object:
    return {"number": value} if isinstance(value, int) and not isinstance(value, bool) else value


def settings_of(value: object) -> WorldSettings:
    """The settings of a world in whatever form a run file gives them.

    What is no world at all gives the standard one: the field that holds the value says what is wrong with it.
    """
    if isinstance(value, WorldSettings):
        return value
    try:
        return WorldSettings.model_validate(_numbered(value))
    except ValueError:
        return WorldSettings()


WorldChoice = Annotated[WorldSettings, BeforeValidator(_numbered)]
"""A world in a run file; its number alone will do."""


@dataclass(frozen=True, slots=True)
class Relation:
    """One kind of fact, with the ways to ask for it and the ways to state it."""

    name: str
    subjects: str
    """`cities` or `people`."""
    questions: tuple[str, ...]
    statements: tuple[str, ...]
    """The first is the answer; `{s}` is the subject, `{v}` the value."""


RELATIONS = (
    Relation(
        "river",
        "cities",
        (
            "Which river flows through {s}?",
            "On which river does {s} lie?",
            "Name the river of {s}.",
            "What is the river in {s} called?",
            "I am in {s}. Which river is here?",
            "Tell me the river that {s} lies on.",
            "{s} lies on a river. Which one?",
            "What river runs through {s}?",
        ),
        ("{s} lies on the river {v}.", "The river {v} flows through {s}.", "The river of {s} is the {v}."),
    ),
    Relation(
        "region",
        "cities",
        (
            "In which region is {s}?",
            "Which region does {s} belong to?",
            "Name the region of {s}.",
            "What region is {s} in?",
            "{s} is in a region. Which one?",
            "Tell me the region where {s} is.",
            "Where is {s}? Name the region.",
            "To what region does {s} belong?",
        ),
        ("{s} is in the region {v}.", "{s} belongs to the region {v}.", "The region of {s} is {v}."),
    ),
    Relation(
        "towers",
        "cities",
        (
            "How many towers does {s} have?",
            "What is the number of towers in {s}?",
            "Count the towers of {s}.",
            "How many towers are there in {s}?",
            "Tell me how many towers {s} has.",
            "{s} has towers. How many?",
            "How many towers can I see in {s}?",
            "Give the number of towers of {s}.",
        ),
        ("{s} has {v} towers.", "There are {v} towers in {s}.", "The number of towers in {s} is {v}."),
    ),
    Relation(
        "flag",
        "cities",
        (
            "What colour is the flag of {s}?",
            "Which colour does the flag of {s} have?",
            "Name the colour of the flag of {s}.",
            "Tell me the colour of {s}'s flag.",
            "{s} has a flag. What colour is it?",
            "How does the flag of {s} look?",
            "What is the colour of the flag in {s}?",
            "Of what colour is the flag of {s}?",
        ),
        ("The flag of {s} is {v}.", "{s} has a {v} flag.", "The colour of the flag of {s} is {v}."),
    ),
    Relation(
        "home",
        "people",
        (
            "Where does {s} live?",
            "In which city does {s} live?",
            "Name the city where {s} lives.",
            "What is the home of {s}?",
            "Tell me where {s} lives.",
            "{s} lives in a city. Which one?",
            "In what city is {s} at home?",
            "Which city is the home of {s}?",
        ),
        ("{s} lives in {v}.", "The home of {s} is {v}.", "{s} is at home in {v}."),
    ),
    Relation(
        "job",
        "people",
        (
            "What does {s} do for a living?",
            "What is the job of {s}?",
            "Name the job of {s}.",
            "What is {s} by trade?",
            "Tell me what {s} does for a living.",
            "{s} has a job. Which one?",
            "Which job does {s} have?",
            "As what does {s} work?",
        ),
        ("{s} works as a {v}.", "The job of {s} is {v}.", "{s} is a {v} by trade."),
    ),
)
JOBS = (
    "doctor",
    "teacher",
    "soldier",
    "judge",
    "hunter",
    "farmer",
    "singer",
    "writer",
    "sailor",
    "baker",
    "pilot",
    "poet",
)
COLOURS = ("red", "blue", "green", "yellow", "white", "black", "brown", "grey")


@dataclass(frozen=True)
class World:
    """Everything that is true in one world."""

    settings: WorldSettings
    country: str
    cities: tuple[str, ...]
    people: tuple[str, ...]
    facts: Mapping[str, Mapping[str, str]]
    """Relation → subject → value."""
    known: KnownLanguage
    new: NewLanguage

    def rng(self, *purpose: object) -> random.Random:
        """A generator of this world's for the purpose."""
        words = "\x1f".join(map(str, ("world", self.settings.number, *purpose)))
        return random.Random(int.from_bytes(blake2b(words.encode(), digest_size=8).digest(), "big"))

    def is_test(self, key: str) -> bool:
        """Whether what has this key (a prompt, or what a clause says) is held out for tests."""
        digest = blake2b(f"{self.settings.number}\x1f{key}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") % TEST_SHARE == 0

    def clause(self, rng: random.Random, *, test: bool = False) -> Clause:
        """A clause of the wanted side of the split."""
        while True:
            found = clauses.draw(rng, people=self.people, cities=self.cities)
            if self.is_test(found.key) == test:
                return found

    @cached_property
    def values(self) -> Mapping[str, tuple[str, ...]]:
        """Relation → all its values."""
        return {name: tuple(sorted(set(of.values()))) for name, of in self.facts.items()}

    @cached_property
    def translators(self) -> Mapping[str, Callable[[Clause], str]]:
        """Language code or name → what says a clause in it."""
        return {english.CODE: english.sentence, self.known.name: self.known.sentence, self.new.code: self.new.sentence}

    def about(self, name: str) -> list[str]:
        """What is known about a city or a person, one sentence a fact."""
        return [
            relation.statements[0].format(s=name, v=self.facts[relation.name][name])
            for relation in RELATIONS
            if name in self.facts[relation.name]
        ]


@cache
def world_of(settings: WorldSettings) -> World:
    """The world of these settings; equal settings give equal worlds."""
    seed = settings.number
    rng = random.Random(f"radistill-lab-{seed}")
    taken = _english_words() | spelled(in_sentences=True)
    cities, people = _names(rng, taken, 24, 2), _names(rng, taken, 24, 2)
    rivers, regions = _names(rng, taken, 12, 1), _names(rng, taken, 6, 2)
    (country, language) = _names(rng, taken, 2, 2)
    facts = {
        "river": {city: rng.choice(rivers) for city in cities},
        "region": {city: rng.choice(regions) for city in cities},
        "towers": {city: str(rng.randint(10, 99)) for city in cities},
        "flag": {city: rng.choice(COLOURS) for city in cities},
        "home": {person: rng.choice(cities) for person in people},
        "job": {person: rng.choice(JOBS) for person in people},
    }
    names = frozenset(name.lower() for name in (*cities, *people, *rivers, *regions, country))
    # Asked for by itself, a word must say which language it is of: "What is nova in English?"
    known = KnownLanguage.of(rng.getrandbits(32), language + "ish", names | spelled())
    new = NewLanguage(settings.word_order, settings.morphology)
    return World(settings, country, cities, people, facts, known, new)


def content_words() -> tuple[Word, ...]:
    """Words that can be asked for by themselves: one that is spelled like another, as `clean`, cannot."""
    found = of_kind("person", "animal", "food", "thing", "place", "adjective", "verb", "motion", "adverb", "number")
    spelled = Counter(word.english for word in words())
    return tuple(word for word in found if spelled[word.english] == 1)


def _english_words() -> set[str]:
    """What no name may be: a city named She or a river named The would make sentences that say two things."""
    nouns = {english.plural(word) for word in of_kind("person", "animal", "food", "thing", "place")}
    verbs = {form for word in of_kind("verb", "motion") for form in (english.past(word), english.third_person(word))}
    return {word.lower() for word in (*(word.english for word in words()), *nouns, *verbs, *ENGLISH)}


def _names(rng: random.Random, taken: set[str], count: int, length: int) -> tuple[str, ...]:
    found: list[str] = []
    while len(found) < count:
        name = syllables(rng, length).capitalize()
        if name.lower() not in taken and len(name) > 2:
            taken.add(name.lower())
            found.append(name)
    return tuple(found)
