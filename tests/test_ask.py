"""Asking: equal requests once, every unit committed before the next, a restart continues with the same units."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from radistill.ask import Answered, answers_to, ask
from radistill.backends.base import InUnits
from radistill.errors import BackendError, RunFolderError
from radistill.events import Events
from radistill.ledger import Ledger, open_ledger
from radistill.records import Generation, Request, Sampling


@dataclass
class Scripted(InUnits):
    """Answers in units of three; can refuse some prompts, and break down after so many units."""

    ledger: Ledger
    refused: frozenset[int] = frozenset()
    breaks_after: int = 1 << 30
    asked: list[list[int]] = field(default_factory=list)
    answered: list[str] = field(default_factory=list)
    planned: list[list[int]] = field(default_factory=list)

    @property
    def identity(self) -> str:
        return "scripted"

    def units(self, requests: Sequence[Request]) -> Iterator[Sequence[Request]]:
        ordered = sorted(requests, key=lambda r: -r.prompt_ids[0])
        for start in range(0, len(ordered), 3):
            unit = ordered[start : start + 3]
            self.planned.append([r.prompt_ids[0] for r in unit])
            yield unit

    def answer(self, unit: Sequence[Request]) -> list[Generation]:
        assert self.ledger.missing(self.answered) == set(), "a unit was begun before the last one was in the ledger"
        if len(self.asked) == self.breaks_after:
            raise BackendError("the engine is gone")
        self.asked.append([r.prompt_ids[0] for r in unit])
        self.answered += [r.key for r in unit if r.prompt_ids[0] not in self.refused]
        return [self.one(r, i) for r in unit for i in range(r.sampling.n)]

    def one(self, request: Request, index: int) -> Generation:
        (n,) = request.prompt_ids
        if n in self.refused:
            return Generation(key=request.key, index=index, token_ids=(), text="", finish_reason="error", error="no")
        return Generation(key=request.key, index=index, token_ids=(n,) * n, text=str(n), finish_reason="stop")


def request(n: int, answers: int = 1) -> Request:
    return Request(purpose="rationale", prompt_ids=(n,), sampling=Sampling(n=answers), model="scripted")


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with open_ledger(tmp_path / "ledger") as opened:
        yield opened


def test_equal_requests_are_asked_once_and_everything_is_counted(
    ledger: Ledger, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = Scripted(ledger, refused=frozenset({4}))
    found = ask([request(n) for n in (5, 1, 5, 4, 2, 3, 1)], engine, ledger, title="test")
    assert found == Answered(requests=5, written=5, tokens=11, tokens_read=5, failed=1, generations=5)
    assert engine.asked == [[5, 4, 3], [2, 1]]
    assert "test: 7/7 rows" in capsys.readouterr().err


def test_what_the_ledger_holds_is_not_asked_again_and_what_failed_is(ledger: Ledger) -> None:
    ask([request(n) for n in range(1, 7)], Scripted(ledger, refused=frozenset({2, 5})), ledger, title="")
    engine = Scripted(ledger)
    found = ask([request(n) for n in range(1, 9)], engine, ledger, title="")
    assert found == Answered(requests=8, from_ledger=4, written=4, tokens=8 + 7 + 5 + 2, tokens_read=4, generations=4)
    assert engine.asked == [[8, 7], [5], [2]]
    assert engine.planned == [[8, 7, 6], [5, 4, 3], [2, 1]], "the units do not depend on what is answered"
    again = Scripted(ledger)
    assert ask([request(n) for n in range(1, 9)], again, ledger, title="").written == 0
    assert again.asked == []


@pytest.mark.parametrize("breaks_after", range(4))
def test_an_engine_that_breaks_down_loses_no_finished_unit_and_the_next_run_goes_on(
    ledger: Ledger, breaks_after: int
) -> None:
    plan = [request(n, answers=2) for n in range(1, 11)]
    broken, quiet = Scripted(ledger, breaks_after=breaks_after), [[10, 9, 8], [7, 6, 5], [4, 3, 2], [1]]
    with pytest.raises(BackendError):
        ask(plan, broken, ledger, title="")
    assert broken.asked == quiet[:breaks_after]
    engine = Scripted(ledger)
    found = ask(plan, engine, ledger, title="")
    assert engine.asked == quiet[breaks_after:]
    assert found.from_ledger == sum(map(len, quiet[:breaks_after]))
    answers = answers_to(plan, ledger)
    assert {key: [(g.index, g.text) for g in rows] for key, rows in answers.items()} == {
        request(n, answers=2).key: [(0, str(n)), (1, str(n))] for n in range(1, 11)
    }


def test_nothing_is_asked_when_nothing_is_planned(ledger: Ledger) -> None:
    engine = Scripted(ledger)
    assert ask([], engine, ledger, title="") == Answered()
    assert answers_to([], ledger) == {}


def test_answers_that_the_ledger_has_lost_are_a_message(ledger: Ledger) -> None:
    plan = [request(n) for n in range(1, 4)]
    ask(plan, Scripted(ledger), ledger, title="")
    (shard,) = ledger.shards.glob("*")
    shard.write_bytes(b"")
    with pytest.raises(RunFolderError, match=r"has lost 3 answers that were written .*Run the same command again"):
        answers_to(plan, ledger)
    assert ask(plan, Scripted(ledger), ledger, title="").written == 3
    assert len(answers_to(plan, ledger)) == 3


def test_a_plan_of_many_windows_is_asked_as_a_stream_and_equal_requests_still_once(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("radistill.ask.WINDOW", 4)
    engine = Scripted(ledger)
    plan = [1, 2, 3, 4, 2, 5, 1, 6, 7, 7]
    found = ask((request(n) for n in plan), engine, ledger, title="", total=len(plan))
    assert engine.planned == [[4, 3, 2], [1], [6, 5], [7]]
    assert engine.asked == engine.planned
    assert (found.requests, found.written) == (7, 7)


def test_what_has_failed_often_enough_is_reported_and_not_asked_again(ledger: Ledger) -> None:
    plan = [request(n, answers=2) for n in range(1, 5)]
    for attempt in range(1, 4):
        engine = Scripted(ledger, refused=frozenset({2}))
        found = ask(plan, engine, ledger, title="", attempts=3)
        assert ([2] in engine.asked) or attempt == 1
        assert (found.failed, found.given_up) == (1, 0)
        assert ledger.failures(r.key for r in plan) == {plan[1].key: attempt}
    engine = Scripted(ledger)
    found = ask(plan, engine, ledger, title="", attempts=3)
    assert (engine.asked, found.failed, found.given_up, found.from_ledger) == ([], 1, 1, 3)
    assert ask(plan, engine, ledger, title="", attempts=4).failed == 0
    assert engine.asked == [[2]]
    assert ledger.failures(r.key for r in plan) == {}


def test_the_event_log_tells_what_was_done_and_what_broke(ledger: Ledger, tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    plan = [request(n) for n in range(1, 9)]
    with pytest.raises(BackendError):
        ask(plan, Scripted(ledger, breaks_after=1), ledger, title="first", events=Events(path, stage="generate"))
    ask(plan, Scripted(ledger, refused=frozenset({1})), ledger, title="second", events=Events(path, stage="generate"))
    said = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [(e["what"], e["event"], e["rows"], e["of"], e["failed"]) for e in said] == [
        ("first", "begin", 0, 8, 0),
        ("first", "failed", 3, 8, 0),
        ("second", "begin", 0, 8, 0),
        ("second", "end", 8, 8, 1),
    ]
    assert said[1]["error"] == "BackendError: the engine is gone"
    assert (said[3]["from_ledger"], said[3]["tokens"], said[3]["tokens_read"]) == (3, 5 + 4 + 3 + 2, 5)
    assert all(e["stage"] == "generate" and e["time"] for e in said)


class Forgetful(InUnits):
    """Says nothing of every third request."""

    identity = "forgetful"

    def units(self, requests: Sequence[Request]) -> Iterator[Sequence[Request]]:
        yield requests

    def answer(self, unit: Sequence[Request]) -> list[Generation]:
        return [good(request.key) for n, request in enumerate(unit) if n % 3]


def test_an_engine_that_leaves_requests_out_is_told_so_and_what_it_gave_is_kept(ledger: Ledger) -> None:
    plan = [Request(purpose="rationale", prompt_ids=(n,), sampling=Sampling(), model="m") for n in range(9)]
    with pytest.raises(BackendError, match="gave no answer to 3 requests"):
        ask(plan, Forgetful(), ledger, title="")
    assert len(ledger.missing(r.key for r in plan)) == 3


def good(key: str) -> Generation:
    return Generation(key=key, index=0, token_ids=(1,), text="x", finish_reason="stop")
