"""Methods that learn something beside the examples, in a run: asked, assembled, put together, kept from the tests."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from fakes_beside import ids_of, rows_in, shape, texts_of
from radistill import data, pipeline
from radistill.backends.echo import EchoGenerator
from radistill.config import config_from
from radistill.errors import RunFolderError
from radistill.records import Generation, Request, TrainingRecord
from radistill.runs import RunFolder
from radistill.tables import read_jsonl, read_records


@pytest.fixture
def raw(raw_config: dict[str, Any]) -> dict[str, Any]:
    """A run whose texts are made without a model."""
    raw_config["generate"]["backend"] = {"name": "echo", "empty_share": 0.2}
    return raw_config


def assembled(raw: dict[str, Any]) -> tuple[RunFolder, list[TrainingRecord]]:
    """Generate and assemble; the run and its records beside the examples."""
    config = config_from(raw)
    pipeline.run(config, stages=("generate", "assemble"))
    run = RunFolder(Path(config.output_dir))
    return run, [record for record in read_records(run.records) if record.example_id is None]


def test_both_rounds_are_asked_and_assembled_and_done_again_from_the_ledger_alone(
    raw: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    raw["method"] = {"name": "context_free", "ratio": 3, "start": "user"}
    run, records = assembled(raw)
    complete = [("prompt", 0), ("free", 1), ("end", 1), ("prompt", 0), ("free", 1), ("end", 1)]
    assert sum(shape(r) == complete for r in records) > 10
    facts = run.stages()["generate"].facts
    # 24 references are asked nothing about; 72 samples take three requests, each message that ended one more.
    assert facts["requests"] == 3 + sum(len(texts_of(r, "end")) > 0 for r in records)
    monkeypatch.setattr(EchoGenerator, "answer", None)
    pipeline.run(config_from(raw), stages=("assemble",), redo="assemble")
    assert [r for r in read_records(run.records) if r.example_id is None] == records


def test_a_real_model_writes_different_samples_from_nothing_in_one_batch(raw_config: dict[str, Any]) -> None:
    raw_config["data"]["train"]["limit"] = 12
    raw_config["method"] = {"name": "context_free", "ratio": 1, "max_new_tokens": 12}
    run, records = assembled(raw_config)
    texts = [r for r in records if shape(r)[:2] == [("prompt", 0), ("free", 1)] and r.segments[0].stop == 1]
    assert len({r.token_ids for r in texts}) == len(texts) >= 5
    assert all(r.segments[1].stop - r.segments[1].start <= 12 for r in records)
    assert run.stages()["assemble"].facts["records"] == len(records) + 12


def test_methods_beside_the_examples_go_together_with_each_other_and_with_radis(
    raw: dict[str, Any], tmp_path: Path
) -> None:
    file = rows_in(tmp_path / "more")
    raw["method"] = [
        {"name": "radis"},
        {"name": "context_free", "ratio": 0.5, "start": "user"},
        {"name": "replay", "path": str(file), "ratio": 0.25},
    ]
    run, records = assembled(raw)
    origins = Counter(next(s.origin for s in r.segments if s.origin != "prompt") for r in records)
    assert origins["replay"] == 6
    assert 5 <= origins["free"] <= 12
    of_examples = [r for r in read_records(run.records) if r.example_id is not None]
    assert len(of_examples) == 24
    assert any(s.origin == "rationale" for r in of_examples for s in r.segments)
    declared: Any = run.stages()["assemble"].settings["method"]
    assert [part["name"] for part in declared] == ["radis", "context_free", "replay"]
    alone = {**raw, "output_dir": str(tmp_path / "alone"), "method": raw["method"][1]}
    assert [r for r in records if "free" in {s.origin for s in r.segments}] == assembled(alone)[1]


def test_another_file_to_replay_is_another_assembly(raw: dict[str, Any], tmp_path: Path) -> None:
    file = rows_in(tmp_path / "more")
    raw["method"] = {"name": "replay", "path": str(file)}
    assembled(raw)
    assert pipeline.run(config_from(raw), stages=("assemble",))[0].reused
    rows_in(tmp_path / "more", 7)
    with pytest.raises(RunFolderError, match=r"train\.jsonl"):
        pipeline.run(config_from(raw), stages=("assemble",))


def test_a_replayed_row_that_holds_a_test_is_dropped_and_counted(raw: dict[str, Any], tmp_path: Path) -> None:
    test = data.load(config_from(raw).data, "test", seed=0).examples[0]
    file = rows_in(tmp_path / "more")
    leaking = {"prompt": f"Is this right? {test.messages[-1].content}", "completion": "Good."}
    with file.open("a") as more:
        more.write(json.dumps(leaking) + "\n")
    raw["method"] = {"name": "replay", "path": str(file), "ratio": 7 / 24}
    run, records = assembled(raw)
    assert len(records) == 6
    assert run.stages()["assemble"].facts["dropped"] == {"contains a test prompt": 1}
    (row,) = [row for row in read_jsonl(run.rejects) if row["stage"] == "assemble"]
    assert row["test"]["id"] == test.id
    assert "Is this right?" in row["written"]


def test_a_sample_that_holds_a_test_is_dropped_and_counted(
    raw: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    test = data.load(config_from(raw).data, "test", seed=0).examples[0]

    def say(self: EchoGenerator, request: Request, index: int) -> Generation:
        message = test.messages[-1].content if index == 3 else f"Hello {index}"
        text = message if request.sampling.n > 1 else "Good."
        return Generation(
            key=request.key, index=index, token_ids=ids_of(self.chat, text), text=text, finish_reason="stop"
        )

    monkeypatch.setattr(EchoGenerator, "_one", say)
    raw["method"] = {"name": "context_free", "start": "user"}
    run, records = assembled(raw)
    assert len(records) == 23
    assert run.stages()["assemble"].facts["dropped"] == {"contains a test prompt": 1}
