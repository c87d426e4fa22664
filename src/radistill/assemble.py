"""Stage 2: examples and what was written about them → training records with weighted segments."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from radistill import data, held_out, lengths, models
from radistill.ask import answers_to
from radistill.config import RunConfig, plugin_settings
from radistill.errors import ChatTemplateError, DataError
from radistill.files import atomic, sha256, write_json
from radistill.filtering import Judged, files_of, refuse_unusable
from radistill.held_out import HeldOut, Leak
from radistill.known import Known
from radistill.ledger import Ledger, open_ledger
from radistill.making import Made, Making, filters_of
from radistill.methods._composed import flag
from radistill.methods._weighing import task_places
from radistill.records import Example, Generation, StageRecord, TrainingRecord, json_line
from radistill.runs import RunFolder, before_work, begin, require, working
from radistill.speaker import teacher, untouched
from radistill.summary import FilterCounts, Summary
from radistill.tables import put_rejects, read_jsonl, read_records, write_records

if TYPE_CHECKING:
    from radistill.logprobs import LogProbs

LEAKED = "contains a test prompt"
TOO_LONG = "too long"
UNSCORED = "cannot be scored"


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
    filters = filters_of(config)
    refuse_unusable(filters)
    settings = {
        "generated": generated.settings,
        "identity": [generated.facts["identity"], generated.facts["own"]],
        "chat": speaker.chat.identity,
        "method": plugin_settings(config.method),
        "labels": config.train.labels,
        "max_length": max_length,
        "held_out": tests.digest,
        **({"on_long": config.train.on_long} if config.train.on_long != "drop" else {}),
        **({"filters": filters.plain()} if filters.active else {}),
    }
    if not redo:
        _keep_if_the_same(run, tests)
    stage = begin(run, "assemble", settings, [*train.files, *config.method.files(), *files_of(filters)], redo=redo)
    if stage is None:
        return None
    with working(stage), open_ledger(Path(config.generate.ledger)) as ledger:
        writer = teacher(config)
        making = Making(config, speaker.chat, train.examples, writer.chat if writer else None)
        facts = generated.facts
        work = _Assembly(config, making, ledger, str(facts["identity"]), str(facts["own"]), max_length, tests)
        work.summary.filters = FilterCounts(filters.active) if filters.active else None
        with before_work(stage):  # it is written again from the start, whatever an earlier process did
            if filters.active:
                with atomic(run.filtered) as work.filtered:
                    write_records(run.records, work.records())
            else:
                run.filtered.unlink(missing_ok=True)
                write_records(run.records, work.records())
            put_rejects(run.rejects, "assemble", work.refused)
            work.refuse_long(run.rejects)
            if not work.summary.records:
                raise DataError(f"no training record is left of {len(train.examples)} examples; see {run.rejects}.")
        write_json(run.summary, work.summary.as_dict(len(train.examples)))
        stage.facts |= {"records": work.summary.records, "dropped": dict(work.summary.dropped)}
        stage.facts["shortened"] = work.summary.shortened
        stage.facts["asked"] = dict(work.summary.asked)
        stage.facts["held_out_texts"] = len(tests)
        if work.summary.filters is not None:
            stage.facts["filtered_share"] = work.summary.filters.share
            stage.facts["not_judged"] = work.summary.filters.unscored
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
class _Assembly:
    config: RunConfig
    making: Making
    ledger: Ledger
    identity: str
    own: str
    max_length: int | None
    tests: HeldOut
    summary: Summary = field(default_factory=Summary)
    refused: list[dict[str, Any]] = field(default_factory=list)
    filtered: IO[bytes] | None = None
    """Where filtered rationales are written, for people."""
    counted: Known = field(default_factory=Known)
    """Keys whose prompts are counted."""

    def records(self) -> Iterator[TrainingRecord]:
        """All records, in the order of the examples; what is dropped is counted and kept in `refused`."""
        typical = self._typical() if flag(self.config.method, "is_scored") else 0.0
        for made in self._made():
            # What several examples share was asked once.
            prompts = sum(tokens for key, tokens in made.prompt_tokens.items() if self.counted.add(key))
            scored = {r.key: len(r.prompt_ids) for r in (*self.making.scores(made).values(), *made.probes)}
            self.summary.count_asked(prompts, made.generations, sum(scored.values()))
            if made.problem is not None:
                kind, reason = made.problem
                self._drop(made.example, reason, kind=kind)
            else:
                yield from self._kept(made, self._answers(made), typical)

    def _made(self) -> Iterator[Made]:
        yield from self.making.of_examples(self.ledger, self.identity, self.own)
        yield self.making.beside(self.ledger, self.own)

    def _kept(self, made: Made, answers: Mapping[str, Generation], typical: float) -> Iterator[TrainingRecord]:
        kept = 0
        for record in made.records:
            answer = answers.get(record.id)
            known = answer.logprobs if answer is not None else None
            problem = self._problem(record) if known is not None or answer is None else _unscored(answer)
            if problem is not None:
                self._drop(made.example, problem[1], kind=problem[0])
                continue
            leak = self.tests.in_record(record)
            if leak is not None:
                self._drop_leaking(made.example, leak)
                continue
            finished = self._finished(record, known, made, typical)
            if not _is_trained(finished):
                self._drop(made.example, "no token of it would be trained", kind="nothing to train")
                continue
            kept += 1
            self.summary.add(finished)
            if made.example is not None:
                self._note(made.example, finished)
            yield finished
        if kept and made.example is not None:
            self.summary.shortened += made.shortened
            for generation in made.generations:
                self.summary.count_rationale(generation)
                reason = self.config.method.reason(made.example, generation.text)
                self.summary.unused[reason] += reason is not None
            for judged in made.judged:
                self._count(judged)

    def _count(self, judged: Judged) -> None:
        assert self.summary.filters is not None
        rationale = judged.rationale
        self.summary.filters.count(judged.failed, rationale.taken.n_tokens, is_unscored=rationale.is_unscored)
        # What was merely not selected is no worse than the others, and may be nearly all there is.
        if self.filtered is not None and judged.failed and judged.failed != ("select",):
            self.filtered.write(json_line(judged.as_row()))

    def _finished(
        self, record: TrainingRecord, scores: "LogProbs | None", made: Made, typical: float
    ) -> TrainingRecord:
        """With the weights of its tokens and its soft labels."""
        if scores is None:
            return record
        if made.example is not None:
            record = self.config.method.weigh(record, scores.given_T, typical)
        return replace(record, soft=scores) if any(s.labels == "stored" for s in record.segments) else record

    def _problem(self, record: TrainingRecord) -> tuple[str, str] | None:
        if self.max_length is not None and len(record.token_ids) > self.max_length:
            return TOO_LONG, f"{len(record.token_ids)} tokens, more than {self.max_length} {lengths.WORDS}"
        return None

    def refuse_long(self, rejects: Path) -> None:
        """Stop if records were too long and the run is to have none.

        Raises:
            DataError: that is so.
        """
        count = self.summary.dropped[TOO_LONG]
        if count and self.config.train.on_long == "error":
            first = next(row for row in self.refused if row["reason"].startswith(TOO_LONG))
            named = f"about example {first['example_id']} " if "example_id" in first else ""
            raise DataError(lengths.refusal(self.max_length, count, f"{named}(all: {rejects})"))

    def _answers(self, made: Made) -> dict[str, Generation]:
        """Record id → what the untouched model expects in it, or why that is not known."""
        requests = {name: request.addressed_to(self.own) for name, request in self.making.scores(made).items()}
        if not requests:
            return {}
        stored = answers_to(list(requests.values()), self.ledger)
        return {name: stored[request.key][0] for name, request in requests.items()}

    def _typical(self) -> float:
        """The median over the examples' records of the mean loss of the tokens that teach the task."""
        means = []
        for made in self.making.of_examples(self.ledger, self.identity, self.own):
            answers = self._answers(made)
            for record in made.records:
                at, answer = task_places(record), answers.get(record.id)
                if at and answer is not None and answer.logprobs is not None:
                    means.append(-float(answer.logprobs.given_T[at].mean()))
        return float(np.median(means)) if means else 0.0

    def _note(self, example: Example, record: TrainingRecord) -> None:
        if self.summary.records > 3 or self.summary.notes:
            return
        spoken = [t for t, s in zip(record.texts, record.segments, strict=True) if s.origin not in ("prompt", "end")]
        answer = "".join(spoken).removeprefix(self.making.chat.shape.lead)
        try:
            note = self.making.chat.check_rerendering(example.messages, answer)
        except ChatTemplateError as error:
            # `generate` has refused templates that rewrite any answer; what remains is what this one holds.
            note = str(error)
        if note:
            self.summary.notes.append(note)

    def _drop_leaking(self, example: Example | None, leak: Leak) -> None:
        reason = f"its {leak.origin} holds the {leak.side} of the test {leak.example_id}: {leak.text!r}"
        test = {"id": leak.example_id, "side": leak.side, "text": leak.text}
        # The user's row is not at fault, so what was written about it is kept beside it.
        self._drop(example, reason, kind=LEAKED, more={"test": test, "written": leak.written})

    def _drop(self, example: Example | None, reason: str, *, kind: str, more: Mapping[str, Any] | None = None) -> None:
        self.summary.dropped[kind] += 1
        about = {} if example is None else {"example_id": example.id, "row": asdict(example)}
        self.refused.append({"reason": f"{kind}: {reason}", **about, **(more or {})})


def _unscored(answer: Generation) -> tuple[str, str]:
    return UNSCORED, f"the untouched model could not be asked about it: {answer.error or 'it gave no scores'}"


def _is_trained(record: TrainingRecord) -> bool:
    weights = record.token_weights
    return any(s.weight > 0 and (not weights or any(weights[s.start : s.stop])) for s in record.segments)
