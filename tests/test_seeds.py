"""Random numbers depend on the seed and the purpose alone, on every machine and in every process."""

import subprocess
import sys

import numpy as np
import pytest

from radistill import seeds


def test_the_numbers_are_the_same_on_every_machine_and_for_ever() -> None:
    # A change of these values changes every published run.
    assert seeds.number(0, "shuffle") == 1912663336647914374
    assert seeds.number(7, "limit", "de-en", "Größe") == 11409257781180491266
    assert seeds.uniform("key", 3) == 0.687531225162097
    assert seeds.generator(0, "shuffle").integers(1000, size=4).tolist() == [828, 293, 929, 296]


def test_another_process_draws_the_same() -> None:
    code = "from radistill import seeds; print(seeds.number(3, 'a', 'b'), seeds.uniform('k', 5))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "17"}
    )
    assert done.stdout.split() == [str(seeds.number(3, "a", "b")), str(seeds.uniform("k", 5))]


def test_every_purpose_and_seed_has_a_stream_of_its_own() -> None:
    words = [(), ("a",), ("b",), ("a", "b"), ("b", "a"), ("ab",), ("a", ""), ("", "a"), ("a", 1), ("a", 11), ("a1", 1)]
    numbers = {seeds.number(seed, *purpose) for seed in (0, 1, 10) for purpose in words}
    assert len(numbers) == 3 * len(words)
    draws = {seeds.generator(0, *purpose).random() for purpose in words}
    assert len(draws) == len(words)


def test_a_draw_in_one_place_leaves_all_others_as_they_were() -> None:
    one, other = seeds.generator(0, "a"), seeds.generator(0, "b")
    expected = seeds.generator(0, "b").random(5)
    one.random(100)
    np.testing.assert_array_equal(other.random(5), expected)


def test_numbers_fill_their_range_evenly() -> None:
    draws = np.array([seeds.uniform(f"key {i}", position) for i in range(200) for position in range(50)])
    assert draws.min() >= 0
    assert draws.max() < 1
    counts, _ = np.histogram(draws, bins=20, range=(0, 1))
    # chi-square with 19 degrees of freedom: 43.8 is exceeded once in a thousand.
    assert ((counts - 500) ** 2 / 500).sum() < 43.8
    assert abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < 0.03


def test_one_is_never_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    class Most:
        def digest(self) -> bytes:
            return b"\xff" * 8

    monkeypatch.setattr("radistill.seeds.hashlib.blake2b", lambda *_, **__: Most())
    assert seeds.uniform("k", 0) == 1 - 2.0**-53


def test_any_text_may_be_a_purpose() -> None:
    assert seeds.number(0, "half \ud83d") != seeds.number(0, "half \ud83e")
    assert 0 <= seeds.uniform("日本語 🙂", 0) < 1
