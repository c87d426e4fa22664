"""Rows on disk: JSON Lines for what people grep, parquet for what is large.

Every writer goes through `files.atomic`, so a reader sees either the whole old file or the whole new one.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from radistill.files import atomic
from radistill.logprobs import LogProbs
from radistill.records import Prediction, Segment, TrainingRecord, json_line

SEGMENT = pa.struct(
    [
        ("origin", pa.string()),
        ("start", pa.int32()),
        ("stop", pa.int32()),
        ("weight", pa.float64()),
        ("labels", pa.string()),
    ]
)
RECORDS = pa.schema(
    [
        ("id", pa.string()),
        ("example_id", pa.string()),
        ("token_ids", pa.list_(pa.int32())),
        ("segments", pa.list_(SEGMENT)),
        ("texts", pa.list_(pa.string())),
        ("token_weights", pa.list_(pa.float32())),
        ("soft", pa.struct([("k", pa.int32()), *((name, pa.binary()) for name in ("given", "ids", "values"))])),
    ]
)
PREDICTIONS = pa.schema(
    [
        ("system", pa.string()),
        ("example_id", pa.string()),
        ("key", pa.string()),
        ("source", pa.string()),
        ("reference", pa.string()),
        ("raw", pa.string()),
        ("answer", pa.string()),
        ("finish_reason", pa.string()),
        ("n_tokens", pa.int32()),
        ("labels", pa.list_(pa.string())),
        ("tags", pa.string()),
    ]
)
BATCH_ROWS = 4096


def write_records(path: Path, records: Iterable[TrainingRecord]) -> int:
    """Write training records to parquet in one atomic step; returns how many."""
    return _write(path, RECORDS, map(_record_row, records))


def read_records(path: Path) -> Iterator[TrainingRecord]:
    """The training records of a parquet file, in order, read in batches."""
    for row in _read(path):
        yield TrainingRecord(
            id=row["id"],
            example_id=row["example_id"],
            token_ids=tuple(row["token_ids"]),
            segments=tuple(Segment(**segment) for segment in row["segments"]),
            texts=tuple(row["texts"]),
            token_weights=tuple(row.get("token_weights") or ()),
            soft=LogProbs.of_bytes(row["soft"]) if row.get("soft") else None,
        )


def _record_row(record: TrainingRecord) -> dict[str, Any]:
    row = asdict(replace(record, soft=None))
    return row if record.soft is None else {**row, "soft": record.soft.as_bytes()}


def write_predictions(path: Path, predictions: Iterable[Prediction]) -> int:
    """Write predictions to parquet in one atomic step; returns how many."""
    rows = ({**asdict(p), "tags": json.dumps(dict(p.tags), ensure_ascii=False, sort_keys=True)} for p in predictions)
    return _write(path, PREDICTIONS, rows)


def read_predictions(path: Path) -> Iterator[Prediction]:
    """The predictions of a parquet file, in order."""
    for row in _read(path):
        yield Prediction(**{**row, "labels": tuple(row["labels"]), "tags": json.loads(row["tags"])})


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Write one JSON object per line in one atomic step; returns how many."""
    count = 0
    with atomic(path) as file:
        for row in rows:
            file.write(json_line(row))
            count += 1
    return count


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON Lines file; a torn last line, left by a crash, is not returned."""
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n") and line.strip():
                yield json.loads(line)


def put_rejects(path: Path, stage: str, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one stage's refused rows into the rejects file, in place of what that stage refused before."""
    others = [row for row in read_jsonl(path) if row["stage"] != stage] if path.exists() else []
    write_jsonl(path, [*others, *({"stage": stage, **row} for row in rows)])


def _write(path: Path, schema: pa.Schema, rows: Iterable[Mapping[str, Any]]) -> int:
    count, batch = 0, []
    with atomic(path) as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for row in rows:
            batch.append(row)
            if len(batch) == BATCH_ROWS:
                writer.write_table(pa.Table.from_pylist(batch, schema=schema))
                count, batch = count + len(batch), []
        writer.write_table(pa.Table.from_pylist(batch, schema=schema))
    return count + len(batch)


def _read(path: Path) -> Iterator[dict[str, Any]]:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=BATCH_ROWS):
            yield from batch.to_pylist()
