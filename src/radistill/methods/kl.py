"""KL to the untouched model on the task's own tokens: Learning without Forgetting for language models.

Source: Li, Hoiem: "Learning without Forgetting", ECCV 2016, arXiv 1606.09282: the new task's own inputs are shown to
the old model, and what it answers is kept as a second target. Here that is, with q the model and p the untouched one,

    loss + weight x mean over the tokens that teach the task of KL(p || q), in nats,

where p and q are the distributions of the next token after the same ids.

Departures: the original keeps apart what the old and the new task predict, each with its own output layer, and softens
the old answers with a temperature; a language model has one output layer, and the temperature is 1. `direction:
reverse` (KL(q || p), the penalty that is common in reinforcement learning) is an addition. Tokens that do not teach the
task (rationales, samples) are left alone, and so are those that another method gives the weight 0.
"""

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from radistill.methods.base import Method

if TYPE_CHECKING:
    import torch

    from radistill.training_parts import Penalty, Start, Step


class KL(Method):
    """Train on the reference, but stay near what the untouched model expects at each of its tokens."""

    uses_reference: ClassVar[bool] = True

    weight: float = Field(1.0, ge=0)
    """What the mean divergence in nats is multiplied by before it is added to the loss."""
    direction: Literal["forward", "reverse"] = "forward"
    """`forward`: KL(untouched || model), which keeps all that the untouched model expects; `reverse`: KL(model ||
    untouched), which keeps the model from what the untouched one does not expect."""

    def penalty(self, start: "Start") -> "Penalty | None":
        """The mean divergence over the tokens of the step that teach the task."""
        assert start.reference is not None
        return _Divergence(self)


class _Divergence:
    """See `training_parts.Penalty`."""

    reads_logits: ClassVar[bool] = True

    def __init__(self, settings: KL) -> None:
        self.settings = settings

    def __call__(self, step: "Step") -> "torch.Tensor":
        from radistill import penalties
        from radistill.training_parts import is_task, mean_over_task

        assert step.logits_NV is not None
        if step.reference_MV is None:
            return step.logits_NV.new_zeros(())
        chosen_N = step.asked_N & is_task(step.inputs["pools_N"])
        reference_MV = step.reference_MV[chosen_N[step.asked_N]]
        values = penalties.divergence(step.logits_NV[chosen_N], reference_MV, self.settings.direction)
        return self.settings.weight * penalties.ranks() * mean_over_task(values, step, chosen_N=chosen_N)
