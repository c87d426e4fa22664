"""Near-duplicates: the first is kept, and nothing else decides."""

import random
import sys
from itertools import pairwise

import numpy as np
import pytest

from radistill import near_duplicates, spool
from radistill.errors import MissingPackageError
from radistill.near_duplicates import NearDuplicates, bands, shingles

pytest.importorskip("datasketch", reason="near-duplicates need datasketch (the extra `filters`)")

WORDS = [f"word{n}" for n in range(400)]


def found(texts: list[str], threshold: float = 0.7) -> list[int]:
    duplicates = NearDuplicates(threshold)
    for text in texts:
        duplicates.add(text)
    return list(duplicates.found())


def drawn(seed: int, length: int = 60) -> list[str]:
    return random.Random(seed).choices(WORDS, k=length)


def similarity(a: str, b: str) -> float:
    return len(shingles(a) & shingles(b)) / len(shingles(a) | shingles(b))


def test_the_first_of_copies_stays_whatever_their_case_and_punctuation() -> None:
    text = " ".join(drawn(1))
    assert found([text, " ".join(drawn(2)), text, text.upper() + "!", f"«{text}»"]) == [2, 3, 4]


def test_a_word_changed_is_a_near_duplicate_and_half_of_them_changed_is_none() -> None:
    words = drawn(1)
    near, far = list(words), list(words)
    near[30] = "other"
    far[::2] = drawn(3, 30)
    first, second, third = map(" ".join, (words, near, far))
    assert similarity(first, second) > 0.85
    assert similarity(first, third) < 0.2
    assert found([first, second, third]) == [1]
    assert found([second, first, third]) == [1]
    assert found([first, second], threshold=1.0) == []


def test_scripts_without_spaces_are_compared_by_characters() -> None:
    text = "这句话里的“船夫”可以译为“摆渡人”，两种译法都是正确的，取决于上下文。"
    assert found([text, text.replace("两", "二"), "原文没有说明是哪一条河，译文保持了同样的模糊性。"]) == [1]


def test_short_texts_are_the_same_only_if_all_their_words_are() -> None:
    assert found(["A ferry.", "a ferry", "A boat.", "Ferry", "ferry!"]) == [1, 4]


def test_a_chain_is_not_swallowed_whole() -> None:
    words = drawn(5, 40)
    links = [" ".join([*words[n:], *drawn(6, n)]) for n in range(0, 40, 4)]
    assert all(similarity(a, b) > 0.6 for a, b in pairwise(links))
    gone = found(links, threshold=0.6)
    assert gone
    kept = [text for n, text in enumerate(links) if n not in gone]
    assert len(kept) > 2
    assert all(similarity(links[n], min(kept, key=lambda k: -similarity(links[n], k))) > 0.5 for n in gone)


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.8, 0.9, 1.0])
def test_few_pairs_at_the_threshold_share_no_band_and_hardly_any_above_it(threshold: float) -> None:
    number, width = bands(threshold)
    assert number * width <= near_duplicates.PERMUTATIONS
    assert (1 - threshold**width) ** number <= 0.1
    above = min(1.0, threshold + 0.1)
    assert (1 - above**width) ** number < 0.02


def test_it_agrees_with_comparing_all_pairs() -> None:
    texts = []
    for seed in range(60):
        words = drawn(seed // 3)
        for place in random.Random(seed).sample(range(60), (seed % 3) * 3):
            words[place] = f"new{seed}"
        texts.append(" ".join(words))
    gone = set(found(texts, threshold=0.7))
    for n, text in enumerate(texts):
        nearest = max((similarity(text, texts[k]) for k in range(n) if k not in gone), default=0.0)
        if abs(nearest - 0.7) > 0.12:  # three standard errors, and hardly a pair is missed there
            assert (n in gone) == (nearest > 0.7)
    assert 5 < len(gone) < 40


def test_the_hashes_are_the_same_in_every_version() -> None:
    made = NearDuplicates(0.7)
    made.add("the old ferryman")
    assert made._hashes[0][:4].tolist() == [2446196000, 3978933189, 1379152773, 4069292286]


def test_rows_beyond_memory_are_told_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [" ".join(drawn(n % 9)) for n in range(30)]
    usual = found(texts)
    monkeypatch.setattr(spool.Spool.__init__, "__kwdefaults__", {"in_memory": 4})
    assert found(texts) == usual == list(range(9, 30))


def test_what_shares_no_band_is_never_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(self: NearDuplicates, place: int, rival: int) -> bool:
        raise AssertionError(f"{place} was compared with {rival}")

    monkeypatch.setattr(NearDuplicates, "_agree", never)
    assert found([" ".join(drawn(n)) for n in range(50)]) == []


def test_without_the_package_it_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasketch", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'radistill\[filters\]'"):
        near_duplicates.require()


def test_nothing_put_in_is_nothing_found() -> None:
    assert found([]) == []


def test_of_copies_only_the_one_that_is_kept_is_looked_at_again() -> None:
    earlier_N = np.arange(-1, 99)
    is_kept_N = np.arange(100) % 50 == 0
    assert list(near_duplicates._kept_before(99, earlier_N, is_kept_N)) == [50, 0]
    assert earlier_N[[99, 50]].tolist() == [50, 0]


def test_thousands_of_copies_are_no_more_work_than_thousands_of_others() -> None:
    # Gone through one by one, all the copies before each would take a minute.
    texts = [" ".join(drawn(n % 2)) for n in range(3000)]
    assert found(texts) == list(range(2, 3000))
