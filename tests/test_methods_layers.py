"""Layer-selective tuning and interpolation: which weights move, and how far."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from radistill import models, pipeline, seeds
from radistill.config import config_from
from radistill.errors import ConfigError
from radistill.methods.interpolate import Interpolate
from radistill.methods.layers import Layers, layer_of
from radistill.runs import RunFolder
from radistill.stage_settings import LoraSettings
from radistill.tables import read_records


@pytest.mark.parametrize(
    ("cls", "wrong", "message"),
    [
        (Interpolate, {"share": 1.1}, "less than or equal to 1"),
        (Interpolate, {"share": -0.1}, "greater than or equal to 0"),
        (Layers, {"bottom": 2.5}, "bottom is 2.5: write a whole number of layers, or a share below 1"),
        (Layers, {"bottom": 0, "top": 0}, "leaves no layer to train"),
        (Layers, {"bottom": 0.5, "top": 0.5}, "leave no layer frozen"),
    ],
)
def test_settings_that_make_no_sense_are_refused_with_the_reason(cls: Any, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        cls(**wrong)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("model.layers.3.self_attn.q_proj.weight", 3),
        ("base_model.model.model.layers.11.mlp.up_proj.lora_A.default.weight", 11),
        ("transformer.h.0.attn.c_attn.weight", 0),
        ("gpt_neox.layers.10.attention.dense.bias", 10),
        ("model.decoder.layers.2.fc1.weight", 2),
        ("transformer.blocks.7.ffn.up_proj.weight", 7),
        ("module._fsdp_wrapped_module.model.layers.5.input_layernorm.weight", 5),
        ("model.layers.4.mlp.experts.9.down_proj.weight", 4),
        ("model.language_model.layers.6.mlp.gate_proj.weight", 6),
        ("model.embed_tokens.weight", None),
        ("lm_head.weight", None),
        ("model.norm.weight", None),
        ("model.visual.blocks.3.attn.qkv.weight", None),
        ("vision_tower.vision_model.encoder.layers.3.mlp.fc1.weight", None),
        ("audio_tower.layers.1.fc1.weight", None),
    ],
)
def test_the_layer_of_a_parameter_is_read_from_its_name(name: str, layer: int | None) -> None:
    assert layer_of(name) == layer


@pytest.mark.parametrize(
    ("settings", "n_layers", "trained"),
    [
        ({}, 36, {*range(4), *range(21, 36)}),
        ({}, 5, {0, 3, 4}),
        ({}, 2, {1}),
        ({"bottom": 4, "top": 15}, 36, {*range(4), *range(21, 36)}),
        ({"bottom": 1, "top": 0}, 3, {0}),
        ({"bottom": 0.25, "top": 1}, 8, {0, 1, 7}),
    ],
)
def test_bottom_and_top_are_counts_or_shares_of_the_depth(
    settings: dict[str, float], n_layers: int, trained: set[int]
) -> None:
    method = Layers(**settings)
    assert {i for i in range(n_layers) if method.trains(f"model.layers.{i}.mlp.weight", n_layers)} == trained
    assert not method.trains("model.embed_tokens.weight", n_layers)


def test_layers_that_leave_nothing_frozen_are_one_message() -> None:
    with pytest.raises(ConfigError, match="4 bottom and 15 top layers of a model that has 5, which leaves none frozen"):
        Layers(bottom=4, top=15).trains("model.layers.0.mlp.weight", 5)
    with pytest.raises(ConfigError, match="2 bottom and 3 top layers"):
        Layers(bottom=2, top=3).trains("model.layers.0.mlp.weight", 5)
    assert Layers(bottom=2, top=2).trains("model.layers.0.mlp.weight", 5)


@pytest.fixture(scope="module")
def five_layers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of five layers."""
    from tiny import make_model, sentences

    folder = tmp_path_factory.mktemp("models") / "five"
    make_model(folder, corpus=[side for pair in sentences(800, "corpus") for side in pair], hidden=32, layers=5)
    return folder


