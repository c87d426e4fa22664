"""WiSE-FT: after training, the weights go a part of the way back to those they started from.

Source: Wortsman et al.: "Robust fine-tuning of zero-shot models", arXiv 2109.01903. Equation: theta = theta_start +
share x (theta_end - theta_start), for every weight.

Departures: with `train.lora` the update of each weight is scaled, which is the same line from start to end, though the
adapter's two factors are not themselves interpolated. The default share of 0.8 is this project's choice.
"""

from pydantic import Field

from radistill.methods.base import Method


class Interpolate(Method):
    """Train, or take a finished run, then go a part of the way back to the weights of the start."""

    share: float = Field(0.8, ge=0, le=1)
    """How much of the way from start to end is kept: 0 = the untouched model, 1 = the trained one."""

    run: str | None = Field(None, min_length=1)
    """Folder of a finished run of the same model: its weights are taken, and nothing is trained. Many shares of one
    training cost no more than one. null = train first."""

    def finished_run(self) -> str | None:
        """The folder."""
        return self.run

    def share_of_end(self) -> float:
        """The share."""
        return self.share
