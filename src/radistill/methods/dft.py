"""DFT, Dynamic Fine-Tuning: the loss of each token times its probability.

Source: arXiv 2508.05629. Equation: L = mean over t of -sg(p_t) log p_t, where p_t is the probability that the model in
training gives the target and sg stops the gradient, so that the gradient is that of -p_t; TRL has the same as
`loss_type: dft`. The mean is over the number of tokens, not over their weights.

Departures: `power` is this project's: p_t to that power; 1 is the published method, 0 plain cross-entropy. Only
hard-labelled tokens that teach the task are weighed.
"""

from typing import TYPE_CHECKING

from pydantic import Field

from radistill.methods.base import Method

if TYPE_CHECKING:
    import torch


class DFT(Method):
    """Train on the reference, each token as much as the model already believes in it."""

    power: float = Field(1.0, ge=0)
    """The weight is the token's probability to this power; 0 = plain cross-entropy."""

    def token_weights(self, logits_NV: "torch.Tensor", nll_N: "torch.Tensor") -> "torch.Tensor":
        """The probability of each target."""
        return (-self.power * nll_N.detach()).exp()
