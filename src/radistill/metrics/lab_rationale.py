"""Share of replies whose rationale is well-formed: every line is a note of one of the forms the lab knows.

Source: this project's lab (`radistill.lab.rationales`); no paper.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from radistill.lab.world import WorldChoice, WorldSettings
from radistill.metrics.base import Metric, Pair


class LabRationale(Metric):
    """Well-formed rationales in percent."""

    world: WorldChoice = WorldSettings()
    """Whose places and people may be named."""

    def rows(self, pairs: Sequence[Pair], language: str) -> NDArray[np.float64]:
        """Well-formed (0 or 1) and 1 for each answer: shape (N, 2)."""
        from radistill.lab.rationales import is_well_formed
        from radistill.lab.world import world_of

        world = world_of(self.world)
        found = [[float(is_well_formed(pair.answer, world)), 1.0] for pair in pairs]
        return np.array(found, dtype=np.float64).reshape(-1, 2)

    def score(self, total_K: NDArray[np.float64]) -> float:
        """Percent of well-formed rationales."""
        return float(100 * total_K[0] / total_K[1])

    def signature(self, language: str) -> str:
        """World."""
        return f"lab_rationale|world:{self.world.number}"
