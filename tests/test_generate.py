"""Stage 1: shares of the work, rows that failed, and the export that equal runs have in common."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from radistill import ledger_export, pipeline
from radistill.backends import echo
from radistill.cli import app
from radistill.config import config_from
from radistill.errors import BackendError, ConfigError
from radistill.records import Generation, Request
from radistill.runs import RunFolder
from radistill.shares import Share
from radistill.tables import read_records


@pytest.fixture
def raw(raw_config: dict[str, Any]) -> dict[str, Any]:
    raw_config["generate"]["backend"] = {"name": "echo", "batch_size": 5}
    raw_config["data"]["train"]["limit"] = 40
    return raw_config


def run(raw: dict[str, Any], *stages: str) -> list[pipeline.StageOutcome]:
    return pipeline.run(config_from(raw), stages=stages or ("generate",))


def exported(raw: dict[str, Any], tmp_path: Path) -> list[dict[str, Any]]:
    output = tmp_path / "rows.jsonl"
    ledger_export.export(Path(raw["output_dir"]), output)
    return [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]


def other(raw: dict[str, Any], name: str) -> dict[str, Any]:
    """The same run in another place."""
    folder = Path(raw["output_dir"]).parent / name
    return {**raw, "output_dir": str(folder), "generate": {**raw["generate"], "ledger": str(folder / "ledger")}}


@pytest.mark.parametrize("labels", ["hard", "stored"])
def test_shares_come_to_the_same_rows_as_a_whole_run(raw: dict[str, Any], tmp_path: Path, labels: str) -> None:
    raw["train"]["labels"] = labels
    raw["method"] = [{"name": "radis"}, {"name": "context_free", "ratio": 0.5}]
    whole, parts = other(raw, "whole"), other(raw, "parts")
    run(whole, "generate", "assemble")
    asked = []
    for number in (2, 0, 1):
        done = pipeline.generate_share(config_from(parts), Share(number, 3))
        asked.append(done.requests)
        assert done.written == done.requests
        assert not (Path(parts["output_dir"]) / "manifest.json").exists()
    assert sum(asked) >= 40
    assert min(asked) > 3
    (outcome,) = run(parts, "generate")
    left = outcome.record.facts["written"]
    assert left < 10 or labels == "stored", "only what hangs on the answers of other shares"
    run(parts, "assemble")
    assert exported(parts, tmp_path) == exported(whole, tmp_path)
    folders = [RunFolder(Path(r["output_dir"])) for r in (whole, parts)]
    assert folders[0].records.read_bytes() == folders[1].records.read_bytes()


def test_a_limit_answers_the_first_so_many(raw: dict[str, Any]) -> None:
    config = config_from(raw)
    first = pipeline.generate_share(config, Share(limit=7))
    assert (first.requests, first.written) == (7, 7)
    again = pipeline.generate_share(config, Share(limit=12))
    assert (again.requests, again.from_ledger, again.written) == (12, 7, 5)
    (outcome,) = run(raw)
    assert (outcome.record.facts["from_ledger"], outcome.record.facts["written"]) == (12, 39 - 12), "two rows are equal"


@pytest.mark.parametrize("shard", ["3/3", "1", "a/b", "-1/2", "0/0", "1/2/3"])
def test_what_is_no_share_is_a_message(shard: str) -> None:
    with pytest.raises(ConfigError, match=r"counted from 0: 0/4 to 3/4"):
        Share.parse(shard, None)


def test_no_option_is_no_share() -> None:
    assert Share.parse(None, None) is None
    assert Share.parse("1/4", 9) == Share(1, 4, 9)
    assert str(Share(1, 4, 9)) == "shard 1/4, the first 9"
    assert str(Share(0, 1, 9)) == "the first 9"
    assert str(Share(0, 1)) == "shard 0/1", "a title has to end in something"


def test_the_command_takes_shares(raw: dict[str, Any], write_config: Callable[[dict[str, Any]], Path]) -> None:
    path = str(write_config(raw))
    said = CliRunner().invoke(app, ["generate", path, "--shard", "0/2", "--limit", "3", "--json"])
    assert json.loads(said.stdout)["written"] == 3
    said = CliRunner().invoke(app, ["generate", path, "--json"])
    assert json.loads(said.stdout)["facts"]["from_ledger"] == 3
    with pytest.raises(ConfigError, match="--redo begins the whole stage anew"):
        CliRunner().invoke(app, ["generate", path, "--limit", "3", "--redo"], catch_exceptions=False)


def test_a_share_refuses_what_the_whole_stage_would_refuse(
    raw: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_from(raw)
    with monkeypatch.context() as patch:
        patch.setattr(echo.Echo, "missing", lambda _: "install the server")
        with pytest.raises(BackendError, match="install the server"):
            pipeline.generate_share(config, Share(0, 2))
    raw["generate"]["filters"] = {"custom": "nowhere_at_all:keeps"}
    config = config_from(raw)
    with pytest.raises(ConfigError, match="nowhere_at_all cannot be imported"):
        pipeline.generate_share(config, Share(0, 2))
    assert not Path(config.generate.ledger).exists()


def test_what_failed_is_tried_again_by_the_next_run_and_then_reported(
    raw: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    raw["generate"]["max_attempts"] = 3
    whole = echo.EchoGenerator.answer
    broken = 2

    def refusing(self: echo.EchoGenerator, unit: Sequence[Request]) -> list[Generation]:
        bad = {r.key for r in unit if int(r.key, 16) % 10 < broken}
        fail = [
            Generation(key=k, index=0, token_ids=(), text="", finish_reason="error", error="engine says no")
            for k in sorted(bad)
        ]
        return [*(g for g in whole(self, unit) if g.key not in bad), *fail]

    monkeypatch.setattr(echo.EchoGenerator, "answer", refusing)
    (first,) = run(raw, "generate")
    failed = first.record.facts["failed"]
    assert 2 < failed < 20
    run(raw, "assemble")
    summary = json.loads(RunFolder(Path(raw["output_dir"])).summary.read_text(encoding="utf-8"))
    assert summary["dropped"]["generation failed"] == failed
    (second,) = run(raw, "generate")
    assert not second.reused
    assert (second.record.facts["written"], second.record.facts["failed"]) == (failed, failed)
    (kept,) = run(raw, "assemble")
    assert kept.reused, "what failed once more changes nothing that was made of the others"
    broken = 1
    (third,) = run(raw, "generate")
    left = third.record.facts["failed"]
    assert 0 < left < failed
    (anew,) = run(raw, "assemble")
    assert not anew.reused
    assert len(list(read_records(RunFolder(Path(raw["output_dir"])).records))) == 40 - left
    (fourth,) = run(raw, "generate")
    assert (fourth.record.facts["written"], fourth.record.facts["given_up"]) == (0, left), "three times is enough"
    (fifth,) = run(raw, "generate")
    assert fifth.reused
    raw["generate"]["max_attempts"] = 5
    (sixth,) = run(raw, "generate")
    assert (sixth.record.facts["written"], sixth.record.facts["given_up"]) == (left, 0), "more was allowed since"


def test_equal_runs_have_equal_exports_with_all_that_a_run_uses(raw: dict[str, Any], tmp_path: Path) -> None:
    raw["train"] |= {"labels": "stored", "label_top_k": 3, "max_steps": 1}
    first, second = other(raw, "first"), other(raw, "second")
    second["generate"]["backend"] = {"name": "echo", "batch_size": 3}
    run(first, "generate")
    run(second, "generate")
    rows = exported(first, tmp_path)
    assert rows == exported(second, tmp_path)
    assert [row["key"] for row in rows] == sorted({row["key"] for row in rows})
    assert {"logprobs" in row for row in rows} == {True, False}
    without = len(rows)
    run(first, "assemble", "train", "evaluate")
    assert len(exported(first, tmp_path)) > without, "its predictions belong to it"


def test_events_of_all_stages_stand_in_the_run_folder(raw: dict[str, Any]) -> None:
    raw["train"]["max_steps"] = 1
    run(raw, "generate", "assemble", "train", "evaluate")
    lines = (Path(raw["output_dir"]) / "events.jsonl").read_text(encoding="utf-8").splitlines()
    said = [(e["stage"], e["event"]) for e in map(json.loads, lines)]
    assert said[:2] == [("generate", "begin"), ("generate", "end")]
    assert said.count(("evaluate", "end")) == 2
