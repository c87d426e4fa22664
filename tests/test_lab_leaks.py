"""Nothing that is tested was trained on; a world in which something was is caught."""

import random

import pytest

from lab_checks import corpus, held_out, leaks, world
from radistill.lab import upbringing
from radistill.lab.abilities import Ability, Arithmetic, Item, Knowledge, all_of
from radistill.lab.clauses import Clause, draw
from radistill.lab.world import World

ODD: dict[str, object] = {"word_order": "vso", "morphology": "particles", "rationale_overlap": 0.4}


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
    assert leaks(corpus(here, texts=texts, chats=chats), hidden) == set()


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


def test_training_on_any_item_whatsoever_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def any_item(self: Ability, rng: random.Random) -> Item:
        return self.draw(rng)

    here = world()
    hidden = held_out(here, prompts=150, sentences=10)
    monkeypatch.setattr(Ability, "train_item", any_item)
    assert len(leaks(corpus(here, texts=0, chats=1500), hidden)) > 3


def test_training_on_any_sentence_whatsoever_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    here = world()
    hidden = held_out(here, prompts=2)

    def any_clause(self: World, rng: random.Random, *, test: bool = False) -> Clause:
        return draw(rng, people=self.people, cities=self.cities)

    monkeypatch.setattr(World, "clause", any_clause)
    assert leaks(corpus(here, texts=2000, chats=2000), hidden)


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
