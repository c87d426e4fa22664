"""How one token is drawn: the distribution is the one that temperature and top_p say, to the last tie."""

import numpy as np
import pytest
import torch

from radistill import seeds
from radistill.backends.transformers import _Drawn, _nucleus
from radistill.records import Sampling

SCORES = [1.0, -0.5, 2.0, 0.25, -3.0, 1.5, 0.0]
# Chi-square that is exceeded once in ten thousand, by degrees of freedom.
CRITICAL = {1: 15.1, 2: 18.4, 3: 21.1, 4: 23.5, 5: 25.7, 6: 27.9}


def draw(sampling: Sampling, keys: list[str], scores: list[float], *, position: int = 0) -> list[int]:
    """The token drawn for each key."""
    prompt = 5
    processor = _Drawn(sampling, [(key, 0) for key in keys], prompt)
    rows = torch.tensor([scores] * len(keys))
    out = processor(torch.zeros(len(keys), prompt + position, dtype=torch.long), rows)
    assert ((out == 0).sum(dim=1) == 1).all()
    assert torch.isneginf(out).sum() == out.numel() - len(keys)
    tokens: list[int] = out.argmax(dim=1).tolist()
    return tokens


def expected(sampling: Sampling) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """The distribution by its definition."""
    weights = np.exp(np.array(SCORES) / sampling.temperature)
    probabilities = weights / weights.sum()
    order = np.argsort(-probabilities)
    n_kept = int((np.cumsum(probabilities[order]) < sampling.top_p).sum()) + 1 if sampling.top_p < 1 else len(order)
    kept = np.zeros(len(order))
    kept[order[:n_kept]] = probabilities[order[:n_kept]]
    result: np.ndarray[tuple[int], np.dtype[np.float64]] = kept / kept.sum()
    return result


@pytest.mark.parametrize("top_p", [1.0, 0.95, 0.8, 0.5, 0.01])
@pytest.mark.parametrize("temperature", [0.3, 0.7, 1.0, 2.5])
def test_draws_are_distributed_as_temperature_and_top_p_say(temperature: float, top_p: float) -> None:
    sampling = Sampling(temperature=temperature, top_p=top_p)
    n = 4000
    keys = [f"{temperature} {top_p} {i}" for i in range(n // 4)]
    tokens = [token for position in range(4) for token in draw(sampling, keys, SCORES, position=position)]
    counts, wanted = np.bincount(tokens, minlength=len(SCORES)), n * expected(sampling)
    assert (counts[wanted == 0] == 0).all(), "a token outside the nucleus was drawn"
    likely = wanted > 5
    chi_square = float(((counts - wanted)[likely] ** 2 / wanted[likely]).sum())
    assert likely.sum() == 1 or chi_square < CRITICAL[int(likely.sum()) - 1]


def test_the_draw_inverts_the_distribution_in_the_order_of_the_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = [float(np.log(p)) for p in (0.25, 0.125, 0.5, 0.125)]
    expected_at = {0.0: 0, 0.2499: 0, 0.2501: 1, 0.374: 1, 0.376: 2, 0.874: 2, 0.876: 3, 1 - 2**-53: 3}
    monkeypatch.setattr(seeds, "uniform", lambda key, _: float(key))
    found = draw(Sampling(temperature=1, top_p=1), [repr(uniform) for uniform in expected_at], scores)
    assert found == list(expected_at.values())


def test_each_row_and_position_has_a_draw_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, int]] = []

    def uniform(key: str, position: int) -> float:
        asked.append((key, position))
        return {"a": 0.1, "b": 0.6}[key]

    monkeypatch.setattr(seeds, "uniform", uniform)
    assert draw(Sampling(temperature=1, top_p=1), ["a", "b", "a"], [0.0, 0.0], position=3) == [0, 1, 0]
    assert asked == [("a", 3), ("b", 3), ("a", 3)]


