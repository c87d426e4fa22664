"""Merged = unmerged: in float32 to the last digit that counts, in 16 bits within rounding; or nothing is kept."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from radistill import merge_check, models
from radistill.errors import ModelError, RunFolderError, SharingError
from radistill.merge import merge
from radistill.runs import RunFolder
from test_models import edit

PROMPTS = ([5, 6, 7, 8], [300, 17, 42], [9] * 12)


def logits(model: Any) -> Any:
    import torch

    with torch.inference_mode():
        return torch.cat([model(input_ids=torch.tensor([ids])).logits[0] for ids in PROMPTS])


def answers(model: Any) -> list[list[int]]:
    import torch

    with torch.inference_mode():
        return [
            model.generate(
                input_ids=torch.tensor([ids]),
                attention_mask=torch.ones(1, len(ids)),
                do_sample=False,
                max_new_tokens=16,
            )[0].tolist()
            for ids in PROMPTS
        ]


def plain(folder: Path) -> Any:
    """As any user of transformers loads it."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(str(folder)).eval()


def with_peft(adapter: Path) -> Any:
    """As any user of PEFT loads it."""
    from peft import AutoPeftModelForCausalLM

    return AutoPeftModelForCausalLM.from_pretrained(str(adapter)).eval()


def test_merged_is_unmerged_in_plain_transformers_and_peft(run_folder: Path, tiny_model: Path) -> None:
    import torch

    done = merge(str(run_folder))
    assert (done.folder, done.dtype, done.is_new) == (run_folder / "merged", "float32", True)
    merged, unmerged, base = plain(done.folder), with_peft(run_folder / "model"), plain(tiny_model)
    torch.testing.assert_close(logits(merged), logits(unmerged), atol=1e-5, rtol=0)
    assert answers(merged) == answers(unmerged)
    assert not torch.allclose(logits(base), logits(unmerged), atol=0.05)
    assert answers(base) != answers(unmerged)
    found = done.comparison
    assert (found.texts, found.answers, found.equal_answers) == (20, 20, 20)
    assert found.largest <= 1e-5
    assert found.rounding_mean == 0.0
    assert found.adapter_mean > 0.05


def test_an_adapter_that_is_off_leaves_the_untouched_model_to_the_last_bit(adapter_run: Path, tiny_model: Path) -> None:
    import torch

    base, tuned = plain(tiny_model), with_peft(adapter_run / "model")
    with tuned.disable_adapter():
        assert torch.equal(logits(tuned), logits(base))
        assert answers(tuned) == answers(base)
    frozen = {
        name.replace(".base_layer", "").removeprefix("base_model.model."): w for name, w in tuned.named_parameters()
    }
    for name, weights in base.named_parameters():
        assert torch.equal(frozen[name], weights), name


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_in_sixteen_bits_merging_costs_little_more_than_rounding(run_folder: Path, dtype: str) -> None:
    import torch

    done = merge(str(run_folder), dtype=dtype)
    found = done.comparison
    assert 0 < found.mean <= merge_check.ROUNDED * found.rounding_mean
    assert found.mean < found.adapter_mean / 4
    assert found.sum_largest <= 1e-5
    assert models.stored_dtype(done.folder) == getattr(torch, dtype)
    merged = plain(done.folder)
    assert {weights.dtype for weights in merged.parameters()} == {getattr(torch, dtype)}
    exact = models.load(models.resolve(str(run_folder)), dtype="float32")
    assert float((logits(merged).float() - logits(exact)).abs().mean()) < 0.1


def test_everything_that_belongs_to_a_model_is_there_and_readable(run_folder: Path, tiny_model: Path) -> None:
    from transformers import AutoTokenizer

    folder = merge(str(run_folder)).folder
    names = {file.name for file in folder.iterdir()}
    assert names == {
        *("README.md", "config.json", "model.safetensors", "merge.json", "generation_config.json"),
        *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
    }
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (folder / name).read_bytes() == (run_folder / "model" / name).read_bytes()
    assert (folder / "generation_config.json").read_bytes() == (tiny_model / "generation_config.json").read_bytes()
    assert len({file.stat().st_mode for file in folder.iterdir()}) == 1
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    chat = [{"role": "user", "content": "The old dog."}]
    assert tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False).endswith("assistant\n")
    assert models.load(models.resolve(str(folder))).config.tie_word_embeddings is True


