"""What a report is made of, read from run folders: no model, no network, nothing written.

`read_run` reads one folder and is tolerant of what an unfinished run lacks. `together` lays several runs side by side
and refuses what cannot be compared: systems that answered different test items.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from radistill import plugins
from radistill.errors import ConfigError, RunFolderError
from radistill.records import BASE, Prediction, Segment, StageRecord
from radistill.runs import RunFolder
from radistill.seeds import generator
from radistill.tables import read_jsonl, read_predictions
from radistill.tasks.base import Task

UNTOUCHED = "untouched"
"""What stands for a method where there was none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedRow:
    """One row that was trained on, for people."""

    id: str
    pieces: tuple[tuple[Segment, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run folder, read."""

    name: str
    folder: RunFolder
    config: Mapping[str, Any]
    """The run file as it stands, for showing; empty if there is none."""
    config_text: str
    ours: bool
    stages: Mapping[str, StageRecord]
    summary: Mapping[str, Any]
    log: tuple[Mapping[str, Any], ...]
    tasks: Mapping[str, Task]
    answers: Mapping[str, tuple[Prediction, ...]]
    """The tuned model's, by task."""
    base: Mapping[str, tuple[Prediction, ...]]
    """The untouched model's, by task."""

    @property
    def method(self) -> str:
        """Name of the method."""
        return str(_named(self.config.get("method")).get("name", "unknown"))

    @property
    def method_settings(self) -> dict[str, Any]:
        """What the method was set to."""
        return {key: value for key, value in _named(self.config.get("method")).items() if key != "name"}

    @property
    def model(self) -> str:
        """The model the run began with."""
        model = _named(self.config.get("model")).get("name", "unknown")
        return str(model)

    def fact(self, stage: str, name: str) -> float | None:
        """One number from a stage's facts, if it was recorded."""
        value = self.stages[stage].facts.get(name) if stage in self.stages else None
        return value if isinstance(value, int | float) and not isinstance(value, bool) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """One task's predictions of all systems on the same items."""

    name: str
    task: Task
    predictions: tuple[Prediction, ...]

    @property
    def systems(self) -> tuple[str, ...]:
        """The untouched model, then the runs in their order."""
        return tuple(dict.fromkeys(p.system for p in self.predictions))


def read_run(folder: RunFolder, tasks: Mapping[str, Task] | None = None) -> Run:
    """Everything a report needs of one run folder.

    Args:
        folder: the run.
        tasks: the tasks by name, where they are not to be made from the run's own config.yaml.

    Raises:
        RunFolderError: this is no run folder, or a file in it cannot be read.
    """
    if not folder.config.exists() and not folder.manifest.exists():
        raise RunFolderError(
            f"{folder.path} is not a run folder: it holds neither config.yaml nor manifest.json. "
            "Name the output_dir of a run, as in `radistill report runs/NAME`."
        )
    text = folder.config.read_text(encoding="utf-8") if folder.config.exists() else ""
    config = _mapping(folder.config, text)
    files = sorted((folder.path / "predictions").glob("*.parquet"))
    found = _tasks(folder.config) if tasks is None else dict(tasks)
    name = str(config.get("name", folder.name))
    answers = {file.stem: tuple(read_predictions(file)) for file in files if file.stem in found}
    return Run(
        name=name,
        folder=folder,
        config=config,
        config_text=text,
        ours=_is_ours(str(_named(config.get("method")).get("name", ""))),
        # A report is no part of what it reports; written twice it must be the same.
        stages={stage: record for stage, record in folder.stages().items() if stage != "report"},
        summary=_json(folder.summary),
        log=tuple(read_jsonl(folder.train_log)) if folder.train_log.exists() else (),
        tasks={task: found[task] for task in found if task in answers},
        answers={task: _of_run(rows, name, folder) for task, rows in answers.items()},
        base={task: tuple(p for p in rows if p.system == BASE) for task, rows in answers.items()},
    )


def together(runs: Sequence[Run]) -> tuple[list[Run], list[Evaluation], list[str]]:
    """Several runs side by side: with names that differ, against the first one's untouched model.

    Returns:
        The runs under the names they are shown by, one evaluation per task, and what a reader must know about it.

    Raises:
        RunFolderError: the runs' models did not answer the same test items.
    """
    named = _with_unique_names(runs)
    notes = _differing_models(named)
    evaluations = []
    for task in dict.fromkeys(name for run in named for name in run.tasks):
        holders = [run for run in named if task in run.tasks]
        base = next((run.base[task] for run in holders if run.base[task]), ())
        if not base:
            notes.append(f"{task}: the untouched model was not evaluated, so nothing can be compared with it.")
        for run in holders:
            _same_items(task, holders[0], run, base)
            notes += _differing_base(task, run, base)
        if missing := [run.name for run in named if run not in holders]:
            notes.append(f"{task}: not evaluated for {', '.join(missing)}.")
        rows = (replace(p, system=run.name) for run in holders for p in run.answers[task])
        evaluations.append(Evaluation(name=task, task=holders[0].tasks[task], predictions=(*base, *rows)))
    return named, evaluations, [*notes, *_tested_on_training_data(named), *_refused_tests(named)]


def trained_rows(path: Path, *, seed: int, count: int = 3) -> list[TrainedRow]:
    """A seeded sample of the rows that were trained on; only the parts of the file that hold them are read."""
    if not path.exists():
        return []
    import pyarrow.parquet as pq

    found = []
    with pq.ParquetFile(path) as file:
        total = file.metadata.num_rows
        wanted = sorted(generator(seed, "report", "rows").choice(total, size=min(count, total), replace=False).tolist())
        first = 0
        for group in range(file.num_row_groups):
            size = file.metadata.row_group(group).num_rows
            inside = [i - first for i in wanted if first <= i < first + size]
            if inside:
                found += file.read_row_group(group, columns=["id", "segments", "texts"]).take(inside).to_pylist()
            first += size
    return [
        TrainedRow(
            id=row["id"], pieces=tuple((Segment(**s), t) for s, t in zip(row["segments"], row["texts"], strict=True))
        )
        for row in found
    ]


def sampled_items(evaluation: Evaluation, *, seed: int, count: int) -> list[str]:
    """Ids of a seeded sample of the test items: as many from each group as can be, in the order of the groups."""
    groups: dict[str, list[str]] = {}
    first = evaluation.systems[0]
    for p in evaluation.predictions:
        if p.system == first:
            groups.setdefault(evaluation.task.group(p.tags), []).append(p.example_id)
    shuffled = {
        group: generator(seed, "report", "examples", evaluation.name, group).permutation(sorted(ids)).tolist()
        for group, ids in sorted(groups.items())
    }
    places = sorted((place, group) for group, ids in shuffled.items() for place in range(len(ids)))[:count]
    return [shuffled[group][place] for group, place in sorted((group, place) for place, group in places)]


def _tasks(config: Path) -> dict[str, Task]:
    from radistill.config import load_config

    return {task.title: task for task in load_config(config).evaluate} if config.exists() else {}


def _is_ours(method: str) -> bool:
    try:
        return bool(getattr(plugins.load("methods", method), "ours", method == "radis"))
    except ConfigError:  # written with a package that is not installed here
        return method == "radis"


def _named(value: object) -> Mapping[str, Any]:
    """A plugin's settings; a string is short for its name."""
    return value if isinstance(value, Mapping) else {} if value is None else {"name": value}


def _mapping(path: Path, text: str) -> Mapping[str, Any]:
    try:
        loaded = yaml.safe_load(text) if text else {}
    except yaml.YAMLError as error:
        raise RunFolderError(
            f"{path} is not YAML: {error}. Restore it, or run again into another output_dir."
        ) from error
    return loaded if isinstance(loaded, Mapping) else {}


def _json(path: Path) -> Mapping[str, Any]:
    if not path.exists():
        return {}
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunFolderError(f"{path} is damaged ({error}). Make it again with --redo assemble.") from error
    return loaded if isinstance(loaded, dict) else {}


def _of_run(rows: Iterable[Prediction], name: str, folder: RunFolder) -> tuple[Prediction, ...]:
    tuned = [p for p in rows if p.system != BASE]
    systems = sorted({p.system for p in tuned})
    # A renamed folder still holds the predictions under the run's old name.
    wanted = name if name in systems else systems[0] if len(systems) == 1 else None
    if systems and wanted is None:
        raise RunFolderError(
            f"{folder.path} holds predictions of {', '.join(systems)}, none of them named {name!r} as the run is. "
            "Evaluate it again with --redo evaluate."
        )
    return tuple(p for p in tuned if p.system == wanted)


def _with_unique_names(runs: Sequence[Run]) -> list[Run]:
    taken = {BASE}
    named = []
    for run in runs:
        name, ordinal = run.name, 1
        while name in taken:
            ordinal += 1
            name = f"{run.name} ({ordinal})"
        taken.add(name)
        named.append(replace(run, name=name))
    return named


def _differing_models(runs: Sequence[Run]) -> list[str]:
    others = [f"{run.name} began with {run.model}" for run in runs[1:] if run.model != runs[0].model]
    if not others:
        return []
    return [
        f"The runs began with different models: {runs[0].name} with {runs[0].model}, {', '.join(others)}. "
        f"{BASE} is {runs[0].model}; differences of the other runs to it are not effects of their training alone."
    ]


def _same_items(task: str, first: Run, run: Run, base: Sequence[Prediction]) -> None:
    wanted = {p.example_id for p in (base or first.answers[task])}
    for whose, rows in (("the tuned model", run.answers[task]), ("the untouched model", run.base[task])):
        answered = {p.example_id for p in rows}
        if rows and answered != wanted:
            raise RunFolderError(
                f"{run.folder.path}: {whose} answered other items of {task} than {first.folder.path} compares with: "
                f"{len(answered - wanted)} only there, {len(wanted - answered)} missing of {len(wanted)}. "
                "Evaluate with the same test data (--redo evaluate), or report the runs apart."
            )


def _differing_base(task: str, run: Run, base: Sequence[Prediction]) -> list[str]:
    ours = {p.example_id: p.raw for p in base}
    others = sum(ours[p.example_id] != p.raw for p in run.base[task])
    if not others:
        return []
    return [
        f"{task}: the untouched model in {run.name} answered {others} of {len(base)} items otherwise than the one "
        "compared with, so the runs do not share one baseline; only the first one's is used."
    ]


def _tested_on_training_data(runs: Sequence[Run]) -> list[str]:
    notes: list[str] = []
    for run in runs:
        evaluated = run.stages.get("evaluate")
        found = evaluated.facts.get("contamination") if evaluated else None
        if isinstance(found, Mapping) and found.get("found"):
            said = f"{found['found']} of {found['tested']} tests occur in the training data"
            notes.append(f"{run.name}: {said} ({float(found['share']):.2%}).")
    return notes


def _refused_tests(runs: Sequence[Run]) -> list[str]:
    counts = {run.name: run.fact("evaluate", "rejected") for run in runs}
    said = "test rows were refused and are not in the scores; see rejects.jsonl."
    return [f"{name}: {count:g} {said}" for name, count in counts.items() if count]
