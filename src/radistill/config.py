"""The run file: YAML + `key.sub=value`, checked strictly, all errors at once.

Plugins (`method`, `generate.backend`, `evaluate`, their `metrics`) are built here from their own settings classes, so
their keys are checked like all others. Order of precedence: command line, run file, default.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, Field, SerializeAsAny, ValidationError, field_validator

from radistill import plugins, run_file
from radistill.backends.base import Backend
from radistill.chat import ChatSettings
from radistill.data import DataSettings
from radistill.errors import ConfigError
from radistill.filters import OFF
from radistill.methods._composed import Composed
from radistill.methods.base import Method
from radistill.run_file import Key, Problem, RunFile
from radistill.settings import Settings
from radistill.stage_settings import BACKEND, GenerateSettings, ReportSettings, TrainSettings
from radistill.tasks.base import Task

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
METHOD, TASKS = "radis", ("translation",)
"""What is used where the run file names none."""


class RunConfig(Settings):
    """One run."""

    name: str = Field(pattern=NAME)
    """Name of the run in reports; by default that of the file. `base` is the untouched model's."""
    model: str = Field(min_length=1)
    """Hub id or folder of an instruction-tuned model with a chat template."""
    revision: str | None = None
    """Commit, branch or tag on the hub."""
    trust_remote_code: bool = False
    """Run code that comes with the model. Only for models you would run a program from."""
    output_dir: str = Field(min_length=1)
    """The run folder; by default runs/<name>."""
    seed: int = Field(0, ge=0)
    """Every random draw of the run derives from it."""
    data: DataSettings
    """What is learned, and what it is tested on."""
    chat: ChatSettings = ChatSettings()
    """How conversations are rendered."""
    method: SerializeAsAny[Method] = Field(default_factory=lambda: plugins.default("methods", METHOD))
    """How it is learned, by one method or a list of several: see `radistill list methods`."""
    generate: GenerateSettings = Field(default_factory=GenerateSettings)
    """Stage 1."""
    train: TrainSettings = TrainSettings()
    """Stage 3."""
    evaluate: tuple[Task, ...] = Field(
        default_factory=lambda: tuple(plugins.default("tasks", t) for t in TASKS), min_length=1
    )
    """Stage 4."""
    report: ReportSettings = ReportSettings()
    """Stage 5."""

    @field_validator("output_dir")
    @classmethod
    def _home(cls, value: str) -> str:
        # Otherwise a folder of the name ~ would be made here, which is dangerous to delete.
        return str(Path(value).expanduser())


def load_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read and check a run file.

    Raises:
        ConfigError: with every problem found, each with file, line and key.
    """
    file = run_file.read(path, overrides, shorthand=_expand)
    if "name" not in file.raw:
        name = path.stem if path.name != "config.yaml" else path.resolve().parent.name
        if not re.search(NAME, name):
            file.problems.append(
                Problem(("name",), f"is missing, and that of the file, {name!r}, is not of the form {NAME}")
            )
            name = "run"
        file.raw["name"] = name
    file.raw.setdefault("output_dir", f"runs/{file.raw['name']}")
    return _build(file)


def config_from(raw: Mapping[str, Any]) -> RunConfig:
    """A run config from a dictionary of the run file's shape, for use as a library."""
    return _build(RunFile(path=None, raw=_expand(dict(raw)), lines={}, overridden=frozenset()))


def stored_config(path: Path) -> RunConfig:
    """The config of a run folder; what came into being after the run is as it was without.

    Raises:
        ConfigError: it is none of this version.
    """
    raw: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    if isinstance(generate := raw.get("generate"), dict):
        generate.setdefault("filters", OFF.model_dump())
    return config_from(raw)


def as_dict(config: RunConfig) -> dict[str, Any]:
    """The complete, resolved run file as plain values; `load_config` of it gives the same config."""
    plain: dict[str, Any] = _plain(config)
    return plain


def as_yaml(config: RunConfig) -> str:
    """The complete, resolved run file."""
    text: str = yaml.safe_dump(as_dict(config), sort_keys=False, allow_unicode=True)
    return text


def plugin_settings(plugin: BaseModel) -> dict[str, Any]:
    """Name and settings of one plugin, as in the run file."""
    plain: dict[str, Any] = _plain(plugin)
    return plain


def _plain(value: Any) -> Any:
    if isinstance(value, Composed):
        return [_plain(part) for part in value.parts]
    if isinstance(value, BaseModel):
        fields = {name: _plain(getattr(value, name)) for name in type(value).model_fields}
        if isinstance(value, Task):
            return {"task": plugins.name_of(value), **fields}
        return {"name": plugins.name_of(value), **fields} if _is_plugin(value) else fields
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    return {k: _plain(v) for k, v in value.items()} if isinstance(value, Mapping) else value


def _is_plugin(value: BaseModel) -> bool:
    from radistill.metrics.base import Metric

    return isinstance(value, Method | Backend | Task | Metric)


def _expand(raw: dict[str, Any]) -> dict[str, Any]:
    """Replace the short form of a plugin (`method: radis`) by the long one (`{name: radis}`), and none by the default.

    The defaults are put in before the command line's values, so that `generate.backend.batch_size=8` finds its place.
    """
    raw = dict(raw)
    method = raw.get("method")
    raw["method"] = [_named(m, METHOD) for m in method] if isinstance(method, list) else _named(method, METHOD)
    generate = raw.get("generate")
    if generate is None or isinstance(generate, dict):
        generate = generate or {}
        raw["generate"] = {**generate, "backend": _backend(generate.get("backend"))}
    tasks = raw.get("evaluate")
    if tasks is None or isinstance(tasks, list | tuple):
        raw["evaluate"] = [_task(task) for task in (TASKS if tasks is None else tasks)]
    return raw


