"""Keys and values that are written into room kept ahead, instead of being copied whole for every token.

transformers' own `DynamicLayer` joins all that was there to what is new at every step: on a small model a fourth of the
time of a step. Imported by the backend `transformers` when it first generates, because it needs that package.
"""

from typing import Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

ROOM = 64
"""Tokens for which room is kept at once."""


class GrowingLayer(DynamicLayer):  # type: ignore[misc]
    """As `DynamicLayer`: (B, heads, T, D); `keys` and `values` are the filled parts of what is kept."""

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self._kept: list[torch.Tensor] = []

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add T' tokens; returns all of them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._kept = []
        before = self.get_seq_length()
        after = before + key_states.shape[-2]
        if not self._kept or self._kept[0].shape[-2] < after:
            filled = (self.keys, self.values) if before else ()
            self._kept = [_with_room(new, after) for new in (key_states, value_states)]
            for kept, old in zip(self._kept, filled, strict=False):
                kept[..., :before, :] = old
        for kept, new in zip(self._kept, (key_states, value_states), strict=True):
            kept[..., before:after, :] = new
        self.keys, self.values = [kept[..., :after, :] for kept in self._kept]
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep these rows; they are copied, so the room is gone."""
        super().batch_select_indices(indices)
        self._kept = []


def growing_cache(model: Any) -> DynamicCache | None:
    """An empty cache for a model whose layers all keep everything; None where transformers must choose itself."""
    if not getattr(model, "_supports_default_dynamic_cache", lambda: False)():
        return None
    cache = DynamicCache(config=model.config)
    if not cache.layers or any(type(layer) is not DynamicLayer for layer in cache.layers):
        return None
    cache.layers = [GrowingLayer() for _ in cache.layers]
    return cache


def _with_room(new: torch.Tensor, size: int) -> torch.Tensor:
    batch, heads, _, width = new.shape
    return new.new_empty((batch, heads, size + ROOM, width))
