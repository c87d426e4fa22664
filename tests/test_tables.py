"""Rows on disk come back as they were, in order, and a reader sees the old file or the new one."""

import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from radistill import tables
from radistill.records import Prediction, Segment, TrainingRecord
from radistill.tables import (
    put_rejects,
    read_jsonl,
    read_predictions,
    read_records,
    write_jsonl,
    write_predictions,
    write_records,
)

TEXTS = ["", "Größe 日本語 🙂", "a\nb\r\n\u2028", "zero \0", '"quotes" \\ and <b>']


def record(n: int) -> TrainingRecord:
    segments = (
        Segment("prompt", 0, 2, 0.0),
        Segment("reference", 2, 2 + n % 3, 1.0),
        Segment("end", 2 + n % 3, 9, 0.1),
    )
    return TrainingRecord(
        id=f"r{n}",
        example_id=None if n % 2 else f"e{n}",
        token_ids=(*range(n, n + 8), 2**31 - 1),
        segments=segments,
        texts=(TEXTS[n % 5], TEXTS[(n + 1) % 5], ""),
    )


def prediction(n: int) -> Prediction:
    return Prediction(
        system="base",
        example_id=f"e{n}",
        key=f"k{n}",
        source=TEXTS[n % 5],
        reference="r",
        raw=TEXTS[(n + 1) % 5],
        answer="a",
        finish_reason="length" if n % 2 else "stop",
        n_tokens=n,
        labels=() if n % 2 else ("empty", "loop"),
        tags={"pair": "de-en", "Ü": TEXTS[n % 5]} if n % 3 else {},
    )


@pytest.mark.parametrize("n", [0, 1, 7, 8, 9, 20])
def test_records_come_back_as_they_were_whatever_their_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n: int
) -> None:
    monkeypatch.setattr(tables, "BATCH_ROWS", 4)
    rows = [record(i) for i in range(n)]
    assert write_records(tmp_path / "a.parquet", iter(rows)) == n
    assert list(read_records(tmp_path / "a.parquet")) == rows


@pytest.mark.parametrize("n", [0, 1, 4, 13])
def test_predictions_come_back_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n: int) -> None:
    monkeypatch.setattr(tables, "BATCH_ROWS", 4)
    rows = [prediction(i) for i in range(n)]
    assert write_predictions(tmp_path / "a.parquet", iter(rows)) == n
    assert list(read_predictions(tmp_path / "a.parquet")) == rows


def test_the_columns_are_those_that_other_programs_read(tmp_path: Path) -> None:
    write_records(tmp_path / "r.parquet", [])
    write_predictions(tmp_path / "p.parquet", [prediction(1)])
    assert pq.read_schema(tmp_path / "r.parquet").equals(tables.RECORDS)
    assert pq.read_schema(tmp_path / "p.parquet").equals(tables.PREDICTIONS)
    assert json.loads(pq.read_table(tmp_path / "p.parquet").to_pylist()[0]["tags"]) == {"pair": "de-en", "Ü": TEXTS[1]}


def test_rows_that_end_in_an_error_leave_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "BATCH_ROWS", 2)

    def rows() -> Iterator[TrainingRecord]:
        yield from (record(i) for i in range(5))
        raise ZeroDivisionError

    write_records(tmp_path / "a.parquet", [record(1)])
    with pytest.raises(ZeroDivisionError):
        write_records(tmp_path / "a.parquet", rows())
    with pytest.raises(ZeroDivisionError):
        write_jsonl(tmp_path / "b.jsonl", ({"id": r.id} for r in rows()))
    assert list(read_records(tmp_path / "a.parquet")) == [record(1)]
    assert [p.name for p in tmp_path.iterdir()] == ["a.parquet"]


def test_lines_come_back_as_they_were_and_a_torn_last_one_does_not(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = [{"text": text, "n": i, "deep": {"x": [None, True, 0.5]}} for i, text in enumerate([*TEXTS, "half \ud83d"])]
    assert write_jsonl(path, rows) == 6
    assert list(read_jsonl(path)) == rows
    whole = path.read_bytes()
    whole.decode("utf-8")
    last = whole.rindex(b"\n", 0, -1) + 1
    for cut in range(last, len(whole)):
        path.write_bytes(whole[:cut])
        assert list(read_jsonl(path)) == rows[:5]
    path.write_bytes(b"\n" + whole.replace(b"\n", b"\n\n"))
    assert list(read_jsonl(path)) == rows
    assert write_jsonl(path, []) == 0
    assert list(read_jsonl(path)) == []


def test_each_stage_replaces_its_own_rejects_and_leaves_the_others(tmp_path: Path) -> None:
    path = tmp_path / "rejects.jsonl"
    put_rejects(path, "generate", [{"reason": "a"}, {"reason": "half \ud83d"}])
    put_rejects(path, "evaluate", [{"reason": "b", "row": {"text": "Ü"}}])
    put_rejects(path, "generate", [{"reason": "c"}])
    assert list(read_jsonl(path)) == [
        {"stage": "evaluate", "reason": "b", "row": {"text": "Ü"}},
        {"stage": "generate", "reason": "c"},
    ]
    put_rejects(path, "evaluate", [])
    put_rejects(path, "generate", [])
    assert path.read_bytes() == b""
