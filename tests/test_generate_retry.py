"""Stage 1: what stands in the run folder when a start fails, or when a retry of failed rows cannot run."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from radistill import pipeline
from radistill.backends import echo
from radistill.config import config_from
from radistill.errors import BackendError, RunFolderError
from radistill.records import Generation, Request
from radistill.runs import RunFolder
from radistill.speaker import Speaker
from radistill.terminal import outcome_line

whole = echo.EchoGenerator.answer


class Engine:
    """An echo that is there or not, breaks down after so many batches, and fails on a share of the rows."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_there, self.batches, self.broken, self.opened = True, 1000, 0, 0
        engine = self

        @contextmanager
        def opened(settings: echo.Echo, speaker: Speaker) -> Iterator[echo.EchoGenerator]:
            engine.opened += 1
            if not engine.is_there:
                raise BackendError("the server is not there")
            yield echo.EchoGenerator(settings, speaker.chat)

        def answer(generator: echo.EchoGenerator, unit: Sequence[Request]) -> list[Generation]:
            if not engine.batches:
                raise BackendError("the server is gone")
            engine.batches -= 1
            bad = {r.key for r in unit if int(r.key, 16) % 10 < engine.broken}
            failed = [
                Generation(key=k, index=0, token_ids=(), text="", finish_reason="error", error="engine says no")
                for k in sorted(bad)
            ]
            return [*(g for g in whole(generator, unit) if g.key not in bad), *failed]

        monkeypatch.setattr(echo.Echo, "open", opened)
        monkeypatch.setattr(echo.EchoGenerator, "answer", answer)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    return Engine(monkeypatch)


@pytest.fixture
def raw(raw_config: dict[str, Any]) -> dict[str, Any]:
    raw_config["generate"]["backend"] = {"name": "echo", "batch_size": 2}
    raw_config["generate"]["max_attempts"] = 9
    raw_config["data"]["train"]["limit"] = 40
    return raw_config


def run(raw: dict[str, Any], *stages: str) -> list[pipeline.StageOutcome]:
    return pipeline.run(config_from(raw), stages=stages or ("generate",))


def stages(raw: dict[str, Any]) -> dict[str, str]:
    return {name: record.status for name, record in RunFolder(Path(raw["output_dir"])).stages().items()}


@pytest.mark.parametrize("batches", [None, 0, 2])
def test_a_retry_that_cannot_run_leaves_the_stage_finished(
    raw: dict[str, Any], engine: Engine, batches: int | None
) -> None:
    engine.broken = 2
    (first,) = run(raw)
    failed = first.record.facts["failed"]
    assert failed > 4
    run(raw, "assemble")
    engine.is_there, engine.batches, engine.broken = batches is not None, batches or 0, 0
    with pytest.raises(BackendError, match="the server is"):
        run(raw)
    assert RunFolder(Path(raw["output_dir"])).stages()["generate"] == first.record
    (assembled,) = run(raw, "assemble")
    assert assembled.reused
    engine.is_there, engine.batches = True, 1000
    (second,) = run(raw)
    assert second.record.facts["failed"] == 0
    assert second.record.facts["won"] == failed, "also what the try before has won"
    (assembled,) = run(raw, "assemble")
    assert assembled.record.facts["records"] == 40, "what was won is not left out for good"


def test_a_whole_run_does_not_try_again_what_later_stages_would_be_void_by(raw: dict[str, Any], engine: Engine) -> None:
    engine.broken = 2
    (first,) = run(raw)
    failed = first.record.facts["failed"]
    engine.broken = 1
    outcomes = run(raw, "generate", "assemble")
    assert not outcomes[0].reused, "nothing was made of it yet"
    left = outcomes[0].record.facts["failed"]
    assert 0 < left < failed
    opened, engine.broken = engine.opened, 0
    outcomes = run(raw, "generate", "assemble")
    assert [outcome.reused for outcome in outcomes] == [True, True]
    assert engine.opened == opened
    assert f"{left} failed, which `radistill generate` tries again" in outcome_line(outcomes[0])
    (again,) = run(raw, "generate")
    assert stages(raw) == {"generate": "finished"}
    assert outcome_line(again).endswith(f"; stale through {left} new answers: assemble")
    (third,) = run(raw, "generate")
    assert outcome_line(third) == "generate: done before, reused"


@pytest.mark.parametrize("failure", ["not installed", "not there", "lost at once", "interrupted"])
def test_a_start_that_wrote_nothing_leaves_the_folder_to_another_config(
    raw: dict[str, Any], engine: Engine, failure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        if failure == "not installed":
            patch.setattr(echo.Echo, "missing", lambda _: "install the server")
        engine.is_there, engine.batches = failure != "not there", 0
        if failure == "interrupted":
            patch.setattr(echo.EchoGenerator, "answer", interrupt)
        with pytest.raises((BackendError, pipeline.Interrupted)):
            run(raw)
    assert stages(raw) == {}
    engine.is_there, engine.batches = True, 1000
    raw["generate"]["backend"] = {"name": "echo", "empty_share": 0.5}
    (outcome,) = run(raw)
    assert outcome.record.status == "finished"


def interrupt(self: echo.EchoGenerator, unit: Sequence[Request]) -> list[Generation]:
    raise KeyboardInterrupt


def test_once_something_is_committed_the_folder_belongs_to_its_config(raw: dict[str, Any], engine: Engine) -> None:
    engine.batches = 1
    with pytest.raises(BackendError, match="the server is gone"):
        run(raw)
    assert stages(raw) == {"generate": "started"}
    other = {**raw, "generate": {**raw["generate"], "backend": {"name": "echo", "empty_share": 0.5}}}
    with pytest.raises(RunFolderError, match="holds the stage `generate` of another config"):
        run(other)
    engine.batches = 1000
    (outcome,) = run(raw)
    assert outcome.record.facts["from_ledger"] == 2


def test_a_stage_to_be_done_again_by_an_engine_that_is_not_there_stays_as_it_was(
    raw: dict[str, Any], engine: Engine
) -> None:
    (first,) = run(raw)
    engine.is_there = False
    with pytest.raises(BackendError):
        pipeline.run(config_from(raw), stages=("generate",), redo="generate")
    assert RunFolder(Path(raw["output_dir"])).stages()["generate"] == first.record
