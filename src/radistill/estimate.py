"""Memory and time of a training, told before any weights are loaded.

**Memory**: the forward and the backward pass are played through with tensors that have shapes and no numbers
(`torch._subclasses.FakeTensorMode`), by the code that trains, while every storage that is held is counted. So it holds
for any architecture, adapter, precision, for checkpointing and for a head that works in pieces. On a CPU the allocator
of the system takes about twice what is held for activations (ALLOCATOR, measured by `benchmarks/memory.py`). What
CUDA's context and allocator take beyond what is held is not in it.

**Time**: a few steps of the same model with random weights and fewer layers are timed on this machine, and carried
forward to all layers and steps. On a CPU it is the time of a machine that does nothing else.

Deep models are played through and timed at two small depths: all grows linearly with the layers.

Shapes: R rows of L ids, N trained tokens.
"""

import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from radistill import head, models
from radistill.losses import token_nll
from radistill.micro_batches import states_of
from radistill.models import Weights
from radistill.packing import pack
from radistill.stage_settings import TrainSettings

DEPTHS = (2, 4)
"""Layers of what is played through and timed in the place of a deeper model."""
TIMED_STEPS = 2
TIMED_TOKENS = {"cpu": 512, "cuda": 16384, "mps": 4096}
"""A timed micro-batch has no more; a larger one takes as much longer as it is larger."""
ALLOCATOR = {"cpu": 2.0}
"""Bytes that are taken for each byte of activations: freed pieces of all sizes lie between those in use."""
LIBRARIES = {"cpu": 50 << 20}
"""Bytes that libraries take for themselves once they work."""
MASTER = 4
"""Bytes of a trained weight, of its gradient, and of each number that an optimizer keeps for it."""


@dataclass(frozen=True)
class Shape:
    """A micro-batch: R rows of L ids, of which N are trained."""

    rows: int
    width: int
    trained: int

    @classmethod
    def of(cls, lengths: Sequence[int], trained: Sequence[int], *, packing: bool) -> "Shape":
        """Of the records with these lengths and numbers of trained tokens."""
        rows = len(pack(lengths, max(lengths))) if packing else len(lengths)
        return cls(rows, max(lengths), min(sum(trained), rows * max(lengths) - rows))

    @property
    def places(self) -> int:
        """Ids, padding among them."""
        return self.rows * self.width


@dataclass(frozen=True)
class Memory:
    """Bytes on one device at the worst moment of a training."""

    parameters: int
    gradients: int
    optimizer: int
    activations: int
    """What the forward pass keeps, logits of a piece, and what is needed in passing."""
    untouched: int
    """A second copy of the model, which soft labels need where all weights are trained."""

    @property
    def total(self) -> int:
        """All together."""
        return sum(asdict(self).values())


class _Held(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all storages that are alive."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._known: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_iter(out):
            if isinstance(tensor, torch.Tensor):
                self._add(tensor.untyped_storage())
        return out

    def _add(self, storage: Any) -> None:
        if storage in self._known:
            return
        size = self._known[storage] = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._drop, size)

    def _drop(self, size: int) -> None:
        self.now -= size


