"""Adapters of every kind: what can be added to the weights is, tied weights included; all else is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from radistill import merge_check, merge_weights, models
from radistill.errors import SharingError
from radistill.merge import merge
from radistill.stage_settings import LoraSettings
from test_merge import answers, logits, plain, with_peft


def adapted(folder: Path, place: Path, config: Any) -> Path:
    """An adapter of that kind, all of whose weights are other than at the start."""
    import torch
    from peft import get_peft_model

    model = get_peft_model(plain(folder), config)
    drawn = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weights in model.parameters():
            if weights.requires_grad:
                weights.add_(torch.randn(weights.shape, generator=drawn), alpha=0.3)
    model.save_pretrained(str(place))
    return place


def lora(**options: Any) -> Callable[[], Any]:
    def config() -> Any:
        from peft import LoraConfig

        return LoraConfig(
            **{"r": 4, "lora_alpha": 8, "task_type": "CAUSAL_LM", "target_modules": ["v_proj", "down_proj"], **options}
        )

    return config


KINDS: dict[str, tuple[Callable[[], Any], bool]] = {
    "all linear layers": (lora(target_modules="all-linear"), True),
    "DoRA": (lora(use_dora=True), True),
    "rsLoRA": (lora(use_rslora=True), True),
    "ranks of its own": (lora(target_modules=["q_proj", "up_proj"], rank_pattern={"up_proj": 2}), True),
    "some layers": (lora(layers_to_transform=[1]), True),
    "the output head of a tied pair": (lora(target_modules=["v_proj", "lm_head"]), False),
    "the embeddings of a tied pair": (lora(target_modules=["v_proj", "embed_tokens"]), False),
    "both of a tied pair": (lora(target_modules=["embed_tokens", "lm_head"]), False),
    "the head trained whole": (lora(modules_to_save=["lm_head"]), False),
    "the embeddings trained whole": (lora(modules_to_save=["embed_tokens"]), False),
    "both trained whole, and kept tied": (lora(modules_to_save=["embed_tokens"], ensure_weight_tying=True), True),
    "some tokens": (lora(trainable_token_indices=[5, 6, 7]), False),
}


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
@pytest.mark.filterwarnings("ignore:Model with `tie_word_embeddings=True`")
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.parametrize(("config", "stays_tied"), KINDS.values(), ids=KINDS.keys())
def test_merged_is_unmerged_whatever_is_adapted(
    folder: Path, tmp_path: Path, config: Callable[[], Any], stays_tied: bool
) -> None:
    import torch

    adapter = adapted(folder, tmp_path / "adapter", config())
    done = merge(str(adapter), output=tmp_path / "out")
    merged, unmerged = plain(done.folder), with_peft(adapter)
    torch.testing.assert_close(logits(merged), logits(unmerged), atol=2e-5, rtol=1e-5)
    assert answers(merged) == answers(unmerged)
    assert not torch.allclose(logits(merged), logits(plain(folder)), atol=0.05)
    assert merged.config.tie_word_embeddings is stays_tied
    assert (merged.lm_head.weight is merged.model.embed_tokens.weight) is stays_tied


@pytest.mark.parametrize("settings", [{"use_dora": True}, {"use_rslora": True}, {"use_dora": True, "use_rslora": True}])
def test_what_the_run_file_asks_for_is_merged_as_it_is_unmerged(
    folder: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    """By our own settings, and so by what PEFT makes of them; all linear layers."""
    import torch

    adapted = models.adapt(plain(folder), LoraSettings(r=4, alpha=2, **settings), base_name=str(folder), seed=0)
    drawn = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weights in adapted.parameters():
            if weights.requires_grad:
                weights.add_(torch.randn(weights.shape, generator=drawn), alpha=0.3)
    adapted.save_pretrained(str(tmp_path / "adapter"))
    stored = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    assert {name: stored[name] for name in settings} == settings
    done = merge(str(tmp_path / "adapter"), output=tmp_path / "out")
    merged = plain(done.folder)
    torch.testing.assert_close(logits(merged), logits(with_peft(tmp_path / "adapter")), atol=2e-5, rtol=1e-5)
    assert not torch.allclose(logits(merged), logits(plain(folder)), atol=0.05)
    assert merged.config.tie_word_embeddings


def test_a_kind_that_is_no_part_of_the_weights_is_refused(folder: Path, tmp_path: Path) -> None:
    from peft import PromptTuningConfig

    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    adapter = adapted(folder, tmp_path / "adapter", config)
    with pytest.raises(SharingError, match="which is no part of the weights"):
        merge(str(adapter), output=tmp_path / "out")
    assert not list(tmp_path.glob("*out*"))


def test_a_sum_that_is_another_model_is_refused_and_nothing_of_it_kept(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merge_weights, "untie", spoiled)
    with pytest.raises(SharingError, match=r"merged and unmerged differ by .* in float32, .* Nothing was kept"):
        merge(str(adapter), output=tmp_path / "out")
    assert not list(tmp_path.glob("*out*"))


def spoiled(model: Any) -> None:
    """Scale one of the updates after the model was asked, as an adapter that is added twice would."""
    import torch

    with torch.no_grad():
        next(w for name, w in model.named_parameters() if "lora_B" in name).mul_(2.0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_that_come_back_otherwise_from_the_disk_are_refused(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    load = models.load

    def damaged(weights: models.Weights, **options: Any) -> Any:
        import torch

        model = load(weights, **options)
        if weights.identity == "merged":
            with torch.no_grad():
                model.model.norm.weight.mul_(0.5)
        return model

    monkeypatch.setattr(models, "load", damaged)
    with pytest.raises(SharingError, match=rf"where rounding to {dtype} explains .* Nothing was kept"):
        merge(str(adapter), output=tmp_path / "out", dtype=dtype)
    assert not list(tmp_path.glob("*out*"))


def test_numbers_that_a_precision_cannot_hold_are_refused(folder: Path, adapter: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] *= 1e6
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SharingError, match=r"in float16 the logits are not finite .* merge with --dtype bfloat16"):
        merge(str(adapter), output=tmp_path / "out", dtype="float16")
    assert not list(tmp_path.glob("*out*"))


def test_a_tokenizer_that_is_another_after_copying_is_refused(
    folder: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "added.json").write_text("{}", encoding="utf-8")
    copy = merge_weights.copy_tokenizer

    def loses_the_template(weights: models.Weights, part: Path, *, with_code: bool) -> None:
        copy(weights, part, with_code=with_code)
        (part / "chat_template.jinja").write_text("{{ messages[0].content }}<|im_end|>", encoding="utf-8")

    monkeypatch.setattr(merge_weights, "copy_tokenizer", loses_the_template)
    with pytest.raises(SharingError, match="is another one after it was copied"):
        merge(str(adapter), output=tmp_path / "out")


def test_memory_that_does_not_suffice_is_a_message(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def out(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA out of memory. Tried to allocate 14 GiB")

    monkeypatch.setattr(merge_weights, "add", out)
    with pytest.raises(SharingError, match="it takes 4 bytes for each parameter of the base"):
        merge(str(adapter), output=tmp_path / "out")


def test_probes_are_the_prompts_of_the_run_first(adapter_run: Path, tiny_model: Path) -> None:
    from radistill.chat import ChatSettings, load_chat
    from radistill.tables import read_records

    chat = load_chat(tiny_model, ChatSettings())
    records = list(read_records(adapter_run / "records.parquet"))
    found = merge_check.probes(adapter_run / "records.parquet", chat, 256)
    assert len(found) == len({probe.prompt_ids for probe in found}) == merge_check.PROMPTS
    assert found[0].ids == records[0].token_ids
    assert found[0].prompt_ids == records[0].token_ids[: records[0].segments[0].stop]
    assert len(merge_check.probes(None, chat, 256)) == merge_check.PROMPTS
    assert all(len(probe.ids) < 40 for probe in merge_check.probes(adapter_run / "records.parquet", chat, 40))
