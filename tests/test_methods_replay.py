"""Replay: which rows are learned again, how often, and what is refused before anything is written."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fakes_beside import ids_of, rows_in, shape, texts_of, whole
from fixtures_chat import chat_like
from radistill import pipeline
from radistill.backends.echo import EchoGenerator
from radistill.config import config_from
from radistill.errors import ConfigError, DataError
from radistill.lab.abilities import ABILITIES
from radistill.lab.world import WorldSettings
from radistill.methods import replay
from radistill.methods.context_free import ContextFree
from radistill.methods.replay import Replay
from radistill.records import Message, TrainingRecord
from radistill.tasks.lab import Lab


def replayed(method: Replay, examples: int = 10, seed: int = 0, chat: str = "llama-3") -> list[TrainingRecord]:
    run = whole(chat_like(chat), examples, seed)
    assert method.plan_more(run, []) == ()
    return list(method.assemble_more(run, []))


def test_replay_learns_answers_with_their_end_and_belongs_to_no_example(tmp_path: Path) -> None:
    chat = chat_like("llama-3")
    (record,) = replayed(Replay(path=str(rows_in(tmp_path, 1)), ratio=0.1, weight=0.5))
    prompt = chat.prompt([Message("user", "Say the word 0")])
    assert shape(record) == [("prompt", 0), ("replay", 0.5), ("end", 0.5)]
    assert record.token_ids == (*prompt.ids, *ids_of(chat, "the word 0."), chat.end_id)
    assert record.texts == (prompt.text, "the word 0.", "<|eot_id|>")
    assert record.example_id is None
    assert Replay.brings_data
    assert not ContextFree.brings_data


@pytest.mark.parametrize(("ratio", "count"), [(0.01, 1), (0.2, 2), (0.5, 5), (0.6, 6)])
def test_replay_draws_without_replacement_and_more_at_a_larger_ratio(tmp_path: Path, ratio: float, count: int) -> None:
    file = str(rows_in(tmp_path))
    records = replayed(Replay(path=file, ratio=ratio))
    assert len({texts_of(r, "replay")[0] for r in records}) == len(records) == count
    assert records == replayed(Replay(path=file, ratio=0.6))[:count]


def test_replay_begins_again_where_there_are_too_few_rows(tmp_path: Path) -> None:
    records = replayed(Replay(path=str(rows_in(tmp_path)), ratio=1.4))
    said = [texts_of(r, "replay")[0] for r in records]
    assert said == [*said[:6], *said[:6], *said[:2]]
    assert len({r.id for r in records}) == 14


def test_the_order_of_a_replay_is_drawn_by_the_seed_and_not_by_the_file(tmp_path: Path) -> None:
    file = rows_in(tmp_path, 30)
    draws = [[r.id for r in replayed(Replay(path=str(file), ratio=1), seed=seed)] for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(reversed(lines)))
    assert [r.id for r in replayed(Replay(path=str(file), ratio=1))] == draws[0]


def test_replay_reads_other_formats_and_learns_the_last_answer_alone(tmp_path: Path) -> None:
    turns = [
        ("system", "Be good."),
        ("user", "Hello"),
        ("assistant", "Good"),
        ("user", "the word"),
        ("assistant", "house"),
    ]
    chats = [{"messages": [{"role": role, "content": said} for role, said in turns]}]
    alpaca = [{"instruction": "Translate", "input": "Das Haus", "output": "the house"}]
    bare = "source\ttarget\nDas Haus\tthe house\n"
    for name, content in (("chats.json", json.dumps(chats)), ("alpaca.json", json.dumps(alpaca)), ("bare.tsv", bare)):
        (tmp_path / name).write_text(content, encoding="utf-8")
    records = {
        name: replayed(Replay(path=str(tmp_path / name), ratio=0.1))[0]
        for name in ("chats.json", "alpaca.json", "bare.tsv")
    }
    assert texts_of(records["chats.json"], "replay") == ["house"]
    assert all(words in records["chats.json"].texts[0] for words in ("Be good.", "Hello", "Good", "the word"))
    assert "Translate\nDas Haus<" in records["alpaca.json"].texts[0]
    assert "\n\nDas Haus<" in records["bare.tsv"].texts[0]


def test_replay_reads_the_split_of_a_folder_and_tells_its_files(tmp_path: Path) -> None:
    rows_in(tmp_path, 2)
    safety = rows_in(tmp_path, 3, "safety.jsonl")
    method = Replay(path=str(tmp_path), split="safety", ratio=1)
    assert method.files() == (safety,)
    assert len({r.text for r in replayed(method)}) == 3


def test_rows_that_cannot_be_put_into_ids_are_passed_over(tmp_path: Path) -> None:
    file = rows_in(tmp_path, 3)
    bad = json.dumps({"prompt": "Say <|eot_id|>", "completion": "no"})
    file.write_text(f"{bad}\n{file.read_text()}{bad}\n")
    records = replayed(Replay(path=str(file), ratio=0.3))
    assert sorted(texts_of(r, "replay")[0] for r in records) == ["the word 0.", "the word 1.", "the word 2."]
    file.write_text(f"{bad}\n")
    with pytest.raises(DataError, match=r"none of the 1 rows of .* can be used: .*special token '<\|eot_id\|>'"):
        replayed(Replay(path=str(file)))


def test_what_cannot_be_replayed_is_said_before_anything_is_written(
    raw_config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "bad.jsonl").write_text('{"prompt": "Hello", "completion": ""}\n')
    monkeypatch.setattr(EchoGenerator, "answer", None)
    raw_config["generate"]["backend"] = {"name": "echo"}
    for path, message in (
        (None, r"method replay has no data: name a file or folder"),
        (str(tmp_path / "lost.jsonl"), r"^method replay: no file or folder .*lost\.jsonl"),
        (str(tmp_path / "empty.jsonl"), r"^method replay: .*empty\.jsonl holds no rows"),
        (str(tmp_path / "bad.jsonl"), r"^method replay: .*bad\.jsonl has no usable row.*line 1: 'completion' is empty"),
    ):
        raw_config["method"] = [{"name": "radis"}, {"name": "replay", "path": path}]
        with pytest.raises((ConfigError, DataError), match=message):
            pipeline.run(config_from(raw_config), stages=("generate",))
    for ratio in (0, -0.5):
        raw_config["method"] = {"name": "replay", "path": "x", "ratio": ratio}
        with pytest.raises(ConfigError, match=r"method\.ratio"):
            config_from(raw_config)


@pytest.fixture
def _few_chats(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(replay, "POCKET_CHATS", 2000)
    replay._upbringing.cache_clear()
    yield
    replay._upbringing.cache_clear()


@pytest.mark.usefixtures("_few_chats")
def test_true_replay_of_the_pocket_model_holds_nothing_that_is_tested() -> None:
    records = replayed(Replay(path="pocket", ratio=1), examples=1500, chat="qwen3")
    tests = {
        message.content for a in ABILITIES for e in Lab(ability=a.name, items=100).examples() for message in e.messages
    }
    prompts = [record.texts[0].removeprefix("<|im_start|>user\n").partition("<|im_end|>")[0] for record in records]
    assert len(tests) > 1000
    assert tests.isdisjoint(prompts)
    assert len({*prompts}) > 1300
    assert Replay(path="pocket").files() == ()
    other = replayed(Replay(path="pocket", ratio=1, world=WorldSettings(number=7)), examples=50, chat="qwen3")
    assert "Lithulish" in "".join(prompts)
    assert "Lithulish" not in "".join(r.text for r in other)
