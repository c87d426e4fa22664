"""What pulls a model back: its formulas, against others that come to the same numbers."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap

from fixtures_chat import chat_like
from radistill import losses, models, penalties, seeds
from radistill.errors import ModelError
from radistill.methods.ewc import EWC, empty_context
from radistill.methods.kl import KL
from radistill.methods.l2sp import L2SP
from radistill.packing import Collator
from radistill.penalties import Adapted, Moved, Pull, Sample, changes_of
from radistill.records import Origin
from radistill.stage_settings import LoraSettings
from radistill.training_parts import Reference, Start, Step


def tiny(folder: Path, attention: str = "eager") -> Any:
    return models.load(models.resolve(str(folder)), dtype="float32", attention=attention)


def adapted(model: Any, **lora: Any) -> Any:
    """The model with an adapter whose B is no longer zero, and what it was when it still was."""
    settings = LoraSettings(r=3, alpha=7, dropout=0.0, **lora)
    tuned = models.adapt(model, settings, base_name="tiny", seed=0)
    return tuned, changes_of(tuned)


def disturb(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
                parameter.add_(0.1 * noise)


def a_step(model: nn.Module, *, micro_batches: int = 1, pools: Sequence[Origin] = ()) -> Step:
    indices = torch.tensor([losses.ORIGINS.index(origin) for origin in pools], dtype=torch.long)
    n = len(pools)
    return Step(
        model=model,
        inputs={"pools_N": indices},
        logits_NV=torch.zeros(n, 4),
        asked_N=torch.zeros(n, dtype=torch.bool),
        reference_MV=None,
        total=losses.totals(torch.ones(n), indices),
        weighting="tokens",
        micro_batches=micro_batches,
    )


def a_start(model: Any, *, reference: Reference | None = None, seed: int = 0) -> Start:
    return Start(model, [], reference, Collator(pad_id=0), chat_like("phi-3"), seed, dict)


# --- KL ---


def test_forward_and_reverse_divergences_are_those_computed_by_hand() -> None:
    p, q = (0.5, 0.25, 0.25), (0.8, 0.1, 0.1)
    model, untouched = (torch.tensor([x]).log() + 3 for x in (q, p))
    forward = 0.5 * math.log(0.5 / 0.8) + 0.5 * math.log(0.25 / 0.1)
    reverse = 0.8 * math.log(0.8 / 0.5) + 0.2 * math.log(0.1 / 0.25)
    assert penalties.divergence(model, untouched, "forward").item() == pytest.approx(forward, rel=1e-5)
    assert penalties.divergence(model, untouched, "reverse").item() == pytest.approx(reverse, rel=1e-5)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_the_gradient_of_a_divergence_is_that_of_its_formula(direction: penalties.Direction) -> None:
    """Forward: q - p. Reverse: q (log q/p - KL)."""
    rng = torch.Generator().manual_seed(1)
    logits = torch.randn(5, 7, generator=rng, dtype=torch.float64, requires_grad=True)
    reference = torch.randn(5, 7, generator=rng, dtype=torch.float64)
    value = penalties.divergence(logits, reference, direction)
    value.sum().backward()  # type: ignore[no-untyped-call]
    q, p = logits.detach().softmax(-1), reference.softmax(-1)
    expected = q - p if direction == "forward" else q * ((q / p).log() - value.detach().unsqueeze(1))
    assert logits.grad is not None
    assert (logits.grad - expected).abs().max() < 1e-12


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_kl_is_the_mean_over_the_tokens_of_the_whole_step_that_teach_the_task(
    direction: penalties.Direction,
) -> None:
    """Of five tokens the untouched model was asked about four; one of these is a rationale with a live label."""
    pools: tuple[Origin, ...] = ("reference", "rationale", "free", "model", "reference")
    rng = torch.Generator().manual_seed(2)
    logits, reference = (torch.randn(5, 6, generator=rng) for _ in range(2))
    asked = torch.tensor([True, True, False, True, True])
    plain = a_step(nn.Identity(), pools=pools)
    elsewhere = losses.totals(torch.ones(3), torch.tensor([losses.ORIGINS.index("reference")] * 3))
    step = Step(
        plain.model, plain.inputs, logits, asked, reference[asked], plain.total + elsewhere, "tokens", 2
    )  # fmt: skip
    method = KL(weight=3.0, direction=direction)
    penalty = method.penalty(a_start(nn.Identity(), reference=Reference(nn.Identity(), is_adapter=False)))
    assert penalty is not None
    log_q, log_p = logits.log_softmax(-1), reference.log_softmax(-1)
    first, second = (log_p, log_q) if direction == "forward" else (log_q, log_p)
    by_hand = (first.exp() * (first - second)).sum(-1)
    expected = 3.0 * (by_hand[0] + by_hand[3] + by_hand[4]) / 6
    assert penalty(step).item() == pytest.approx(expected.item(), rel=1e-5)


def test_kl_of_a_micro_batch_without_task_tokens_is_zero() -> None:
    penalty = KL().penalty(a_start(nn.Identity(), reference=Reference(nn.Identity(), is_adapter=False)))
    assert penalty is not None
    assert penalty(a_step(nn.Identity(), pools=("free",))).item() == 0.0


# --- changes of weights ---


def test_a_plain_pull_is_half_the_weight_times_the_squared_distance(tiny_model: Path) -> None:
    model = tiny(tiny_model)
    pull = L2SP(weight=3.0).penalty(a_start(model))
    assert pull is not None
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    disturb(model)
    value = pull(a_step(model, micro_batches=4))
    value.backward()  # type: ignore[no-untyped-call]
    distance = sum(float((p.detach() - before[n]).double().square().sum()) for n, p in model.named_parameters())
    assert value.item() == pytest.approx(3.0 / 2 * distance / 4, rel=1e-5)
    for name, parameter in model.named_parameters():
        assert (parameter.grad - 3.0 * (parameter.detach() - before[name]) / 4).abs().max() < 1e-6


def test_only_what_is_trained_is_pulled(tiny_model: Path) -> None:
    model = tiny(tiny_model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("layers.1" in name)
    named = {id(p): name for name, p in model.named_parameters()}
    names = [named[id(change.weight)] for change in changes_of(model)]
    assert names
    assert all("layers.1" in name for name in names)


@pytest.mark.parametrize(
    "lora",
    [
        {},
        {"use_rslora": True},
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"target_modules": ["down_proj"], "rank_pattern": {"layers.0.mlp.down_proj": 2}},
    ],
    ids=["linear", "rslora", "embedding", "ranks"],
)
def test_the_distance_of_an_adapter_is_that_of_the_product_which_peft_would_merge(
    tiny_model: Path, lora: dict[str, Any]
) -> None:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    settings: dict[str, Any] = {"target_modules": "all-linear", "r": 3, "lora_alpha": 7, **lora}
    model = get_peft_model(tiny(tiny_model), LoraConfig(**settings, task_type="CAUSAL_LM"))
    changes = changes_of(model)
    assert changes
    assert all(isinstance(change, Adapted) for change in changes)
    assert [change.squared().item() for change in changes] == [0.0] * len(changes)
    disturb(model)
    for change in changes:
        assert isinstance(change, Adapted)
        delta = change.module.get_delta_weight("default").detach().double()
        assert delta.shape == change.weight.shape
        assert delta.abs().max() > 1e-3
        assert (change.difference() - delta).abs().max() < 1e-6
        assert change.squared().item() == pytest.approx(delta.square().sum().item(), rel=1e-5)
    merged = {n: p.detach().clone() for n, p in tiny(tiny_model).named_parameters()}
    # What tied embeddings would become is not theirs alone, so the whole is compared for linear layers only.
    if "embed_tokens" not in settings["target_modules"]:
        after = dict(model.merge_and_unload().named_parameters())
        moved = sum(float((after[n] - p).double().square().sum()) for n, p in merged.items())
        assert sum(c.squared().item() for c in changes) == pytest.approx(moved, rel=1e-4)


def test_the_linear_layers_of_gpt2_are_stored_the_other_way_round() -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    plain = GPT2LMHeadModel(GPT2Config(vocab_size=20, n_positions=16, n_embd=8, n_layer=1, n_head=2))
    settings = LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM")
    model = get_peft_model(plain, settings)
    (change,) = changes_of(model)
    assert isinstance(change, Adapted)
    disturb(model)
    delta = change.module.get_delta_weight("default")
    assert change.weight.shape == (8, 24)
    assert (change.difference() - delta).abs().max() < 1e-6
    assert change.weighed(torch.ones(8, 24)).item() == pytest.approx(change.squared().item(), rel=1e-5)


def test_an_adapter_of_another_kind_is_refused_by_name() -> None:
    class Strange(nn.Linear):
        active_adapters = ("default",)

        def __init__(self) -> None:
            super().__init__(4, 4)
            self.lora_A = nn.ModuleDict({"default": nn.Linear(5, 2, bias=False)})
            self.lora_B = nn.ModuleDict({"default": nn.Linear(2, 4, bias=False)})

        def get_base_layer(self) -> nn.Module:
            return self

    with pytest.raises(ModelError, match=r"kind Strange moves its layer is not known.*train\.lora"):
        changes_of(Strange())


def test_the_importance_of_every_element_counts_with_and_without_an_adapter(tiny_model: Path) -> None:
    """Value and gradient, against the product built in the open."""
    model, changes = adapted(tiny(tiny_model))
    disturb(model)
    weight = torch.rand(changes[0].weight.shape, generator=torch.Generator().manual_seed(0))
    a, b = changes[0].parameters()
    changes[0].weighed(weight).backward()
    found = (a.grad, b.grad)
    a.grad = b.grad = None
    naive = (weight * (7 / 3 * b @ a).square()).sum()
    naive.backward()
    assert changes[0].weighed(weight).item() == pytest.approx(naive.item(), rel=1e-5)
    for one, other in zip(found, (a.grad, b.grad), strict=True):
        assert one.abs().max() > 1e-4
        assert (one - other).abs().max() < 1e-5 * other.abs().max()
    parameter = nn.Parameter(torch.tensor([3.0, 5.0]))
    moved = Moved(parameter, torch.tensor([1.0, 2.0]))
    pull = Pull([moved], 2.0, [torch.tensor([0.5, 10.0])])
    holder = nn.Module()
    holder.register_parameter("p", parameter)
    value = pull(a_step(holder))
    assert value.item() == 0.5 * 4 + 10 * 9
    value.backward()  # type: ignore[no-untyped-call]
    assert parameter.grad is not None
    assert parameter.grad.tolist() == [2 * 0.5 * 2, 2 * 10 * 3]


def test_weights_that_were_put_in_the_place_of_others_are_refused(tiny_model: Path) -> None:
    model = tiny(tiny_model)
    pull = L2SP().penalty(a_start(model))
    assert pull is not None
    model.model.norm.weight = nn.Parameter(model.model.norm.weight.detach().clone())
    with pytest.raises(ModelError, match="every process to hold them whole"):
        pull(a_step(model))


# --- the Fisher matrix ---


def squared_gradients_of_each(model: Any, opening: Sequence[int], samples: torch.Tensor) -> dict[str, torch.Tensor]:
    """By torch.func, all samples at once: an independent way to the same numbers."""
    ids_BT = torch.cat([torch.tensor([list(opening)] * len(samples)), samples], dim=1)
    weights = {name: p.detach() for name, p in model.named_parameters()}

    def log_likelihood(values: dict[str, torch.Tensor], ids_T: torch.Tensor) -> torch.Tensor:
        out = functional_call(model, values, (), {"input_ids": ids_T.unsqueeze(0), "use_cache": False})
        at = len(opening)
        of_each = out.logits[0, at - 1 : -1].log_softmax(-1).gather(1, ids_T[at:].unsqueeze(1))
        total: torch.Tensor = of_each.sum()
        return total

    gradients = vmap(grad(log_likelihood), in_dims=(None, 0))(weights, ids_BT)
    return {name: gradient.square().mean(0) for name, gradient in gradients.items()}


def test_the_fisher_is_the_mean_of_the_squared_gradients_of_single_examples(tiny_model: Path) -> None:
    model = tiny(tiny_model).double()
    opening = [7, 8]
    samples = torch.randint(3, 250, (5, 6), generator=torch.Generator().manual_seed(0))
    expected = squared_gradients_of_each(model, opening, samples)
    names, weights = zip(*model.named_parameters(), strict=True)
    found = penalties.fisher(model, weights, [Sample.after(opening, ids) for ids in samples.tolist()])
    for name, one in zip(names, found, strict=True):
        assert one.max() > 0
        assert (one - expected[name]).abs().max() < 1e-10 * expected[name].max(), name
    batch = penalties.fisher(model, weights, [Sample.after(opening, samples[0].tolist())])
    assert (batch[0] - found[0]).abs().max() > 1e-3 * found[0].max(), "one example would have done as well"


def test_the_fisher_under_an_adapter_is_that_of_the_frozen_matrices(tiny_model: Path) -> None:
    samples = [Sample.after([7], ids) for ids in ([5, 6, 7, 8], [9, 3, 4], [11])]
    plain = tiny(tiny_model)
    names, weights = zip(*plain.named_parameters(), strict=True)
    whole = dict(zip(names, penalties.fisher(plain, weights, samples), strict=True))
    tuned, changes = adapted(tiny(tiny_model))
    trained = [name for name, p in tuned.named_parameters() if p.requires_grad]
    found = penalties.fisher(tuned, [c.weight for c in changes], samples)
    named = {id(p): n for n, p in tuned.named_parameters()}
    assert len(changes) == 14
    for change, one in zip(changes, found, strict=True):
        name = named[id(change.weight)].removeprefix("base_model.model.").replace(".base_layer", "")
        assert (one - whole[name]).abs().max() < 1e-6 * whole[name].max()
    assert trained == [name for name, p in tuned.named_parameters() if p.requires_grad]
    assert all(p.grad is None for p in tuned.parameters())


def test_a_normalised_fisher_has_the_mean_one_over_all_weights() -> None:
    found = penalties.with_mean_one([torch.tensor([1.0, 3.0]), torch.tensor([[8.0]])])
    assert [f.tolist() for f in found] == [[0.25, 0.75], [[2.0]]]
    assert penalties.with_mean_one([torch.zeros(2)])[0].tolist() == [0.0, 0.0]


def test_ewc_weighs_the_changes_with_the_fisher_of_its_own_samples(tiny_model: Path) -> None:
    model = tiny(tiny_model).train()
    start = a_start(model, seed=4)
    plain, normal = (
        EWC(samples=5, max_new_tokens=6, weight=2.0, normalise=normalise).penalty(start) for normalise in (False, True)
    )
    assert isinstance(plain, Pull)
    assert isinstance(normal, Pull)
    assert model.training
    other = EWC(samples=5, max_new_tokens=6, normalise=False).penalty(a_start(model, seed=5))
    assert isinstance(other, Pull)
    assert not torch.equal(other.importances[0], plain.importances[0])
    opening = empty_context(start.chat)
    seed = seeds.number(4, "fisher") % (1 << 32)
    samples = penalties.draw(
        model.eval(), opening, count=5, max_new_tokens=6, stop_ids=start.chat.stop_ids, seed=seed
    )  # fmt: skip
    assert plain.tokens == normal.tokens == 2 * sum(len(opening) + len(sample) for sample in samples)
    again = penalties.fisher(model, [c.weight for c in plain.changes], [Sample.after(opening, ids) for ids in samples])
    assert all(torch.equal(one, same) for one, same in zip(plain.importances, again, strict=True))
    means = [float(torch.cat([f.flatten() for f in pull.importances]).mean()) for pull in (plain, normal)]
    assert means[0] != pytest.approx(1.0, rel=0.1)
    assert means[1] == pytest.approx(1.0, rel=1e-4)
    before = [change.weight.detach().clone() for change in plain.changes]
    disturb(model)
    pairs = zip(plain.changes, plain.importances, before, strict=True)
    expected = sum(float((f * (c.weight.detach() - w).square()).sum()) for c, f, w in pairs)
    assert plain(a_step(model, micro_batches=2)).item() == pytest.approx(expected / 2, rel=1e-4)
    assert normal(a_step(model, micro_batches=2)).item() == pytest.approx(expected / 2 / means[0], rel=1e-4)


# --- samples ---


def test_samples_are_drawn_from_the_whole_distribution_at_temperature_one(tiny_model: Path) -> None:
    """No top-k, no nucleus, no sharpening: frequencies of first tokens agree with their probabilities."""
    model = tiny(tiny_model)
    with torch.no_grad():
        model.model.norm.weight.mul_(12)
        logits = model(input_ids=torch.tensor([[7]])).logits[0, -1]
    p = logits.softmax(-1).double()
    count = 1500
    samples = penalties.draw(model, [7], count=count, max_new_tokens=1, stop_ids=[0], seed=1)
    seen = torch.bincount(torch.tensor([ids[0] for ids in samples]), minlength=len(p)).double() / count
    top = p.argsort(descending=True)
    for group in (top[:1], top[:10], top[50:], top[150:]):
        expected = float(p[group].sum())
        assert 0.01 < expected < 0.99, "the distribution is too flat or too sharp to tell"
        assert abs(float(seen[group].sum()) - expected) < 4 * math.sqrt(expected * (1 - expected) / count)


def test_samples_follow_the_seed_and_leave_the_generators_alone(tiny_model: Path) -> None:
    model = tiny(tiny_model)
    torch.manual_seed(11)
    before = torch.random.get_rng_state()
    wanted: dict[str, Any] = {"count": 40, "max_new_tokens": 5, "stop_ids": [0, 2]}
    one, same, other = (penalties.draw(model, [7, 8], **wanted, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert one == same != other
    assert len(one) == 40
    assert len({tuple(ids) for ids in one}) > 30, "the second batch repeats the first"


def test_a_sample_ends_with_its_first_stop_or_where_it_is_cut(tiny_model: Path) -> None:
    model = tiny(tiny_model)
    stops = list(range(150))
    samples = penalties.draw(model, [7], count=64, max_new_tokens=4, stop_ids=stops, seed=0)
    assert {len(ids) for ids in samples} == {1, 2, 3, 4}
    for ids in samples:
        assert not set(ids[:-1]) & set(stops)
        assert len(ids) == 4 or ids[-1] in stops


@pytest.mark.parametrize(
    ("name", "spelled"),
    [
        ("llama-2", "<s>"),
        ("mistral-v0.3", "<s>"),
        ("llama-3", "<|begin_of_text|><|start_header_id|>assistant<|end_header_id|>\n\n"),
        ("qwen2", "<|im_start|>assistant\n"),
        ("smollm2", "<|im_start|>assistant\n"),
        ("gemma", "<bos><start_of_turn>model\n"),
        ("phi-3", "<s><|assistant|>"),
    ],
)
def test_the_empty_context_is_what_stands_before_an_answer_to_nothing(name: str, spelled: str) -> None:
    chat = chat_like(name)
    assert chat.tokenizer.decode(empty_context(chat)).replace("<|assistant|>\n", "<|assistant|>") == spelled
