"""The upbringing of a pocket model: what is trained on, that it can be repeated, and that it can be interrupted."""

import json
from pathlib import Path

import pytest

from radistill.chat import ChatSettings, load_chat
from radistill.config import RunConfig
from radistill.errors import RadistillError, RunFolderError
from radistill.files import sha256
from radistill.lab import pretrain as module
from radistill.lab import upbringing
from radistill.lab.pretrain import Upbringing, pretrain
from radistill.lab.world import WorldSettings, world_of
from radistill.records import Message
from radistill.runs import RunFolder
from radistill.tables import read_jsonl, read_records

SMALL = Upbringing(
    world=WorldSettings(number=5),
    hidden_size=64,
    intermediate_size=64,
    layers=1,
    vocabulary=400,
    context=256,
    texts=96,
    chats=(128, 64),
    practice=160,
    mixed=65,
    batch_size=32,
)


MIXED = "mixed-after-practice"


@pytest.fixture(scope="module", autouse=True)
def _few_texts_for_the_tokenizer() -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SAMPLE", 300)
        yield


@pytest.fixture(scope="module")
def raised(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lab") / "raised"
    assert pretrain(SMALL, folder) == folder / "model"
    return folder


def weights(folder: Path) -> str:
    return sha256(folder / "model" / "model.safetensors")


def test_the_model_is_a_hugging_face_folder_in_bfloat16(raised: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(str(raised / "model"))
    tokenizer = AutoTokenizer.from_pretrained(str(raised / "model"))
    assert next(model.parameters()).dtype == torch.bfloat16
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi 42"}], tokenize=False, add_generation_prompt=True
    )
    assert text == "<|user|>Hi 42<|end|><|assistant|>"
    assert tokenizer.convert_ids_to_tokens(tokenizer("42", add_special_tokens=False).input_ids) == ["4", "2"]


def test_equal_settings_give_equal_weights_and_another_seed_others(raised: Path, tmp_path: Path) -> None:
    pretrain(SMALL, tmp_path / "again")
    assert weights(tmp_path / "again") == weights(raised)
    pretrain(SMALL.model_copy(update={"seed": 1}), tmp_path / "other")
    assert weights(tmp_path / "other") != weights(raised)


def test_an_interrupted_upbringing_goes_on_and_comes_out_the_same(
    raised: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    phases = []

    def stop_in_the_second(config: RunConfig, run: RunFolder, *, redo: bool = False) -> object:
        phases.append(run)
        if len(phases) == 2:
            raise KeyboardInterrupt
        return train(config, run, redo=redo)

    from radistill.train import train

    monkeypatch.setattr(module, "train", stop_in_the_second)
    with pytest.raises(KeyboardInterrupt):
        pretrain(SMALL, tmp_path / "stopped")
    assert not (tmp_path / "stopped" / "model").exists()
    monkeypatch.undo()
    monkeypatch.setattr(module, "SAMPLE", 300)
    pretrain(SMALL, tmp_path / "stopped")
    assert weights(tmp_path / "stopped") == weights(raised)


def test_a_folder_of_other_settings_is_refused(raised: Path) -> None:
    for changed in ({"chats": (64, 64)}, {"chats": (128,)}, {"hidden_size": 128}, {"vocabulary": 500}, {"seed": 3}):
        with pytest.raises(RunFolderError, match=next(iter(changed))):
            pretrain(SMALL.model_copy(update=changed), raised)


def test_what_is_no_folder_of_an_upbringing_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    (tmp_path / "mine" / "model").mkdir(parents=True)
    for name in ("file", "mine"):
        with pytest.raises(RadistillError, match=name):
            pretrain(SMALL, tmp_path / name)
    assert not (tmp_path / "mine" / "newborn").exists()


def test_one_more_round_gives_another_model(raised: Path, tmp_path: Path) -> None:
    pretrain(SMALL.model_copy(update={"practice": 0}), tmp_path / "grows")
    first = weights(tmp_path / "grows")
    pretrain(SMALL, tmp_path / "grows")
    assert weights(tmp_path / "grows") == weights(raised) != first
    stored = json.loads((tmp_path / "grows" / "model" / "upbringing.json").read_text(encoding="utf-8"))
    assert stored["practice"] == 160


def test_a_text_is_learned_whole_and_of_a_chat_the_answer_with_its_end(raised: Path) -> None:
    (text, *_), (chat, *_) = (list(read_records(raised / phase / "records.parquet")) for phase in ("texts", "chats"))
    assert [(s.origin, s.weight) for s in text.segments] == [("free", 1.0), ("end", 1.0)]
    assert [(s.origin, s.weight) for s in chat.segments] == [("prompt", 0.0), ("model", 1.0), ("end", 1.0)]


def test_chats_are_put_into_ids_as_every_run_does_it(raised: Path) -> None:
    chat = load_chat(raised / "model", ChatSettings())
    world = world_of(SMALL.world)
    for said, record in zip(
        upbringing.chats(world, 128), read_records(raised / "chats" / "records.parquet"), strict=True
    ):
        opening = chat.opening([Message("user", said.prompt)], said.answer, "")
        assert (*opening.ids, chat.end_id) == record.token_ids


def test_the_last_phase_is_half_chats_and_half_texts_that_begin_after_an_end(raised: Path) -> None:
    rows = list(read_records(raised / MIXED / "records.parquet"))
    texts = [row for row in rows if row.texts[0] == "<|end|>"]
    chats = [row for row in rows if row.texts[0].startswith("<|user|>")]
    assert (len(texts), len(chats)) == (32, 33)
    assert rows[0] in chats
    assert rows[1] in texts
    world = world_of(SMALL.world)
    assert [row.texts[1] for row in texts] == list(upbringing.texts(world, 32, round=4))
    assert not {row.texts[1] for row in texts} & set(upbringing.texts(world, 96))
    assert all((row.segments[0].weight, row.segments[0].stop) == (0.0, 1) for row in texts)


def test_the_card_tells_the_phases(raised: Path) -> None:
    card = " ".join((raised / "model" / "README.md").read_text(encoding="utf-8").split())
    assert "on 96 texts, then 352 chats, then 65 of both, of an invented country" in card


def test_all_phases_are_logged(raised: Path) -> None:
    for phase in ("texts", "chats", "chats-2", "practice", MIXED):
        assert list(read_jsonl(raised / phase / "train_log.jsonl"))[-1]["loss"] > 0


def test_what_was_done_is_not_done_again(raised: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("written again")

    monkeypatch.setattr(module, "write_records", never)
    before = (raised / "model" / "model.safetensors").stat().st_mtime_ns
    pretrain(SMALL, raised)
    assert (raised / "model" / "model.safetensors").stat().st_mtime_ns == before
