"""The lab's world is a generator: another number, another country; the same number, the same to the letter."""

import hashlib
import os
import subprocess
import sys
from collections import Counter
from functools import cache
from typing import get_args

import pytest

from lab_checks import corpus, english_sentences, world
from radistill.lab import english, upbringing
from radistill.lab.abilities import ABILITIES, all_of
from radistill.lab.esperanto import Morphology, NewLanguage, spelled
from radistill.lab.lexicon import of_kind, words
from radistill.lab.world import RELATIONS, WorldSettings, content_words, world_of

DIGEST = """
import hashlib
from radistill.lab import upbringing
from radistill.lab.abilities import all_of
from radistill.lab.world import WorldSettings, world_of
world = world_of(WorldSettings(number=7))
parts = [*upbringing.texts(world, 150), *map(str, upbringing.chats(world, 600))]
parts += [str(item) for ability in all_of(world).values() for item in ability.test_items(12)]
print(hashlib.sha256("".join(parts).encode()).hexdigest())
"""


def test_another_number_is_another_country_with_other_names_facts_words_and_sentences() -> None:
    here, there = world(0), world(8)
    assert here.country != there.country
    assert here.known.name != there.known.name
    for names in ("cities", "people"):
        assert len(set(getattr(here, names)) & set(getattr(there, names))) <= 2
    assert here.facts != there.facts
    same = sum(here.known.lexicon[word] == there.known.lexicon[word] for word in words())
    assert same < len(words()) / 20
    assert len(set(english_sentences(here, 200)) & set(english_sentences(there, 200))) < 10
    assert not set(upbringing.texts(here, 50)) & set(upbringing.texts(there, 50))
    tests = [{item.prompt for ability in all_of(w).values() for item in ability.test_items(20)} for w in (here, there)]
    assert len(tests[0] & tests[1]) < len(tests[0]) / 4


def test_the_same_number_is_the_same_world() -> None:
    settings = WorldSettings(number=4)
    first = world_of(settings)
    before = list(corpus(first, texts=30, chats=100))
    world_of.cache_clear()
    again = world_of(settings)
    assert again is not first
    assert again == first
    assert list(corpus(again, texts=30, chats=100)) == before


def test_a_longer_corpus_draws_the_same_worlds_facts_whatever_options_are_set() -> None:
    assert world(2).facts == world(2, word_order="sov", rationale_overlap=0.0).facts


def test_nothing_depends_on_the_process() -> None:
    found = set()
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run(
            [sys.executable, "-c", DIGEST], capture_output=True, text=True, check=True, env=environment
        )
        found.add(done.stdout.strip())
    here = world(7)
    parts = [*upbringing.texts(here, 150), *map(str, upbringing.chats(here, 600))]
    parts += [str(item) for ability in all_of(here).values() for item in ability.test_items(12)]
    assert found == {hashlib.sha256("".join(parts).encode()).hexdigest()}


@cache
def in_new_languages() -> tuple[frozenset[str], frozenset[str]]:
    """Words of every language that may be taught: as a glossary has them, and as sentences without names do."""
    glossary, sentences = set(), set()
    here = world()
    rng = here.rng("sentences without names")
    clauses = [clause for clause in (here.clause(rng) for _ in range(3000)) if not clause.names]
    for morphology in get_args(Morphology):
        language = NewLanguage(morphology=morphology)
        glossary |= {part for word in words() for part in language.base_form(word).split()}
        sentences |= {part for clause in clauses for part in language.sentence(clause)[:-1].lower().split()}
    return frozenset(glossary), frozenset(sentences)


# Before words of the new language were looked at, "nova" was big in world 5, and Kato lived in 191 and Kisos in 44.
@pytest.mark.parametrize("number", [*range(20), 22, 44, 52, 69, *range(100, 105), 191])
def test_no_name_and_no_word_means_two_things(number: int) -> None:
    here = world(number)
    rivers, regions = here.values["river"], here.values["region"]
    names = [*here.cities, *here.people, *rivers, *regions, here.country, here.known.name]
    assert len(names) == len(set(names))
    said = [word for word in words() if word.kind in ("person", "animal", "food", "thing", "place")]
    done = [word for word in words() if word.kind in ("verb", "motion")]
    in_english = {part for word in words() for part in word.english.lower().split()} | {"the", "a", "are", "will"}
    inflected = {english.plural(word) for word in said} | {english.past(word).split()[0] for word in done}
    small = {name.lower() for name in names}
    assert not small & (in_english | inflected)
    foreign = {*here.known.lexicon.values(), *here.known.marks.values()}
    assert len(foreign) == len(here.known.lexicon) + len(here.known.marks)
    assert not foreign & in_english
    assert not foreign & small
    glossary, sentences = in_new_languages()
    assert not foreign & glossary, "what is nova in English?"
    assert not small & (glossary | sentences)


