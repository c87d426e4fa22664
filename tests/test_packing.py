"""Packing changes speed, never what is learned."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from radistill import losses, models
from radistill.errors import ModelError
from radistill.losses import ORIGINS
from radistill.packing import Collator, Row, pack
from radistill.packing_probe import refuse_contaminated_packing
from radistill.records import Segment, TrainingRecord
from radistill.training_parts import logits_at


def record(ids: list[int], prompt: int, rationale: int = 0, *, weight: float = 1.0) -> TrainingRecord:
    segments = [Segment("prompt", 0, prompt, 0.0), Segment("reference", prompt, len(ids) - rationale, 1.0)]
    if rationale:
        segments.append(Segment("rationale", len(ids) - rationale, len(ids), weight))
    return TrainingRecord(
        id=str(ids), example_id=None, token_ids=tuple(ids), segments=tuple(segments), texts=("",) * len(segments)
    )


def random_rows(count: int, *, seed: int = 0, longest: int = 40) -> list[Row]:
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        size = int(rng.integers(4, longest))
        ids = rng.integers(5, 300, size).tolist()
        rows.append(Row.of(record(ids, int(rng.integers(1, 3)), int(rng.integers(0, 2)))))
    return rows


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def model(request: pytest.FixtureRequest, tiny_model: Path) -> Any:
    return models.load(models.resolve(str(tiny_model)), dtype="float32", attention=request.param)


def losses_of(model: Any, batch: dict[str, torch.Tensor]) -> dict[int, list[float]]:
    """Loss of every trained token, in an order that does not depend on how the batch was packed."""
    with torch.no_grad():
        logits = logits_at(model, batch["input_ids"], batch["position_ids"], batch["places_N"])
    nll = losses.token_nll(logits, batch["targets_N"])
    by_target: dict[int, list[float]] = {}
    for target, value in zip(batch["targets_N"].tolist(), nll.tolist(), strict=True):
        by_target.setdefault(target, []).append(value)
    return {t: sorted(v) for t, v in by_target.items()}


def test_packed_records_give_the_same_log_probabilities_as_separate_ones(model: Any) -> None:
    rows = random_rows(12)
    packed = Collator(pad_id=0, packing=True)(rows)
    assert len(packed["input_ids"]) < len(rows), "nothing was packed, so the test would say nothing"
    together = losses_of(model, packed)
    alone: dict[int, list[float]] = {}
    for row in rows:
        for target, values in losses_of(model, Collator(pad_id=0)([row])).items():
            alone.setdefault(target, []).extend(values)
    assert together.keys() == alone.keys()
    for target, values in together.items():
        assert values == pytest.approx(sorted(alone[target]), abs=2e-5)


def test_packed_and_padded_batches_have_the_same_loss_and_gradients(tiny_model: Path) -> None:
    rows = random_rows(9, seed=3)
    grads = []
    for packing in (True, False):
        model = models.load(models.resolve(str(tiny_model)), dtype="float32", attention="sdpa")
        batch = Collator(pad_id=0, packing=packing)(rows)
        logits = logits_at(model, batch["input_ids"], batch["position_ids"], batch["places_N"])
        total = losses.totals(batch["weights_N"], batch["pools_N"])
        nll = losses.token_nll(logits, batch["targets_N"])
        losses.combine(nll, batch["weights_N"], batch["pools_N"], total=total, weighting="tokens").backward()  # type: ignore[no-untyped-call]
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert torch.allclose(grads[0], grads[1], atol=1e-6)
    assert grads[0].abs().max() > 1e-3


def test_a_cache_or_a_mask_would_let_packed_records_read_each_other(model: Any) -> None:
    """The trap this project avoids still exists; when this test fails, `packing.py` may say less."""
    rows = random_rows(12)
    batch = Collator(pad_id=0, packing=True)(rows)
    with torch.no_grad():
        clean = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
        masked = model(
            input_ids=batch["input_ids"],
            position_ids=batch["position_ids"],
            attention_mask=torch.ones_like(batch["input_ids"]),
            use_cache=False,
        ).logits
    assert (clean - masked).abs().max() > 1e-3


def test_only_trained_positions_reach_the_output_head(model: Any) -> None:
    batch = Collator(pad_id=0)(random_rows(4))
    logits = logits_at(model, batch["input_ids"], batch["position_ids"], batch["places_N"])
    assert logits.shape[0] == len(batch["targets_N"])
    with torch.no_grad():
        full = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
    expected = full.reshape(-1, full.shape[-1])[batch["places_N"]]
    assert torch.allclose(logits, expected, atol=1e-6)


def test_the_hook_is_gone_after_the_forward_pass(model: Any) -> None:
    batch = Collator(pad_id=0)(random_rows(2))
    logits_at(model, batch["input_ids"], batch["position_ids"], batch["places_N"])
    assert not model.get_output_embeddings()._forward_pre_hooks


def test_each_target_is_predicted_from_the_position_before_it() -> None:
    rows = [Row.of(record([10, 11, 12, 13, 14], 2, 2)), Row.of(record([20, 21, 22], 1))]
    batch = Collator(pad_id=0)(rows)
    flat = batch["input_ids"].flatten()
    positions = batch["position_ids"].flatten()
    for place, target in zip(batch["places_N"].tolist(), batch["targets_N"].tolist(), strict=True):
        assert flat[place + 1].item() == target
        assert positions[place + 1].item() == positions[place].item() + 1
    assert sorted(batch["targets_N"].tolist()) == [12, 13, 14, 21, 22]


def test_weights_and_origins_stay_with_their_targets() -> None:
    row = Row.of(record([10, 11, 12, 13, 14], 2, 2, weight=0.25))
    batch = Collator(pad_id=0)([row])
    found = dict(zip(batch["targets_N"].tolist(), batch["weights_N"].tolist(), strict=True))
    assert found == {12: 1.0, 13: 0.25, 14: 0.25}
    names = [ORIGINS[i] for i in batch["origins_N"].tolist()]
    assert names == ["reference", "rationale", "rationale"]


def test_the_first_token_of_a_row_is_never_a_target() -> None:
    row = Row.of(record([10, 11, 12], 0))
    assert Collator(pad_id=0)([row])["targets_N"].tolist() == [11, 12]


def test_pack_keeps_every_record_once_and_cuts_none() -> None:
    lengths = [7, 3, 3, 9, 1, 5, 2]
    bins = pack(lengths, 10)
    assert sorted(i for b in bins for i in b) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in b) <= 10 for b in bins)
    assert len(bins) == 3
    assert pack([12, 2], 10) == [[0], [1]]


def test_packing_saves_padding_on_mixed_lengths() -> None:
    rows = random_rows(32, seed=1, longest=60)
    real = sum(len(r) for r in rows)
    padded = Collator(pad_id=0, packing=False)(rows)["input_ids"].numel()
    packed = Collator(pad_id=0, packing=True)(rows)["input_ids"].numel()
    assert real / padded < 0.7 < 0.9 < real / packed


def test_n_tokens_counts_ids_without_padding() -> None:
    rows = random_rows(5)
    assert Collator(pad_id=0)(rows)["n_tokens"].item() == sum(len(r) for r in rows)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_architecture_that_reads_through_a_pack_is_refused_before_training(dtype: str) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import BloomConfig, BloomForCausalLM, MistralConfig, MistralForCausalLM, OPTConfig, OPTForCausalLM

    torch.manual_seed(0)
    size = {"vocab_size": 320, "hidden_size": 32}
    heads = {"num_hidden_layers": 2, "num_attention_heads": 4}
    bloom = BloomForCausalLM(BloomConfig(**size, n_layer=2, n_head=4))
    opt = OPTForCausalLM(OPTConfig(**size, **heads, ffn_dim=64, max_position_embeddings=64, init_std=0.3))
    sharp = {"num_key_value_heads": 2, "intermediate_size": 64, "initializer_range": 0.5, "sliding_window": 8}
    mistral = MistralForCausalLM(MistralConfig(**size, **heads, **sharp))
    adapted = get_peft_model(MistralForCausalLM(MistralConfig(**size, **heads, **sharp)), LoraConfig(r=2))
    rows = random_rows(6)
    for leaking in (bloom, opt):
        with pytest.raises(ModelError, match=r"packed records do not stay apart.*Set train.packing=false"):
            refuse_contaminated_packing(leaking.to(getattr(torch, dtype)), rows, pad_id=0)
    for clean in (mistral, adapted):
        refuse_contaminated_packing(clean.to(getattr(torch, dtype)), rows, pad_id=0)
        assert clean.training


def test_the_question_about_packing_is_never_wider_than_the_rows() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=320, n_embd=32, n_layer=2, n_head=4, n_positions=40))
    for count in (1, 2, 5):
        refuse_contaminated_packing(model, random_rows(count), pad_id=0)
    shortest = Row.of(record([5, 6], 1))
    refuse_contaminated_packing(model, [shortest, shortest], pad_id=0)
