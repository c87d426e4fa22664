"""Stage 2: examples and what was written about them → training records with weighted segments."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from radistill import data, held_out, models, seeds
from radistill.chat import Chat, RowError
from radistill.config import RunConfig, plugin_settings
from radistill.errors import ChatTemplateError, DataError, RunFolderError
from radistill.files import sha256, write_json
from radistill.held_out import HeldOut, Leak
from radistill.ledger import Ledger, open_ledger
from radistill.records import Example, Generation, StageRecord, TrainingRecord
from radistill.runs import RunFolder, before_work, begin, require, working
from radistill.speaker import untouched
from radistill.tables import put_rejects, read_jsonl, read_records, write_records

CHUNK = 1000
LEAKED = "contains a test prompt"


def assemble(config: RunConfig, run: RunFolder, *, redo: bool = False) -> StageRecord | None:
    """Write records.parquet and its summary; None if that was done before and nothing has changed.

    Raises:
        RunFolderError: nothing was generated yet, or the ledger has lost what was.
        DataError: no record is left, or the tests cannot be read, without which none could be kept out.
    """
    generated = require(run, "generate")
    speaker = untouched(config)
    train = data.load(config.data, "train", seed=config.seed)
    max_length = models.length_limit(speaker.weights.folder, config.train.max_length)
    tests = held_out.of_run(config)
    settings = {
        "generated": generated.settings,
        "identity": generated.facts["identity"],
        "chat": speaker.chat.identity,
        "method": plugin_settings(config.method),
        "max_length": max_length,
        "held_out": tests.digest,
    }
    if not redo:
        _keep_if_the_same(run, tests)
    stage = begin(run, "assemble", settings, train.files, redo=redo)
    if stage is None:
        return None
    with working(stage), open_ledger(Path(config.generate.ledger)) as ledger:
        work = _Assembly(config, speaker.chat, ledger, str(generated.facts["identity"]), max_length, tests)
        with before_work(stage):  # it is written again from the start, whatever an earlier process did
            write_records(run.records, work.records(train.examples))
            put_rejects(run.rejects, "assemble", work.refused)
            if not work.summary.records:
                raise DataError(f"no training record is left of {len(train.examples)} examples; see {run.rejects}.")
        write_json(run.summary, work.summary.as_dict(len(train.examples)))
        stage.facts |= {"records": work.summary.records, "dropped": dict(work.summary.dropped)}
        stage.facts["held_out_texts"] = len(tests)
        return stage.finish([run.records, run.summary])


def _keep_if_the_same(run: RunFolder, tests: HeldOut) -> None:
    """Let what was assembled for other tests stand, if these would drop the same rows: hours of training hang on it."""
    before = run.stages().get("assemble")
    if before is None or before.status != "finished" or before.settings.get("held_out") == tests.digest:
        return
    if not run.records.exists() or sha256(run.records) != before.outputs.get(run.records.name):
        return
    rejects = read_jsonl(run.rejects) if run.rejects.exists() else ()
    dropped = [row["written"] for row in rejects if row["stage"] == "assemble" and "written" in row]
    if len(dropped) != before.facts["dropped"].get(LEAKED, 0) or not all(map(tests.is_in, dropped)):
        return
    if all(tests.in_record(record) is None for record in read_records(run.records)):
        run.put_stage(replace(before, settings={**before.settings, "held_out": tests.digest}))


@dataclass
class Summary:
    """Counts over the records that were written."""

    records: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    tokens: Counter[str] = field(default_factory=Counter)
    trained: Counter[str] = field(default_factory=Counter)
    weight: dict[str, float] = field(default_factory=dict)
    lengths: list[int] = field(default_factory=list)
    rationales: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)

    def add(self, record: TrainingRecord) -> None:
        """Count one record."""
        self.records += 1
        self.lengths.append(len(record.token_ids))
        for segment in record.segments:
            count = segment.stop - segment.start
            self.tokens[segment.origin] += count
            if segment.weight > 0:
                self.trained[segment.origin] += count
                self.weight[segment.origin] = self.weight.get(segment.origin, 0.0) + segment.weight * count

    def count_rationale(self, generation: Generation) -> None:
        """Count one generation that a record was made with."""
        self.rationales["written"] += 1
        self.rationales["tokens"] += generation.n_tokens
        self.rationales["empty"] += not generation.token_ids
        self.rationales["stopped" if generation.finish_reason == "stop" else "cut"] += 1

    def as_dict(self, examples: int) -> dict[str, Any]:
        """The content of records.summary.json."""
        total = sum(self.weight.values())
        quantile = np.quantile(self.lengths, [0.5, 0.95]) if self.lengths else [0, 0]
        written = self.rationales["written"]
        return {
            "records": self.records,
            "examples": examples,
            "dropped": dict(self.dropped),
            "tokens": dict(self.tokens),
            "trained_tokens": dict(self.trained),
            "weight_share": {origin: weight / total for origin, weight in self.weight.items()},
            "lengths": {
                "min": min(self.lengths, default=0),
                "median": float(quantile[0]),
                "mean": sum(self.lengths) / max(1, len(self.lengths)),
                "p95": float(quantile[1]),
                "max": max(self.lengths, default=0),
            },
            "rationales": {
                **{name: self.rationales[name] for name in ("written", "empty", "stopped", "cut")},
                "mean_tokens": self.rationales["tokens"] / written,
            }
            if written
            else {},
            "notes": self.notes,
        }


@dataclass
class _Assembly:
    config: RunConfig
    chat: Chat
    ledger: Ledger
    identity: str
    max_length: int | None
    tests: HeldOut
    summary: Summary = field(default_factory=Summary)
    refused: list[dict[str, Any]] = field(default_factory=list)

    def records(self, examples: tuple[Example, ...]) -> Iterator[TrainingRecord]:
        """All records, in the order of the examples; what is dropped is counted and kept in `refused`."""
        keys = self._keys(examples)
        rng = seeds.generator(self.config.seed, "donors")
        donors = self.config.method.donors(sorted(keys), rng)
        for start in range(0, len(examples), CHUNK):
            chunk = [e for e in examples[start : start + CHUNK] if e.id in keys]
            stored = self.ledger.read(key for e in chunk for key in keys[donors[e.id]])
            for example in chunk:
                generations = [g for key in keys[donors[example.id]] for g in self._answers(stored, key)]
                yield from self._of(example, generations)

    def _keys(self, examples: tuple[Example, ...]) -> dict[str, list[str]]:
        sampling = self.config.generate.sampling.model_copy(update={"seed": self.config.seed})
        keys: dict[str, list[str]] = {}
        for example in examples:
            try:
                requests = self.config.method.plan(example, self.chat, sampling)
            except RowError as error:
                self._drop(example, str(error), kind="cannot be put into ids")
                continue
            keys[example.id] = [request.addressed_to(self.identity).key for request in requests]
        return keys

    def _answers(self, stored: dict[str, list[Generation]], key: str) -> list[Generation]:
        if key not in stored:
            raise RunFolderError(
                f"the ledger {self.config.generate.ledger} no longer holds what was generated for this run (key "
                f"{key}). Point generate.ledger to where it lies, or generate again with --redo generate."
            )
        return stored[key]

    def _of(self, example: Example, generations: list[Generation]) -> Iterator[TrainingRecord]:
        failed = next((g for g in generations if g.finish_reason == "error"), None)
        if failed is not None:
            self._drop(example, failed.error or "", kind="generation failed")
            return
        try:
            records = self.config.method.assemble(example, self.chat, generations)
        except RowError as error:
            self._drop(example, str(error), kind="cannot be put into ids")
            return
        kept = 0
        for record in records:
            if self.max_length is not None and len(record.token_ids) > self.max_length:
                count = len(record.token_ids)
                reason = f"{count} tokens, more than {self.max_length} (train.max_length or the model's context)"
                self._drop(example, reason, kind="too long")
                continue
            if not any(s.weight > 0 and s.stop > s.start for s in record.segments):
                self._drop(example, "no token of it would be trained", kind="nothing to train")
                continue
            leak = self.tests.in_record(record)
            if leak is not None:
                self._drop_leaking(example, leak)
                continue
            kept += 1
            self.summary.add(record)
            self._note(example, record)
            yield record
        for generation in generations if kept else ():
            self.summary.count_rationale(generation)

    def _note(self, example: Example, record: TrainingRecord) -> None:
        if self.summary.records > 3 or self.summary.notes:
            return
        spoken = [t for t, s in zip(record.texts, record.segments, strict=True) if s.origin not in ("prompt", "end")]
        answer = "".join(spoken).removeprefix(self.chat.shape.lead)
        try:
            note = self.chat.check_rerendering(example.messages, answer)
        except ChatTemplateError as error:
            # `generate` has refused templates that rewrite any answer; what remains is what this one holds.
            note = str(error)
        if note:
            self.summary.notes.append(note)

    def _drop_leaking(self, example: Example, leak: Leak) -> None:
        reason = f"its {leak.origin} holds the {leak.side} of the test {leak.example_id}: {leak.text!r}"
        test = {"id": leak.example_id, "side": leak.side, "text": leak.text}
        # The user's row is not at fault, so what was written about it is kept beside it.
        self._drop(example, reason, kind=LEAKED, more={"test": test, "written": leak.written})

    def _drop(self, example: Example, reason: str, *, kind: str, more: Mapping[str, Any] | None = None) -> None:
        self.summary.dropped[kind] += 1
        row = {"example_id": example.id, "reason": f"{kind}: {reason}", "row": asdict(example)}
        self.refused.append({**row, **(more or {})})
