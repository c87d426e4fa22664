"""What a method may add to a training step, and what it is given to do so.

Shapes: N trained tokens of a micro-batch, M of them that the untouched model was asked about, V vocabulary, P pools.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

from radistill import losses
from radistill.losses import ORIGINS, Weighting
from radistill.records import TASK, Example

if TYPE_CHECKING:
    from collections.abc import Iterator

    from radistill.chat import Chat
    from radistill.models import Weights
    from radistill.packing import Collator, Row

Taught = Callable[[torch.Tensor], torch.Tensor]
"""From the model's logits (M, V) at the tokens a teacher has been asked about to their losses (M,)."""


@dataclass(frozen=True)
class Start:
    """The training before its first step."""

    model: Any
    """With the weights it starts from."""
    rows: "Sequence[Row]"
    reference: "Reference | None"
    """The untouched model, if the run needs it."""
    collate: "Collator"
    chat: "Chat"
    seed: int
    examples: Callable[[], Mapping[str, Example]]
    """The training examples by id; read when asked for."""
    weights: "Weights | None" = None
    """Where the untouched model lies."""


@dataclass(frozen=True)
class Step:
    """One micro-batch of an optimizer step, seen by a penalty."""

    model: Any
    inputs: Mapping[str, torch.Tensor]
    """See `packing.Collator`."""
    logits_NV: torch.Tensor
    asked_N: torch.Tensor
    """Of which tokens the untouched model was asked."""
    reference_MV: torch.Tensor | None
    """Its logits there."""
    total: torch.Tensor
    """What the means are divided by, of the whole optimizer step: (1 + P,), see `losses.totals`."""
    weighting: Weighting
    micro_batches: int
    """So many make the optimizer step. A penalty that does not depend on the batch adds one part of that many."""


class Penalty(Protocol):
    """Added to the loss of a micro-batch, so that the sum over an optimizer step is the whole penalty.

    It may have a number `tokens`: so many were read and written to prepare it.
    """

    def __call__(self, step: Step) -> torch.Tensor:
        """This micro-batch's share, a scalar."""


class Rollout(Protocol):
    """Lets the model in training write the rows of a micro-batch."""

    def __call__(self, model: Any, rows: "Sequence[Row]", *, step: int) -> "tuple[dict[str, torch.Tensor], int]":
        """A batch as `packing.Collator` makes it, and how many tokens were read and written to come to it.

        It may hold what the untouched model is to read as a teacher: `teacher_input_ids`, `teacher_position_ids`,
        `teacher_places_M` and `teacher_n_tokens`, as in any batch, and `teacher_at_M`: which of the N tokens the places
        predict. The teacher is asked only when the batch is trained on, because its logits are large and an optimizer
        step may have many batches.

        Args:
            model: the one in training.
            rows: of which examples it is to write.
            step: so many optimizer steps are done.
        """

    def compare(self, logits_MV: torch.Tensor, teacher_MV: torch.Tensor) -> torch.Tensor:
        """The loss of those tokens, (M,), from the logits of both."""


class Reference:
    """The untouched model beside the one in training: for LoRA the same weights without the adapter, else a copy."""

    def __init__(self, model: Any, *, is_adapter: bool) -> None:
        self.model = model
        self.is_adapter = is_adapter
        self.tokens = 0
        """So many it has read."""

    @contextmanager
    def speaking(self) -> "Iterator[Any]":
        """The untouched model, in evaluation mode and without gradients."""
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad(), self.model.disable_adapter() if self.is_adapter else nullcontext():
                yield self.model
        finally:
            self.model.train(was_training)

    def logits(self, inputs: Mapping[str, torch.Tensor], places_M: torch.Tensor) -> torch.Tensor:
        """Its logits (M, V) at these places of the flattened batch."""
        self.tokens += int(inputs["n_tokens"])
        with self.speaking() as model:
            return logits_at(model, inputs["input_ids"], inputs["position_ids"], places_M)


def is_task(pools_N: torch.Tensor) -> torch.Tensor:
    """Which tokens teach the task, with the ends that close them: (N,) of bool."""
    wanted = torch.tensor([ORIGINS.index(origin) for origin in TASK], device=pools_N.device)
    return torch.isin(pools_N, wanted)


def mean_over_task(values_N: torch.Tensor, step: Step, *, chosen_N: torch.Tensor) -> torch.Tensor:
    """This micro-batch's share of the mean of a value over all of the step's tokens that teach the task.

    Args:
        values_N: at the tokens chosen, in their order.
        step: the micro-batch.
        chosen_N: which tokens of the batch they are.
    """
    counted = step.total[1:][[ORIGINS.index(origin) for origin in TASK]].sum().clamp(min=1)
    wanted_M = is_task(step.inputs["pools_N"])[chosen_N]
    return values_N[wanted_M].sum() / counted.to(values_N)


def logits_at(
    model: nn.Module, input_ids_RL: torch.Tensor, position_ids_RL: torch.Tensor, places_N: torch.Tensor
) -> torch.Tensor:
    """Logits (N, V) at the given places of the flattened batch only.

    The output head sees only the hidden states that predict something, which are a part of all; the hook works for
    every architecture and through every wrapper. No mask and no cache: see `packing.py`.
    """
    head: Any = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None  # type: ignore[operator]
    if head is None:
        wrapped: Any = model.module  # a data-parallel wrapper
        head = wrapped.get_output_embeddings()

    def only_these(_: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        hidden_RLH = args[0]
        return (hidden_RLH.reshape(-1, hidden_RLH.shape[-1])[places_N].unsqueeze(0), *args[1:])

    hook = head.register_forward_pre_hook(only_these)
    try:
        out = model(input_ids=input_ids_RL, position_ids=position_ids_RL, use_cache=False)
    finally:
        hook.remove()
    logits: torch.Tensor = out.logits[0]
    return logits


def token_losses(
    logits_NV: torch.Tensor,
    inputs: Mapping[str, torch.Tensor],
    *,
    asked_N: torch.Tensor,
    reference_MV: torch.Tensor | None,
    taught: Taught | None = None,
) -> torch.Tensor:
    """Loss of each trained token in nats, (N,): by its own label, hard or soft, or by a teacher."""
    if taught is None:
        return _labelled_losses(logits_NV, inputs, asked_N, reference_MV)
    at_M = inputs["teacher_at_M"]
    # Where the teacher speaks to all, nothing of the labels needs to be kept for the backward pass.
    with torch.set_grad_enabled(torch.is_grad_enabled() and len(at_M) < len(logits_NV)):
        loss_N = _labelled_losses(logits_NV, inputs, asked_N, reference_MV)
    return loss_N.index_copy(0, at_M, taught(logits_NV[at_M]).to(loss_N))


def _labelled_losses(
    logits_NV: torch.Tensor,
    inputs: Mapping[str, torch.Tensor],
    asked_N: torch.Tensor,
    reference_MV: torch.Tensor | None,
) -> torch.Tensor:
    loss_N = losses.token_nll(logits_NV, inputs["targets_N"])
    is_live_N = inputs["labels_N"] == losses.LIVE
    if reference_MV is not None and bool(is_live_N.any()):
        live_M = is_live_N[asked_N]
        soft = losses.soft_nll(logits_NV[is_live_N], reference_MV[live_M])
        loss_N = loss_N.masked_scatter(is_live_N, soft.to(loss_N))
    at_S = inputs["soft_at_S"]
    if len(at_S):
        soft = losses.stored_nll(logits_NV[at_S], inputs["soft_ids_SK"], inputs["soft_values_SK"])
        loss_N = loss_N.index_copy(0, at_S, soft.to(loss_N))
    return loss_N
