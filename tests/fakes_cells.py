"""Finished cells of a comparison without a model: answers that are right as often as a test asks for."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from radistill import scoring, seeds
from radistill.compare_config import Cell
from radistill.config import RunConfig, as_yaml
from radistill.files import sha256, write_json, write_text
from radistill.records import BASE, Example, Generation, Message, Prediction, StageRecord
from radistill.runs import STAGES, RunFolder
from radistill.tasks.base import Task

RUN: dict[str, Any] = {
    "model": "pocket",
    "data": {"train": {"path": "pocket", "pairs": ["en-eo"], "limit": 8}},
    "train": {"lora": None},
    "evaluate": [
        {"task": "translation", "metrics": ["bleu"]},
        {"task": "lab", "ability": "arithmetic", "items": 40},
        {"task": "lab", "ability": "comparison", "items": 40},
    ],
}
SENTENCES = [f"the {a} house and the {b} dog {c} again" for a in "abcde" for b in "fghij" for c in ("run", "sing")]


def finish(cell: Cell, *, right: Mapping[str, float], base: Mapping[str, float], tokens: int = 1000) -> RunFolder:
    """Write what an evaluated run leaves: config, manifest, rows; `right` is the share of right answers by task."""
    return write_run(cell.config, right=right, base=base, tokens=tokens)


def write_run(config: RunConfig, *, right: Mapping[str, float], base: Mapping[str, float], tokens: int) -> RunFolder:
    """The same for a config."""
    run = RunFolder(Path(config.output_dir))
    outputs = []
    for task in config.evaluate:
        found = [
            *_answers(task, BASE, base[task.title], seed=99),
            *_answers(task, config.name, right[task.title], seed=config.seed),
        ]
        scored = scoring.score(found, task, task.title, seed=config.seed)
        for metric in scored.rows:
            path = run.rows(task.title, metric)
            scoring.save_rows(path, scored, metric)
            outputs.append(path)
    write_text(run.config, as_yaml(config))
    write_json(run.summary, {"asked": {"prompt_tokens": 10, "written_tokens": 5}})
    facts: dict[str, dict[str, Any]] = {
        "assemble": {"asked": {"prompt_tokens": 10, "written_tokens": 5}},
        "train": {"tokens_processed": tokens, "tokens_trained": tokens // 2, "steps": 7},
    }
    for name in STAGES[:4]:
        written = {str(p.relative_to(run.path)): sha256(p) for p in outputs} if name == "evaluate" else {}
        run.put_stage(
            StageRecord(
                stage=name, status="finished", settings={}, outputs=written, seconds=2.0, facts=facts.get(name, {})
            )
        )
    run.model.mkdir(parents=True, exist_ok=True)
    write_text(run.model / "weights", "many")
    return run


def _answers(task: Task, system: str, share: float, *, seed: int) -> list[Prediction]:
    """The first so many of a fixed order of the items are right, so that a larger share has the smaller one's too."""
    examples = list(task.examples() or _sentences())
    order = seeds.generator(seed, "right", task.title).permutation(len(examples))
    right = {examples[at].id for at in order[: round(share * len(examples))]}
    return [task.read(system, e, _generation(e.reference if e.id in right else "wrong words")) for e in examples]


def _sentences() -> Sequence[Example]:
    return [
        Example.of("translation", (Message("user", s),), s, {"pair": pair, "source": s})
        for pair in ("en-eo", "eo-en")
        for s in SENTENCES
    ]


def _generation(text: str) -> Generation:
    return Generation(key="k", index=0, token_ids=(1, 2), text=text, finish_reason="stop")
