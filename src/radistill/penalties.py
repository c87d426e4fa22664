"""What pulls a model back to where it started: the divergence of its predictions, and the change of its weights.

Only torch is used here. Shapes: M tokens, V vocabulary, R rank of an adapter, B samples, T ids of a sample.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from radistill import losses, seeds
from radistill.errors import ModelError
from radistill.losses import ORIGINS
from radistill.records import TASK
from radistill.training_parts import Step

if TYPE_CHECKING:
    from radistill.packing import Row

Direction = Literal["forward", "reverse"]
BATCH = 32
"""So many samples are drawn at once."""


def divergence(logits_MV: torch.Tensor, reference_MV: torch.Tensor, direction: Direction) -> torch.Tensor:
    """KL(untouched || model), or reversed KL(model || untouched), of each token in nats: shape (M,)."""
    return losses.divergence(logits_MV, reference_MV, direction)


def ranks() -> int:
    """How many processes train together; what is summed over tokens must be times this, as gradients are averaged."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if distributed else 1


class Change(Protocol):
    """How far one weight matrix has come from its start."""

    @property
    def weight(self) -> nn.Parameter:
        """The matrix as the untouched model has it or had it."""

    def parameters(self) -> Sequence[nn.Parameter]:
        """What training moves."""

    def difference(self) -> torch.Tensor:
        """The change of every element."""

    def squared(self) -> torch.Tensor:
        """The sum of its squares, a scalar."""

    def weighed(self, importance: torch.Tensor) -> torch.Tensor:
        """The sum of its squares, each times its importance."""


@dataclass(frozen=True)
class Moved:
    """A parameter that is trained itself, with a copy of its start."""

    weight: nn.Parameter
    start: torch.Tensor

    def parameters(self) -> Sequence[nn.Parameter]:
        """Itself."""
        return [self.weight]

    def difference(self) -> torch.Tensor:
        """Now minus then."""
        return self.weight - self.start

    def squared(self) -> torch.Tensor:
        """The squared distance."""
        return self.difference().square().sum()

    def weighed(self, importance: torch.Tensor) -> torch.Tensor:
        """The squared distance with an importance for each element."""
        return (importance * self.difference().square()).sum()


@dataclass(frozen=True)
class Adapted:
    """A frozen weight with a LoRA adapter, whose product `scaling x B A` is zero at the start: that is the change."""

    module: Any
    adapter: str

    @property
    def weight(self) -> nn.Parameter:
        """The frozen matrix under the adapter."""
        found: nn.Parameter = self.module.get_base_layer().weight
        return found

    @property
    def factors(self) -> tuple[nn.Parameter, nn.Parameter]:
        """A (R, in) and B (out, R)."""
        if self.adapter in self.module.lora_A:
            return self.module.lora_A[self.adapter].weight, self.module.lora_B[self.adapter].weight
        return self.module.lora_embedding_A[self.adapter], self.module.lora_embedding_B[self.adapter]

    @property
    def scaling(self) -> float:
        """What PEFT multiplies the product by: alpha / r, alpha / sqrt(r), or what was set since."""
        return float(self.module.scaling[self.adapter])

    @property
    def is_transposed(self) -> bool:
        """Whether the frozen matrix is stored as (in, out): embeddings, and the linear layers of GPT-2."""
        return self.adapter not in self.module.lora_A or bool(getattr(self.module, "fan_in_fan_out", False))

    def parameters(self) -> Sequence[nn.Parameter]:
        """Both factors."""
        return self.factors

    def difference(self) -> torch.Tensor:
        """The product, as large as the frozen matrix."""
        a, b = self.factors
        product = self.scaling * (b @ a)
        return product.T if self.is_transposed else product

    def squared(self) -> torch.Tensor:
        """||scaling x B A||_F^2 = scaling^2 x trace((A A^T)(B^T B)), from matrices of R x R only."""
        a, b = self.factors
        return self.scaling**2 * ((a @ a.T) * (b.T @ b)).sum()

    def weighed(self, importance: torch.Tensor) -> torch.Tensor:
        """Needs the product; it is built again in the backward pass, so that one at a time is held."""

        def of(*_: torch.Tensor) -> torch.Tensor:
            return (importance * self.difference().square()).sum()

        total: torch.Tensor = checkpoint(of, *self.factors, use_reentrant=False, preserve_rng_state=False)
        return total


