"""Models: found by folder, run folder or hub id; known by what is in them; refused with one message."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from radistill import models
from radistill.errors import ModelError
from radistill.files import sha256
from radistill.models import adapt, context_length, fingerprint, load, refuse_adapter, resolve, save
from radistill.stage_settings import LoraSettings


def edit(file: Path, **values: Any) -> None:
    stored = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**stored, **values}), encoding="utf-8")


def test_a_folder_is_found_by_its_path_and_from_home(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = resolve(str(folder))
    assert (found.name, found.folder, found.adapter) == (str(folder), folder, None)
    assert found.tokenizer_folder == folder
    assert found.identity == fingerprint(folder)
    monkeypatch.setenv("HOME", str(folder.parent))
    assert resolve("~/tiny").folder == folder
    monkeypatch.chdir(folder.parent)
    assert resolve("tiny").identity == found.identity


def test_a_run_folder_stands_for_the_model_in_it(folder: Path, adapter: Path, tmp_path: Path) -> None:
    full = shutil.copytree(folder, tmp_path / "full-run" / "model")
    assert resolve(str(full.parent)).folder == full
    assert resolve(str(adapter.parent)) == resolve(str(adapter))


def test_an_adapter_brings_its_base_and_has_an_identity_of_both(folder: Path, adapter: Path, tmp_path: Path) -> None:
    found = resolve(str(adapter))
    assert (found.folder, found.adapter, found.tokenizer_folder) == (folder, adapter, folder)
    assert found.identity == f"{fingerprint(folder)}+{fingerprint(adapter)}"
    shutil.copy(folder / "tokenizer_config.json", adapter)
    assert resolve(str(adapter)).tokenizer_folder == adapter


def logits(model: Any) -> Any:
    import torch

    with torch.inference_mode():
        return model(input_ids=torch.tensor([[5, 6, 7, 8]])).logits


def test_a_loaded_adapter_is_applied_and_the_base_stays_as_it_was(folder: Path, adapter: Path) -> None:
    import torch

    base, tuned = load(resolve(str(folder))), load(resolve(str(adapter)))
    assert not base.training
    assert not tuned.training
    assert not torch.allclose(logits(base), logits(tuned), atol=1e-2)
    with tuned.disable_adapter():
        torch.testing.assert_close(logits(tuned), logits(base))


def test_a_loaded_model_keeps_nothing_of_its_generation_config(folder: Path, adapter: Path) -> None:
    from transformers import GenerationConfig

    edit(folder / "generation_config.json", repetition_penalty=3.0, max_length=7, top_k=3)
    nothing = GenerationConfig().to_diff_dict()
    for place in (folder, adapter):
        assert load(resolve(str(place))).generation_config.to_diff_dict() == nothing


def test_the_dtype_is_as_stored_unless_another_is_asked_for(folder: Path) -> None:
    def dtype(**asked: str) -> str:
        return str(next(load(resolve(str(folder)), **asked).parameters()).dtype)  # type: ignore[arg-type]

    assert dtype() == "torch.float32"
    assert dtype(dtype="bfloat16") == "torch.bfloat16"
    assert dtype(dtype="float16") == "torch.float16"


IDENTITY: dict[str, tuple[Callable[[Path], object], bool]] = {
    "weights": (lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes() + b"\0"), True),
    "another shard": (lambda f: (f / "model-2.safetensors").write_bytes(b"x"), True),
    "a renamed shard": (lambda f: (f / "model.safetensors").rename(f / "model-1.safetensors"), True),
    "config": (lambda f: edit(f / "config.json", rope_theta=1.0), True),
    "README": (lambda f: (f / "README.md").write_text("new"), False),
    "another file": (lambda f: (f / "notes.json").write_text("{}"), False),
    "time": (lambda f: os.utime(f / "config.json", (1, 1)), False),
    "place": (lambda f: f.rename(f.with_name("moved")), False),
}


@pytest.mark.parametrize(("change", "changes"), IDENTITY.values(), ids=IDENTITY.keys())
def test_the_fingerprint_is_of_weights_and_config_alone(
    folder: Path, change: Callable[[Path], object], changes: bool
) -> None:
    before = fingerprint(folder)
    assert before == fingerprint(folder)
    change(folder)
    after = fingerprint(folder if folder.exists() else folder.with_name("moved"))
    assert (after != before) is changes


def test_a_fingerprint_is_computed_once(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    hashed: list[Path] = []

    def counting(path: Path) -> str:
        hashed.append(path)
        return sha256(path)

    monkeypatch.setattr(models, "sha256", counting)
    first = fingerprint(folder)
    assert {path.name for path in hashed} == {"model.safetensors", "config.json"}
    hashed.clear()
    assert fingerprint(folder) == first
    assert hashed == []
    edit(folder / "config.json", changed=True)
    assert fingerprint(folder) != first
    assert [path.name for path in hashed] == ["config.json"]


@pytest.mark.parametrize("stored", ["", "[]", "3", "{", '{"KEY": 5}', '{"KEY": null}'])
def test_a_damaged_memory_of_checksums_is_ignored(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored: str
) -> None:
    expected = fingerprint(folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    config = folder / "config.json"
    key = f"{config.resolve()}:{config.stat().st_size}:{config.stat().st_mtime_ns}"
    (tmp_path / "radistill").mkdir()
    (tmp_path / "radistill" / "checksums.json").write_text(stored.replace("KEY", key))
    assert fingerprint(folder) == expected


def test_a_home_that_cannot_be_written_to_costs_nothing_but_time(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = fingerprint(folder)
    (tmp_path / "file").write_text("")
    for place in (str(tmp_path / "file"), str(tmp_path / "file" / "below"), "/proc/nowhere"):
        monkeypatch.setenv("XDG_CACHE_HOME", place)
        assert fingerprint(folder) == expected
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    assert fingerprint(folder) == expected


def refused(name: Path | str, **options: Any) -> str:
    with pytest.raises(ModelError) as error:
        resolve(str(name), **options)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("file", ["pytorch_model.bin", "consolidated.00.pth", "model.pt", "last.ckpt"])
def test_weights_that_can_run_code_are_refused_by_name(folder: Path, file: str) -> None:
    (folder / "model.safetensors").rename(folder / file)
    (folder / "training_args.bin").write_bytes(b"")
    message = refused(folder)
    assert f"holds its weights only as {file}: pickle files can run code" in message
    assert "save_pretrained(NEW_FOLDER)" in message
    (folder / file).unlink()
    assert "holds a config.json but no weights (*.safetensors)" in refused(folder)


def test_a_pickle_is_not_opened_although_there_are_safetensors_beside_it(folder: Path) -> None:
    import torch
    from safetensors.torch import load_file

    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load(resolve(str(folder)))


def test_an_adapter_of_pickles_is_refused(adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    assert "is an adapter without adapter_model.safetensors. Save it again" in refused(adapter)


def test_what_is_no_model_is_told_with_what_could_be_meant(folder: Path, tmp_path: Path) -> None:
    assert f"the folder does not exist. Did you mean '{folder}'?" in refused(f"{folder}y")
    assert "the folder does not exist" in refused("./nowhere")
    assert "the folder does not exist" in refused("~nobody/model")
    assert "the folder does not exist" in refused("a/b/c")
    assert "holds no model: neither config.json nor adapter_config.json is there" in refused(tmp_path)
    assert "holds no model" in refused(folder / "config.json")


@pytest.mark.parametrize("name", ["nobody/nothing", "nothing", "two words", "a//b", "ä/ö", "x" * 200])
def test_a_hub_id_that_cannot_be_had_is_one_message(monkeypatch: pytest.MonkeyPatch, name: str, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert "no model" in refused(name)
    assert "no model" in refused(name, revision="no-such-branch")
    (tmp_path / f"{name[:9].replace('/', '')}-else").mkdir()
    assert name != "nothing" or "Did you mean 'nothing-else'?" in refused("nothing-elsa")


def test_a_hub_id_is_known_by_its_commit(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None, list[str]]] = []

    def download(name: str, *, revision: str | None, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        assert "original/*" in ignore_patterns
        asked.append((name, revision, allow_patterns))
        return str(shutil.copytree(folder, tmp_path / "snapshots" / "0123abc", dirs_exist_ok=True))

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    monkeypatch.chdir(tmp_path)
    found = resolve("somebody/tiny", revision="v1")
    assert (found.name, found.identity) == ("somebody/tiny", "somebody/tiny@0123abc")
    assert asked[0][:2] == ("somebody/tiny", "v1")
    assert not {"*.bin", "*.pt", "*.py"} & set(asked[0][2])
    resolve("somebody/tiny", trust_remote_code=True)
    assert "*.py" in asked[1][2]
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    shutil.rmtree(tmp_path / "snapshots")
    assert "pickle files can run code" in refused("somebody/tiny")


BAD_ADAPTERS: dict[str, tuple[str, str]] = {
    "not JSON": ("{", "adapter_config.json is not valid JSON"),
    "a list": ("[]", "adapter_config.json holds no JSON object"),
    "no base": ("{}", "names no base_model_name_or_path"),
    "null base": ('{"base_model_name_or_path": null}', "names no base_model_name_or_path"),
    "lost base": ('{"base_model_name_or_path": "./gone"}', "and its base cannot be found: no model at ./gone"),
    "itself": ('{"base_model_name_or_path": "SELF"}', "names itself as its base"),
    "its run": ('{"base_model_name_or_path": "RUN"}', "names itself as its base"),
}


@pytest.mark.parametrize(("text", "told"), BAD_ADAPTERS.values(), ids=BAD_ADAPTERS.keys())
def test_an_adapter_that_leads_nowhere_is_told_as_such(adapter: Path, text: str, told: str) -> None:
    text = text.replace("SELF", str(adapter)).replace("RUN", str(adapter.parent))
    (adapter / "adapter_config.json").write_text(text)
    assert told in refused(adapter)


def test_an_adapter_on_top_of_an_adapter_is_refused_and_never_half_loaded(adapter: Path, tmp_path: Path) -> None:
    second = Path(shutil.copytree(adapter, tmp_path / "second"))
    edit(second / "adapter_config.json", base_model_name_or_path=str(adapter))
    assert "which is an adapter itself. Merge that one into its base first" in refused(second)
    with pytest.raises(ModelError, match="is an adapter itself, and one on top of it could not be loaded again"):
        refuse_adapter(resolve(str(adapter)))


def spoil(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    """Change the tensors of a model's weights."""

    def spoil(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return spoil


LOST = "model.layers.1.mlp.up_proj.weight"
SPOILED: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut": (lambda f: os.truncate(f / "model.safetensors", 9000), "cannot be loaded"),
    "empty": (lambda f: (f / "model.safetensors").write_bytes(b""), "cannot be loaded"),
    "a lost tensor": (spoil(lambda t: t.pop(LOST)), f"lacks 1 of its tensors ({LOST}): fetch it again"),
    "another shape": (spoil(lambda t: t.update({LOST: t[LOST][:3].clone()})), "cannot be loaded"),
    "unknown type": (lambda f: edit(f / "config.json", model_type="from-the-future"), "cannot be loaded"),
    "no JSON": (lambda f: (f / "config.json").write_text("{"), "is not a valid JSON file"),
    "a lost shard": (lambda f: (f / "model.safetensors").rename(f / "model-1-of-2.safetensors"), "cannot be loaded"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "told"), SPOILED.values(), ids=SPOILED.keys())