def trained_weights(raw: dict[str, Any], method: dict[str, Any], **train: Any) -> dict[str, torch.Tensor]:
    name = "-".join(map(str, method.values()))
    settings = {**raw["train"], "max_steps": 3, **train}
    config = config_from({**raw, "method": method, "output_dir": f"{raw['output_dir']}-{name}", "train": settings})
    pipeline.run(config, stages=("generate", "assemble", "train"))
    (file,) = (Path(config.output_dir) / "model").glob("*.safetensors")
    return load_file(file)


def test_layers_in_between_are_byte_equal_after_a_full_training_and_the_others_are_not(
    raw_config: dict[str, Any], five_layers: Path
) -> None:
    raw_config["model"] = str(five_layers)
    before = load_file(five_layers / "model.safetensors")
    after = trained_weights(raw_config, {"name": "layers"})
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if layer_of(name) in (0, 3, 4)}
    stage = RunFolder(Path(raw_config["output_dir"] + "-layers")).stages()["train"]
    assert stage.facts["trainable"] == sum(before[name].numel() for name in moved)


def test_adapters_of_the_layers_in_between_are_byte_equal_too(raw_config: dict[str, Any], five_layers: Path) -> None:
    raw_config["model"] = str(five_layers)
    after = trained_weights(raw_config, {"name": "layers"}, lora={"r": 4})
    fresh = models.adapt(
        models.load(models.resolve(str(five_layers)), dtype="float32"),
        LoraSettings(r=4),
        base_name="x",
        seed=seeds.number(0, "lora") % (1 << 32),
    )
    before = {n.replace(".default", ""): p.detach() for n, p in fresh.named_parameters() if "lora_" in n}
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if layer_of(name) in (0, 3, 4)}


def test_interpolated_weights_lie_on_the_line_from_start_to_end(raw_config: dict[str, Any], tiny_model: Path) -> None:
    start, end = load_file(tiny_model / "model.safetensors"), trained_weights(raw_config, {"name": "vanilla"})
    assert max(float((end[name] - start[name]).abs().max()) for name in start) > 1e-3
    by_share = {
        share: trained_weights(raw_config, {"name": "interpolate", "share": share}) for share in (0.0, 0.5, 1.0)
    }
    for name in start:
        assert torch.equal(by_share[0.0][name], start[name])
        assert torch.equal(by_share[1.0][name], end[name])
        assert torch.allclose(by_share[0.5][name], (start[name] + end[name]) / 2, rtol=0, atol=1e-7)


@pytest.mark.filterwarnings("ignore:.*embedding layers.*:UserWarning", "ignore:.*tie_word_embeddings.*:UserWarning")
def test_an_interpolated_adapter_answers_as_the_trained_one_at_that_scale(
    raw_config: dict[str, Any], tiny_model: Path
) -> None:
    lora = {"r": 4, "target_modules": ["q_proj", "down_proj", "embed_tokens"]}
    raw_config["train"]["learning_rate"] = 0.02
    trained_weights(raw_config, {"name": "vanilla"}, lora=lora)
    # Of these ids: an adapter of an embedding moves only those it was trained on.
    record = next(read_records(RunFolder(Path(f"{raw_config['output_dir']}-vanilla")).records))
    ids = torch.tensor([record.token_ids])

    def logits(run: str | None, scale: float = 1.0) -> torch.Tensor:
        folder = tiny_model if run is None else Path(f"{raw_config['output_dir']}-{run}") / "model"
        model = models.load(models.resolve(str(folder)), dtype="float32")
        for module in model.modules():
            if hasattr(module, "lora_A"):
                module.scaling["default"] *= scale
        with torch.no_grad():
            found: torch.Tensor = model(ids).logits
        return found

    for share in (0.0, 0.25):
        trained_weights(raw_config, {"name": "interpolate", "share": share}, lora=lora)
        assert torch.allclose(logits(f"interpolate-{share}"), logits("vanilla", share), atol=1e-5)
    assert torch.equal(logits("interpolate-0.0"), logits(None))
    assert (logits("vanilla") - logits("interpolate-0.25")).abs().max() > 0.01
