"""From hidden states to losses: the vocabulary is looked at for a few tokens at a time.

Logits take N x V numbers, several times over with what their backward pass needs: more than anything else in a training
with a large vocabulary. Here they exist for one piece of the tokens only. The loss of a piece is computed and
differentiated at once, and what is kept of it is the gradient of its hidden states, as many numbers as they have
themselves; nothing is computed twice. That a piece's loss can be differentiated before all are known is because it is a
sum over tokens whose denominators are given (see `losses.combine`). The idea is that of Liger's fused linear
cross-entropy (Hsu et al. 2024, arXiv 2410.10989), here for any loss of a token, in plain PyTorch, through whatever
module the model's output head is: quantised, tied to the embeddings, with a bias.

Shapes: R rows of L ids, N tokens at which something is trained, H hidden size, V vocabulary, C tokens of a piece.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from radistill.errors import ModelError

Share = Callable[[torch.Tensor, slice], tuple[torch.Tensor, torch.Tensor]]
"""From the logits (C, V) of the tokens in that slice of all N to their share of the loss, a scalar, and the loss of
each of them, (C,), for the log."""
ELEMENTS = {"cpu": 1 << 24, "cuda": 1 << 26}
"""So many logits are held at once."""
FEWEST = 16
"""A piece has at least so many tokens."""


def output_head(model: nn.Module) -> Any:
    """The module that projects hidden states to the vocabulary, of a model that may be wrapped."""
    found: Any = model
    while not hasattr(found, "get_output_embeddings"):
        found = found.module  # a data-parallel wrapper
    return found.get_output_embeddings()


def states_at(
    model: nn.Module, input_ids_RL: torch.Tensor, position_ids_RL: torch.Tensor, places_N: torch.Tensor
) -> torch.Tensor:
    """Hidden states (N, H) that the output head would see at the given places of the flattened batch."""
    found: list[torch.Tensor] = []

    def keep(_: nn.Module, hidden_RLH: torch.Tensor) -> torch.Tensor:
        found.append(_chosen(hidden_RLH, places_N))
        return hidden_RLH.new_zeros((1, 1, 1))

    with _in_the_place_of(output_head(model), keep):
        model(input_ids=input_ids_RL, position_ids=position_ids_RL, use_cache=False)
    return found[0]


def loss_at(
    model: nn.Module,
    input_ids_RL: torch.Tensor,
    position_ids_RL: torch.Tensor,
    places_N: torch.Tensor,
    share: Share,
    *,
    piece: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum of the shares of all pieces, and the loss of each token, (N,), without gradients.

    The head works inside the model's own forward pass, so that wrappers which gather its weights find it where they
    expect it.

    Args:
        model: no mask and no cache: see `packing.py`.
        input_ids_RL: ids.
        position_ids_RL: places of the ids in their records.
        places_N: where in the flattened batch something is predicted.
        share: of the loss; must be a sum over tokens.
        piece: C; None = as many as ELEMENTS allow.
    """
    found: list[tuple[torch.Tensor, torch.Tensor]] = []
    after = after_head(model)

    def score(head: nn.Module, hidden_RLH: torch.Tensor) -> torch.Tensor:
        hidden_NH = _chosen(hidden_RLH, places_N)
        size = piece or _piece(head, hidden_NH)
        trained = [p for p in head.parameters() if p.requires_grad]

        def of(states_CH: torch.Tensor, at: slice) -> tuple[torch.Tensor, torch.Tensor]:
            # Not the call of the module, whose hooks are those of the wrappers: they have gathered its weights already,
            # and would take the gradient of a piece for the end of the backward pass.
            return share(after(head.forward(states_CH)), at)

        if torch.is_grad_enabled():
            loss, nll_N = _Pieces.apply(hidden_NH, of, size, *trained)  # type: ignore[no-untyped-call]
        else:
            loss, nll_N = _summed([of(hidden_NH[at], at) for at in _slices(len(hidden_NH), size)], hidden_NH)
        found.append((loss, nll_N))
        as_logits: torch.Tensor = loss.reshape(1, 1, 1).clone()  # FSDP2 watches what it gives, but not a view
        return as_logits

    with _in_the_place_of(output_head(model), score):
        out = model(input_ids=input_ids_RL, position_ids=position_ids_RL, use_cache=False)
    loss, nll_N = found[0]
    # Through the wrappers, if nothing was done to it on its way: some of them wait for the gradient of what they gave.
    if after == After():
        loss = out.logits.reshape(()).to(loss.dtype)
    return loss, nll_N


