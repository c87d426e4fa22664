"""Losses that come piece by piece: the same numbers and gradients as all at once, and less memory."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from radistill import models
from radistill.errors import ModelError
from radistill.head import After, after_head, loss_at, output_head, states_at, to_logits
from radistill.stage_settings import LoraSettings
from radistill.training_parts import logits_at

Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def a_batch(vocabulary: int = 300) -> Batch:
    """Ids, positions, places and targets of three rows of eleven ids."""
    rng = torch.Generator().manual_seed(0)
    ids = torch.randint(1, vocabulary, (3, 11), generator=rng)
    places = torch.tensor([0, 1, 2, 5, 9, 12, 13, 14, 20, 25, 26, 27, 30, 31])
    return ids, torch.arange(11).repeat(3, 1), places, torch.randint(1, vocabulary, (len(places),), generator=rng)


def plain_loss(model: nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    ids, positions, places, targets = batch
    nll = F.cross_entropy(logits_at(model, ids, positions, places).float(), targets, reduction="none")
    return (nll * torch.arange(1, len(nll) + 1)).sum() / 50, nll


def piecewise_loss(model: nn.Module, batch: Batch, piece: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    ids, positions, places, targets = batch

    def share(logits: torch.Tensor, at: slice) -> tuple[torch.Tensor, torch.Tensor]:
        nll = F.cross_entropy(logits.float(), targets[at], reduction="none")
        return (nll * torch.arange(at.start + 1, at.stop + 1)).sum() / 50, nll

    return loss_at(model, ids, positions, places, share, piece=piece)


def gradients(model: nn.Module, loss: torch.Tensor) -> list[torch.Tensor]:
    model.zero_grad()
    (3 * loss).backward()  # type: ignore[no-untyped-call]
    return [p.grad.clone() for p in model.parameters() if p.requires_grad and p.grad is not None]


def llama(**more: Any) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        **more,
    )
    return LlamaForCausalLM(config)


def frozen(model: nn.Module) -> nn.Module:
    output_head(model).requires_grad_(False)
    return model


def with_adapter(model: Any) -> nn.Module:
    settings = LoraSettings(r=3, dropout=0.0, target_modules=("q_proj", "v_proj"))
    adapted: nn.Module = models.adapt(model, settings, base_name="x", seed=0)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return adapted


def gemma() -> Any:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    return Gemma2ForCausalLM(
        Gemma2Config(
            vocab_size=300,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            final_logit_softcapping=0.7,
            attn_implementation="eager",
        )
    )


def granite() -> Any:
    from transformers import GraniteConfig, GraniteForCausalLM

    torch.manual_seed(0)
    return GraniteForCausalLM(
        GraniteConfig(
            vocab_size=300,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            logits_scaling=8.0,
        )
    )


@pytest.mark.parametrize("piece", [1, 4, 5, 14, 100, None])
@pytest.mark.parametrize(
    "make",
    [
        llama,
        lambda: llama(tie_word_embeddings=True),
        lambda: frozen(llama()),
        lambda: with_adapter(llama()),
        lambda: llama().to(torch.bfloat16),
        gemma,
        granite,
    ],
    ids=["llama", "tied", "frozen head", "lora", "bf16", "capped", "scaled"],
)
def test_pieces_have_the_loss_and_the_gradients_of_the_whole(make: Callable[[], nn.Module], piece: int | None) -> None:
    model, batch = make(), a_batch()
    expected, nll = plain_loss(model, batch)
    wanted = gradients(model, expected)
    loss, found = piecewise_loss(model, batch, piece)
    is_wide = next(model.parameters()).dtype == torch.float32
    tolerance = 1e-5 if is_wide else 2e-2
    assert loss.item() == pytest.approx(expected.item(), rel=tolerance)
    assert torch.allclose(found, nll.detach(), rtol=tolerance, atol=tolerance)
    assert not found.requires_grad
    ours = gradients(model, loss)
    assert len(ours) == len(wanted) > 0
    for mine, theirs in zip(ours, wanted, strict=True):
        assert (mine - theirs).abs().max() <= tolerance * max(1.0, theirs.abs().max().item())
    assert max(grad.abs().max().item() for grad in wanted) > 1e-3


def test_autocast_gives_the_numbers_of_the_whole() -> None:
    model, batch = llama(), a_batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected, _ = plain_loss(model, batch)
        loss, _ = piecewise_loss(model, batch, 5)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    for mine, theirs in zip(gradients(model, loss), gradients(model, expected), strict=True):
        assert (mine - theirs).abs().max() <= 2e-2 * max(1.0, theirs.abs().max().item())


def test_states_lead_to_the_models_own_logits() -> None:
    for model in (llama(), gemma(), granite(), with_adapter(llama())):
        ids, positions, places, _ = a_batch()
        with torch.no_grad():
            expected = logits_at(model, ids, positions, places)
            found = to_logits(model, states_at(model, ids, positions, places))
        assert torch.allclose(found, expected, atol=1e-6)


def test_what_is_done_after_the_head_is_found_out() -> None:
    assert after_head(llama()) == After()
    assert after_head(gemma()).cap == pytest.approx(0.7)
    assert after_head(granite()).factor == pytest.approx(1 / 8)


def test_a_model_that_does_what_nobody_knows_is_refused() -> None:
    model = llama()
    usual = model.forward

    def squared(**given: Any) -> Any:
        out = usual(**given)
        out.logits = out.logits.square()
        return out

    model.forward = squared
    with pytest.raises(ModelError, match="LlamaForCausalLM does something to its logits"):
        piecewise_loss(model, a_batch(), None)


def test_the_head_is_as_it_was_afterwards() -> None:
    model = llama()
    head = output_head(model)
    for fails in (False, True):
        ids, positions, places, _ = a_batch()

        def share(logits: torch.Tensor, _: slice, fails: bool = fails) -> tuple[torch.Tensor, torch.Tensor]:
            if fails:
                raise KeyboardInterrupt
            return logits.sum(), logits.sum(-1)

        if fails:
            with pytest.raises(KeyboardInterrupt):
                loss_at(model, ids, positions, places, share)
        else:
            loss_at(model, ids, positions, places, share)
        assert "forward" not in head.__dict__


def test_nothing_to_train_is_a_loss_of_zero() -> None:
    model, (ids, positions, places, targets) = llama(), a_batch()
    loss, nll = piecewise_loss(model, (ids, positions, places[:0], targets[:0]), 4)
    assert (loss.item(), len(nll)) == (0.0, 0)
    loss.backward()  # type: ignore[no-untyped-call]


def test_memory_does_not_grow_with_vocabulary_times_tokens() -> None:
    """Most numbers that are held at once, seen by a hook on the logits of each piece."""
    model, batch = llama(), a_batch()
    ids, positions, places, targets = batch
    sizes: list[int] = []

    def share(logits: torch.Tensor, at: slice) -> tuple[torch.Tensor, torch.Tensor]:
        sizes.append(logits.numel())
        nll = F.cross_entropy(logits, targets[at], reduction="none")
        return nll.sum(), nll

    loss_at(model, ids, positions, places, share, piece=4)
    assert sizes == [4 * 300, 4 * 300, 4 * 300, 2 * 300]
