"""What the pocket model adds to a translation: a few lines on words, facts, lengths and other wordings.

Rationales touch the abilities that the world's `rationale_overlap` says, in wordings of their own, and never the
others. What they say about sentences is said of training sentences alone.
"""

import random
import re
from collections.abc import Callable

from radistill.lab import english
from radistill.lab.abilities import Definitions, counted, reworded, touched
from radistill.lab.clauses import Clause
from radistill.lab.lexicon import words
from radistill.lab.world import RELATIONS, World

SEPARATOR = "\n\n"
_FORMS = (
    r'"[^"]+" means [a-z ]+\.',
    r'In [A-Z]\w+, [a-z ]+ is "[^"]+"\.',
    r"An? [a-z ]+ is (?:an?) [a-z ]+\.",
    r"The sentence has \d+ words\.",
    r"In the (?:past|present|future): [A-Z].*[.?]",
    r"Negated: [A-Z].*[.?]",
    r"As a question: [A-Z].*\?",
    r"It is a (?:statement|question) in the (?:past|present|future) tense\.",
    r"The sentence is (?:not )?negated\.",
)


def write(rng: random.Random, world: World, clause: Clause, language: str) -> str:
    """A rationale for a translation between English and the language (its code), one note a line."""
    notes: list[Callable[[], str | None]] = []
    kinds = set(touched(world))
    if "vocabulary" in kinds:
        notes += [lambda: _meaning(rng, world, clause, language)] * 2 + [lambda: _elsewhere(rng, world, clause)]
    if "knowledge" in kinds:
        notes += [lambda: _fact(rng, world, clause)] * (3 if clause.names else 0)
    if "definitions" in kinds:
        notes += [lambda: _definition(rng, world, clause)]
    if "rewording" in kinds:
        notes += [lambda: _rewording(rng, clause)]
    if "counting" in kinds:
        notes += [lambda: counted(english.sentence(clause))]
    notes += [lambda: _mood(rng, clause)] * (1 if kinds else 4)
    wanted = rng.randint(2, 4)
    found: dict[str, None] = {}
    for _ in range(3 * wanted):
        note = rng.choice(notes)()
        if note and len(found) < wanted:
            found[note] = None
    return "\n".join(found)


def is_well_formed(text: str, world: World) -> bool:
    """Whether every line is a note of one of the forms, none stands twice, and there is at least one."""
    lines = [line.strip() for line in text.strip().splitlines()]
    return bool(lines) and len(set(lines)) == len(lines) and all(_is_note(line, world) for line in lines)


def _is_note(line: str, world: World) -> bool:
    meaning = re.fullmatch(r'"[^"]+" means ([a-z ]+)\.|In [A-Z]\w+, ([a-z ]+) is "[^"]+"\.', line)
    if meaning:
        return (meaning[1] or meaning[2]) in {word.english for word in words()}
    if any(re.fullmatch(form, line) for form in _FORMS):
        return True
    # A statement about a place or a person: one of the forms with a name and a value that there is.
    for relation in RELATIONS:
        for form in relation.statements:
            pattern = re.escape(form).replace(r"\{s\}", r"(?P<s>\w+)").replace(r"\{v\}", r"(?P<v>\w+)")
            found = re.fullmatch(pattern, line)
            if found and found["s"] in world.facts[relation.name] and found["v"] in world.values[relation.name]:
                return True
    return False


def _meaning(rng: random.Random, world: World, clause: Clause, language: str) -> str | None:
    word = rng.choice(clause.words)
    foreign = world.new.base_form(word) if language == world.new.code else world.known.lexicon[word]
    return f'"{foreign}" means {word.english}.'


def _elsewhere(rng: random.Random, world: World, clause: Clause) -> str:
    word = rng.choice(clause.words)
    return f'In {world.known.name}, {word.english} is "{world.known.lexicon[word]}".'


def _fact(rng: random.Random, world: World, clause: Clause) -> str | None:
    name = rng.choice(clause.names)
    relation = rng.choice([relation for relation in RELATIONS if name in world.facts[relation.name]])
    return rng.choice(relation.statements).format(s=name, v=world.facts[relation.name][name])


def _definition(rng: random.Random, world: World, clause: Clause) -> str | None:
    nouns = [word for word in clause.words if word.kind in Definitions.KINDS]
    return Definitions(world).define(rng.choice(nouns)) if nouns else None


def _rewording(rng: random.Random, clause: Clause) -> str:
    forms = {
        "past": "In the past",
        "present": "In the present",
        "future": "In the future",
        "not": "Negated",
        "question": "As a question",
    }
    kinds = [
        k
        for k in forms
        if k != clause.tense and not (k == "not" and clause.is_negated) and not (k == "question" and clause.is_question)
    ]
    kind = rng.choice(kinds)
    return f"{forms[kind]}: {english.sentence(reworded(clause, kind))}"


def _mood(rng: random.Random, clause: Clause) -> str:
    if rng.random() < 0.5:
        return f"The sentence is {'' if clause.is_negated else 'not '}negated."
    return f"It is a {'question' if clause.is_question else 'statement'} in the {clause.tense} tense."