def test_the_card_says_what_was_compared_and_names_no_place_on_this_machine(run_folder: Path, tmp_path: Path) -> None:
    folder = merge(str(run_folder), dtype="bfloat16").folder
    card = (folder / "README.md").read_text(encoding="utf-8")
    found = json.loads((folder / "merge.json").read_text(encoding="utf-8"))["compared"]
    assert f"| merged and unmerged, both in bfloat16 | {found['mean']:.2g} | {found['largest']:.2g} |" in card
    assert f"tokens that are equal: {found['equal_answers']} of 20" in card
    assert "# small" in card
    assert "learning rate 0.02, 6 steps, seed 0" in card
    assert "base_model" not in card, "the hub knows no folder of this machine"
    for file in folder.glob("*.*"):
        assert str(tmp_path).encode() not in file.read_bytes(), file.name
        assert b"/tmp" not in file.read_bytes() or file.suffix == ".safetensors", file.name


def test_a_second_merge_finds_the_first_and_one_of_other_weights_is_not_overwritten(run_folder: Path) -> None:
    folder = merge(str(run_folder)).folder
    before = (folder / "model.safetensors").stat().st_mtime_ns
    again = merge(str(run_folder))
    assert not again.is_new
    assert again.comparison.equal_answers == 20
    with pytest.raises(RunFolderError, match=r"dtype: float32 there, bfloat16 now\nReplace it with .* --redo"):
        merge(str(run_folder), dtype="bfloat16")
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    assert merge(str(run_folder), dtype="bfloat16", redo=True).is_new
    assert models.read_object(folder / "config.json")["dtype"] == "bfloat16"
    assert [p.name for p in run_folder.iterdir() if p.name.endswith(".part")] == []


@pytest.mark.parametrize("redo", [False, True])
def test_a_folder_of_the_users_is_never_replaced(run_folder: Path, tmp_path: Path, redo: bool) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work", encoding="utf-8")
    with pytest.raises(RunFolderError, match="is no merged model, so it is left alone"):
        merge(str(run_folder), output=tmp_path / "mine", redo=redo)
    (tmp_path / "file").write_text("a file", encoding="utf-8")
    with pytest.raises(RunFolderError, match="is no merged model"):
        merge(str(run_folder), output=tmp_path / "file", redo=redo)
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
    (tmp_path / "empty").mkdir()
    assert merge(str(run_folder), output=tmp_path / "empty").is_new


def test_a_full_model_has_nothing_to_merge(full_run: Path, tiny_model: Path) -> None:
    for name in (full_run, full_run / "model", tiny_model):
        with pytest.raises(SharingError, match="holds a full model, not an adapter: there is nothing to merge"):
            merge(str(name))


def test_a_run_that_is_not_trained_is_told_which_stage_it_lacks(run_folder: Path) -> None:
    RunFolder(run_folder).put_stage(None, forget=["train"])
    with pytest.raises(RunFolderError, match="the stage `train` is not finished"):
        merge(str(run_folder))


def test_an_adapter_outside_a_run_is_merged_where_the_user_says(adapter: Path, tmp_path: Path) -> None:
    import torch

    with pytest.raises(SharingError, match="belongs to no run folder, so name one for the merged model: --output DIR"):
        merge(str(adapter))
    done = merge(str(adapter), output=tmp_path / "out")
    assert (done.comparison.texts, done.comparison.equal_answers) == (20, 20)
    torch.testing.assert_close(logits(plain(done.folder)), logits(with_peft(adapter)), atol=1e-5, rtol=0)


