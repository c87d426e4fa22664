"""A YAML run file with the line of every key, and what is wrong with it in words.

YAML is read by the safe loader. A key that stands twice is an error, because YAML would silently take the last.
"""

import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from radistill.errors import ConfigError, did_you_mean

Key = tuple[str | int, ...]


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, and where."""

    key: Key
    message: str
    value: object = None


@dataclass
class RunFile:
    """A run file as plain values, with the lines its keys stand on."""

    path: Path | None
    raw: dict[str, Any]
    lines: dict[Key, int]
    overridden: frozenset[Key]
    problems: list[Problem] = field(default_factory=list)

    def describe(self, problems: Sequence[Problem]) -> str:
        """One line per problem: where it is and what is wrong."""
        ordered = sorted(problems, key=lambda p: self._line(p.key))
        lines = [f"{self._where(p.key)}: {_dotted(p.key)}{p.message}" for p in ordered]
        count = f"{len(lines)} problems" if len(lines) > 1 else "1 problem"
        return "\n".join([f"{self.path or 'the config'} has {count}:", *(f"  {line}" for line in lines)])

    def _line(self, key: Key) -> int:
        while key and key not in self.lines:
            key = key[:-1]
        return self.lines.get(key, 0)

    def _where(self, key: Key) -> str:
        if any(key[: len(o)] == o for o in self.overridden):
            return "command line"
        line = self._line(key)
        return f"{self.path.name}:{line}" if self.path and line else str(self.path.name if self.path else "config")


def read(path: Path, overrides: Sequence[str], *, shorthand: Callable[[dict[str, Any]], dict[str, Any]]) -> RunFile:
    """Read a run file and put the overrides on top.

    Raises:
        ConfigError: there is no such file, or it is not a YAML mapping, or an override is not `key=value`.
    """
    if not path.is_file():
        near = [str(p) for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        what = "is a folder" if path.is_dir() else "does not exist"
        raise ConfigError(f"no run file at {path}: it {what}.{did_you_mean(str(path), near)}")
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not a YAML file: {_yaml_error(error)}") from error
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(f"{path} must hold keys and values such as `model: FOLDER`; see `radistill init`.")
    file = RunFile(path=path, raw={}, lines={}, overridden=frozenset())
    _walk(root, (), file)
    loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    file.raw = shorthand(loaded)
    overridden = []
    for override in overrides:
        overridden.append(_override(file, override, shorthand))
    file.overridden = frozenset(overridden)
    file.raw = shorthand(file.raw)
    return file


def problems_of(error: ValidationError, cls: type[BaseModel], key: Key) -> list[Problem]:
    """Pydantic's errors as problems, with a suggestion for unknown keys."""
    problems = []
    for detail in error.errors(include_url=False):
        location: Key = tuple(part for part in detail["loc"] if not _is_union_tag(part))
        problems.append(Problem((*key, *location), _message(detail, cls, location), detail.get("input")))
    # A union reports one error per member; the first says enough.
    seen: dict[Key, Problem] = {}
    for problem in problems:
        seen.setdefault(problem.key, problem)
    return list(seen.values())


def _message(detail: ErrorDetails, cls: type[BaseModel], location: Key) -> str:
    kind, value = detail["type"], detail.get("input")
    if kind == "extra_forbidden":
        known = _fields(cls, location[:-1])
        return f"is no key of this section.{did_you_mean(str(location[-1]), known)} Known: {', '.join(known)}."
    if kind == "missing":
        return "is missing"
    text = detail["msg"].removeprefix("Value error, ")
    if kind in ("value_error", "assertion_error"):
        return text
    return f"{text[:1].lower()}{text[1:]}, not {value!r}"


def _fields(cls: Any, location: Key) -> list[str]:
    for part in location:
        annotation = cls.model_fields[part].annotation if isinstance(part, str) and part in cls.model_fields else None
        candidates = [annotation, *typing.get_args(annotation)]
        cls = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)
        if cls is None:
            return []
    return sorted(cls.model_fields)


def _is_union_tag(part: str | int) -> bool:
    # pydantic puts the member of a union into the location: `tuple[str, ...]`, `LoraSettings`, `str`.
    return isinstance(part, str) and ("[" in part or part in ("str", "int", "float", "bool") or part[:1].isupper())


def _override(file: RunFile, text: str, shorthand: Callable[[dict[str, Any]], dict[str, Any]]) -> Key:
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise ConfigError(f"{text!r} is not an override; write key.sub=value, for example train.learning_rate=1e-5.")
    try:
        parsed = yaml.safe_load(value) if value else ""
    except yaml.YAMLError as error:
        raise ConfigError(f"the value of the override {text!r} is not YAML: {_yaml_error(error)}") from error
    key: Key = tuple(int(part) if part.isdigit() else part for part in name.strip().split("."))
    at: Any = file.raw
    for part in key[:-1]:
        if isinstance(at, list) and isinstance(part, int) and part < len(at):
            at = at[part]
        elif isinstance(at, dict):
            if not isinstance(at.get(part), dict | list):
                at[part] = {}
            at = at[part]
        else:
            raise ConfigError(f"the override {text!r} names {part!r}, where the run file has no section or list entry.")
    if isinstance(at, list):
        if not isinstance(key[-1], int) or key[-1] >= len(at):
            raise ConfigError(f"the override {text!r} names entry {key[-1]!r} of a list of {len(at)}; count from 0.")
        at[key[-1]] = parsed
    else:
        at[key[-1]] = parsed
    file.raw = shorthand(file.raw)
    return key


def _walk(node: yaml.Node, key: Key, file: RunFile) -> None:
    if isinstance(node, yaml.MappingNode):
        for name_node, value in node.value:
            name = name_node.value
            line = name_node.start_mark.line + 1
            if (*key, name) in file.lines:
                first = file.lines[*key, name]
                file.problems.append(Problem((*key, name), f"stands twice, first on line {first}"))
            file.lines[*key, name] = line
            _walk(value, (*key, name), file)
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            file.lines[*key, i] = value.start_mark.line + 1
            _walk(value, (*key, i), file)


def _dotted(key: Key) -> str:
    return "`" + ".".join(map(str, key)) + "` " if key else ""


def _yaml_error(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error)
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}" if mark else str(problem)


def defaults_of(cls: type[BaseModel]) -> Mapping[str, Any]:
    """Field → default, for help pages; a required field is left out."""
    return {n: f.get_default(call_default_factory=True) for n, f in cls.model_fields.items() if not f.is_required()}
