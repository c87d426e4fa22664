"""What is trained, and by which kernels: adapters of each kind, 4-bit weights, compiled layers, refusals."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from radistill import models, pipeline, tables, training_model
from radistill.config import RunConfig, config_from
from radistill.errors import ConfigError, ModelError
from radistill.head import output_head
from radistill.packing import Collator, is_flash
from radistill.packing_probe import refuse_contaminated_packing
from radistill.penalties import changes_of
from radistill.runs import RunFolder
from radistill.speaker import untouched
from radistill.stage_settings import LoraSettings
from radistill.trainer import Rows, SegmentTrainer
from radistill.training_arguments import arguments
from test_train import some_rows


def trained(raw: dict[str, Any], out: Path, **train: Any) -> RunConfig:
    settings = {**raw["train"], "max_steps": 3, "lora": {"r": 4, "dropout": 0.0}, **train}
    config = config_from({**raw, "output_dir": str(out), "method": "vanilla", "train": settings})
    pipeline.run(config, stages=("generate", "assemble", "train"))
    return config


def losses_of(config: RunConfig) -> list[float]:
    return [row["loss"] for row in tables.read_jsonl(RunFolder(Path(config.output_dir)).train_log)]


def adapter_of(config: RunConfig) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(str(Path(config.output_dir) / "model" / models.ADAPTER))


# -------------------------------------------------------------------------------------------- adapters


def llama(tied: bool) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=99, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
            tie_word_embeddings=tied,
        )
    )  # fmt: skip


def gpt2(tied: bool) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(vocab_size=99, n_embd=16, n_layer=2, n_head=2, tie_word_embeddings=tied))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("make", [llama, gpt2])
def test_by_default_every_linear_layer_is_adapted_and_neither_head_nor_embeddings(
    make: Callable[[bool], Any], tied: bool
) -> None:
    from peft.tuners.tuners_utils import BaseTunerLayer
    from transformers.pytorch_utils import Conv1D

    model = make(tied)
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    assert (head.weight is embeddings.weight) is tied
    linear = {n for n, m in model.named_modules() if isinstance(m, (torch.nn.Linear, Conv1D)) and m is not head}
    adapted = models.adapt(model, LoraSettings(), base_name="x", seed=0)
    found = {n.removeprefix("base_model.model.") for n, m in adapted.named_modules() if isinstance(m, BaseTunerLayer)}
    assert found == linear
    assert len(linear) >= 8
    assert output_head(adapted) is head
    assert not any(p.requires_grad for p in (*head.parameters(), *embeddings.parameters()))
    assert all("lora_" in name for name, p in adapted.named_parameters() if p.requires_grad)


@pytest.mark.parametrize("target", ["lm_head", ["q_proj", "lm_head"]])
@pytest.mark.parametrize("tied", [True, False])
def test_the_head_is_not_adapted_even_if_it_is_asked_for(target: Any, tied: bool) -> None:
    with pytest.raises(ModelError, match="'lm_head' is the output head, which is never adapted"):
        models.adapt(llama(tied), LoraSettings(target_modules=target), base_name="x", seed=0)


def test_rslora_scales_by_the_root_of_the_rank_and_dora_has_magnitudes() -> None:
    def layer(**settings: Any) -> Any:
        return models.adapt(llama(True), LoraSettings(r=16, alpha=8, **settings), base_name="x", seed=0).get_submodule(
            "base_model.model.model.layers.0.self_attn.q_proj"
        )

    assert layer().scaling["default"] == 0.5
    assert layer(use_rslora=True).scaling["default"] == 2.0
    assert not layer().lora_magnitude_vector
    assert layer(use_dora=True).lora_magnitude_vector["default"].weight.requires_grad


@pytest.mark.parametrize("settings", [{"use_dora": True}, {"use_rslora": True}, {"use_dora": True, "use_rslora": True}])
def test_with_the_adapter_off_it_is_the_untouched_model_exactly(
    raw_config: dict[str, Any], tmp_path: Path, settings: dict[str, Any]
) -> None:
    """After a training whose losses are its own."""
    config = trained(raw_config, tmp_path / "run", lora={"r": 4, "dropout": 0.0, **settings}, learning_rate=0.05)
    plain = trained(raw_config, tmp_path / "plain", learning_rate=0.05)
    assert losses_of(config)[0] == pytest.approx(losses_of(plain)[0], rel=1e-5), "at the start nothing is added"
    assert losses_of(config)[2] != losses_of(plain)[2]
    ids = torch.arange(5, 25).reshape(1, -1)
    before = models.load(models.resolve(config.model), dtype="float32")(ids).logits
    tuned = models.load(models.resolve(str(Path(config.output_dir))), dtype="float32")
    assert not torch.allclose(tuned(ids).logits, before, atol=1e-3)
    with tuned.disable_adapter():
        assert torch.equal(tuned(ids).logits, before)


def test_loraplus_moves_the_second_factor_by_its_own_learning_rate(raw_config: dict[str, Any], tmp_path: Path) -> None:
    """The first step of AdamW is as long as the learning rate, and the second factor starts at zero."""
    moved = {}
    for ratio in (None, 16.0):
        lora = {"r": 4, "dropout": 0.0, "loraplus_lr_ratio": ratio}
        once = {"max_steps": 1, "learning_rate": 1e-3, "warmup_steps": 0, "max_grad_norm": 100.0}
        config = trained(raw_config, tmp_path / str(ratio), lora=lora, **once)
        moved[ratio] = max(w.abs().max().item() for name, w in adapter_of(config).items() if "lora_B" in name)
        start = training_model.trained_model(config, untouched(config)).state_dict()
        first = {
            name.replace(".weight", ".default.weight"): w for name, w in adapter_of(config).items() if "lora_A" in name
        }
        assert first
        assert all(torch.equal(w, start[name]) for name, w in first.items()), "without a gradient while the second is 0"
    assert moved[None] == pytest.approx(1e-3, rel=0.01)
    assert moved[16.0] == pytest.approx(16e-3, rel=0.01)


def test_a_dora_adapter_is_neither_interpolated_nor_pulled_at(raw_config: dict[str, Any]) -> None:
    raw_config |= {"method": {"name": "interpolate", "share": 0.5}}
    raw_config["train"]["lora"] = {"r": 4, "use_dora": True}
    with pytest.raises(ConfigError, match=r"use_dora: between the start and the end .* no straight line"):
        training_model.refuse_unusable(config_from(raw_config))
    raw_config["train"]["lora"]["use_dora"] = False
    training_model.refuse_unusable(config_from(raw_config))
    with pytest.raises(ModelError, match=r"is not known to this method.*use_dora=false"):
        changes_of(models.adapt(llama(True), LoraSettings(use_dora=True), base_name="x", seed=0))


# ------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"quantization": "nf4", "lora": None}, r"train\.quantization: weights of 4 bits cannot be trained"),
        ({"attn_implementation": "flash_attention_2", "bf16": True}, r"attn_implementation: flash_attention_2 cannot"),
        ({"attn_implementation": "flash_attention_2"}, r"flash_attention_2 knows no float32; set train\.bf16=true"),
        (
            {"attn_implementation": "flex_attention"},
            r"attn_implementation: flex_attention cannot be trained with on a CPU",
        ),
        ({"use_liger_kernel": True}, r"train\.use_liger_kernel: its kernels need a GPU"),
    ],
)
def test_what_cannot_be_trained_with_here_is_said_before_anything_is_generated(
    raw_config: dict[str, Any], monkeypatch: pytest.MonkeyPatch, train: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr(models, "device", lambda: "cpu")
    config = config_from({**raw_config, "train": {**raw_config["train"], **train}})
    with pytest.raises(ConfigError, match=message):
        pipeline.run(config)
    assert not RunFolder(Path(config.output_dir)).stages()


@pytest.mark.parametrize(
    ("train", "package"),
    [
        ({"quantization": "nf4", "lora": {"r": 2}}, "bitsandbytes"),
        ({"optim": "adamw_bnb_8bit"}, "bitsandbytes"),
        ({"optim": "paged_adamw_8bit"}, "bitsandbytes"),
        ({"use_liger_kernel": True}, "liger_kernel"),
        ({"attn_implementation": "flash_attention_3", "bf16": True}, "flash_attn_interface"),
    ],
)
def test_a_package_that_is_not_installed_is_named(
    raw_config: dict[str, Any], monkeypatch: pytest.MonkeyPatch, train: dict[str, Any], package: str
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    config = config_from({**raw_config, "train": {**raw_config["train"], **train}})
    with pytest.raises(ConfigError, match=rf"needs the package {package}, which is not installed"):
        training_model.refuse_unusable(config)


# --------------------------------------------------------------------------------------------- kernels


def test_one_row_of_all_records_has_the_loss_of_separate_ones(tiny_model: Path) -> None:
    model = models.load(models.resolve(str(tiny_model)), dtype="float32", attention="sdpa")
    rows = some_rows(9)
    batch = Collator(pad_id=0, one_row=True)(rows)
    assert batch["input_ids"].shape == (1, sum(map(len, rows)))
    assert int((batch["position_ids"] == 0).sum()) == 9, "as many records, and no padding"
    trainer = SegmentTrainer(
        weighting="tokens", model=model, args=arguments_of(tiny_model), data_collator=Collator(pad_id=0)
    )
    one = trainer.compute_loss(model, batch)
    apart = trainer.compute_loss(model, Collator(pad_id=0, packing=False)(rows))
    assert one.item() == pytest.approx(apart.item(), rel=1e-6)
    refuse_contaminated_packing(model, rows, pad_id=0, one_row=True)


def arguments_of(folder: Path) -> Any:
    from transformers import TrainingArguments

    return TrainingArguments(output_dir=str(folder.parent / "out"), use_cpu=True, report_to="none", label_names=[])


def test_flash_attention_reads_one_row_and_the_others_several() -> None:
    assert is_flash("flash_attention_2")
    assert is_flash("flash_attention_3")
    assert not any(map(is_flash, (None, "sdpa", "eager", "flex_attention")))


def test_a_kernel_that_reads_a_row_as_one_record_is_found_out_in_one_row_too(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What FlashAttention would do with several rows: causal within a row, whatever the positions say."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    sdpa = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def leaking(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **more: Any) -> Any:
        return sdpa(module, query, key, value, None, **{**more, "is_causal": True})

    model = models.load(models.resolve(str(tiny_model)), dtype="float32", attention="sdpa")
    rows = some_rows(9)
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "sdpa", leaking)
    for one_row in (False, True):
        with pytest.raises(ModelError, match="packed records do not stay apart"):
            refuse_contaminated_packing(model, rows, pad_id=0, one_row=one_row)


@pytest.mark.slow
@pytest.mark.parametrize("lora", [None, {"r": 4, "dropout": 0.0}])
def test_compiled_layers_train_as_uncompiled_ones_and_are_saved_under_the_same_names(
    raw_config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lora: Any
) -> None:
    monkeypatch.setattr(training_model, "COMPILER", "aot_eager")  # all but the generated code, which takes minutes
    torch._dynamo.reset()
    counted = torch._dynamo.utils.counters["stats"]
    before = counted["unique_graphs"]
    compiled = trained(raw_config, tmp_path / "compiled", lora=lora, torch_compile=True)
    graphs = counted["unique_graphs"] - before
    plain = trained(raw_config, tmp_path / "plain", lora=lora)
    assert 0 < graphs < 12, "compiled anew for every batch"
    assert losses_of(compiled) == pytest.approx(losses_of(plain), rel=1e-5)
    ids = torch.arange(5, 25).reshape(1, -1)
    folders = [models.resolve(str(Path(c.output_dir))) for c in (compiled, plain)]
    found = [models.load(folder, dtype="float32")(ids).logits for folder in folders]
    torch.testing.assert_close(found[0], found[1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_offloading_changes_neither_losses_nor_the_folder_it_belongs_to(
    raw_config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpointing: bool
) -> None:
    calls: list[int] = []
    save = torch.autograd.graph.save_on_cpu

    def counted(**options: Any) -> Any:
        calls.append(1)
        return save(**options)

    monkeypatch.setattr(torch.autograd.graph, "save_on_cpu", counted)
    plain = trained(raw_config, tmp_path / "run", gradient_checkpointing=checkpointing)
    assert not calls
    again = config_from({**raw_config, "output_dir": str(tmp_path / "run"), "method": "vanilla",
        "train": {**plain.train.model_dump(), "activation_offload": True}})  # fmt: skip
    pipeline.run(again, stages=("train",))
    assert not calls, "it was finished, and this changes nothing that is learned"
    offloaded = trained(raw_config, tmp_path / "on", gradient_checkpointing=checkpointing, activation_offload=True)
    assert len(calls) == 3
    assert losses_of(offloaded) == pytest.approx(losses_of(plain), rel=1e-6)


def test_ligers_loss_is_never_asked_for(raw_config: dict[str, Any]) -> None:
    """It would take the place of the model's forward pass, and the head would be called behind our back."""
    config = config_from(raw_config)
    given = arguments(config, RunFolder(Path(config.output_dir)), 1)
    assert given.liger_kernel_config == {"cross_entropy": False, "fused_linear_cross_entropy": False}
    assert not given.use_liger_kernel


