"""Models and records of `train.py`: random Llamas of several sizes, and sequences as RaDis makes them.

A record is a prompt with a sentence or a few, its translation, and (in two of three) a rationale of 16 to 400 tokens
behind it, as many short as long by orders of magnitude, so that lengths are as mixed as in life. The text is real
with `--corpus` (ALMA's human-written data), otherwise the lab's. The rationales are other sentences of the same text:
nothing depends on what they say.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from _train_meter import IGNORED, loss_of

from radistill import models, seeds
from radistill.chat import Chat, ChatSettings, RowError, load_chat
from radistill.lab import POCKET
from radistill.lab.pairs import sentences
from radistill.lab.tokenizer import make_tokenizer
from radistill.lab.world import WorldSettings, world_of
from radistill.logprobs import LogProbs
from radistill.records import Labels, Message, Segment, TrainingRecord
from radistill.tables import write_records

VOCABULARY = 32_000
CONTEXT = 1024
"""Nothing is longer: TRL cuts there by default."""
TOP_K = 64
SHORTEST, LONGEST = 16, 400
"""Tokens of a rationale."""


@dataclass(frozen=True)
class Shape:
    """Of a Llama."""

    hidden: int
    layers: int
    heads: int
    key_value_heads: int
    intermediate: int


SHAPES = {
    "125m": Shape(768, 12, 12, 12, 1792),
    "1.1b": Shape(2048, 22, 32, 4, 5632),
    "7b": Shape(4096, 32, 32, 32, 11008),
}
"""Besides `pocket`, the model that comes with the package; output head apart from the embeddings."""


@dataclass(frozen=True)
class Pair:
    """A sentence in two languages."""

    source_language: str
    target_language: str
    source: str
    target: str


NAMES = {"cs": "Czech", "de": "German", "en": "English", "is": "Icelandic", "ru": "Russian", "zh": "Chinese"}


def lab_pairs(count: int) -> list[Pair]:
    """Sentences of the lab."""
    found = sentences(world_of(WorldSettings()), "benchmark", count)
    return [Pair("English", "Esperanto", en, eo) for en, eo in found]


def corpus_pairs(folder: Path) -> list[Pair]:
    """All `train.XX-en.XX` with `train.XX-en.en` under the folder, in both directions by turns.

    Raises:
        FileNotFoundError: there are none.
    """
    found = []
    for english in sorted(folder.rglob("train.*-en.en")):
        code = english.name.split(".")[1].partition("-")[0]
        other = english.with_name(f"train.{code}-en.{code}")
        sides = [file.read_text(encoding="utf-8").split("\n") for file in (english, other)]
        for n, (en, xx) in enumerate(zip(*sides, strict=True)):
            if en.strip() and xx.strip():
                pair = Pair("English", NAMES.get(code, code), en, xx)
                found.append(pair if n % 2 else Pair(pair.target_language, "English", xx, en))
    if not found:
        raise FileNotFoundError(f"{folder} holds no train.XX-en.en: name the folder of ALMA's human-written data")
    return found


def make_model(folder: Path, size: str, texts: Sequence[Pair]) -> Path:
    """The model's folder; random weights are stored in bfloat16, as models are that people fine-tune."""
    if size == "pocket":
        return POCKET
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    some = texts[:: max(1, len(texts) // 10_000)]
    tokenizer = make_tokenizer((text for pair in some for text in (pair.source, pair.target)), vocabulary=VOCABULARY)
    shape = SHAPES[size]
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        max_position_embeddings=CONTEXT,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        tie_word_embeddings=False,
        dtype="bfloat16",
    )
    torch.manual_seed(0)
    with torch.device(models.device()):
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    models.save(model, tokenizer, folder)
    return folder


def records_of(chat: Chat, pairs: Sequence[Pair], count: int) -> list[TrainingRecord]:
    """So many records; always the same."""
    rng = seeds.generator(0, "benchmark", "train")
    order = iter(rng.permutation(len(pairs)).tolist() * 100)

    def text(of: int) -> tuple[Pair, str, str]:
        first = pairs[next(order)]
        same = [first]
        while len(same) < of:
            other = pairs[next(order)]
            if other.target_language == first.target_language and other.source_language == first.source_language:
                same.append(other)
        return first, " ".join(p.source for p in same), " ".join(p.target for p in same)

    found: list[TrainingRecord] = []
    while len(found) < count:
        pair, source, target = text(1 if len(found) % 2 else int(rng.integers(1, 4)))
        asked = Message("user", f"Translate from {pair.source_language} into {pair.target_language}: {source}")
        try:
            opening = chat.opening((asked,), target, "\n\n")
        except RowError:  # not to be spelt by this tokenizer, or of the looks of a special token
            continue
        rationale: list[int] = []
        if len(found) % 3:
            size = int(np.exp(rng.uniform(np.log(SHORTEST), np.log(LONGEST))))
            while len(rationale) < size:
                rationale += chat.tokenizer(text(1)[2] + " ", add_special_tokens=False)["input_ids"]
            rationale = rationale[:size]
        spans = opening.spans if rationale else [s for s in opening.spans if s.origin != "separator"]
        segments = [Segment(s.origin, s.start, s.stop, float(s.origin != "prompt")) for s in spans]
        at = segments[-1].stop
        if rationale:
            segments.append(Segment("rationale", at, at + len(rationale), 1.0))
        ids = (*opening.ids[:at], *rationale, chat.end_id)
        segments.append(Segment("end", len(ids) - 1, len(ids), 1.0))
        if len(ids) <= CONTEXT:
            texts = tuple("" for _ in segments)
            name = f"record{len(found)}"
            found.append(TrainingRecord(id=name, example_id=None, token_ids=ids, segments=tuple(segments), texts=texts))
    return found


def labelled(record: TrainingRecord, labels: Labels) -> TrainingRecord:
    """The same record with that kind of labels where the untouched model is said to have written."""
    of = ("rationale", "separator")
    return replace(record, segments=tuple(replace(s, labels=labels) if s.origin in of else s for s in record.segments))


def with_stored(folder: Path, records: Sequence[TrainingRecord]) -> Iterator[TrainingRecord]:
    """The records with what the model in the folder expects at each of their ids: the TOP_K most probable tokens."""
    import torch

    model: Any = models.load(models.resolve(str(folder)))
    for record in records:
        with torch.no_grad():
            ids = torch.tensor([record.token_ids], device=model.device)
            logs = torch.log_softmax(model(input_ids=ids, use_cache=False).logits[0, :-1].float(), dim=-1)
            given = logs.gather(1, ids[0, 1:, None])[:, 0]
            values, top = logs.topk(TOP_K, dim=-1)
        soft = LogProbs(
            np.concatenate([[0.0], given.cpu().numpy()]).astype(np.float32),
            np.concatenate([np.full((1, TOP_K), -1), top.cpu().numpy()]).astype(np.int32),
            np.concatenate([np.zeros((1, TOP_K)), values.cpu().numpy()]).astype(np.float16),
        )
        yield replace(labelled(record, "stored"), soft=soft)


def trained_ids(record: TrainingRecord) -> list[int]:
    """The record's ids, IGNORED where nothing is trained."""
    found = [IGNORED] * len(record.token_ids)
    for segment in record.segments:
        if segment.weight > 0:
            found[segment.start : segment.stop] = record.token_ids[segment.start : segment.stop]
    return found


def prepare(place: Path, *, size: str, corpus: Path | None, count: int, with_soft: bool) -> dict[str, Any]:
    """Write model and records into the folder, and return what the rivals are told of them."""
    pairs = corpus_pairs(corpus) if corpus else lab_pairs(max(6 * count, 2000))
    folder = make_model(place / "model", size, pairs)
    chat = load_chat(folder, ChatSettings())
    records = records_of(chat, pairs, count)
    write_records(place / "records.hard.parquet", records)
    if with_soft:
        write_records(place / "records.live.parquet", (labelled(record, "live") for record in records))
        write_records(place / "records.stored.parquet", with_stored(folder, records))
    rows = [{"input_ids": list(record.token_ids), "labels": trained_ids(record)} for record in records]
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    before = loss_of(models.load(models.resolve(str(folder))), place / "rows.jsonl")
    lengths = sorted(len(record.token_ids) for record in records)
    return {
        "model": str(folder),
        "rows": str(place / "rows.jsonl"),
        "records": str(place),
        "tokens": sum(lengths),
        "tokens_trained": sum(sum(label != IGNORED for label in row["labels"]) for row in rows),
        "loss_before": before,
        "lengths": [lengths[0], lengths[len(lengths) // 2], lengths[-1]],
        "pad_id": chat.end_id,
        "data_seed": seeds.number(0, "order") % (1 << 31),
    }
