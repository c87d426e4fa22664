"""Soft labels keep their bits on every way they go, and stand at the right tokens of every batch."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from radistill import losses
from radistill.ledger import open_ledger
from radistill.logprobs import LogProbs
from radistill.packing import Collator, Row
from radistill.records import Generation, Segment, TrainingRecord
from radistill.tables import read_records, write_records


def some(size: int, top_k: int, seed: int = 0) -> LogProbs:
    """Any numbers, among them those that a careless way would change."""
    rng = np.random.default_rng(seed)
    given = rng.normal(-3, 4, size).astype(np.float32)
    values = rng.normal(-3, 4, (size, top_k)).astype(np.float16)
    odd = np.array([-np.inf, -0.0, np.float16(-6e-8), -65504, -1e-3], dtype=np.float16)
    values.flat[: min(values.size, 5)] = odd[: min(values.size, 5)]
    given.flat[: min(size, 3)] = np.array([0.0, -1e-45, -3.4e38], dtype=np.float32)[: min(size, 3)]
    return LogProbs(given, rng.integers(-1, 2**31 - 1, (size, top_k)).astype(np.int32), values)


def bits(logprobs: LogProbs | None) -> list[tuple[str, tuple[int, ...], bytes]]:
    assert logprobs is not None
    arrays = (logprobs.given_T, logprobs.top_ids_TK, logprobs.top_values_TK)
    return [(str(a.dtype), a.shape, a.tobytes()) for a in arrays]


SHAPES = [(1, 0), (7, 0), (1, 3), (9, 4), (300, 64)]


@pytest.mark.parametrize(("size", "top_k"), SHAPES)
def test_the_stored_form_gives_back_every_bit(size: int, top_k: int) -> None:
    logprobs = some(size, top_k)
    back = LogProbs.of_bytes(logprobs.as_bytes())
    assert bits(back) == bits(logprobs)
    assert back == logprobs
    assert (len(back), back.top_k) == (size, top_k)


def test_what_differs_anywhere_is_not_equal() -> None:
    logprobs = some(6, 2)
    for name in ("given_T", "top_ids_TK", "top_values_TK"):
        changed = getattr(logprobs, name).copy()
        changed.flat[-1] += 1
        assert replace(logprobs, **{name: changed}) != logprobs
    assert logprobs != some(6, 3)
    assert logprobs != "something else"


@pytest.mark.parametrize("index", ["kept", "deleted"])
def test_the_ledger_gives_back_every_bit(tmp_path: Path, index: str) -> None:
    rows = [
        Generation(key=f"{i:032x}", index=0, token_ids=(), text="", finish_reason="stop", logprobs=some(*shape, seed=i))
        for i, shape in enumerate(SHAPES)
    ]
    plain = Generation(key="f" * 32, index=0, token_ids=(5,), text="a", finish_reason="stop")
    with open_ledger(tmp_path) as ledger:
        ledger.append([*rows[:2], plain])
        ledger.append(rows[2:])
    if index == "deleted":
        (tmp_path / "index.sqlite").unlink()
    with open_ledger(tmp_path) as ledger:
        found = ledger.read([*(row.key for row in rows), plain.key])
    for row in rows:
        (back,) = found[row.key]
        assert bits(back.logprobs) == bits(row.logprobs)
        assert back == row
    assert found[plain.key] == [plain]


def record(number: int, sizes: tuple[int, int, int], *, labels: bool = True, top_k: int = 3) -> TrainingRecord:
    """Prompt, reference and a rationale with stored labels whose ids name both the record and the place."""
    cuts = np.cumsum([0, *sizes]).tolist()
    size = cuts[-1]
    soft = some(size, top_k, seed=number)
    names = (1000 * (number + 1) + np.arange(size)).astype(np.int32)
    soft = replace(soft, top_ids_TK=np.tile(names[:, None], (1, top_k)) + np.arange(top_k, dtype=np.int32) * 100_000)
    segments = (
        Segment("prompt", cuts[0], cuts[1], 0.0),
        Segment("reference", cuts[1], cuts[2], 1.0),
        Segment("rationale", cuts[2], cuts[3], 0.5, "stored" if labels else "hard"),
    )
    return TrainingRecord(
        id=str(number), example_id=None, token_ids=tuple(names.tolist()), segments=segments, texts=("", "", ""),
        soft=soft if labels else None,
    )  # fmt: skip


def test_parquet_gives_back_every_bit(tmp_path: Path) -> None:
    records = [record(0, (2, 3, 4)), record(1, (1, 1, 1), labels=False), record(2, (3, 2, 60), top_k=64)]
    records[0] = replace(records[0], token_weights=(1.0,) * 8 + (0.5,))
    write_records(tmp_path / "r.parquet", records)
    back = list(read_records(tmp_path / "r.parquet"))
    assert back == records
    assert [r.soft is None for r in back] == [False, True, False]
    for before, after in zip(records, back, strict=True):
        if before.soft is not None:
            assert bits(after.soft) == bits(before.soft)


def test_a_row_has_soft_labels_at_the_trained_tokens_of_segments_that_ask_for_them() -> None:
    made = record(0, (2, 3, 4))
    row = Row.of(made)
    assert made.soft is not None
    assert row.soft_at_S.tolist() == [5, 6, 7, 8]
    assert row.soft_ids_SK[:, 0].tolist() == [1005, 1006, 1007, 1008]
    assert row.soft_values_SK.tobytes() == made.soft.top_values_TK[5:].tobytes()
    assert row.labels_T.tolist() == [losses.HARD] * 5 + [losses.STORED] * 4


def test_a_token_of_no_weight_and_a_segment_of_no_weight_have_no_soft_label() -> None:
    made = record(0, (2, 3, 4))
    masked = Row.of(replace(made, token_weights=(1.0,) * 6 + (0.0, 1.0, 0.0)))
    assert masked.soft_at_S.tolist() == [5, 7]
    assert masked.soft_ids_SK[:, 0].tolist() == [1005, 1007]
    silent = replace(made, segments=(*made.segments[:2], replace(made.segments[2], weight=0.0)))
    assert len(Row.of(silent).soft_at_S) == 0


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("width", [None, 80])
@pytest.mark.parametrize("seed", range(6))
def test_soft_labels_stand_at_their_tokens_whatever_the_packing(packing: bool, width: int | None, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows: list[Row] = []
    values: dict[int, np.ndarray[Any, Any]] = {}
    for number in rng.permutation(9).tolist():
        made = record(number, (int(rng.integers(1, 5)), int(rng.integers(0, 6)), int(rng.integers(1, 9))),
                      labels=bool(rng.random() < 0.7))  # fmt: skip
        weights = tuple(float(w) for w in rng.integers(0, 3, len(made.token_ids)))
        rows.append(Row.of(replace(made, token_weights=weights)))
        if made.soft is not None:
            values |= dict(zip(made.token_ids, made.soft.top_values_TK.astype(np.float32), strict=True))
    batch = Collator(pad_id=0, packing=packing)(rows, width=width)
    at = batch["soft_at_S"]
    assert batch["soft_ids_SK"][:, 0].tolist() == batch["targets_N"][at].tolist()
    assert set(at.tolist()) == set((batch["labels_N"] == losses.STORED).nonzero()[:, 0].tolist())
    assert len(set(at.tolist())) == len(at) > 0
    for token, row in zip(batch["targets_N"][at].tolist(), batch["soft_values_SK"].numpy(), strict=True):
        assert np.array_equal(row, values[token])
    flat = batch["input_ids"].flatten()
    assert flat[batch["places_N"] + 1].tolist() == batch["targets_N"].tolist()


def test_a_batch_without_soft_labels_says_so() -> None:
    batch = Collator(pad_id=0)([Row.of(record(n, (2, 2, 3), labels=False)) for n in range(3)])
    assert len(batch["soft_at_S"]) == len(batch["soft_ids_SK"]) == len(batch["soft_values_SK"]) == 0