@dataclass(frozen=True)
class Training:
    """What an estimate is of."""

    weights: Weights
    settings: TrainSettings
    trust_remote_code: bool = False
    has_untouched: bool = False
    """Whether a copy of the untouched model stands beside the one in training."""
    device: str = "cpu"

    @property
    def layers(self) -> int:
        """Of the whole model."""
        return int(self._config().get_text_config().num_hidden_layers)

    def memory(self, shape: Shape) -> Memory:
        """At its worst moment, for micro-batches of that shape."""
        found = self._at_depth(lambda n: self._played(shape, n))
        found["activations"] += LIBRARIES.get(self.device, 0)
        return Memory(**{name: round(value) for name, value in found.items()})

    def seconds(self, shape: Shape) -> tuple[float, float]:
        """Of a micro-batch, forward and backward, and of an optimizer's turn, on this machine."""
        rows = max(1, min(shape.rows, TIMED_TOKENS[self.device] // shape.width))
        part = Shape(rows, shape.width, max(1, shape.trained * rows // shape.rows))
        found = self._at_depth(lambda n: self._timed(part, n))
        return found["pass"] * shape.rows / rows, found["step"]

    def _at_depth(self, measure: Callable[[int], dict[str, float]]) -> dict[str, float]:
        if self.layers <= max(DEPTHS):
            return measure(self.layers)
        low, high = DEPTHS
        few, more = measure(low), measure(high)
        # A difference below zero is noise of the clock.
        per_layer = {name: max(0.0, more[name] - few[name]) / (high - low) for name in few}
        return {name: few[name] + per_layer[name] * (self.layers - low) for name in few}

    def _config(self, layers: int | None = None) -> Any:
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(str(self.weights.folder), trust_remote_code=self.trust_remote_code)
        if layers is not None:
            text = config.get_text_config()
            text.num_hidden_layers = layers
            if getattr(text, "layer_types", None):
                text.layer_types = text.layer_types[:layers]
        return config

    def _model(self, layers: int) -> Any:
        """In the precision in which it would be trained; see `train._model`."""
        from transformers import AutoModelForCausalLM

        lora = self.settings.lora
        model = AutoModelForCausalLM.from_config(
            self._config(layers),
            dtype=torch.bfloat16 if self.settings.bf16 and lora is not None else torch.float32,
            attn_implementation=self.settings.attn_implementation or "sdpa",
            trust_remote_code=self.trust_remote_code,
        )
        if self.settings.gradient_checkpointing:
            if lora is not None:
                model.enable_input_require_grads()
            # transformers renamed it within version 5.
            new = getattr(model, "activation_checkpointing_enable", None)
            (new or model.gradient_checkpointing_enable)({"use_reentrant": False})
        if lora is not None:
            model = models.adapt(model, lora, base_name=self.weights.name, seed=0)
        return model.train()

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device, dtype=torch.bfloat16) if self.settings.bf16 else nullcontext()

    def _loss(self, model: Any, shape: Shape) -> torch.Tensor:
        """Of ids that say nothing, by the code that trains."""
        on: dict[str, Any] = {"dtype": torch.long, "device": self.device}
        ids_RL = torch.zeros((shape.rows, shape.width), **on)
        positions_RL = torch.arange(shape.width, **on).expand(shape.rows, -1).contiguous()
        places_N, targets_N = torch.arange(shape.trained, **on), torch.zeros(shape.trained, **on)

        def share(logits_NV: torch.Tensor, at: slice) -> tuple[torch.Tensor, torch.Tensor]:
            nll_N = token_nll(logits_NV, targets_N[at])
            return nll_N.sum() / shape.trained, nll_N

        with self._autocast():
            return head.loss_at(model, ids_RL, positions_RL, places_N, share)[0]

    def _played(self, shape: Shape, layers: int) -> dict[str, float]:
        from torch._subclasses.fake_tensor import FakeTensorMode

        with torch.device("meta"):
            model = self._model(layers)
        with FakeTensorMode(), _Held() as held:
            _put_on(model, self.device)
            parameters = held.now
            head.assume_plain(model)
            count = self._trained(model)
            held.peak = held.now
            # With accumulation, the gradients of the passes before are there while the last one is made.
            for _ in range(1 + (self.settings.gradient_accumulation_steps > 1)):
                self._loss(model, shape).backward()  # type: ignore[no-untyped-call]
            gradients = count * MASTER
            return {
                "parameters": parameters,
                "gradients": gradients,
                "optimizer": gradients * states_of(self.settings.optim),
                "activations": max(0, held.peak - parameters - gradients) * ALLOCATOR.get(self.device, 1.0),
                "untouched": self._beside(model),
            }

    def _beside(self, model: Any) -> int:
        """See `training_setup._reference`."""
        if not self.has_untouched or self.settings.lora is not None:
            return 0
        size = 2 if self.settings.bf16 and self.device == "cuda" else 4
        return size * sum(int(p.numel()) for p in model.parameters())

    def _trained(self, model: Any) -> int:
        return sum(int(p.numel()) for p in model.parameters() if p.requires_grad)

    def _timed(self, shape: Shape, layers: int) -> dict[str, float]:
        with torch.random.fork_rng(), torch.device(self.device):
            model = self._model(layers)
            trained = [p for p in model.parameters() if p.requires_grad]
            optimizer = torch.optim.AdamW(trained, lr=0.0)
            passes, steps = [], []
            for _ in range(1 + TIMED_STEPS):
                begun = self._now()
                self._loss(model, shape).backward()  # type: ignore[no-untyped-call]
                passed = self._now()
                torch.nn.utils.clip_grad_norm_(trained, 1.0)
                optimizer.step()
                optimizer.zero_grad()
                passes.append(passed - begun)
                steps.append(self._now() - passed)
        # The first warms up; of the others the quickest is the least disturbed by other processes.
        return {"pass": min(passes[1:]), "step": min(steps[1:])}

    def _now(self) -> float:
        if self.device == "cpu":  # what other processes do meanwhile is no part of it
            return time.process_time() / torch.get_num_threads()
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def _put_on(model: Any, device: str) -> None:
    """Let all tensors of a model on no device be ones of this device, made by whatever mode is on; ties remain."""
    made: dict[int, Any] = {}
    for module in model.modules():
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                if tensor is None:
                    continue
                if id(tensor) not in made:
                    empty = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
                    is_parameter = isinstance(tensor, torch.nn.Parameter)
                    made[id(tensor)] = (
                        torch.nn.Parameter(empty, requires_grad=tensor.requires_grad) if is_parameter else empty
                    )
                held[name] = made[id(tensor)]
