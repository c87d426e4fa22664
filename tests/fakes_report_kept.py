"""Runs with a skill, abilities and a probe: right and wrong answers by rule, as many as a test asks for."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fakes_report import QUICK, run_folder
from radistill.metrics.base import Metric, Pair
from radistill.records import Example, Generation, Prediction, Sampling, digest
from radistill.runs import RunFolder
from radistill.tables import write_predictions
from radistill.tasks.base import Kind, Task

ITEMS = 20


class Exact(Metric):
    """Right answers in percent."""

    def rows(self, pairs: Sequence[Pair], language: str) -> NDArray[np.float64]:
        return np.array([[float(p.answer == p.reference), 1.0] for p in pairs])

    def score(self, total_K: NDArray[np.float64]) -> float:
        return float(100 * total_K[0] / total_K[1])

    def signature(self, language: str) -> str:
        return "exact"


class Quiz(Task):
    """One ability, judged right or wrong."""

    kind: ClassVar[Kind] = "ability"
    labels: ClassVar[tuple[str, ...]] = ("empty", "leaked_rationale")
    rehearsed: bool | None = None
    guess: float = 0.0

    @property
    def chance(self) -> float:
        return self.guess

    @property
    def is_rehearsed(self) -> bool | None:
        return self.rehearsed

    def sampling(self) -> Sampling:
        raise AssertionError("a report asks no model")

    def read(self, system: str, example: Example, generation: Generation) -> Prediction:
        raise AssertionError("a report asks no model")

    def group(self, tags: Mapping[str, str]) -> str:
        return tags["group"]

    def language(self, group: str) -> str:
        return "en"


class Probe(Quiz):
    """What enters nothing."""

    kind: ClassVar[Kind] = "probe"


def quiz(rehearsed: bool | None = None, *, guess: float = 0.0) -> Quiz:
    return Quiz(metrics=(Exact(),), rehearsed=rehearsed, guess=guess)


def answers(task: str, system: str, right: int, *, wrong: str = "no idea") -> list[Prediction]:
    """Twenty answers, the first so many of them right."""
    return [
        Prediction(
            system=system,
            example_id=digest("quiz", task, i),
            key=digest(system, task, i),
            source=f"question {i} of {task}",
            reference=f"answer {i}",
            raw=f"answer {i}" if i < right else wrong,
            answer=f"answer {i}" if i < right else wrong,
            finish_reason="stop",
            n_tokens=3,
            labels=(),
            tags={"group": task},
        )
        for i in range(ITEMS)
    ]


def quizzed(
    root: Path, right: Mapping[str, Mapping[str, int]], tasks: Mapping[str, Task]
) -> tuple[list[RunFolder], dict[str, Task]]:
    """A run folder for each run in `right` (run → task → right answers of 20; the untouched model gives all)."""
    runs = []
    for name, by_task in right.items():
        run = run_folder(root / name)
        for task, count in by_task.items():
            write_predictions(run.predictions(task), [*answers(task, "base", ITEMS), *answers(task, name, count)])
        runs.append(run)
    return runs, {**QUICK, **tasks}
