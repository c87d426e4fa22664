"""STM, Selective Token Masking: tokens of the reference that surprise the untouched model are not trained on.

Source: arXiv 2501.14315, NeurIPS 2025. Equation, as in the official code (appier-research/robust-llm-finetunes,
`collate_fn.py`): w_t = 0 where exp(-log p0(y_t | x, y_<t)) > threshold, else 1; p0 is the untouched model, the
threshold 2.5, and the loss the mean over the tokens that are left. As there, the end-of-turn is a token like any other,
so it is not learned where the untouched model would rather have gone on; `mask_end: false` always learns it. A row of
which nothing is left to train is dropped, and counted as `nothing to train`.

Departures: the official runs train LoRA with DoRA at a learning rate of 2e-5, which are settings of `train` here.
Rationales, replayed and free samples are never masked, because no reference stands in them.
"""

import math
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from radistill.methods._weighing import task_places, times
from radistill.methods.base import Method
from radistill.records import TrainingRecord

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class STM(Method):
    """Train on the reference but for the tokens that the untouched model finds improbable."""

    is_scored: ClassVar[bool] = True

    threshold: float = Field(2.5, gt=1)
    """Tokens of a higher perplexity, one by its probability, are masked; 2.5 keeps those of at least 0.4."""
    mask_end: bool = True
    """Whether the end-of-turn after the reference is masked like any other token; false = it is always learned."""

    def weigh(
        self,
        record: TrainingRecord,
        logprobs_T: "NDArray[np.float32]",
        typical: float,
    ) -> TrainingRecord:
        """Weight 0 where the perplexity is above the threshold."""
        limit = math.log(self.threshold)
        places = task_places(record, ends=self.mask_end)
        return times(record, {place: float(-float(logprobs_T[place]) <= limit) for place in places})
