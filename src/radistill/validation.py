"""The items by which a training is judged while it goes on: neither trained on nor tested on.

Those of the new skill are `data.validation`; a task that brings its own tests gives further ones (`tasks.base.Task`).
What occurs in the training data, or among the tests, is left out and counted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from radistill import contamination, data, held_out
from radistill.config import RunConfig, plugin_settings
from radistill.errors import ConfigError
from radistill.records import Example, digest
from radistill.tasks.base import Task

SETTINGS = (
    "eval_steps",
    "eval_items",
    "metric_for_best_model",
    "exchange_rate",
    "load_best_model_at_end",
    "early_stopping_patience",
    "early_stopping_on",
)
"""Of `train`; without the first, the others mean nothing."""


@dataclass(frozen=True, slots=True)
class Items:
    """What is asked in each evaluation."""

    skill: tuple[Task, Sequence[Example]] | None
    """The first task of the kind `skill`; None where the score does not count it and nothing is there to ask."""
    abilities: tuple[tuple[Task, Sequence[Example]], ...]
    left_out: int
    """So many occur in the training data or among the tests."""

    @property
    def all(self) -> list[tuple[Task, Sequence[Example]]]:
        """Every task with its items."""
        return [*([self.skill] if self.skill else []), *self.abilities]

    @property
    def digest(self) -> str:
        """Names what is asked and how it is read."""
        return digest([(plugin_settings(task), [e.id for e in examples]) for task, examples in self.all])


def settings(config: RunConfig) -> dict[str, Any]:
    """All that can change what an evaluation comes to and what follows from it; empty where there is none."""
    if config.train.eval_steps is None:
        return {}
    source = config.data.validation
    return {
        **config.train.model_dump(mode="json", include=set(SETTINGS)),
        "data": source.model_dump(mode="json") if source is not None else None,
        "items": items_of(config).digest,
    }


def items_of(config: RunConfig) -> Items:
    """The validation items of a run.

    Raises:
        DataError: `data.validation` cannot be read.
    """
    of_data: Sequence[Example] = ()
    if config.data.validation is not None:
        of_data = data.load(config.data, "validation", seed=config.seed).examples
    asked: list[tuple[Task, Sequence[Example]]] = []
    for task in config.evaluate:
        brings_own = task.examples() is not None
        asked.append((task, task.validation_examples(config.train.eval_items) if brings_own else of_data))
    gone = _occurring_elsewhere(config, {e.id: e for _, examples in asked for e in examples})
    kept = [(task, tuple({e.id: e for e in examples if e.id not in gone}.values())) for task, examples in asked]
    usable = [(task, examples) for task, examples in kept if examples]
    for task, examples in usable:
        task.refuse_unusable(examples)
    skill = next(((task, examples) for task, examples in usable if task.kind == "skill"), None)
    abilities = tuple((task, examples) for task, examples in usable if task.kind == "ability")
    return Items(skill, abilities, len(gone))


def _occurring_elsewhere(config: RunConfig, examples: Mapping[str, Example]) -> set[str]:
    """Ids of those that are trained or tested on."""
    taught = data.load(config.data, "train", seed=config.seed).examples
    tests = [e for _, of_task in held_out.by_task(config, held_out.given(config)) for e in of_task or ()]
    gone: set[str] = set()
    for others in (taught, tests):
        # Equal ones count however short they are; see `contamination` for the others.
        gone |= {other.id for other in others if other.id in examples}
        gone |= {*contamination.overlap(others, examples.values()).ids}
    return gone


def usable_items(config: RunConfig) -> Items:
    """The validation items of a run, if a training can be judged by them.

    Raises:
        ConfigError: what the score needs cannot be measured.
        DataError: `data.validation` cannot be read.
    """
    found = items_of(config)
    metric = config.train.metric_for_best_model
    problem = ""
    if metric != "retention" and found.skill is None:
        why = "is not set" if config.data.validation is None else "has no example that is neither trained nor tested on"
        problem = f"the new skill cannot be measured: data.validation {why}"
    elif metric != "skill" and not found.abilities:
        problem = (
            "retention cannot be measured: no task of the kind `ability` under `evaluate` has validation items "
            "(lower its `items`, so that some are left beside its tests)"
        )
    elif found.skill is not None and not found.skill[0].metrics[0].higher_is_better:
        problem = f"the first metric of {found.skill[0].title} is better when it is lower; list another one first"
    if problem:
        raise ConfigError(
            f"train.eval_steps with train.metric_for_best_model={metric}: {problem}. Name validation examples as "
            "data.validation={path: DIR}, choose another metric_for_best_model, or leave eval_steps out."
        )
    return found