def _named(value: Any, default: str | None = None) -> Any:
    value = default if value is None else value
    return {"name": value} if isinstance(value, str) else value


def _backend(value: Any) -> Any:
    """A backend, and the one that it holds if it is of those that hold another (`ray`)."""
    value = _named(value, BACKEND)
    if isinstance(value, dict) and _holds_a_backend(value.get("name")):
        value = {**value, "backend": _backend(value.get("backend"))}
    return value


def _holds_a_backend(name: Any) -> bool:
    if not isinstance(name, str) or name not in plugins.available("backends"):
        return False
    return "backend" in plugins.load("backends", name).model_fields


def _task(value: Any) -> Any:
    value = {"task": value} if isinstance(value, str) else value
    if isinstance(value, dict) and isinstance(value.get("metrics"), list | tuple):
        value = {**value, "metrics": [_named(metric) for metric in value["metrics"]]}
    return value


def _build(file: RunFile) -> RunConfig:
    problems = list(file.problems)
    raw = dict(file.raw)
    raw["method"] = _method(raw["method"], problems)
    if isinstance(raw.get("generate"), dict):
        backend = _backend_instance(("generate", "backend"), raw["generate"]["backend"], problems)
        raw["generate"] = {**raw["generate"], "backend": backend}
    if isinstance(raw["evaluate"], list):
        raw["evaluate"] = [_task_instance(("evaluate", i), t, problems) for i, t in enumerate(raw["evaluate"])]
    else:
        problems.append(
            Problem(("evaluate",), "must be a list of tasks: write [translation], or `- task: translation`")
        )
        raw["evaluate"] = [_failed]
    train = raw.get("train")
    if isinstance(raw["method"], Method) and (train is None or isinstance(train, dict)):
        raw["train"] = {**raw["method"].prefers, **(train or {})}
    config = _validated(RunConfig, raw, (), problems)
    if config is not None:
        problems += _disagreements(config)
    if problems or config is None:
        raise ConfigError(file.describe(problems))
    checked: RunConfig = config
    return checked


def _disagreements(config: RunConfig) -> list[Problem]:
    """What no field can know by itself."""
    problems = []
    if config.name == "base":
        problems.append(Problem(("name",), "`base` is the name of the untouched model; choose another"))
    if config.generate.refresh_every is not None and config.generate.filters.needs_perplexity:
        # It is the untouched model's, which is not asked while another writes.
        what = "perplexity is not asked for while training; leave refresh_every out, or the bounds"
        problems.append(Problem(("generate", "filters"), what))
    titles = [task.title for task in config.evaluate]
    for i, title in enumerate(titles):
        if title in titles[:i]:
            problems.append(
                Problem(("evaluate", i), f"is the task {title} once more; each has one file of predictions")
            )
    return problems


def _method(raw: Any, problems: list[Problem]) -> Any:
    if not isinstance(raw, list):
        return _instance(("method",), "methods", "name", raw, problems)
    parts = [_instance(("method", i), "methods", "name", part, problems) for i, part in enumerate(raw)]
    if any(part is _failed for part in parts):
        return _failed
    if len(parts) == 1:
        return parts[0]
    found: list[Problem] = []
    composed = _validated(Composed, {"listed": parts}, ("method",), found)
    problems += [replace(problem, key=("method",)) for problem in found]  # `listed` is no word of the run file
    return composed or _failed


class _Failed:
    """Stands where a plugin could not be built, so that its own problems are the only ones reported."""


_failed = _Failed()


def _backend_instance(key: Key, raw: Any, problems: list[Problem]) -> Any:
    if isinstance(raw, dict) and _holds_a_backend(raw.get("name")):
        inner = _backend_instance((*key, "backend"), raw["backend"], problems)
        raw = {**raw, "backend": inner}
        if inner is _failed:  # the other settings are checked with the default in its place
            del raw["backend"]
            _instance(key, "backends", "name", raw, problems)
            return _failed
    return _instance(key, "backends", "name", raw, problems)


def _task_instance(key: Key, raw: Any, problems: list[Problem]) -> Any:
    if isinstance(raw, dict) and isinstance(raw.get("metrics"), list):
        built = [
            _instance((*key, "metrics", i), "metrics", "name", metric, problems)
            for i, metric in enumerate(raw["metrics"])
        ]
        raw = {**raw, "metrics": built}
        if any(metric is _failed for metric in built):
            del raw["metrics"]
    return _instance(key, "tasks", "task", raw, problems)


def _instance(key: Key, kind: plugins.Kind, name_key: str, raw: Any, problems: list[Problem]) -> Any:
    if isinstance(raw, Settings):
        return raw
    name = raw.get(name_key) if isinstance(raw, dict) else None
    if not isinstance(name, str):
        known = ", ".join(plugins.available(kind))
        found = "" if isinstance(raw, dict) else f", not {run_file.shown(raw)}"
        problems.append(Problem(key, f"needs a name, or `{name_key}:` with settings{found}; known: {known}"))
        return _failed
    try:
        cls = plugins.load(kind, name)
    except ConfigError as error:
        problems.append(Problem((*key, name_key), str(error)))
        return _failed
    settings = {k: v for k, v in raw.items() if k != name_key}
    return _validated(cls, settings, key, problems) or _failed


def _validated(cls: type[Any], raw: Any, key: Key, problems: list[Problem]) -> Any:
    raw = run_file.tidied(raw, cls, key, problems)
    try:
        return cls.model_validate(raw)
    except ValidationError as error:
        problems += [p for p in run_file.problems_of(error, cls, key) if not _is_told(p.value)]
        return None


def _is_told(value: object) -> bool:
    """Whether pydantic stumbled over what stands for a plugin that could not be built."""
    return value is _failed or (isinstance(value, list) and _failed in value)
