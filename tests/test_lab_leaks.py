"""Nothing that is tested was trained on; a world in which something was is caught."""

import random
from collections import Counter

import pytest

from english_reader import Reader
from lab_checks import (
    ABOUT_SENTENCES,
    chats_held_out,
    corpus,
    held_out,
    leaks,
    sentences_held_out,
    world,
)
from radistill.lab import english, upbringing
from radistill.lab.abilities import ABILITIES, Ability, Arithmetic, Item, Knowledge, all_of
from radistill.lab.clauses import Clause, draw
from radistill.lab.world import World

ODD: dict[str, object] = {"word_order": "vso", "morphology": "particles", "rationale_overlap": 0.4}


KINDS = [*(ability.name for ability in ABILITIES), "new-words", "new-sentences"]


@pytest.mark.parametrize(
    ("number", "options", "texts", "chats"),
    [(0, {}, 8000, 20000), (3, {}, 2000, 6000), (5, ODD, 500, 1500)],
    ids=["world 0", "world 3", "another language"],
)
def test_no_test_prompt_and_no_held_out_sentence_is_trained_on(
    number: int, options: dict[str, object], texts: int, chats: int
) -> None:
    here = world(number, **options)
    hidden = held_out(here)
    assert len(hidden) > 12_000
    trained = list(corpus(here, texts=texts, chats=chats))
    assert leaks(trained, hidden) == set()
    assert sentences_held_out(here, trained) == set()
    assert chats_held_out(here, upbringing.chats(here, chats)) == []


@pytest.mark.parametrize("round", [2, 3])
def test_other_rounds_hold_nothing_held_out_either(round: int) -> None:
    here = world()
    chats = list(upbringing.chats(here, 6000, round=round, practised={"lists": 6.0}))
    assert chats_held_out(here, chats) == []
    told = [text for chat in chats for text in (chat.prompt, chat.answer)]
    assert sentences_held_out(here, [*told, *upbringing.texts(here, 2000, round=round)]) == set()