# ---------------------------------------------------------------------------------------------- 4 bits


def test_weights_of_4_bits_are_trained_under_an_adapter(raw_config: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="the extra `gpu` is not installed")
    raw_config["generate"]["backend"]["dtype"] = "float32"
    config = trained(
        raw_config, tmp_path / "run", quantization="nf4", num_train_epochs=1, max_steps=6, learning_rate=0.01
    )
    losses = losses_of(config)
    assert all(map(math.isfinite, losses))
    assert losses[-1] < losses[0]
    model = training_model.trained_model(config, untouched(config))
    kinds = {name: type(m).__name__ for name, m in model.named_modules() if name.endswith(("base_layer", "lm_head"))}
    assert {kind for name, kind in kinds.items() if name.endswith("base_layer")} == {"Linear4bit"}
    assert kinds["base_model.model.lm_head"] == "Linear", "the head is called by itself, and is not quantised"
    stored = json.loads((Path(config.output_dir) / "model" / "adapter_config.json").read_text(encoding="utf-8"))
    assert Path(stored["base_model_name_or_path"]) == Path(config.model).resolve(), "the unquantised one"
    assert all("lora_" in name for name in adapter_of(config))
    whole = trained(raw_config, tmp_path / "whole", max_steps=6, learning_rate=0.01)
    assert losses[0] != losses_of(whole)[0]
    assert losses[0] == pytest.approx(losses_of(whole)[0], abs=0.2), "4 bits are nearly the same model"
    ids = torch.arange(5, 25).reshape(1, -1)
    before = model.train()(ids).logits.detach()
    refuse_contaminated_packing(model, some_rows(9), pad_id=0)
    assert torch.equal(model(ids).logits, before), "being asked has changed the weights"


def test_adamw_of_8_bits_trains_where_bitsandbytes_has_kernels(raw_config: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="the extra `gpu` is not installed")
    config = trained(raw_config, tmp_path / "run", optim="adamw_bnb_8bit", max_steps=6, learning_rate=0.01)
    assert losses_of(config)[-1] < losses_of(config)[0]


def test_rows_are_given_to_the_trainer_in_one_row_with_flash_attention() -> None:
    """By the collator that the stage makes; see `train._trainer`."""
    rows = Rows(some_rows(4))
    assert Collator(0, one_row=is_flash("flash_attention_2"))(rows.rows)["input_ids"].shape[0] == 1
    assert Collator(0, one_row=is_flash("sdpa"))(rows.rows)["input_ids"].shape[0] > 1
