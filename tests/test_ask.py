"""Asking: equal requests once, every unit committed before the next, a restart continues with the same units."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from radistill.ask import Answered, answers_to, ask
from radistill.errors import BackendError, RunFolderError
from radistill.ledger import Ledger, open_ledger
from radistill.records import Generation, Request, Sampling


@dataclass
class Scripted:
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
    assert found == Answered(requests=5, from_ledger=0, written=5, tokens=11, failed=1)
    assert engine.asked == [[5, 4, 3], [2, 1]]
    assert "test: 5/5 rows" in capsys.readouterr().err


def test_what_the_ledger_holds_is_not_asked_again_and_what_failed_is(ledger: Ledger) -> None:
    ask([request(n) for n in range(1, 7)], Scripted(ledger, refused=frozenset({2, 5})), ledger, title="")
    engine = Scripted(ledger)
    found = ask([request(n) for n in range(1, 9)], engine, ledger, title="")
    assert found == Answered(requests=8, from_ledger=4, written=4, tokens=8 + 7 + 5 + 2, failed=0)
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
    assert ask([], engine, ledger, title="") == Answered(requests=0, from_ledger=0, written=0, tokens=0, failed=0)
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