def test_a_model_that_is_not_whole_is_never_filled_up_with_random_numbers(
    folder: Path, change: Callable[[Path], object], told: str
) -> None:
    change(folder)
    with pytest.raises(ModelError) as error:
        load(resolve(str(folder)))
    assert told in str(error.value)
    assert str(folder) in str(error.value)


@pytest.mark.parametrize("attention", ["sdpaa", "flash_attention_2"])
def test_an_attention_kernel_that_is_not_there_is_a_message(folder: Path, attention: str) -> None:
    with pytest.raises(ModelError, match="cannot be loaded"):
        load(resolve(str(folder)), attention=attention)


@pytest.mark.parametrize(
    ("targets", "told"),
    [
        ("q_prj", "('q_prj',) is not in this model; it has ['down_proj', 'gate_proj', 'k_proj', "),
        (("q_proj", "v_prj"), "('v_prj',) is not in this model; "),
        (("proj",), "('proj',) is not in this model"),
        (("lm_haed",), "('lm_haed',) is not in this model"),
        (("q_proj", "lm_head"), "'lm_head' is the output head, which is never adapted"),
        ("", "('',) is not in this model"),
        ("mlp", "train.lora: Target module LlamaMLP"),
    ],
)
def test_a_target_module_that_is_not_there_is_never_left_out_in_silence(folder: Path, targets: Any, told: str) -> None:
    model = load(resolve(str(folder)))
    with pytest.raises(ModelError) as error:
        adapt(model, LoraSettings(target_modules=targets), base_name="x", seed=0)
    assert told in str(error.value)
    assert "v_prj" not in targets or "Did you mean 'v_proj'?" in str(error.value)


