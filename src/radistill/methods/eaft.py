"""EAFT, Entropy-Adaptive Fine-Tuning: tokens on which the model is sure of something else are hardly learned.

Source: arXiv 2601.02151. Equation: L = mean over t of -sg(H_t / ln K) log p_t, where H_t is the entropy of the model in
training over its K most probable tokens, whose probabilities are made to sum to 1, and sg stops the gradient; K = 20.
The exponent `alpha` is that of two implementations (LLaMA-Factory `eaft_alpha`, Axolotl `eaft_alpha` and `eaft_k`),
where 1 is the default and the published method. The mean is over the number of tokens, not over their weights.

Departures: LLaMA-Factory divides by 3.0 where this divides by ln 20 = 2.996. Only hard-labelled tokens that teach the
task are weighed.
"""

import math
from typing import TYPE_CHECKING

from pydantic import Field

from radistill.methods.base import Method

if TYPE_CHECKING:
    import torch


class EAFT(Method):
    """Train on the reference, each token as much as the model is unsure of what comes next."""

    k: int = Field(20, ge=2)
    """The entropy is that of so many most probable tokens; of the vocabulary where that is smaller."""
    alpha: float = Field(1.0, ge=0)
    """The weight is the normalised entropy to this power; 0 = plain cross-entropy."""

    def token_weights(self, logits_NV: "torch.Tensor", nll_N: "torch.Tensor") -> "torch.Tensor":
        """The normalised entropy at each token."""
        import torch

        k = min(self.k, logits_NV.shape[-1])
        top_NK = logits_NV.detach().topk(k, dim=-1).values
        log_NK = torch.log_softmax(top_NK if top_NK.dtype == torch.float64 else top_NK.float(), dim=-1)
        # A token that the model rules out has log-probability -inf and adds nothing.
        entropy_N = -(log_NK.exp() * log_NK.clamp(min=torch.finfo(log_NK.dtype).min)).sum(dim=-1)
        share_N: torch.Tensor = (entropy_N / math.log(k)).clamp(0, 1) ** self.alpha
        return share_N
