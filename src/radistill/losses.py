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

import math
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F

from radistill.records import Labels, Origin

ORIGINS: tuple[Origin, ...] = get_args(Origin)
Weighting = Literal["tokens", "segments"]
HARD, STORED, LIVE = range(3)
"""Positions in `records.Labels`."""
LABELS: tuple[Labels, ...] = get_args(Labels)
Divergence = Literal["forward", "reverse", "jsd"]


def token_nll(logits_NV: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood of each target in nats, shape (N,), computed in at least float32."""
    return F.cross_entropy(_float(logits_NV), targets_N, reduction="none")


def soft_nll(logits_MV: torch.Tensor, reference_MV: torch.Tensor) -> torch.Tensor:
    """KL(untouched || model) of each token in nats, shape (M,): the forward KL from both models' logits.

    Gradients flow to the model alone.
    """
    found: torch.Tensor = _Live.apply(_float(logits_MV), _float(reference_MV))  # type: ignore[no-untyped-call]
    return found


def divergence(logits_MV: torch.Tensor, teacher_MV: torch.Tensor, kind: Divergence, alpha: float = 0.5) -> torch.Tensor:
    """How far the model is from a teacher at each token, over the whole vocabulary, in nats: shape (M,).

    Both models' log-probabilities are held at once, in at least float32: 2 x M x V numbers, and what the backward pass
    needs of them.

    Args:
        logits_MV: the model's.
        teacher_MV: the teacher's.
        kind: `forward`: KL(teacher || model), which asks the model to allow for all the teacher does; `reverse`:
            KL(model || teacher), which asks it to do nothing that the teacher would not; `jsd`: alpha KL(teacher || m)
            + (1 - alpha) KL(model || m), where m = alpha teacher + (1 - alpha) model (Agarwal et al. 2023, arXiv
            2306.13649), at most ln 2.
        alpha: of `jsd` alone.
    """
    log_q, log_p = (torch.log_softmax(_float(x), dim=-1) for x in (logits_MV, teacher_MV))
    if kind == "forward":
        return _kl_terms(log_p, log_q).sum(dim=-1)
    if kind == "reverse":
        return _kl_terms(log_q, log_p).sum(dim=-1)
    log_m = torch.logaddexp(log_p + math.log(alpha), log_q + math.log1p(-alpha))
    return (alpha * _kl_terms(log_p, log_m) + (1 - alpha) * _kl_terms(log_q, log_m)).sum(dim=-1)


def stored_nll(logits_SV: torch.Tensor, top_ids_SK: torch.Tensor, top_values_SK: torch.Tensor) -> torch.Tensor:
    """The same from the K most probable tokens of the untouched model, with all others as one: shape (S,).

    By the log-sum inequality it never exceeds the full KL; it does not fall when K grows and is equal to it at K = V.

    Args:
        logits_SV: the model's.
        top_ids_SK: the tokens.
        top_values_SK: their log-probabilities at temperature 1, of the whole vocabulary.
    """
    read = _float(logits_SV), top_ids_SK.long(), top_values_SK
    found: torch.Tensor = _Stored.apply(*read)  # type: ignore[no-untyped-call]
    return found


class _Live(torch.autograd.Function):
    """The gradient of KL(p || q) by the logits of q is q - p: no more than one more block of V is kept for it."""

    @staticmethod
    def forward(ctx: Any, logits_MV: torch.Tensor, reference_MV: torch.Tensor) -> torch.Tensor:
        log_p, log_q = torch.log_softmax(reference_MV, dim=-1), torch.log_softmax(logits_MV, dim=-1)
        loss_M = _kl_terms(log_p, log_q).sum(dim=-1)
        ctx.save_for_backward(log_q.exp_().sub_(log_p.exp_()))
        return loss_M

    @staticmethod
    def backward(ctx: Any, grad_M: torch.Tensor) -> Any:
        (grad_MV,) = ctx.saved_tensors
        return grad_MV * grad_M.unsqueeze(1), None


class _Stored(torch.autograd.Function):
    """With r the mass beside the K tokens, the gradient is q - p at each of those and q (1 - r_p / r_q) elsewhere."""

    @staticmethod
    def forward(ctx: Any, logits_SV: torch.Tensor, ids_SK: torch.Tensor, values_SK: torch.Tensor) -> torch.Tensor:
        log_pk = values_SK.to(logits_SV)
        log_qk = logits_SV.gather(1, ids_SK) - logits_SV.logsumexp(dim=-1, keepdim=True)
        p_k = log_pk.exp()
        mass_S = p_k.sum(dim=-1)
        loss_S = _kl_terms(log_pk, log_qk).sum(dim=-1)
        grad_SV = logits_SV.softmax(dim=-1)
        q_k = grad_SV.gather(1, ids_SK)
        if ids_SK.shape[1] < logits_SV.shape[1]:
            # What is left of q, summed rather than subtracted from 1, which would leave nothing where q is sure.
            r_q = grad_SV.scatter_(1, ids_SK, 0.0).sum(dim=-1).clamp(min=torch.finfo(logits_SV.dtype).tiny)
            r_p = (1 - mass_S).clamp(min=0)
            loss_S = loss_S + torch.xlogy(r_p, r_p) - r_p * r_q.log()
            mass_S = mass_S + r_p  # 1, but for the rounding of what was stored
            grad_SV.mul_((mass_S - r_p / r_q).unsqueeze(1))
        ctx.save_for_backward(grad_SV.scatter_(1, ids_SK, mass_S.unsqueeze(1) * q_k - p_k))
        return loss_S

    @staticmethod
    def backward(ctx: Any, grad_S: torch.Tensor) -> Any:
        (grad_SV,) = ctx.saved_tensors
        return grad_SV * grad_S.unsqueeze(1), None, None


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


def _kl_terms(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """P (log p - log q), which is 0 where p is 0, even where a logarithm is -inf."""
    p = log_p.exp()
    return p * torch.where(p > 0, log_p - log_q, 0.0)  # so that gradients are numbers there too


def _float(logits: torch.Tensor) -> torch.Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def _wide(device: torch.device) -> torch.dtype:
    """Sums over many tokens are kept in float64; Apple's GPUs have none."""
    return torch.float32 if device.type == "mps" else torch.float64
