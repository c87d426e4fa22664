"""L2-SP: weight decay towards the starting point instead of towards zero.

Source: Li, Grandvalet, Davoine: "Explicit Inductive Bias for Transfer Learning with Convolutional Networks", ICML 2018,
arXiv 1802.01483:

    loss + weight / 2 x sum over trained parameters of (theta - theta_0)^2.

Departures: there is no new output layer here, so the paper's second term, plain weight decay on it, is absent. With
LoRA theta is the weight that the model computes with: the distance is ||scaling x B A||_F^2 of each adapted matrix, not
that of the factors, so that it means the same as in full fine-tuning.

Memory: in full fine-tuning a copy of every trained parameter (float32), and the difference from it while a step is
computed; with LoRA nothing, because the product of the factors is zero at the start and its norm needs only matrices of
rank x rank.
"""

from typing import TYPE_CHECKING

from pydantic import Field

from radistill.methods.base import Method

if TYPE_CHECKING:
    from radistill.training_parts import Penalty, Start


class L2SP(Method):
    """Train on the reference, with every weight pulled back to where it started."""

    weight: float = Field(0.1, ge=0)
    """Half of it multiplies the squared distance of all trained weights from their start."""

    def penalty(self, start: "Start") -> "Penalty | None":
        """The squared distance from the start."""
        from radistill import penalties

        return penalties.Pull(penalties.changes_of(start.model), self.weight)