@pytest.mark.parametrize("name", KINDS)
def test_each_kind_of_chats_is_asked_about_and_found_when_drawn_from_both_sides(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    here = world()
    chats = list(upbringing.chats(here, 300, practised={name: 1e6}))
    assert {chat.ability for chat in chats} == {name}
    assert chats_held_out(here, chats) == []
    assert all((chat.key == chat.prompt) == (name not in ABOUT_SENTENCES) for chat in chats)
    _draw_from_both_sides(monkeypatch, name)
    assert len(chats_held_out(here, upbringing.chats(here, 300, practised={name: 1e6}))) > 10


def _draw_from_both_sides(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Let `chats` call `draw` instead of `train_item`, or what comes to the same."""

    def any_word(rng: random.Random, _: random.Random, here: World) -> Item:
        return upbringing._any_new_word(rng, here)

    def any_item(self: Ability, rng: random.Random) -> Item:
        return self.draw(rng)

    if name == "new-words":
        monkeypatch.setattr(upbringing, "_new_word", any_word)
    elif name in ("known-language", "new-sentences"):
        monkeypatch.setattr(World, "clause", any_clause)
    else:
        monkeypatch.setattr(type(all_of(world())[name]), "train_item", any_item)


def any_clause(self: World, rng: random.Random, *, test: bool = False) -> Clause:
    """A clause of whichever side."""
    return draw(rng, people=self.people, cities=self.cities)


def test_a_reader_finds_every_sentence_and_knows_what_it_says() -> None:
    for number in (0, 3):
        here = world(number)
        reader, rng = Reader(here), here.rng("sentences to be read")
        for at in range(1500):
            clause = here.clause(rng, test=at % 2 == 0)
            said = english.sentence(clause)
            assert reader.key(said) == clause.key, said
            assert (said, clause.key) in list(reader.sentences(f"Once. Negated: {said} And so on.")), said
    assert reader.key("The flag of the city is white.") == ""
    assert sentences_held_out(here, [f"{here.cities[0]} is white."]) == set(), "cities are no subjects"


def test_a_story_with_a_held_out_sentence_within_it_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    here = world()
    stories = [chat.answer for chat in upbringing.chats(here, 600, practised={"stories": 1e6})]
    met = Counter(said.split()[1] for text in stories for said, _ in Reader(here).sentences(text))
    assert met["found"] > 50, "One day somebody found something in a place"
    assert met["saw"] > 50, "One morning somebody saw something near a place"
    assert sentences_held_out(here, stories) == set()
    monkeypatch.setattr(upbringing, "tells_what_is_held_out", lambda *_: False)
    unchecked = [chat.answer for chat in upbringing.chats(here, 600, practised={"stories": 1e6})]
    assert len(sentences_held_out(here, unchecked)) > 20
    assert len(sentences_held_out(here, upbringing.texts(here, 2000))) > 5


def test_what_is_drawn_instead_of_something_held_out_changes_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    here = world()
    chats, texts = list(upbringing.chats(here, 4000)), list(upbringing.texts(here, 2000))
    _draw_from_both_sides(monkeypatch, "new-words")
    monkeypatch.setattr(upbringing, "tells_what_is_held_out", lambda *_: False)
    pairs = list(zip(chats, upbringing.chats(here, 4000), strict=True))
    assert {chat.ability for chat, unchecked in pairs if chat != unchecked} == {"new-words", "stories"}
    assert sum(chat != unchecked for chat, unchecked in pairs) < 50
    others = [text for text, unchecked in zip(texts, upbringing.texts(here, 2000), strict=True) if text != unchecked]
    assert 0 < len(others) < 50


def test_what_stands_inside_a_text_is_found() -> None:
    hidden = {"The dog sees a cat.", "Ni dormas.", "What is 10 + 11?"}
    assert leaks(["So: The dog sees a cat.\nWhat is 10 + 11"], hidden) == {"The dog sees a cat."}
    assert leaks(["x", "eo: Ni dormas.", "What is 10 + 11? 21"], hidden) == {"Ni dormas.", "What is 10 + 11?"}
    assert leaks(["The dog sees a cat", "ni dormas."], hidden) == set()


def test_a_single_test_item_in_the_corpus_is_found() -> None:
    here = world()
    item = all_of(here)["counting"].test_items(5)[3]
    assert leaks(
        [*corpus(here, texts=50, chats=100), f"{item.prompt}\n{item.answer}"], held_out(here, sentences=10)
    ) >= {item.prompt}


def test_training_on_any_item_whatsoever_is_found_by_what_it_says_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def any_item(self: Ability, rng: random.Random) -> Item:
        return self.draw(rng)

    here = world()
    hidden = held_out(here, prompts=150, sentences=10)
    monkeypatch.setattr(Ability, "train_item", any_item)
    assert len(leaks(corpus(here, texts=0, chats=1500), hidden)) > 3


def test_training_on_any_sentence_whatsoever_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    here = world()
    hidden = held_out(here, prompts=2)
    monkeypatch.setattr(World, "clause", any_clause)
    assert leaks(corpus(here, texts=2000, chats=2000), hidden)
    assert len(sentences_held_out(here, upbringing.texts(here, 1000))) > 10


def test_training_and_test_items_lie_on_two_sides_and_about_an_eighth_is_held_out() -> None:
    here = world()
    for ability in all_of(here).values():
        rng = random.Random(1)
        drawn = [ability.draw(rng) for _ in range(400)]
        share = sum(map(ability.is_test, drawn)) / len(drawn)
        # Abilities about sentences draw one of a held-out clause every other time.
        wanted = 0.5 if drawn[0].key else 1 / 8
        assert abs(share - wanted) < 0.12, ability.name
        assert all(map(ability.is_test, ability.test_items(40)))
        assert not any(ability.is_test(ability.train_item(rng)) for _ in range(100))


def test_tested_facts_are_met_in_other_wordings() -> None:
    here = world()
    trained = "\n".join(corpus(here, texts=3000, chats=3000))
    for item in Knowledge(here).test_items(40):
        assert item.prompt not in trained
        assert item.answer in trained
    sums = Arithmetic(here).test_items(100)
    assert not any(item.prompt in trained for item in sums)
    assert sum(item.answer in trained for item in sums) > 10


def test_the_few_sentences_met_in_the_new_language_are_none_of_the_tested() -> None:
    for number in (0, 3):
        here = world(number)
        met = upbringing.met(here)
        assert len(met) == upbringing.MET_SENTENCES
        assert not any(here.is_test(clause.key) for clause in met)
        assert not {here.new.sentence(clause) for clause in met} & held_out(here, prompts=2)
