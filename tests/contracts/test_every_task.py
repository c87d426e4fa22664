"""What every task must do, whoever wrote it."""

import subprocess
import sys
from typing import get_args

import pytest

from radistill import plugins
from radistill.metrics.base import Metric
from radistill.records import Example, Generation, Message
from radistill.tasks.base import LABELS, Kind, Task

EXAMPLE = Example.of(
    "any",
    [Message("user", "Translate into English: Guten Tag, wie geht es Ihnen heute?")],
    "Good day, how are you today?",
    {"pair": "de-en", "source": "Guten Tag, wie geht es Ihnen heute?"},
)
REPLIES = {
    "a plain answer": "Good day, how are you today?",
    "an answer with a rationale": "Good day, how are you today?\n\nNote: a polite greeting.",
    "nothing": "",
    "only white space": " \n\n \n",
    "half a character": "Good day \ud83d",
    "a line without end": "day " * 5000,
}


@pytest.fixture(params=plugins.available("tasks"))
def task(request: pytest.FixtureRequest) -> Task:
    made = plugins.load("tasks", request.param)()
    assert isinstance(made, Task)
    return made


def test_a_task_needs_no_settings_and_describes_those_it_has(task: Task) -> None:
    assert type(task).__doc__
    assert all(field.description for field in type(task).model_fields.values())
    assert task.kind in get_args(Kind)
    assert 0 <= task.chance < 100


def test_a_tasks_own_examples_can_be_asked_and_scored(task: Task) -> None:
    examples = task.examples()
    if examples is None:
        return
    assert examples == task.examples()
    assert len({example.id for example in examples}) == len(examples) > 20
    assert all(example.messages[-1].role == "user" and example.reference for example in examples)
    task.refuse_unusable(examples)


def test_a_task_is_scored_by_metrics_whose_settings_are_kept_in_its_own(task: Task) -> None:
    assert task.metrics
    assert all(isinstance(metric, Metric) for metric in task.metrics)
    assert task.model_dump()["metrics"] == tuple(metric.model_dump() for metric in task.metrics)


def test_answers_are_decoded_greedily(task: Task) -> None:
    assert task.sampling().temperature == 0
    assert task.sampling().n == 1


@pytest.mark.parametrize("text", REPLIES.values(), ids=REPLIES.keys())
@pytest.mark.parametrize("reason", ["stop", "length"])
def test_any_reply_is_read_and_nothing_of_it_is_lost(task: Task, text: str, reason: str) -> None:
    generation = Generation(key="k", index=0, token_ids=(5, 6, 7), text=text, finish_reason=reason)  # type: ignore[arg-type]
    found = task.read("tuned", EXAMPLE, generation)
    assert (found.system, found.example_id, found.key, found.n_tokens) == ("tuned", EXAMPLE.id, "k", 3)
    assert (found.raw, found.reference, found.finish_reason) == (text, EXAMPLE.reference, reason)
    assert found.tags == EXAMPLE.tags
    assert set(found.labels) <= set(task.labels) <= set(LABELS)
    assert found == task.read("tuned", EXAMPLE, generation)


def test_a_reply_that_could_not_be_had_is_empty_and_says_nothing_about_the_model(task: Task) -> None:
    lost = Generation(key="k", index=0, token_ids=(), text="", finish_reason="error", error="server gone")
    found = task.read("tuned", EXAMPLE, lost)
    assert (found.answer, found.labels, found.finish_reason) == ("", (), "error")


def test_an_example_belongs_to_a_group_that_has_a_language(task: Task) -> None:
    assert task.language(task.group(EXAMPLE.tags))


def test_no_task_loads_an_engine_when_it_is_imported() -> None:
    names = [f"radistill.tasks.{name}" for name in plugins.available("tasks")]
    code = f"import sys, {', '.join(names)}; print(*{{'torch', 'sacrebleu', 'py3langid'}} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