@dataclass(frozen=True)
class After:
    """What a model does with the logits its head gives: Cohere and Granite scale them, Gemma caps them."""

    factor: float = 1.0
    cap: float | None = None

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits as the model gives them."""
        logits = logits if self.factor == 1.0 else logits * self.factor
        return logits if self.cap is None else torch.tanh(logits / self.cap) * self.cap


_AFTER: "WeakKeyDictionary[nn.Module, After]" = WeakKeyDictionary()
GRID = (1e-3, -0.5, 1.0, 5.0, -20.0, 100.0, -1e6)


def after_head(model: nn.Module) -> After:
    """Found out by giving the model logits in the place of its head's, once for each head.

    Raises:
        ModelError: it does something else.
    """
    head = output_head(model)
    if head not in _AFTER:
        given = torch.tensor([[GRID]], device=head.weight.device)
        token = torch.zeros((1, 1), dtype=torch.long, device=head.weight.device)
        was_training = model.training
        model.eval()
        try:
            with torch.no_grad(), _in_the_place_of(head, lambda *_: given.clone()):
                seen = model(input_ids=token, position_ids=token, use_cache=False).logits.float()
        finally:
            model.train(was_training)
        _AFTER[head] = _fitting(given, seen, type(model).__name__)
    return _AFTER[head]


def assume_plain(model: nn.Module) -> None:
    """Take it that nothing is done to the logits, of a model whose tensors hold no numbers to find out by."""
    _AFTER[output_head(model)] = After()


def _fitting(given: torch.Tensor, seen: torch.Tensor, name: str) -> After:
    least, most = seen[0, 0, 0].item(), seen[0, 0, -1].item()
    factor = least / GRID[0]
    factor = 1.0 if abs(factor - 1.0) < 1e-5 else factor
    is_capped = abs(most) < 0.5 * abs(factor * GRID[-1])
    found = After(factor, abs(most) if is_capped else None)
    if seen.shape == given.shape and torch.allclose(found(given), seen, rtol=1e-3, atol=1e-5):
        return found
    raise ModelError(
        f"{name} does something to its logits that radistill does not know (it makes {seen.flatten().tolist()} of "
        f"{list(GRID)}), so its losses would be wrong. Please report it, with the name of the model."
    )


def to_logits(model: nn.Module, states_MH: torch.Tensor) -> torch.Tensor:
    """Logits (M, V) of hidden states from `states_at`."""
    logits: torch.Tensor = after_head(model)(output_head(model)(states_MH))
    return logits


class _Pieces(torch.autograd.Function):
    """Loss and its gradient, piece by piece, in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any, hidden_NH: torch.Tensor, of: Share, size: int, *trained: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        grad_NH = torch.zeros_like(hidden_NH)
        grads = [torch.zeros_like(parameter) for parameter in trained]
        shares = []
        for at in _slices(len(hidden_NH), size):
            with torch.enable_grad():
                states_CH = hidden_NH[at].detach().requires_grad_()
                loss, nll_C = of(states_CH, at)
                if not loss.requires_grad:  # no token of this piece counts
                    shares.append((loss, nll_C))
                    continue
                own, *others = torch.autograd.grad(loss, [states_CH, *trained], allow_unused=True)
            grad_NH[at] = own
            for grad, other in zip(grads, others, strict=True):
                if other is not None:
                    grad += other
            shares.append((loss.detach(), nll_C))
        ctx.save_for_backward(grad_NH, *grads)
        loss, nll_N = _summed(shares, hidden_NH)
        ctx.mark_non_differentiable(nll_N)
        return loss, nll_N

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor, _: Any) -> Any:
        own, *others = ctx.saved_tensors
        return (own * grad.to(own), None, None, *(other * grad.to(other) for other in others))


@contextmanager
def _in_the_place_of(head: Any, does: Callable[[Any, torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """Let something else be done where the model calls its head."""
    usual = head.forward

    def instead(hidden_RLH: torch.Tensor) -> torch.Tensor:
        head.forward = usual  # it may be called by what is done here, with its hooks
        try:
            return does(head, hidden_RLH)
        finally:
            head.forward = instead

    had = "forward" in head.__dict__
    head.forward = instead
    try:
        yield
    finally:
        if had:
            head.forward = usual
        else:
            del head.forward


def _summed(
    shares: Sequence[tuple[torch.Tensor, torch.Tensor]], hidden_NH: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    if not shares:
        return hidden_NH.new_zeros((), dtype=torch.float32), hidden_NH.new_zeros(0, dtype=torch.float32)
    return torch.stack([loss for loss, _ in shares]).sum(), torch.cat([nll_C.detach() for _, nll_C in shares])


def _chosen(hidden_RLH: torch.Tensor, places_N: torch.Tensor) -> torch.Tensor:
    return hidden_RLH.reshape(-1, hidden_RLH.shape[-1])[places_N]


def _piece(head: Any, hidden_NH: torch.Tensor) -> int:
    vocabulary = getattr(head, "out_features", None) or head.weight.shape[0]
    elements = ELEMENTS.get(hidden_NH.device.type, ELEMENTS["cpu"])
    return max(FEWEST, elements // int(vocabulary))


def _slices(count: int, size: int) -> Iterator[slice]:
    for start in range(0, count, size):
        yield slice(start, min(count, start + size))
