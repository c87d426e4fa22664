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
from radistill.head import output_head, states_at, to_logits
from radistill.losses import ORIGINS, Weighting
from radistill.records import TASK, Example

if TYPE_CHECKING:
    from collections.abc import Iterator

    from radistill.chat import Chat
    from radistill.models import Weights
    from radistill.packing import Collator, Row

PER_TOKEN = ("targets_N", "weights_N", "origins_N", "pools_N", "labels_N")
"""What a batch holds for each of its N trained tokens."""
Compare = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""From the logits (M, V) of the model in training and of its teacher to the loss of each token, (M,)."""


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
    """One micro-batch of an optimizer step, or a piece of its tokens, seen by a penalty."""

    model: Any
    inputs: Mapping[str, torch.Tensor]
    """See `packing.Collator`; of a piece, only what is there for each token."""
    logits_NV: torch.Tensor | None
    """None for a penalty that does not read them."""
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

    It may have a number `tokens`: so many were read and written to prepare it. One that says `reads_logits = True` is a
    sum over tokens, and is asked about pieces of them.
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

    def beside(self, inputs: Mapping[str, torch.Tensor], places_M: torch.Tensor, at_M: torch.Tensor) -> "Beside":
        """What it says at these places of the flattened batch.

        Args:
            inputs: what it reads.
            places_M: where.
            at_M: of which of the N tokens of the model in training that is to be compared with.
        """
        self.tokens += int(inputs["n_tokens"])
        order_M = at_M.argsort()
        with self.speaking() as model:
            states_MH = states_at(model, inputs["input_ids"], inputs["position_ids"], places_M[order_M])
        return Beside(at_M[order_M], states_MH, self)

    def logits(self, states_MH: torch.Tensor) -> torch.Tensor:
        """Its logits (M, V) of what it has read; there is never an adapter on a head (see `models.adapt`)."""
        with torch.no_grad():
            return to_logits(self.model, states_MH)


@dataclass(frozen=True)
class Beside:
    """What the untouched model says at some of the tokens of a micro-batch."""

    at_M: torch.Tensor
    """Of which of the N tokens, in their order."""
    states_MH: torch.Tensor
    """Its hidden states, because its logits are too many to be held."""
    reference: Reference

    def cut(self, at: slice) -> "Beside":
        """Of those tokens alone."""
        first, last = torch.searchsorted(self.at_M, self.at_M.new_tensor([at.start, at.stop])).tolist()
        return Beside(self.at_M[first:last] - at.start, self.states_MH[first:last], self.reference)

    def logits(self) -> torch.Tensor:
        """All of them: (M, V)."""
        return self.reference.logits(self.states_MH)


@dataclass(frozen=True)
class Tokens:
    """What is known about the trained tokens of a micro-batch, or of a piece of them, but for what the model says."""

    inputs: Mapping[str, torch.Tensor]
    """See `packing.Collator`."""
    untouched: Beside | None = None
    """What the untouched model says to the same ids."""
    teacher: Beside | None = None
    """What it says where it has read more."""

    def cut(self, at: slice) -> "Tokens":
        """Those tokens alone."""
        inputs: dict[str, torch.Tensor] = {name: self.inputs[name][at] for name in PER_TOKEN}
        soft_S = self.inputs["soft_at_S"]
        edges = soft_S.new_tensor([at.start, at.stop])
        first, last = torch.searchsorted(soft_S, edges).tolist() if len(soft_S) else (0, 0)
        inputs["soft_at_S"] = soft_S[first:last] - at.start
        inputs |= {name: self.inputs[name][first:last] for name in ("soft_ids_SK", "soft_values_SK")}
        return Tokens(inputs, self.untouched and self.untouched.cut(at), self.teacher and self.teacher.cut(at))


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
    """Logits (N, V) at the given places of the flattened batch, as the model itself gives them, all at once.

    The output head sees only the hidden states that predict something, which are a part of all; the hook works for
    every architecture and through every wrapper. No mask and no cache: see `packing.py`.
    """

    def only_these(_: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        hidden_RLH = args[0]
        return (hidden_RLH.reshape(-1, hidden_RLH.shape[-1])[places_N].unsqueeze(0), *args[1:])

    hook = output_head(model).register_forward_pre_hook(only_these)
    try:
        out = model(input_ids=input_ids_RL, position_ids=position_ids_RL, use_cache=False)
    finally:
        hook.remove()
    logits: torch.Tensor = out.logits[0]
    return logits


def token_losses(
    logits_NV: torch.Tensor,
    tokens: Tokens,
    *,
    reference_MV: torch.Tensor | None = None,
    compare: Compare | None = None,
) -> torch.Tensor:
    """Loss of each trained token in nats, (N,): by its own label, hard or soft, or by a teacher.

    Args:
        logits_NV: the model's.
        tokens: what they are.
        reference_MV: the untouched model's, at `tokens.untouched.at_M`.
        compare: says what the loss is at `tokens.teacher.at_M`.
    """
    taught = tokens.teacher
    if taught is None or compare is None or not len(taught.at_M):
        return _labelled_losses(logits_NV, tokens, reference_MV)
    # Where the teacher speaks to all, nothing of the labels needs to be kept for the backward pass.
    with torch.set_grad_enabled(torch.is_grad_enabled() and len(taught.at_M) < len(logits_NV)):
        loss_N = _labelled_losses(logits_NV, tokens, reference_MV)
    return loss_N.index_copy(0, taught.at_M, compare(logits_NV[taught.at_M], taught.logits()).to(loss_N))


def _labelled_losses(logits_NV: torch.Tensor, tokens: Tokens, reference_MV: torch.Tensor | None) -> torch.Tensor:
    inputs, untouched, at_S = tokens.inputs, tokens.untouched, tokens.inputs["soft_at_S"]
    at_L, reference_LV = at_S[:0], reference_MV
    if untouched is not None and reference_MV is not None:
        is_live_M = inputs["labels_N"][untouched.at_M] == losses.LIVE
        at_L = untouched.at_M[is_live_M]
        reference_LV = reference_MV if len(at_L) == len(reference_MV) else reference_MV[is_live_M]
    # Most pieces hold tokens of one kind (`by_label`): for them nothing is copied, and nothing computed in vain.
    if len(at_S) == len(logits_NV) > 0:
        return losses.stored_nll(logits_NV, inputs["soft_ids_SK"], inputs["soft_values_SK"])
    if len(at_L) == len(logits_NV) > 0 and reference_LV is not None:
        return losses.soft_nll(logits_NV, reference_LV)
    loss_N = losses.token_nll(logits_NV, inputs["targets_N"])
    if len(at_L) and reference_LV is not None:
        loss_N = loss_N.index_copy(0, at_L, losses.soft_nll(logits_NV[at_L], reference_LV).to(loss_N))
    if len(at_S):
        soft = losses.stored_nll(logits_NV[at_S], inputs["soft_ids_SK"], inputs["soft_values_SK"])
        loss_N = loss_N.index_copy(0, at_S, soft.to(loss_N))
    return loss_N


def by_label(inputs: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """The batch with its N tokens in the order of their kinds of labels; the sum over them is the same."""
    labels_N = inputs["labels_N"]
    if not len(labels_N) or not bool((labels_N != labels_N[0]).any()):
        return inputs
    order_N = labels_N.argsort(stable=True)
    found = dict(inputs) | {name: inputs[name][order_N] for name in (*PER_TOKEN, "places_N")}
    new_N = torch.empty_like(order_N)
    new_N[order_N] = torch.arange(len(order_N), device=order_N.device)
    return found | {name: new_N[inputs[name]] for name in ("soft_at_S", "teacher_at_M") if name in inputs}