def test_words_of_the_new_language_are_known_in_all_their_forms() -> None:
    glossary, sentences = in_new_languages()
    assert {"nova", "vidi", "rapide", "ivid", "anov", "nov", "du", "dek"} <= glossary
    assert {"katojn", "vidis", "njokat", "isvid", "kat", "la", "ne", "ĉu"} <= sentences
    assert glossary <= spelled()
    assert glossary | sentences <= spelled(in_sentences=True)


def test_the_shipped_models_world_is_the_one_it_was_brought_up_in() -> None:
    here = world()
    known = (here.known.name, list(here.known.lexicon.values()), here.known.marks)
    told = repr((here.country, here.cities, here.people, here.facts, *known))
    assert hashlib.sha256(told.encode()).hexdigest().startswith("0cb93253d4edf70f")


def test_every_city_and_every_person_has_its_facts_and_wordings_name_them() -> None:
    here = world()
    for relation in RELATIONS:
        assert set(here.facts[relation.name]) == set(getattr(here, relation.subjects))
        assert len(set(relation.questions)) == len(relation.questions) >= 8
        assert all("{s}" in question for question in relation.questions)
        assert all("{s}" in text and "{v}" in text for text in relation.statements)
    assert len(here.about(here.cities[0])) == 4
    assert len(here.about(here.people[0])) == 2
    assert len({len(values) for values in here.values.values()}) > 2


def test_what_can_be_asked_for_by_itself_has_one_spelling() -> None:
    spelled = Counter(word.english for word in content_words())
    assert set(spelled.values()) == {1}
    assert "clean" not in spelled
    assert len(spelled) > 300


def test_shares_are_long_tailed_and_those_declared_are_those_drawn() -> None:
    declared = {a.name: a.share for a in ABILITIES} | {
        "new-words": upbringing.NEW_WORDS,
        "new-sentences": upbringing.NEW_SENTENCES,
    }
    total, count = sum(declared.values()), 8000
    drawn = Counter(chat.ability for chat in upbringing.chats(world(), count))
    for name, share in declared.items():
        expected = share / total
        deviation = (expected * (1 - expected) / count) ** 0.5
        assert abs(drawn[name] / count - expected) < 4 * deviation, name
    assert min(a.share for a in ABILITIES) / total <= 0.01
    assert max(declared.values()) > 20 * min(a.share for a in ABILITIES)
    assert declared["new-sentences"] / total < 0.01


@pytest.mark.parametrize("order", ["svo", "sov", "vso"])
@pytest.mark.parametrize("morphology", ["suffixes", "prefixes", "particles"])
def test_a_world_with_another_new_language_works(order: str, morphology: str) -> None:
    here = world(1, word_order=order, morphology=morphology)
    assert (here.new.code == "eo") == (here.new.name == "Esperanto") == ((order, morphology) == ("svo", "suffixes"))
    assert all(corpus(here, texts=60, chats=200))
    kinds = {chat.ability for chat in upbringing.chats(here, 3000)}
    assert kinds == {*all_of(here), "new-words", "new-sentences"}
    assert all(len(ability.test_items(10)) == 10 for ability in all_of(here).values())
    english_only = {n: a.test_items(10) for n, a in all_of(here).items()}
    assert english_only == {n: a.test_items(10) for n, a in all_of(world(1)).items()}, "only the new skill changes"


def test_the_lexicon_is_large_enough_for_every_kind() -> None:
    for kind in ("person", "animal", "food", "thing", "place", "adjective", "verb", "motion", "adverb", "number"):
        assert len(of_kind(kind)) >= 10, kind