# Sums of powers of two are exact.
NUCLEI = [
    ([0.5, 0.25, 0.125, 0.125], 0.4, [0]),
    ([0.5, 0.25, 0.125, 0.125], 0.5, [0]),
    ([0.5, 0.25, 0.125, 0.125], 0.5001, [0, 1]),
    ([0.125, 0.5, 0.125, 0.25], 0.75, [1, 3]),
    ([0.125, 0.5, 0.125, 0.25], 0.7501, [0, 1, 2, 3]),
    ([0.25, 0.25, 0.25, 0.25], 0.25, [0, 1, 2, 3]),
    ([0.25, 0.25, 0.5, 0.0], 0.5, [2]),
    ([0.25, 0.25, 0.5, 0.0], 0.6, [0, 1, 2]),
    ([0.0, 0.0, 1.0, 0.0], 0.9999, [2]),
    ([0.5, 0.25, 0.125, 0.125], 1e-9, [0]),
    ([0.5, 0.0, 0.5, 0.0], 0.9999, [0, 2]),
]


@pytest.mark.parametrize(("probabilities", "top_p", "kept"), NUCLEI)
def test_the_nucleus_is_the_smallest_set_that_holds_top_p_with_the_ties_of_its_last_token(
    probabilities: list[float], top_p: float, kept: list[int]
) -> None:
    rows = torch.tensor([probabilities, probabilities[::-1]])
    found = _nucleus(rows, top_p)
    assert found[0].nonzero().flatten().tolist() == kept
    assert found[1].flip(0).nonzero().flatten().tolist() == kept
    assert (found[0][kept] == rows[0][kept]).all(), "probabilities are kept as they are"


@pytest.mark.parametrize("temperature", [1e-4, 1e-36])
@pytest.mark.parametrize("scores", [SCORES, [90.0, 89.0, -90.0], [-3e4, 3e4, 0.0]])
def test_a_temperature_near_zero_draws_the_most_probable_token(temperature: float, scores: list[float]) -> None:
    sampling = Sampling(temperature=temperature, top_p=0.9)
    assert set(draw(sampling, [str(i) for i in range(50)], scores)) == {int(np.argmax(scores))}


def test_a_large_vocabulary_loses_no_token() -> None:
    scores = [0.0] * 150_000
    tokens = np.array(draw(Sampling(temperature=1, top_p=1), [str(i) for i in range(40)], scores))
    wanted = np.array([int(seeds.uniform(str(i), 0) * 150_000) for i in range(40)])
    assert np.abs(tokens - wanted).max() <= 1


def test_a_token_that_cannot_be_is_never_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = [-float("inf"), 0.0, -float("inf"), 0.0, -float("inf")]
    with monkeypatch.context() as patched:
        patched.setattr(seeds, "uniform", lambda key, _: float(key))
        assert draw(Sampling(temperature=1, top_p=1), ["0.0", "0.5", "0.9999999999999999"], scores) == [1, 3, 3]
    assert set(draw(Sampling(temperature=1, top_p=1), [str(i) for i in range(300)], scores)) == {1, 3}


def test_a_row_that_has_written_before_draws_on_where_it_was() -> None:
    sampling = Sampling(temperature=1.0, top_p=1.0)
    rows = torch.tensor([SCORES] * 2)
    together = _Drawn(sampling, [("a", 7), ("b", 0)], 5)(torch.zeros(2, 8, dtype=torch.long), rows).argmax(dim=1)
    assert together.tolist() == [
        *draw(sampling, ["a"], SCORES, position=10),
        *draw(sampling, ["b"], SCORES, position=3),
    ]


def test_a_nucleus_beyond_the_most_probable_few_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    flat = torch.tensor(rng.dirichlet(np.full(300, 0.3), size=40))
    for top_p in (0.3, 0.9, 0.999):
        few = _nucleus(flat, top_p)
        monkeypatch.setattr("radistill.backends.transformers.FIRST", 300)
        assert torch.equal(_nucleus(flat, top_p), few)
        monkeypatch.undo()
