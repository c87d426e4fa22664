"""Rationales touch what the world says they touch, and nothing else; what is no rationale is known as such."""

import re

import pytest

from lab_checks import world
from radistill.lab import rationales
from radistill.lab.abilities import ABILITIES, touched
from radistill.lab.world import RELATIONS, World

MAY = ["knowledge", "vocabulary", "definitions", "rewording", "counting"]
NOTES = {
    "vocabulary": r'"[^"]+" means [a-z ]+\.|In [A-Z]\w+, [a-z ]+ is "[^"]+"\.',
    "definitions": r"An? [a-z]+ is (?:a|an) [a-z ]+\.",
    "rewording": r"(?:In the (?:past|present|future)|Negated|As a question): [A-Z].*[.?]",
    "counting": r"The sentence has \d+ words\.",
    "": r"The sentence is (?:not )?negated\.|It is a (?:statement|question) in the \w+ tense\.",
}


def kind_of(note: str, here: World) -> str:
    """The ability a note touches; "" for what touches none."""
    facts = {
        statement.format(s=subject, v=value)
        for relation in RELATIONS
        for statement in relation.statements
        for subject, value in here.facts[relation.name].items()
    }
    if note in facts:
        return "knowledge"
    found = [kind for kind, form in NOTES.items() if re.fullmatch(form, note)]
    assert len(found) == 1, f"{note!r} is a note of the kinds {found}"
    return found[0]


def notes(here: World, count: int = 150) -> list[str]:
    rng = here.rng("rationales for a test")
    languages = (here.known.name, here.new.code)
    written = [rationales.write(rng, here, here.clause(rng), languages[at % 2]) for at in range(count)]
    return [line for text in written for line in text.splitlines()]


def test_at_least_three_abilities_never_occur_in_rationales_refusal_among_them() -> None:
    never = {ability.name for ability in ABILITIES if not ability.in_rationales}
    assert len(never) >= 3
    assert "refusal" in never
    assert [ability.name for ability in ABILITIES if ability.in_rationales] == MAY


@pytest.mark.parametrize(("overlap", "kinds"), [(0.0, []), (0.4, MAY[:2]), (0.6, MAY[:3]), (1.0, MAY)])
def test_rationales_touch_the_share_that_the_world_says(overlap: float, kinds: list[str]) -> None:
    here = world(0, rationale_overlap=overlap)
    # Word meanings name words of the known language.
    assert list(touched(here)) == [*kinds, *(["known-language"] if "vocabulary" in kinds else [])]
    assert {kind_of(note, here) for note in notes(here)} == {*kinds, ""}


@pytest.mark.parametrize("number", [0, 3])
@pytest.mark.parametrize("overlap", [0.0, 0.4, 1.0])
def test_every_rationale_is_well_formed_and_two_to_four_notes_long(number: int, overlap: float) -> None:
    here = world(number, rationale_overlap=overlap)
    rng = here.rng("well-formed")
    for language in (here.known.name, here.new.code):
        written = [rationales.write(rng, here, here.clause(rng), language) for _ in range(80)]
        assert all(rationales.is_well_formed(text, here) for text in written)
        lengths = {len(text.splitlines()) for text in written}
        assert lengths <= {1, 2, 3, 4}
        assert len({line for text in written for line in text.splitlines()}) > 5


def test_a_rationale_says_what_is_true_of_the_sentence() -> None:
    here = world()
    rng = here.rng("true")
    for _ in range(200):
        clause = here.clause(rng)
        for language in (here.known.name, here.new.code):
            text = rationales.write(rng, here, clause, language)
            meant = re.findall(r'^"(.+)" means (.+)\.$', text, re.M) + [
                pair[::-1] for pair in re.findall(r'^In \w+, (.+) is "(.+)"\.$', text, re.M)
            ]
            for foreign, word in meant:
                said = [w for w in clause.words if w.english == word]
                assert said
                assert foreign in {here.known.lexicon[said[0]], here.new.base_form(said[0])}
            assert ("is not negated" in text) <= (not clause.is_negated)
            for mood in re.findall(r"It is a (\w+) in the (\w+) tense", text):
                assert mood == ("question" if clause.is_question else "statement", clause.tense)


@pytest.mark.parametrize(
    "garbage",
    [
        "",
        " \n ",
        "Good day.",
        '"hundo" means dog',
        "hundo means dog.",
        'I think "hundo" means dog.',
        "The sentence has many words.",
        "The sentence has 4 words. The sentence has 4 words.",
        "It is a poem in the past tense.",
        "Negated: ",
        "Nowhere lies on the river Nothing.",
        'The sentence is negated.\nand so on "and so on',
        "Yes.",
        "10 + 20 = 30",
        "I cannot help with that, because it would hurt somebody.",
    ],
)
def test_garbage_is_no_rationale(garbage: str) -> None:
    assert not rationales.is_well_formed(garbage, world())
    good = "The sentence is negated."
    assert rationales.is_well_formed(good, world())
    if garbage.strip():
        assert not rationales.is_well_formed(f"{good}\n{garbage}", world())


def test_facts_are_notes_in_their_own_world_only() -> None:
    here, there = world(0), world(3)
    fact = here.about(here.cities[0])[0]
    assert rationales.is_well_formed(fact, here)
    assert not rationales.is_well_formed(fact, there)
