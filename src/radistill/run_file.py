"""A YAML run file with the line of every key, and what is wrong with it in words.

YAML is read by the safe loader. A key that stands twice is an error, because YAML would silently take the last.
"""

import reprlib
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from radistill.errors import ConfigError, did_you_mean

Key = tuple[str | int, ...]
MAX_VALUES = 100_000
"""A run file may not hold more, so that aliases of aliases cannot fill the memory."""


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
        lines = [f"{self._where(p.key)}: {f'`{_dotted(p.key)}` ' if p.key else ''}{p.message}" for p in ordered]
        count = f"{len(lines)} problems" if len(lines) > 1 else "1 problem"
        return "\n".join([f"{self.path or 'the config'} has {count}:", *(f"  {line}" for line in lines)])

    def _line(self, key: Key) -> int:
        while key and key not in self.lines:
            key = key[:-1]
        return self.lines.get(key, 0)

    def _where(self, key: Key) -> str:
        # Below what was set there, or a section that is there because of it.
        if any(key[: len(o)] == o or (key == o[: len(key)] and key not in self.lines) for o in self.overridden if key):
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
    root, loaded = _parsed(path)
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(f"{path} must hold keys and values such as `model: FOLDER`; see `radistill init`.")
    file = RunFile(path=path, raw=shorthand(_unshared(loaded, path)), lines={}, overridden=frozenset())
    _walk(root, (), file)
    file.overridden = frozenset(_override(file, override, shorthand) for override in overrides)
    return file


def tidied(raw: Any, cls: type[BaseModel], key: Key, problems: list[Problem]) -> Any:
    """The values without the sections that were left empty, which mean their defaults; finds what pydantic lets pass.

    Pydantic takes `true` for the number 1.
    """
    if not isinstance(raw, dict):
        return raw
    kept = {}
    for name, value in raw.items():
        info = cls.model_fields.get(name) if isinstance(name, str) else None
        kinds = _kinds(info.annotation) if info else ()
        section = _section(info.annotation) if info else None
        if value is None and info and section and not info.is_required() and type(None) not in kinds:
            continue
        if isinstance(value, bool) and bool not in kinds and (int in kinds or float in kinds):
            problems.append(Problem((*key, name), f"must be a number, not {value}"))
        kept[name] = tidied(value, section, (*key, name), problems) if section else value
    return kept


def problems_of(error: ValidationError, cls: type[BaseModel], key: Key) -> list[Problem]:
    """Pydantic's errors as problems, with a suggestion for unknown keys."""
    problems = []
    for detail in error.errors(include_url=False):
        location = _location(detail, cls)
        problems.append(Problem((*key, *location), _message(detail, cls, location), detail.get("input")))
    # A union reports one error per member; the first says enough.
    seen: dict[Key, Problem] = {}
    for problem in problems:
        seen.setdefault(problem.key, problem)
    return list(seen.values())


