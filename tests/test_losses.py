"""The loss is exactly what design and docs say, token by token."""

import math

import pytest
import torch

from radistill import losses
from radistill.losses import ORIGINS
from radistill.records import Segment, pools

REFERENCE, RATIONALE = ORIGINS.index("reference"), ORIGINS.index("rationale")


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    nll = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    weights = torch.tensor([1.0, 1.0, 0.5, 0.5, 0.5])
    pools = torch.tensor([REFERENCE, REFERENCE, RATIONALE, RATIONALE, RATIONALE])
    return nll, weights, pools


def test_tokens_weighting_is_the_weighted_mean_over_all_trained_tokens() -> None:
    nll, weights, pools = batch()
    loss = losses.combine(nll, weights, pools, total=losses.totals(weights, pools), weighting="tokens")
    assert loss.item() == pytest.approx((1 + 2 + 0.5 * (3 + 4 + 5)) / (1 + 1 + 0.5 * 3))


def test_tokens_weighting_with_all_weights_one_is_the_plain_mean() -> None:
    nll, _, pools = batch()
    ones = torch.ones(5)
    loss = losses.combine(nll, ones, pools, total=losses.totals(ones, pools), weighting="tokens")
    assert loss.item() == pytest.approx(3.0)


def test_segments_weighting_averages_each_pool_by_itself() -> None:
    nll, weights, pools = batch()
    loss = losses.combine(nll, weights, pools, total=losses.totals(weights, pools), weighting="segments")
    assert loss.item() == pytest.approx((1 + 2) / 2 + 0.5 * (3 + 4 + 5) / 3)


@pytest.mark.parametrize("weighting", ["tokens", "segments"])
def test_shares_of_micro_batches_add_up_to_the_loss_of_the_whole(weighting: losses.Weighting) -> None:
    nll, weights, pools = batch()
    total = losses.totals(weights, pools)
    whole = losses.combine(nll, weights, pools, total=total, weighting=weighting)
    parts = [
        losses.combine(nll[s], weights[s], pools[s], total=total, weighting=weighting)
        for s in (slice(0, 1), slice(1, 4), slice(4, 5))
    ]
    assert sum(p.item() for p in parts) == pytest.approx(whole.item())


def test_totals_are_additive_and_ignore_tokens_without_weight() -> None:
    _, weights, pools = batch()
    weights = torch.cat([weights, torch.zeros(2)])
    pools = torch.cat([pools, torch.tensor([REFERENCE, RATIONALE])])
    total = losses.totals(weights, pools)
    assert total[0].item() == pytest.approx(3.5)
    assert total[1 + REFERENCE].item() == 2
    assert total[1 + RATIONALE].item() == 3
    again = losses.totals(weights[:3], pools[:3]) + losses.totals(weights[3:], pools[3:])
    assert torch.equal(total, again)


def test_token_nll_is_minus_the_log_softmax_of_the_target() -> None:
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.0, 0.0, 0.0]])
    nll = losses.token_nll(logits, torch.tensor([0, 2]))
    expected = -2.0 + math.log(math.exp(2) + 1 + math.exp(-1))
    assert nll.tolist() == pytest.approx([expected, math.log(3)])


def test_token_nll_of_bf16_logits_is_computed_in_float32() -> None:
    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    targets = torch.tensor([1, 2, 3, 4])
    nll = losses.token_nll(logits, targets)
    assert nll.dtype == torch.float32
    assert torch.allclose(nll, losses.token_nll(logits.float(), targets))


def test_a_separator_is_averaged_with_what_follows_and_an_end_with_what_it_closes() -> None:
    segments = (
        Segment("prompt", 0, 3, 0.0),
        Segment("reference", 3, 5, 1.0),
        Segment("separator", 5, 6, 0.5),
        Segment("rationale", 6, 9, 0.5),
        Segment("end", 9, 10, 0.5),
    )
    assert pools(segments) == ["prompt", "reference", "rationale", "rationale", "rationale"]


def test_the_end_of_a_plain_reference_is_averaged_with_the_reference() -> None:
    segments = (Segment("prompt", 0, 3, 0.0), Segment("reference", 3, 5, 1.0), Segment("end", 5, 6, 1.0))
    assert pools(segments) == ["prompt", "reference", "reference"]


def test_sums_by_origin_are_unweighted_and_count_only_trained_tokens() -> None:
    nll, weights, origins = batch()
    sums, counts = losses.sums_by_origin(nll, weights * torch.tensor([1.0, 0.0, 1.0, 1.0, 1.0]), origins)
    assert sums[REFERENCE].item() == 1.0
    assert counts[REFERENCE].item() == 1
    assert sums[RATIONALE].item() == 12.0
    assert counts[RATIONALE].item() == 3


def plain_stored(logits: torch.Tensor, ids: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """The formula, for autograd to differentiate."""
    log_q = logits.log_softmax(-1)
    p, log_qk = values.to(log_q).exp(), log_q.gather(1, ids)
    rest_p = (1 - p.sum(-1)).clamp(min=0)
    top = (p * (values.to(log_q) - log_qk)).sum(-1)
    if ids.shape[1] == logits.shape[1]:
        return top
    rest_q = log_q.scatter(1, ids, float("-inf")).logsumexp(-1)
    return top + torch.xlogy(rest_p, rest_p) - rest_p * rest_q


@pytest.mark.parametrize(("k", "sharp"), [(1, 1.0), (5, 1.0), (5, 12.0), (39, 1.0), (40, 1.0)])
def test_the_gradients_of_soft_labels_are_those_of_their_formulas(k: int, sharp: float) -> None:
    rng = torch.Generator().manual_seed(3)
    logits = (sharp * torch.randn(7, 40, generator=rng, dtype=torch.float64)).requires_grad_()
    reference = sharp * torch.randn(7, 40, generator=rng, dtype=torch.float64)
    values, ids = reference.log_softmax(-1).topk(k, dim=-1)
    values = values + 1e-3  # rounded when it was stored, so that they may come to more than 1
    weights = torch.rand(7, generator=rng, dtype=torch.float64)
    ours = losses.stored_nll(logits, ids, values)
    theirs = plain_stored(logits, ids, values)
    assert torch.allclose(ours, theirs, atol=1e-12)
    (mine,) = torch.autograd.grad((weights * ours).sum(), logits)
    (expected,) = torch.autograd.grad((weights * theirs).sum(), logits)
    assert (mine - expected).abs().max() < 1e-12
    full = losses.soft_nll(logits, reference)
    (mine,) = torch.autograd.grad((weights * full).sum(), logits)
    assert (mine - weights.unsqueeze(1) * (logits.softmax(-1) - reference.softmax(-1))).abs().max() < 1e-12
