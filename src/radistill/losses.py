"""The loss, exactly.

`weighting: tokens` (the paper): the weighted mean of the negative log-likelihood over all trained tokens, in nats:
sum(w nll) / sum(w). With all weights 1 it is the mean over all trained tokens; with rationale weight 0 it is the
references' loss without an end-of-turn.

`weighting: segments`: the sum over pools of the mean of w nll over the pool's tokens. A pool is an origin together with
the separator before it and the end-of-turn that closes it, because a separator is one or two tokens a row and would
otherwise count as much as all references.

Denominators are taken over the *global* optimizer batch (accumulation and ranks), before the first backward; so they
are arguments here. Shapes: N trained tokens, V vocabulary, P pools.
"""

from typing import Literal, get_args

import torch
import torch.nn.functional as F

from radistill.records import Origin, Segment

ORIGINS: tuple[Origin, ...] = get_args(Origin)
Weighting = Literal["tokens", "segments"]


def pools(segments: tuple[Segment, ...]) -> list[Origin]:
    """For each segment the origin it is averaged with: a separator with what follows, an end with what it closes."""
    pooled: list[Origin] = [s.origin for s in segments]
    filled = [i for i, s in enumerate(segments) if s.stop > s.start and s.origin not in ("prompt", "separator", "end")]
    for i, segment in enumerate(segments):
        if segment.origin == "separator":
            pooled[i] = next((segments[j].origin for j in filled if j > i), "rationale")
        elif segment.origin == "end":
            pooled[i] = next((segments[j].origin for j in reversed(filled) if j < i), "reference")
    return pooled


def token_nll(logits_NV: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood of each target in nats, shape (N,), computed in at least float32."""
    wide = logits_NV if logits_NV.dtype == torch.float64 else logits_NV.float()
    return F.cross_entropy(wide, targets_N, reduction="none")


def totals(weights_N: torch.Tensor, pools_N: torch.Tensor) -> torch.Tensor:
    """What the means are divided by, additive over micro-batches and ranks: shape (1 + P,).

    First the sum of weights, then for each pool the number of its tokens that weigh more than 0.
    """
    wide = _wide(weights_N.device)
    per_pool = torch.bincount(pools_N[weights_N > 0], minlength=len(ORIGINS)).to(wide)
    return torch.cat([weights_N.sum(dtype=wide).reshape(1), per_pool])


def combine(
    nll_N: torch.Tensor, weights_N: torch.Tensor, pools_N: torch.Tensor, *, total: torch.Tensor, weighting: Weighting
) -> torch.Tensor:
    """This micro-batch's share of the loss of the global batch; the shares add up to the loss.

    Args:
        nll_N: from `token_nll`.
        weights_N: weight of predicting each token.
        pools_N: index into ORIGINS of the pool each token is averaged in.
        total: the sum of `totals` over the global batch.
        weighting: see the module.
    """
    total = total.to(nll_N.device, nll_N.dtype if nll_N.dtype == torch.float64 else torch.float32)
    weighted_N = weights_N.to(nll_N.dtype) * nll_N
    if weighting == "tokens":
        return weighted_N.sum() / total[0].clamp(min=torch.finfo(total.dtype).tiny)
    denominators_N = total[1:][pools_N].clamp(min=1)
    return (weighted_N / denominators_N).sum()


def sums_by_origin(nll_N: torch.Tensor, weights_N: torch.Tensor, origins_N: torch.Tensor) -> torch.Tensor:
    """Unweighted sum of the loss and number of trained tokens of each origin, for the log: shape (2, P)."""
    wide = _wide(nll_N.device)
    trained = (weights_N > 0).to(wide)
    losses = torch.zeros(len(ORIGINS), dtype=wide, device=nll_N.device)
    counts = torch.zeros_like(losses)
    losses.index_add_(0, origins_N, nll_N.detach().to(wide) * trained)
    counts.index_add_(0, origins_N, trained)
    return torch.stack([losses, counts])


def _wide(device: torch.device) -> torch.dtype:
    """Sums over many tokens are kept in float64; Apple's GPUs have none."""
    return torch.float32 if device.type == "mps" else torch.float64