def changes_of(model: nn.Module) -> list[Change]:
    """All that training will move, as it stands now; takes a copy of every parameter that is trained itself.

    Raises:
        ModelError: an adapter is of a kind whose product is not known here.
    """
    adapted = [change for module in model.modules() for change in _adapted(module)]
    factors = {id(parameter) for change in adapted for parameter in change.parameters()}
    moved = [p for p in model.parameters() if p.requires_grad and id(p) not in factors]
    return [*(a for a in adapted if any(p.requires_grad for p in a.parameters())), *(_moved(p) for p in moved)]


def _moved(parameter: nn.Parameter) -> Moved:
    return Moved(parameter, parameter.detach().clone())


def _adapted(module: nn.Module) -> Iterator[Adapted]:
    for adapter in getattr(module, "active_adapters", ()) if hasattr(module, "lora_A") else ():
        if adapter not in module.lora_A and adapter not in module.lora_embedding_A:  # type: ignore[operator]
            continue
        change = Adapted(module, adapter)
        a, b = change.factors
        built = (a.shape[1], b.shape[0]) if change.is_transposed else (b.shape[0], a.shape[1])
        # DoRA scales the sum anew, so that the change is not the product.
        is_dora = adapter in getattr(module, "lora_magnitude_vector", ())
        if a.dim() != 2 or b.dim() != 2 or built != change.weight.shape or is_dora:
            raise ModelError(
                f"how far an adapter of the kind {type(module).__name__} moves its layer is not known to this method. "
                "Name only linear layers in train.lora.target_modules, set train.lora.use_dora=false, leave out "
                "train.quantization, or set train.lora=null."
            )
        assert not (bool(a.any()) and bool(b.any())), "an adapter must add nothing at the start"
        yield change


@dataclass(frozen=True)
class Pull:
    """weight / 2 x the sum of squared changes, each times its importance if there is one."""

    changes: Sequence[Change]
    weight: float
    importances: Sequence[torch.Tensor] = ()
    tokens: int = 0
    """So many were read and written to know the importances."""

    def __call__(self, step: Step) -> torch.Tensor:
        """This micro-batch's share: it does not depend on the batch, so each has an equal one.

        Raises:
            ModelError: what is trained is not what was there at the start.
        """
        self._refuse_other_parameters(step.model)
        if self.importances:
            pairs = zip(self.changes, self.importances, strict=True)
            parts = [change.weighed(importance) for change, importance in pairs]
        else:
            parts = [change.squared() for change in self.changes]
        return self.weight / 2 * torch.stack(parts).sum() / step.micro_batches

    def _refuse_other_parameters(self, model: nn.Module) -> None:
        # Sharding puts others in their place: the penalty would then stay zero without a word.
        present = {id(parameter) for parameter in model.parameters()}
        if not all(id(p) in present for change in self.changes for p in change.parameters()):
            raise ModelError(
                "a pull towards the starting weights needs every process to hold them whole, which FSDP and DeepSpeed "
                "ZeRO-3 do not. Train with plain data parallelism, or use the method kl."
            )


def draw(
    model: Any, opening: Sequence[int], *, count: int, max_new_tokens: int, stop_ids: Sequence[int], seed: int
) -> list[list[int]]:
    """What a model says after an opening, at temperature 1 from its whole distribution, up to and with its end.

    Args:
        model: in evaluation mode.
        opening: ids of every sample's beginning, at least one.
        count: how many samples.
        max_new_tokens: at most so many ids each, without the opening.
        stop_ids: ids that end a sample.
        seed: equal seeds give equal samples on equal machines; the generators of torch are left as they were.
    """
    from transformers import GenerationConfig

    settings = GenerationConfig(
        do_sample=True, temperature=1.0, top_p=1.0, top_k=0, max_new_tokens=max_new_tokens,
        eos_token_id=list(stop_ids), pad_token_id=stop_ids[0],
    )  # fmt: skip
    device = next(model.parameters()).device
    samples: list[list[int]] = []
    with _own_seed(seed, device), torch.no_grad():
        for at in range(0, count, BATCH):
            ids_BT = torch.tensor([list(opening)] * min(BATCH, count - at), device=device)
            written_BT = model.generate(
                input_ids=ids_BT, attention_mask=torch.ones_like(ids_BT), generation_config=settings
            )
            samples += [_to_the_end(row, stop_ids) for row in written_BT[:, len(opening) :].tolist()]
    return samples