@pytest.mark.parametrize(
    ("targets", "adapted"),
    [
        ("q_proj", {"q_proj"}),
        (("q_proj", "mlp.up_proj"), {"q_proj", "up_proj"}),
        (("layers.1.self_attn.v_proj",), {"v_proj"}),
        ("all-linear", {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}),
    ],
)
def test_target_modules_are_named_singly_in_a_list_or_all(folder: Path, targets: Any, adapted: set[str]) -> None:
    model = adapt(load(resolve(str(folder))), LoraSettings(target_modules=targets), base_name="x", seed=0)
    trained = [name for name, weights in model.named_parameters() if weights.requires_grad]
    assert {name.split(".")[-4] for name in trained} == adapted
    if "1" in str(targets):
        assert all(".layers.1." in name for name in trained)


def test_fresh_adapters_change_nothing_are_seeded_and_are_all_that_is_trained(folder: Path) -> None:
    import torch

    base = resolve(str(folder))
    adapted = [adapt(load(base), LoraSettings(r=2, dropout=0.5), base_name="hub/id", seed=seed) for seed in (0, 0, 1)]
    for model in adapted:
        torch.testing.assert_close(logits(model.eval()), logits(load(base)))
        assert {n.split(".")[-3] for n, p in model.named_parameters() if p.requires_grad} == {"lora_A", "lora_B"}
        assert model.peft_config["default"].base_model_name_or_path == "hub/id"
    first, same, other = (torch.cat([p.flatten() for n, p in m.named_parameters() if "lora_A" in n]) for m in adapted)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert not any("lm_head" in n and "lora" in n for n, _ in adapted[0].named_parameters())