def test_an_unknown_precision_is_refused(run_folder: Path) -> None:
    with pytest.raises(SharingError, match="--dtype: 'int4' is none of auto, bfloat16"):
        merge(str(run_folder), dtype="int4")


def hub_base(monkeypatch: pytest.MonkeyPatch, folder: Path, adapter: Path) -> None:
    """Let the adapter name its base by a hub id, which stands in the cache."""
    edit(adapter / "adapter_config.json", base_model_name_or_path="somebody/tiny", revision="v1")

    def download(name: str, *, revision: str | None, **_: object) -> str:
        assert (name, revision) == ("somebody/tiny", "v1")
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)


def test_a_base_on_the_hub_is_found_by_its_id_and_named_in_the_card(
    folder: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub_base(monkeypatch, folder, adapter)
    done = merge(str(adapter), output=tmp_path / "out")
    assert done.comparison.equal_answers == 20
    card = (done.folder / "README.md").read_text(encoding="utf-8")
    assert "base_model: somebody/tiny\n" in card
    assert "`somebody/tiny` with a fine-tuned adapter" in card


def test_a_base_that_was_moved_is_asked_for_and_taken_from_its_new_place(run_folder: Path, tiny_model: Path) -> None:
    import torch

    here = Path(shutil.copytree(tiny_model, run_folder.parent / "moved"))
    edit(run_folder / "model" / "adapter_config.json", base_model_name_or_path=str(run_folder.parent / "gone"))
    with pytest.raises(ModelError, match=r"its base cannot be found: .* say where: --base FOLDER_OR_HUB_ID"):
        merge(str(run_folder))
    done = merge(str(run_folder), base=str(here))
    edit(run_folder / "model" / "adapter_config.json", base_model_name_or_path=str(here))
    torch.testing.assert_close(logits(plain(done.folder)), logits(with_peft(run_folder / "model")), atol=1e-5, rtol=0)


def another_model(folder: Path, **sizes: int) -> str:
    from tiny import make_model, sentences

    make_model(folder, corpus=[side for pair in sentences(800, "corpus") for side in pair], **{"hidden": 32, **sizes})
    return str(folder)


def test_weights_that_the_run_was_not_trained_on_are_refused(run_folder: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    other = Path(another_model(tmp_path / "other"))
    tensors = load_file(other / "model.safetensors")
    tensors["model.norm.weight"] += torch.ones(1)
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"was trained on another base than .*other is now"):
        merge(str(run_folder), base=str(other))


@pytest.mark.parametrize(
    ("sizes", "told"),
    [
        ({"layers": 1}, "of its tensors have no place there, 0 places stay empty"),
        ({"layers": 3}, "0 of its tensors have no place there, "),
        ({"hidden": 64}, "cannot be loaded"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused_and_never_half_merged(
    adapter: Path, tmp_path: Path, sizes: dict[str, int], told: str
) -> None:
    other = another_model(tmp_path / "other", **sizes)
    with pytest.raises(ModelError) as error:
        merge(str(adapter), base=other, output=tmp_path / "out")
    assert told in str(error.value)
    assert not list(tmp_path.glob("*out*"))


def test_an_adapter_is_no_base(adapter: Path, tmp_path: Path) -> None:
    second = shutil.copytree(adapter, tmp_path / "second")
    with pytest.raises(ModelError, match=r"is an adapter itself\. Name the full model"):
        merge(str(adapter), base=str(second), output=tmp_path / "out")


def test_a_quantised_base_is_refused_and_its_original_taken(folder: Path, adapter: Path, tmp_path: Path) -> None:
    small = shutil.copytree(folder, tmp_path / "tiny-4bit")
    edit(small / "config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    edit(adapter / "adapter_config.json", base_model_name_or_path=str(small))
    with pytest.raises(ModelError, match=r"tiny-4bit holds quantised weights \(bitsandbytes\); merged into them"):
        merge(str(adapter), output=tmp_path / "out")
    assert merge(str(adapter), base=str(folder), output=tmp_path / "out").comparison.equal_answers == 20
