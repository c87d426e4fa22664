"""FLOW: what the untouched model finds easy weighs more.

Source: Sanyal, Prairie, Das, Kavis, Sanghavi: "Upweighting Easy Samples in Fine-Tuning Mitigates Forgetting", ICML
2025, arXiv 2502.02797. Equation: sample i weighs exp(-l_i / tau), where l_i is the untouched model's mean negative
log-likelihood of its trained tokens (the end-of-turn among them) and tau the median of l over all samples. As in the
official code (sanyalsunny111/FLOW_finetuning, `create_weighted_dataset.py`) the weights are fixed before training, and
there is a level of tokens: token t weighs exp(-l_t / tau).

Departures. The official code takes tau from the command line; here it is always `temperature` times the median of
samples, at the level of tokens too. The weights are not normalised over the data, but `train.weighting: tokens` divides
by their sum over each optimizer step: they then say how samples of a step compare, and nothing in steps of one sample.
`train.weighting: segments` divides by the number of tokens, as the official objective does. A typical sample weighs
exp(-1 / temperature), so beside rationales, which are not weighed, references weigh less than they would alone.
"""

import math
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from radistill.methods._weighing import task_places, times
from radistill.methods.base import Method
from radistill.records import TrainingRecord

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Flow(Method):
    """Train on the reference, the more the easier it is to the untouched model."""

    is_scored: ClassVar[bool] = True

    temperature: float = Field(1.0, gt=0)
    """Times the median loss is what losses are divided by; higher = more alike."""
    level: Literal["sequence", "token"] = "sequence"
    """`sequence`: one weight for each reference; `token`: one for each of its tokens."""

    def weigh(self, record: TrainingRecord, logprobs_T: "NDArray[np.float32]", typical: float) -> TrainingRecord:
        """Weight exp(-loss / tau)."""
        tau = self.temperature * typical
        losses = {place: -float(logprobs_T[place]) for place in task_places(record)}
        if not losses or tau <= 0:
            return record  # the untouched model is sure of everything: all is equally easy
        if self.level == "sequence":
            losses = dict.fromkeys(losses, sum(losses.values()) / len(losses))
        return times(record, {place: math.exp(-loss / tau) for place, loss in losses.items()})
