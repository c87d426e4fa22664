"""Perplexity under the untouched model, and records whose tokens are weighed or get soft labels, after filters."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fakes_filtering import BROKEN, LOOPS, OFF, ROWS, Assembly, bare, counts, only, prepared, without
from radistill import pipeline
from radistill.backends.echo import EchoGenerator
from radistill.config import config_from
from radistill.errors import RunFolderError
from radistill.ledger import open_ledger
from radistill.ledger_export import export
from radistill.records import FinishReason, Generation, Request, TrainingRecord
from radistill.runs import RunFolder
from radistill.tables import read_jsonl
from radistill.terminal import outcome_line

scored_before = EchoGenerator._scored
asked: list[Request] = []


def scored(self: EchoGenerator, request: Request) -> Generation:
    """A token's log-probability hangs on its id and on how many stand before it."""
    asked.append(request)
    answer = scored_before(self, request)
    assert answer.logprobs is not None
    ids = np.asarray(request.prompt_ids)
    given_T = (-((ids * 7 + np.arange(len(ids))) % 11) / 3).astype(np.float32)
    given_T[0] = 0
    return dataclasses.replace(answer, logprobs=dataclasses.replace(answer.logprobs, given_T=given_T))


@pytest.fixture
def raw(raw_config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(EchoGenerator, "_scored", scored)
    asked.clear()
    return prepared(raw_config, tmp_path, monkeypatch)


@pytest.fixture
def assembled(raw: dict[str, Any], tmp_path: Path) -> Assembly:
    return Assembly(raw, tmp_path)


def perplexities(records: dict[int, TrainingRecord]) -> dict[int, float]:
    """By hand, of the records as they are without filters."""
    found = {}
    for n, record in records.items():
        for s in record.segments:
            if s.origin == "rationale":
                places = np.arange(s.start, s.stop)
                ids = np.asarray(record.token_ids)[places]
                found[n] = math.exp(float(((ids * 7 + places) % 11 / 3).mean()))
    return found


def train(labels: str) -> dict[str, Any]:
    return {"bf16": False, "labels": labels, "label_top_k": 3}


@pytest.mark.parametrize("labels", ["hard", "stored"])
def test_bounds_on_perplexity_are_those_of_the_rationales_own_tokens(assembled: Assembly, labels: str) -> None:
    _, whole = assembled(OFF, train=train(labels))
    known = perplexities(whole)
    low, high = np.quantile(list(known.values()), [0.3, 0.7])
    run, records = assembled(only(min_perplexity=low, max_perplexity=high), train=train(labels))
    assert counts(run)["min_perplexity"]["filtered"] == sum(p < low for p in known.values()) > 2
    assert counts(run)["max_perplexity"]["filtered"] == sum(p > high for p in known.values()) > 2
    assert bare(records) == {1} | {n for n, p in known.items() if not low <= p <= high}
    for row in read_jsonl(run.filtered):
        (n,) = [n for n, r in records.items() if r.example_id == row["example_id"]]
        assert row["perplexity"] == pytest.approx(known[n], rel=1e-3)
    for n in set(records) - bare(records):
        assert records[n] == whole[n]
        assert (records[n].soft is not None) == (labels == "stored")


def test_soft_labels_ask_about_each_record_once(assembled: Assembly) -> None:
    run, records = assembled(only(max_perplexity=5.0), train=train("stored"))
    assert {request.top_k for request in asked} == {3}
    assert len({request.key for request in asked}) == len(asked) == ROWS - 1
    summary = json.loads(run.summary.read_text(encoding="utf-8"))
    assert summary["asked"]["scored_tokens"] == sum(len(request.prompt_ids) for request in asked)
    assert bare(records) > {1}


def test_other_bounds_need_no_new_generation(raw: dict[str, Any]) -> None:
    def config(**filters: Any) -> Any:
        return config_from({**raw, "generate": {**raw["generate"], "filters": filters}})

    pipeline.run(config(max_perplexity=5.0), stages=("generate", "assemble"))
    other = config(max_perplexity=4.0, refusal=True, broken=False)
    outcomes = pipeline.run(other, stages=("generate", "assemble"), redo="assemble")
    assert [outcome.reused for outcome in outcomes] == [True, False]
    with pytest.raises(RunFolderError, match="perplexity: true there, null now"):
        pipeline.run(config(), stages=("generate",))


@pytest.mark.parametrize("labels", ["hard", "stored"])
@pytest.mark.parametrize("filters", [{"max_perplexity": 5.0}, {"max_tokens": 57}, {"select": {"tokens": 100}}])
def test_a_reference_that_stands_alone_is_weighed_by_its_own_score(
    assembled: Assembly, labels: str, filters: dict[str, Any]
) -> None:
    method = [{"name": "radis"}, {"name": "stm", "threshold": 5.0}]
    run, records = assembled(filters, method=method, train=train(labels))
    _, plain = assembled(OFF, method=[{"name": "vanilla"}, {"name": "stm", "threshold": 5.0}], train=train(labels))
    fallen = bare(records)
    assert fallen >= BROKEN | LOOPS
    assert 0 < len(fallen) < ROWS
    assert without(run) <= fallen
    for n in fallen & plain.keys():
        assert records[n] == plain[n]
    assert any(0 in r.token_weights for r in plain.values())


def test_a_changed_filter_that_changes_what_is_scored_is_told_before_it_fails(raw: dict[str, Any]) -> None:
    raw["train"]["labels"] = "stored"
    pipeline.run(config_from(raw), stages=("generate", "assemble"))
    raw["generate"]["filters"] = OFF
    off = config_from(raw)
    with pytest.raises(RunFolderError, match=r"stage `generate` .*\n *filters: .* there, null now"):
        pipeline.run(off, stages=("generate",))
    before = len(asked)
    pipeline.run(off, stages=("generate", "assemble"), redo="generate")
    assert len(asked) == before + len(BROKEN | LOOPS) - 1, "an empty rationale has no tokens to be labelled"


def test_what_is_exported_holds_what_perplexity_was_told_by(raw: dict[str, Any], tmp_path: Path) -> None:
    raw["generate"]["filters"] = {"max_perplexity": 5.0}
    config = config_from(raw)
    pipeline.run(config, stages=("generate", "assemble"))
    rows = export(Path(config.output_dir), tmp_path / "rows.jsonl")
    assert rows == ROWS + ROWS - 1
    keys = {row["key"] for row in read_jsonl(tmp_path / "rows.jsonl")}
    assert {request.key for request in asked} <= keys


TOO_LONG = ("70 tokens are more than the context of 64", "This model's maximum context length is 64 tokens")


def failing(monkeypatch: pytest.MonkeyPatch, error: str | None) -> None:
    def nothing(self: EchoGenerator, request: Request) -> Generation:
        reason: FinishReason = "stop" if error is None else "error"
        return dataclasses.replace(scored(self, request), logprobs=None, finish_reason=reason, error=error)

    monkeypatch.setattr(EchoGenerator, "_scored", nothing)


@pytest.mark.parametrize("error", [None, "HTTP 503: overloaded", *TOO_LONG])
def test_a_rationale_that_could_not_be_scored_is_let_pass_and_counted_unless_it_is_too_long(
    assembled: Assembly, monkeypatch: pytest.MonkeyPatch, error: str | None
) -> None:
    failing(monkeypatch, error)
    run, records = assembled(only(max_perplexity=1.0, refusal=True))
    assert bare(records) == {1, 7}
    failed = 0 if error in TOO_LONG else ROWS - 1
    assert counts(run)["max_perplexity"] == {"filtered": 0, "rate": 0.0, "not_judged": failed}
    assert "not_judged" not in counts(run)["refusal"]
    said = outcome_line(pipeline.StageOutcome("assemble", run.stages()["assemble"], reused=False))
    told = f"{failed} not judged by their perplexity because their scores failed"
    assert (told in said) == (failed > 0)
    assert ("not judged" in said) == (failed > 0)


@pytest.mark.parametrize("error", [None, "HTTP 503: overloaded", *TOO_LONG])
def test_a_record_without_soft_labels_is_dropped_with_the_engines_own_reason(
    raw: dict[str, Any], monkeypatch: pytest.MonkeyPatch, error: str | None
) -> None:
    failing(monkeypatch, error)
    raw["generate"]["filters"], raw["train"] = OFF, train("stored")
    pipeline.run(config_from(raw), stages=("generate", "assemble"))
    rejects = [row for row in read_jsonl(RunFolder(Path(raw["output_dir"])).rejects) if row["stage"] == "assemble"]
    assert len(rejects) == ROWS - 1
    why = "cannot be scored: the untouched model could not be asked about it: "
    assert {row["reason"] for row in rejects} == {why + (error or "it gave no scores")}


def test_shares_of_the_stage_ask_for_no_scores_and_the_last_command_does(raw: dict[str, Any]) -> None:
    from radistill.shares import Share

    raw["generate"]["filters"] = {"max_perplexity": 5.0}
    config = config_from(raw)
    for part in range(2):
        pipeline.generate_share(config, Share(part, 2))
    assert not asked
    pipeline.run(config, stages=("generate", "assemble"))
    assert len(asked) == ROWS - 1
    with open_ledger(Path(config.generate.ledger)) as ledger:
        assert not ledger.missing(request.key for request in asked)
