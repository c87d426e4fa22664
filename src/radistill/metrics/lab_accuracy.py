"""Share of right answers to the questions of one of the lab's abilities, each judged by that ability's own rule.

Source: this project's lab (`radistill.lab.abilities`); no paper. Where a task has groups (harmful and harmless
requests) the unweighted mean over them is the balanced accuracy.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from radistill.lab.abilities import AbilityName
from radistill.lab.world import WorldChoice, WorldSettings
from radistill.metrics.base import Metric, Pair


class LabAccuracy(Metric):
    """Right answers in percent."""

    ability: AbilityName = "arithmetic"
    """Name of the ability whose rule judges."""
    world: WorldChoice = WorldSettings()
    """The world in which an answer is right or wrong."""

    def rows(self, pairs: Sequence[Pair], language: str) -> NDArray[np.float64]:
        """Right (0 or 1) and 1 for each answer: shape (N, 2). The reference is what the rule looks for."""
        from radistill.lab.abilities import Item, all_of
        from radistill.lab.world import world_of

        judge = all_of(world_of(self.world))[self.ability]
        right = [judge.is_right(pair.answer, Item(pair.source, "", pair.reference)) for pair in pairs]
        return np.array([[float(is_right), 1.0] for is_right in right], dtype=np.float64).reshape(-1, 2)

    def score(self, total_K: NDArray[np.float64]) -> float:
        """Percent of right answers."""
        return float(100 * total_K[0] / total_K[1])

    def signature(self, language: str) -> str:
        """Ability and world."""
        return f"lab_accuracy|ability:{self.ability}|world:{self.world.number}"