@contextmanager
def _own_seed(seed: int, device: torch.device) -> Iterator[None]:
    devices = [] if device.type == "cpu" else [device.index or 0]
    with torch.random.fork_rng(devices, device_type="cuda" if device.type == "cpu" else device.type):
        torch.manual_seed(seed)
        yield


def _to_the_end(ids: Sequence[int], stop_ids: Sequence[int]) -> list[int]:
    stop = next((i for i, token in enumerate(ids) if token in stop_ids), len(ids) - 1)
    return list(ids[: stop + 1])


@dataclass(frozen=True)
class Sample:
    """Ids of which the untouched model wrote some, given all that stands before each."""

    ids: Sequence[int]
    written: Sequence[int]
    """Places of those that it wrote, none of them the first."""

    @classmethod
    def after(cls, opening: Sequence[int], ids: Sequence[int]) -> "Sample":
        """All that stands behind the opening."""
        return cls([*opening, *ids], range(len(opening), len(opening) + len(ids)))


def written_in(rows: "Sequence[Row]", *, count: int, seed: int) -> list[Sample]:
    """Up to so many rows in which the untouched model wrote what does not teach the task: the same for a seed."""
    task = [ORIGINS.index(origin) for origin in TASK]
    written = [np.flatnonzero((row.weights_T > 0) & ~np.isin(row.pools_T, task)) for row in rows]
    found = [Sample(row.ids_T.tolist(), at.tolist()) for row, at in zip(rows, written, strict=True) if len(at)]
    order = seeds.generator(seed, "rows for the Fisher information").permutation(len(found))
    return [found[at] for at in order[:count]]


def fisher(model: Any, weights: Sequence[nn.Parameter], samples: Iterable[Sample]) -> list[torch.Tensor]:
    """The diagonal of the Fisher matrix: the mean over samples of the squared gradient of one sample's log-likelihood.

    A gradient is squared and dropped as soon as it is known, so that no two are held.

    Args:
        model: in evaluation mode; every gradient that it holds is given up.
        weights: of which parameters; they may be frozen.
        samples: what the model has written.

    Returns:
        For each parameter a tensor of its shape, in at least float32.
    """
    sums = [torch.zeros_like(w, dtype=torch.promote_types(w.dtype, torch.float32)) for w in weights]
    count = 0
    with _only(model, weights), _squares_into(weights, sums):
        for sample in samples:
            ids_T = torch.tensor(sample.ids, device=weights[0].device)
            at_N = torch.tensor(sample.written, device=weights[0].device)
            logits_TV = model(input_ids=ids_T.unsqueeze(0), use_cache=False).logits[0]
            torch.autograd.backward(losses.token_nll(logits_TV[at_N - 1], ids_T[at_N]).sum())
            count += 1
    return [total / max(1, count) for total in sums]


@contextmanager
def _only(model: nn.Module, weights: Sequence[nn.Parameter]) -> Iterator[None]:
    """Gradients are computed for these parameters and for no others."""
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.zero_grad(set_to_none=True)
    model.requires_grad_(False)
    try:
        for weight in weights:
            weight.requires_grad_(True)
        with torch.enable_grad():
            yield
    finally:
        for parameter, was_trained in before:
            parameter.requires_grad_(was_trained)


@contextmanager
def _squares_into(weights: Sequence[nn.Parameter], sums: Sequence[torch.Tensor]) -> Iterator[None]:
    def adding(total: torch.Tensor) -> Any:
        def add(weight: torch.Tensor) -> None:
            assert weight.grad is not None
            total.add_(weight.grad.to(total.dtype).square())
            weight.grad = None

        return add

    pairs = zip(weights, sums, strict=True)
    hooks = [w.register_post_accumulate_grad_hook(adding(s)) for w, s in pairs]  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def with_mean_one(importances: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The same divided by their mean over all elements."""
    mean = sum(float(f.sum(dtype=torch.float64)) for f in importances) / sum(f.numel() for f in importances)
    return [f / mean for f in importances] if mean > 0 else list(importances)