def shown(value: object) -> str:
    """A value as messages show it: not longer than a line."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = 60
    return short.repr(value)


def _message(detail: ErrorDetails, cls: type[BaseModel], location: Key) -> str:
    kind, value = detail["type"], detail.get("input")
    text = detail["msg"].removeprefix("Value error, ")
    match kind:
        case "extra_forbidden":
            known = _fields(cls, location[:-1])
            listed = f"Known: {', '.join(known)}." if known else "It has none."
            return f"is no key of this section.{did_you_mean(str(location[-1]), known)} {listed}"
        case "missing":
            return "is missing"
        case "value_error" | "assertion_error":
            return text
        case "invalid_key":
            return f"has the key {shown(value)}, which YAML does not read as text: put it into quotes"
        case "too_short":
            return f"needs {detail['ctx']['min_length']} or more, not {shown(value)}"
        case "string_pattern_mismatch":
            return f"must have the form {detail['ctx']['pattern']}, not {shown(value)}"
    info = _field(cls, location)
    if kind.endswith("_type") and value is None:
        return "has no value" + (": write one, or leave the key out" if info and not info.is_required() else "")
    match kind:
        case "string_type" if not isinstance(value, list | dict):
            return f"must be text, not {shown(value)}: put it into quotes"
        case "tuple_type":
            return f"must be a list, not {shown(value)}" + (f": write [{value}]" if isinstance(value, str) else "")
        case "model_type":
            null = " or null" if info and type(None) in _kinds(info.annotation) else ""
            return f"must be a section{null}, not {shown(value)}; its keys: {', '.join(_fields(cls, location))}"
    return f"{text[:1].lower()}{text[1:]}, not {shown(value)}"


def _location(detail: ErrorDetails, cls: type[BaseModel]) -> Key:
    """Where the error is, without the members of unions that pydantic puts in: `tuple[str, ...]`, `str`."""
    found: list[str | int] = []
    at: type[BaseModel] | None = cls
    *above, last = detail["loc"] or ("",)
    for part in (*above, last) if detail["type"] not in ("extra_forbidden", "invalid_key") else above:
        info = at.model_fields.get(part) if at and isinstance(part, str) else None
        if info is not None:
            at = _section(info.annotation)
        if info is not None or isinstance(part, int):
            found.append(part)
    return (*found, last) if detail["type"] == "extra_forbidden" else tuple(found)


def _fields(cls: type[BaseModel], location: Key) -> list[str]:
    """Names of the keys of the section there."""
    info = _field(cls, location)
    at = _section(info.annotation) if info else cls if not location else None
    return sorted(at.model_fields) if at else []


def _field(cls: type[BaseModel], location: Key) -> FieldInfo | None:
    at: type[BaseModel] | None = cls
    info = None
    for part in location:
        if isinstance(part, str):
            info = at.model_fields.get(part) if at else None
            at = _section(info.annotation) if info else None
    return info


def _section(annotation: Any) -> type[BaseModel] | None:
    """The settings class that values of this annotation are, or hold."""
    return next((k for k in _kinds(annotation) if isinstance(k, type) and issubclass(k, BaseModel)), None)


def _kinds(annotation: Any) -> tuple[Any, ...]:
    """The annotation and all that it is made of."""
    return (annotation, *(kind for inner in typing.get_args(annotation) for kind in _kinds(inner)))


def _parsed(path: Path) -> tuple[yaml.Node | None, Any]:
    try:
        text = path.read_text(encoding="utf-8-sig")
        return yaml.compose(text, Loader=yaml.SafeLoader), yaml.safe_load(text)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except RecursionError as error:
        raise ConfigError(f"{path} is nested too deeply to be a run file.") from error
    except (yaml.YAMLError, ValueError) as error:  # a date that is in no calendar is a ValueError
        raise ConfigError(f"{path} is not a YAML file: {_yaml_error(error)}") from error


def _unshared(loaded: Any, path: Path) -> Any:
    """A copy in which aliases are values of their own, so that an override changes one place alone."""
    n_values = 0

    def copy(value: Any, above: tuple[int, ...]) -> Any:
        nonlocal n_values
        n_values += 1
        if id(value) in above or n_values > MAX_VALUES:
            raise ConfigError(
                f"{path} holds an alias (`*name`) that refers to itself, or more than {MAX_VALUES:,} values."
            )
        within = (*above, id(value))
        if isinstance(value, dict):
            return {name: copy(inner, within) for name, inner in value.items()}
        return [copy(inner, within) for inner in value] if isinstance(value, list) else value

    return copy(loaded, ())


def _override(file: RunFile, text: str, shorthand: Callable[[dict[str, Any]], dict[str, Any]]) -> Key:
    name, equals, value = text.partition("=")
    if not equals or not all(name.strip().split(".")):
        raise ConfigError(f"{text!r} is not an override; write key.sub=value, for example train.learning_rate=1e-5.")
    try:
        parsed = yaml.safe_load(value) if value else ""
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"the value of the override {text!r} is not YAML: {_yaml_error(error)}") from error
    key: Key = tuple(int(part) if part.isdecimal() else part for part in name.strip().split("."))
    *above, last = key
    at: Any = file.raw
    for part in above:
        if isinstance(at, list) and isinstance(part, int) and part < len(at):
            at = at[part]
        elif isinstance(at, dict):
            if at.get(part) is None:
                at[part] = {}
            at = at[part]
        else:
            raise ConfigError(f"the override {text!r} names {part!r} in what is no section and has no such entry.")
    if isinstance(at, dict):
        at[last] = parsed
    elif not isinstance(at, list):
        raise ConfigError(f"the override {text!r} names a key of `{_dotted(key[:-1])}`, which is {shown(at)}.")
    elif isinstance(last, int) and last < len(at):
        at[last] = parsed
    else:
        raise ConfigError(f"the override {text!r} names entry {last!r} of a list of {len(at)}; count from 0.")
    file.raw = shorthand(file.raw)
    return key


def _walk(node: yaml.Node, key: Key, file: RunFile) -> None:
    if isinstance(node, yaml.MappingNode):
        first: dict[str, int] = {}
        for name_node, value in node.value:
            name = name_node.value
            line = name_node.start_mark.line + 1
            if name in first:
                file.problems.append(Problem((*key, name), f"stands twice, first on line {first[name]}"))
            first.setdefault(name, line)
            file.lines[*key, name] = line
            _walk(value, (*key, name), file)
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            file.lines[*key, i] = value.start_mark.line + 1
            _walk(value, (*key, i), file)


def _dotted(key: Key) -> str:
    return ".".join(map(str, key))


def _yaml_error(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error)
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}" if mark else str(problem)
