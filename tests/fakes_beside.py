"""What tests of methods that learn something beside the examples ask, write and look at."""

import json
from pathlib import Path

from radistill.chat import Chat
from radistill.methods.base import Whole
from radistill.records import FinishReason, Generation, Sampling, TrainingRecord


def whole(chat: Chat, examples: int = 70, seed: int = 0) -> Whole:
    return Whole(chat=chat, sampling=Sampling(seed=seed), examples=examples, seed=seed)


def ids_of(chat: Chat, text: str) -> tuple[int, ...]:
    """Ids of a text, special tokens in it included."""
    ids: list[int] = chat.tokenizer(text, add_special_tokens=False).input_ids
    return tuple(ids)


def written(chat: Chat, text: str, reason: FinishReason = "stop") -> Generation:
    return Generation(key="k", index=0, token_ids=ids_of(chat, text), text=text, finish_reason=reason)


def texts_of(record: TrainingRecord, origin: str) -> list[str]:
    return [text for text, s in zip(record.texts, record.segments, strict=True) if s.origin == origin]


def shape(record: TrainingRecord) -> list[tuple[str, float]]:
    return [(s.origin, s.weight) for s in record.segments]


def rows_in(folder: Path, count: int = 6, name: str = "train.jsonl") -> Path:
    """A file of so many prompts with answers."""
    folder.mkdir(exist_ok=True)
    file = folder / name
    rows = [{"prompt": f"Say the word {i}", "completion": f"the word {i}."} for i in range(count)]
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return file