def test_a_saved_adapter_names_its_modules_in_one_order_and_can_be_read_by_others(folder: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    adapted = adapt(load(resolve(str(folder))), LoraSettings(r=2), base_name=str(folder), seed=0)
    umask = os.umask(0o022)
    try:
        save(adapted, AutoTokenizer.from_pretrained(str(folder)), tmp_path / "saved")
    finally:
        os.umask(umask)
    names = json.loads((tmp_path / "saved" / "adapter_config.json").read_text())["target_modules"]
    assert names == sorted(names)
    assert len(names) >= 7
    assert (tmp_path / "saved" / "adapter_model.safetensors").stat().st_mode & 0o777 == 0o644


def test_a_saved_model_is_whole_and_generates_as_the_untouched_one_did(folder: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    edit(folder / "generation_config.json", eos_token_id=[2, 0], temperature=0.5)
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    save(load(resolve(str(folder))), tokenizer, tmp_path / "saved", generation_config=folder / "generation_config.json")
    assert resolve(str(tmp_path / "saved")).folder == tmp_path / "saved"
    stored = json.loads((tmp_path / "saved" / "generation_config.json").read_text())
    assert (stored["eos_token_id"], stored["temperature"]) == ([2, 0], 0.5)
    assert AutoTokenizer.from_pretrained(str(tmp_path / "saved")).chat_template == tokenizer.chat_template
    save(load(resolve(str(folder))), tokenizer, tmp_path / "plain", generation_config=tmp_path / "none.json")
    assert "temperature" not in json.loads((tmp_path / "plain" / "generation_config.json").read_text())


@pytest.mark.parametrize(
    ("values", "expected"),
    [({}, 256), ({"max_position_embeddings": None, "n_positions": 77}, 77), ({"max_position_embeddings": None}, None)],
)
def test_the_context_is_what_the_config_says(folder: Path, values: dict[str, Any], expected: int | None) -> None:
    edit(folder / "config.json", **values)
    assert context_length(folder) == expected


def test_a_hub_id_may_be_an_adapter(adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(adapter))
    monkeypatch.chdir(tmp_path)
    assert resolve("somebody/adapter").adapter == adapter
