"""Layer-selective tuning: the bottom and the top layers are trained, those between stay as they are.

Source: Qwen3-XPlus ("LLaMAX2"), arXiv 2510.09189: an instruction-tuned model is fine-tuned on parallel data, the 4
bottom layers first and then the 15 top ones (these numbers are known second-hand only). Equation: that of vanilla, with
the gradient of every other parameter 0.

Departures: both groups are trained at once. The defaults are shares of the depth, so that something stays frozen in
models of any depth: 0.11 and 0.42 are 4 and 15 of 36 layers, and 1 and 2 of 5. What belongs to no layer (embeddings,
output head, final norm, encoders of pictures or sound) stays frozen. With `train.lora` the adapters of the middle
layers stay frozen, which leaves these layers as they are too.
"""

import re

from pydantic import Field, model_validator

from radistill.errors import ConfigError
from radistill.methods.base import Method

LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks?)\.(\d+)\.")
"""`model.layers.3.mlp`, `transformer.h.3.attn`, `transformer.blocks.3.ffn`, with whatever wrappers put before them."""
OTHER_TOWER = re.compile(r"(?:^|[._])(?:vision|visual|audio|speech)(?:[._]|$)")


class Layers(Method):
    """Train on the reference, but only the bottom and the top layers."""

    bottom: float = Field(0.11, ge=0)
    """So many layers next to the input are trained; below 1 a share of all layers, rounded."""
    top: float = Field(0.42, ge=0)
    """So many layers next to the output are trained; below 1 a share of all layers, rounded."""

    @model_validator(mode="after")
    def _makes_sense(self) -> "Layers":
        for name in ("bottom", "top"):
            value = getattr(self, name)
            if value >= 1 and value != int(value):
                raise ValueError(f"{name} is {value:g}: write a whole number of layers, or a share below 1")
        if self.bottom == self.top == 0:
            raise ValueError("bottom and top are both 0, which leaves no layer to train; set one of them")
        if max(self.bottom, self.top) < 1 <= self.bottom + self.top:
            raise ValueError("bottom and top are shares that leave no layer frozen; together they must be below 1")
        return self

    def trains(self, name: str, n_layers: int) -> bool:
        """Whether it belongs to a bottom or a top layer.

        Raises:
            ConfigError: no layer would be left frozen.
        """
        bottom, top = self._counts(n_layers)
        if bottom + top >= n_layers:
            raise ConfigError(
                f"method: layers would train {bottom} bottom and {top} top layers of a model that has {n_layers}, "
                "which leaves none frozen. Lower bottom or top (below 1 they are shares of the depth), or use vanilla."
            )
        layer = layer_of(name)
        return layer is not None and (layer < bottom or layer >= n_layers - top)

    def _counts(self, n_layers: int) -> tuple[int, int]:
        bottom, top = (round(n * n_layers) if n < 1 else int(n) for n in (self.bottom, self.top))
        return bottom, top


def layer_of(name: str) -> int | None:
    """The layer that the parameter of that name belongs to, counted from the input; None if to none."""
    found = LAYER.search(name)
    return int(found.group(1)) if found and not OTHER_TOWER.search(name[: found.start()]) else None
