"""A budget of tokens for rationales: what is selected, by coverage or at random."""

import math
import random
from collections import Counter
from collections.abc import Sequence
from typing import Literal

import numpy as np
import pytest

from radistill import selection
from radistill.filters import SelectSettings
from radistill.selection import Selection, terms

By = Literal["coverage", "random"]


def selected(
    texts: Sequence[str], budget: int, by: By = "coverage", *, seed: int = 0, gone: Sequence[int] = ()
) -> list[int]:
    made = Selection(SelectSettings(tokens=budget, by=by), seed)
    for text in texts:
        made.add(text, len(text.split()))
    gone_N = np.zeros(len(texts), dtype=bool)
    gone_N[list(gone)] = True
    left = set(made.left_out(gone_N).tolist())
    assert not left & set(gone)
    return [n for n in range(len(texts)) if n not in left and n not in gone]


def drawn(count: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return [
        " ".join(rng.choices([f"w{int(rng.paretovariate(0.7))}" for _ in range(99)], k=rng.randint(3, 12)))
        for _ in range(count)
    ]


def greedy(texts: Sequence[str], budget: int) -> list[int]:
    """The definition, without laziness."""
    counts: Counter[int] = Counter()
    left, chosen, spent = set(range(len(texts))), [], 0
    while left:
        gains = {
            n: sum(math.sqrt(counts[t] + 1) - math.sqrt(counts[t]) for t in terms(texts[n]).tolist())
            / len(texts[n].split())
            for n in left
        }
        best = min(left, key=lambda n: (-round(gains[n], 9), n))
        spent += len(texts[best].split())
        if spent > budget:
            break
        chosen.append(best)
        counts.update(terms(texts[best]).tolist())
        left.remove(best)
    return sorted(chosen)


def test_terms_are_the_different_words_and_pairs_of_words() -> None:
    assert len(terms("The ferry, the FERRY!")) == 2 + 2
    assert np.array_equal(terms("a b c"), terms("A b... c"))
    assert len(terms("摆渡人")) == 3 + 2
    assert len(terms("")) == 0
    assert terms("a").max() < 1 << selection.BITS


def test_what_says_something_new_comes_before_what_was_said() -> None:
    texts = ["the ferry is old", "the ferry is old", "guests wait by water"]
    assert selected(texts, 8) == [0, 2]
    assert selected(texts, 4) == [0]
    assert selected(texts, 12) == [0, 1, 2]


def test_of_what_says_the_same_the_shorter_is_taken() -> None:
    texts = ["old ferry ferry ferry old ferry old ferry", "old ferry"]
    assert selected(texts, 4) == [1]


@pytest.mark.parametrize("budget", [20, 100, 300])
def test_lazy_evaluation_selects_what_the_definition_says(budget: int) -> None:
    texts = drawn(80)
    assert selected(texts, budget) == greedy(texts, budget)


@pytest.mark.parametrize("by", ["coverage", "random"])
def test_the_budget_is_kept_and_nearly_spent_and_a_smaller_one_selects_a_part(by: By) -> None:
    texts = drawn(100)
    before: list[int] = []
    for budget in (10, 60, 200, 500, 10_000):
        found = selected(texts, budget, by)
        spent = sum(len(texts[n].split()) for n in found)
        assert spent <= budget
        assert spent > budget - 12 or found == list(range(100))
        assert set(before) <= set(found)
        before = found


def test_a_random_selection_hangs_on_the_seed_and_coverage_does_not() -> None:
    texts = drawn(100)
    assert selected(texts, 200, "random", seed=1) == selected(texts, 200, "random", seed=1)
    assert selected(texts, 200, "random", seed=1) != selected(texts, 200, "random", seed=2)
    assert selected(texts, 200, seed=1) == selected(texts, 200, seed=2)


@pytest.mark.parametrize("by", ["coverage", "random"])
def test_what_is_out_already_costs_nothing(by: By) -> None:
    texts = drawn(40)
    gone = list(range(0, 40, 2))
    rest = [text for n, text in enumerate(texts) if n % 2]
    assert selected(texts, 10_000, by, gone=gone) == list(range(1, 40, 2))
    if by == "coverage":
        assert selected(texts, 60, gone=gone) == [2 * n + 1 for n in selected(rest, 60)]


def test_coverage_reaches_more_words_than_chance() -> None:
    texts = drawn(300)

    def reached(by: By) -> int:
        return len({word for n in selected(texts, 300, by) for word in texts[n].split()})

    assert reached("coverage") > 1.2 * reached("random")


def test_of_nothing_nothing_is_selected() -> None:
    assert selected([], 5) == selected([], 5, "random") == []
