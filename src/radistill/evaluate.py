"""Stage 4: the untouched and the tuned model answer the test examples; every answer is kept and scored."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from radistill import data, models, scoring
from radistill.ask import answers_to, ask
from radistill.chat import Chat, RowError
from radistill.config import RunConfig, plugin_settings
from radistill.errors import ConfigError
from radistill.ledger import Ledger, open_ledger
from radistill.plugins import name_of
from radistill.records import Example, Generation, Prediction, Request, StageRecord
from radistill.runs import RunFolder, begin, require, working, write_json
from radistill.speaker import Speaker, tuned, untouched
from radistill.tables import put_rejects, write_predictions
from radistill.tasks.base import Task

BASE = "base"
"""Name of the untouched model in every file."""


def evaluate(config: RunConfig, run: RunFolder, *, redo: bool = False) -> StageRecord | None:
    """Predict with both models, keep every prediction, score; None if that was done and nothing has changed.

    Raises:
        RunFolderError: nothing was trained yet.
        ConfigError: there is no test data.
    """
    trained = require(run, "train")
    if config.data.test is None:
        raise ConfigError("data.test is missing: name what to test on, for example {path: FOLDER, split: test}.")
    test = data.load(config.data, "test", seed=config.seed)
    base = untouched(config)
    settings = {
        "model": base.weights.identity,
        "trained": dict(trained.outputs),
        "seed": config.seed,
        "data": config.data.model_dump(mode="json", include={"task", "test", "template", "system"}),
        "chat": config.chat.model_dump(mode="json"),
        "backend": plugin_settings(config.generate.backend),
        "evaluate": [plugin_settings(task) for task in config.evaluate],
    }
    stage = begin(run, "evaluate", settings, test.files, redo=redo)
    if stage is None:
        return None
    with working(stage):
        prompts, refused = _prompts(base.chat, test.examples)
        rejected = [{**asdict(r), "file": str(r.file)} for r in test.rejects]
        put_rejects(run.rejects, "evaluate", [*rejected, *refused])
        speakers = {BASE: base, config.name: tuned(config, run.model)}
        predictions: dict[str, list[Prediction]] = {name_of(task): [] for task in config.evaluate}
        tokens = 0
        with open_ledger(Path(config.generate.ledger)) as ledger:
            for system, speaker in speakers.items():
                answered = _predict(config, ledger, speaker, system, prompts)
                for name, found in answered.items():
                    predictions[name] += found
        outputs = [run.scores]
        scores: list[dict[str, Any]] = []
        for task in config.evaluate:
            name = name_of(task)
            tokens += sum(p.n_tokens for p in predictions[name])
            write_predictions(run.predictions(name), predictions[name])
            scored = scoring.score(predictions[name], task, name, seed=config.seed)
            scores += [asdict(s) for s in scored.scores]
            outputs += [run.predictions(name), *_write_rows(run, name, scored)]
        write_json(run.scores, {"schema": 1, "scores": scores})
        stage.facts |= {"predictions": sum(map(len, predictions.values())), "tokens": tokens}
        return stage.finish(outputs, device=models.device_name())


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


def _predict(
    config: RunConfig,
    ledger: Ledger,
    speaker: Speaker,
    system: str,
    prompts: Sequence[tuple[Example, tuple[int, ...]]],
) -> dict[str, list[Prediction]]:
    """What one system answers, read by each task."""
    found: dict[str, list[Prediction]] = {}
    with config.generate.backend.open(speaker) as generator:
        for task in config.evaluate:
            sampling, model = task.sampling(), generator.identity
            requests = [
                Request(purpose="prediction", prompt_ids=ids, sampling=sampling, example_id=e.id, model=model)
                for e, ids in prompts
            ]
            ask(requests, generator, ledger, title=f"evaluate {system}")
            answers = answers_to(requests, ledger)
            found[name_of(task)] = _read(task, system, [e for e, _ in prompts], requests, answers)
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
