"""Stage 4: the untouched and the tuned model answer the test examples; every answer is kept and scored."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from radistill import contamination, data, models, scoring
from radistill.ask import answers_to, ask
from radistill.backends.base import Generator
from radistill.chat import Chat, RowError
from radistill.config import RunConfig, plugin_settings
from radistill.errors import ConfigError, DataError
from radistill.events import Events
from radistill.files import write_json
from radistill.lab.home_world import refuse_other_world
from radistill.ledger import Ledger, open_ledger
from radistill.records import BASE, Example, Generation, Prediction, Request, StageRecord
from radistill.runs import RunFolder, begin, require, working
from radistill.speaker import Speaker, tuned, untouched
from radistill.tables import put_rejects, write_predictions
from radistill.tasks.base import Task


def evaluate(config: RunConfig, run: RunFolder, *, redo: bool = False) -> StageRecord | None:
    """Predict with both models, keep every prediction, score; None if that was done and nothing has changed.

    Raises:
        RunFolderError: nothing was trained yet.
        ConfigError: there is no test data.
        DataError: the tests occur in the training data, or none of them can be used.
    """
    trained = require(run, "train")
    test = _test_data(config)
    base = untouched(config)
    settings = {
        "name": config.name,
        "model": base.weights.identity,
        "chat": {**config.chat.model_dump(mode="json"), "identity": base.chat.identity},
        "trained": dict(trained.outputs),
        "trained_on": dict(require(run, "generate").inputs),
        "seed": config.seed,
        "data": config.data.model_dump(mode="json", exclude={"validation"}),
        "backend": config.generate.backend.telling,
        "evaluate": [plugin_settings(task) for task in config.evaluate],
    }
    stage = begin(run, "evaluate", settings, test.files, redo=redo, late=True)
    if stage is None:
        return None
    with working(stage):
        refuse_other_world(config, base.weights)
        train = data.load(config.data, "train", seed=config.seed)
        stage.facts["contamination"] = contamination.facts(config.data, train, test)
        prompts = _usable(config, run, base.chat, test)
        predictions = _predictions(config, run, base, prompts, stage.record)
        stage.facts |= {
            "rejected": prompts.refused,
            "predictions": sum(map(len, predictions.values())),
            "tokens": sum(p.n_tokens for found in predictions.values() for p in found),
        }
        return stage.finish(_score(config, run, predictions), device=models.device_name())


@dataclass(frozen=True)
class _Prompts:
    """The tests in ids, by task."""

    of: dict[str, list[tuple[Example, tuple[int, ...]]]]
    refused: int


def _test_data(config: RunConfig) -> data.Loaded:
    """What `data.test` holds; nothing where every task brings its own examples."""
    if config.data.test is not None:
        return data.load(config.data, "test", seed=config.seed)
    if all(task.examples() is not None for task in config.evaluate):
        return data.Loaded((), (), (), {})
    raise ConfigError("data.test is missing: name what to test on, for example {path: FOLDER, split: test}.")


def _usable(config: RunConfig, run: RunFolder, chat: Chat, test: data.Loaded) -> _Prompts:
    """The tests as prompts; the rows that were refused are written down."""
    found: dict[str, list[tuple[Example, tuple[int, ...]]]] = {}
    refused: list[dict[str, object]] = [{**asdict(r), "file": str(r.file)} for r in test.rejects]
    for task in config.evaluate:
        own = task.examples()
        task.refuse_unusable(test.examples if own is None else own)
        found[task.title], not_usable = _prompts(chat, test.examples if own is None else own)
        refused += [row for row in not_usable if row not in refused]
    put_rejects(run.rejects, "evaluate", refused)
    if empty := [title for title, prompts in found.items() if not prompts]:
        raise DataError(f"data.test: all rows for {', '.join(empty)} were refused; the reasons stand in {run.rejects}.")
    return _Prompts(found, len(refused))


def _predictions(
    config: RunConfig, run: RunFolder, base: Speaker, prompts: _Prompts, begun: Callable[[], None]
) -> dict[str, list[Prediction]]:
    """By task, the answers of the untouched model and then of the tuned one; `begun` is called at the first."""
    predictions: dict[str, list[Prediction]] = {task.title: [] for task in config.evaluate}
    events = Events(run.events, stage="evaluate")
    with open_ledger(Path(config.generate.ledger)) as ledger:
        for system, speaker in ((BASE, base), (config.name, tuned(config, run.model))):
            asking = _Asking(config, ledger, events, begun)
            for name, found in _predict(asking, speaker, system, prompts).items():
                predictions[name] += found
    return predictions


def _score(config: RunConfig, run: RunFolder, predictions: dict[str, list[Prediction]]) -> list[Path]:
    """Write predictions, their statistics and scores; returns the files."""
    outputs = [run.scores]
    scores: list[dict[str, Any]] = []
    for task in config.evaluate:
        name = task.title
        write_predictions(run.predictions(name), predictions[name])
        scored = scoring.score(predictions[name], task, name, seed=config.seed)
        scores += [asdict(s) for s in scored.scores]
        outputs += [run.predictions(name), *_write_rows(run, name, scored)]
    write_json(run.scores, {"schema": 1, "scores": scores})
    return outputs


def _prompts(
    chat: Chat, examples: Sequence[Example]
) -> tuple[list[tuple[Example, tuple[int, ...]]], list[dict[str, object]]]:
    prompts: list[tuple[Example, tuple[int, ...]]] = []
    refused: list[dict[str, object]] = []
    for example in examples:
        try:
            prompts.append((example, chat.prompt(example.messages).ids))
        except RowError as error:
            refused.append({"example_id": example.id, "reason": str(error), "row": asdict(example)})
    return prompts, refused


@dataclass(frozen=True)
class _Asking:
    """Asks, and asks once more for what has failed."""

    config: RunConfig
    ledger: Ledger
    events: Events
    begun: Callable[[], None]

    def ask(self, requests: Sequence[Request], generator: Generator, title: str) -> None:
        attempts = self.config.generate.max_attempts
        also: dict[str, Any] = {"attempts": attempts, "events": self.events, "begun": self.begun}
        done = ask(requests, generator, self.ledger, title=title, **also)
        if done.failed > done.given_up:
            # What passes, as a server that was overloaded, must not be scored as an empty answer for good.
            ask(requests, generator, self.ledger, title=f"{title}, what failed once more", **also)


def _predict(asking: _Asking, speaker: Speaker, system: str, prompts: _Prompts) -> dict[str, list[Prediction]]:
    """What one system answers, read by each task."""
    found: dict[str, list[Prediction]] = {}
    config = asking.config
    with config.generate.backend.open(speaker) as generator:
        for task in config.evaluate:
            sampling, model = task.sampling(), generator.identity
            requests = [
                Request(
                    purpose="prediction",
                    prompt_ids=ids,
                    messages=e.messages,
                    sampling=sampling,
                    example_id=e.id,
                    model=model,
                )
                for e, ids in prompts.of[task.title]
            ]
            asking.ask(requests, generator, f"evaluate {system}: {task.title}")
            answers = answers_to(requests, asking.ledger)
            examples = [e for e, _ in prompts.of[task.title]]
            found[task.title] = _read(task, system, examples, requests, answers)
    return found


def _read(
    task: Task,
    system: str,
    examples: Sequence[Example],
    requests: Sequence[Request],
    answers: dict[str, list[Generation]],
) -> list[Prediction]:
    return [task.read(system, e, answers[r.key][0]) for e, r in zip(examples, requests, strict=True)]


def _write_rows(run: RunFolder, task: str, scored: scoring.Scored) -> list[Path]:
    paths = []
    for metric in scored.rows:
        path = run.rows(task, metric)
        scoring.save_rows(path, scored, metric)
        paths.append(path)
    return paths
