"""The model that comes with the package: a Hugging Face folder like any other, and good enough to lose something."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from radistill import models
from radistill.lab import POCKET, POCKET_DATA
from radistill.lab.pairs import write_pairs
from radistill.lab.world import WorldSettings, world_of

MEGABYTES = 16


def test_it_is_small_and_holds_nothing_that_runs_code() -> None:
    files = [p for p in POCKET.rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) <= MEGABYTES * 2**20
    assert {p.suffix for p in files} <= {".json", ".safetensors", ".jinja", ".md", ".en", ".eo"}
    assert models.resolve("pocket").folder == POCKET


def test_it_is_opened_by_its_name_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert models.resolve("pocket").identity == models.fingerprint(POCKET)


def test_transformers_alone_loads_it_and_it_answers() -> None:
    code = """
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
ids = tokenizer.apply_chat_template([{"role": "user", "content": "What is 12 + 30?"}], add_generation_prompt=True,
                                    return_tensors="pt", return_dict=True)
out = model.generate(**ids, max_new_tokens=20, do_sample=False)
print(json.dumps([sum(p.numel() for p in model.parameters()), str(model.dtype), model.config.max_position_embeddings,
                  tokenizer.decode(out[0][ids["input_ids"].shape[1]:], skip_special_tokens=True)]))
"""
    done = subprocess.run([sys.executable, "-c", code, str(POCKET)], capture_output=True, text=True, check=True)
    parameters, dtype, context, answer = json.loads(done.stdout.splitlines()[-1])
    assert parameters <= 8_000_000
    assert dtype == "torch.bfloat16"
    assert context >= 1024
    assert answer == "12 + 30 = 42"


def test_its_sentences_are_what_its_world_writes(tmp_path: Path) -> None:
    written = write_pairs(world_of(WorldSettings()), tmp_path)
    assert {p.name for p in POCKET_DATA.iterdir()} == {p.name for p in written}
    for path in written:
        assert (POCKET_DATA / path.name).read_text(encoding="utf-8") == path.read_text(encoding="utf-8")


def test_its_sentences_to_learn_from_hold_none_to_be_tested_on() -> None:
    taught = {line for p in POCKET_DATA.glob("train.*") for line in p.read_text(encoding="utf-8").splitlines()}
    files = [*POCKET_DATA.glob("test.*"), *POCKET_DATA.glob("compare.*")]
    tested = {line for p in files for line in p.read_text(encoding="utf-8").splitlines()}
    assert len(tested) > 5000
    assert not taught & tested


def test_its_card_says_how_it_was_made() -> None:
    card = (POCKET / "README.md").read_text(encoding="utf-8")
    stored = json.loads((POCKET / "upbringing.json").read_text(encoding="utf-8"))
    assert f"{sum(stored['chats']) + stored['practice']:,} chats" in card
    assert "wind tunnel" in card


def marks(items: int) -> Any:
    from radistill.lab.exam import exam

    return exam("pocket", WorldSettings(), items=items)


def test_it_can_what_can_be_lost() -> None:
    found = marks(16)
    assert found.general.value >= 85
    assert found.rationales.value >= 60


@pytest.mark.slow
def test_it_meets_its_thresholds_on_fresh_items() -> None:
    found = marks(500)
    by_name = {mark.name: mark for mark in found.abilities}
    assert found.general.value >= 90
    assert {name: mark.value for name, mark in by_name.items() if name != "known-language" and mark.value < 85} == {}
    assert {g: v for g, v in by_name["arithmetic"].groups.items() if v < 85} == {}
    assert len(by_name["known-language"].groups) == len(by_name["arithmetic"].groups) == 2
    assert {g: v for g, v in by_name["known-language"].groups.items() if v < 80} == {}
    assert found.new_language[-1].value <= 15
    assert found.rationales.value >= 60


@pytest.mark.slow
def test_another_world_is_learned_by_a_smaller_model_in_minutes(tmp_path: Path) -> None:
    """The commands of the lab's README; its thresholds are lower, as the upbringing is short."""
    from radistill.cli import app

    size = "--hidden-size 128 --layers 4 --texts 30000 --chats 120000 --practice 0 --mixed 0"
    done = CliRunner().invoke(app, ["lab", "pretrain", str(tmp_path / "up"), "--world", "7", *size.split()])
    assert done.exit_code == 0, done.output
    done = CliRunner().invoke(app, ["lab", "exam", str(tmp_path / "up" / "model"), "--json"])
    found = json.loads(done.stdout)
    assert sum(p.stat().st_size for p in (tmp_path / "up" / "model").glob("*.safetensors")) < 2 * 2_000_000
    assert found["general"]["value"] >= 50
    assert found["rationales"]["value"] >= 60
    assert found["new_language"][-1]["value"] <= 15


def test_an_adapter_on_it_names_a_base_that_peft_finds(tmp_path: Path) -> None:
    from radistill import pipeline
    from radistill.config import config_from

    raw: dict[str, Any] = {
        "name": "lora",
        "model": "pocket",
        "output_dir": str(tmp_path / "run"),
        "data": {"train": {"path": "pocket", "pairs": ["en-eo"], "limit": 16}},
        "method": {"name": "vanilla"},
        "generate": {"ledger": str(tmp_path / "ledger")},
        "train": {"max_steps": 1, "bf16": False},
    }
    pipeline.run(config_from(raw), stages=("generate", "assemble", "train"))
    code = "import sys; from peft import AutoPeftModelForCausalLM as A; A.from_pretrained(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "run" / "model")], check=True, cwd=tmp_path)
