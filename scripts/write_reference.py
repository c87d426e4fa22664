"""Write docs/reference/config.md from the settings classes: every key with its type, default and meaning.

python scripts/write_reference.py          # writes the page
python scripts/write_reference.py --check  # fails if the page is not what it would write
"""

import sys
import types
import typing
from pathlib import Path

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from radistill import plugins
from radistill.config import RunConfig

PAGE = Path(__file__).resolve().parents[1] / "docs" / "reference" / "config.md"
INTRODUCTION = """# Settings

Written by `scripts/write_reference.py` from the settings classes; do not edit. A string where a plugin is expected
(`method: radis`) is short for `{name: radis}`. Unknown keys are errors.
"""


def page() -> str:
    """The page as Markdown."""
    parts = [INTRODUCTION, *_section("The run file", RunConfig, "")]
    for kind in plugins.KINDS:
        key = "task" if kind == "tasks" else "name"
        for name in plugins.available(kind):
            cls = plugins.load(kind, name)
            parts += _section(f"{kind[:-1].capitalize()} `{name}`", cls, "", first_line=f"`{{{key}: {name}}}`. ")
    return "\n".join(parts)


def _section(title: str, cls: type[BaseModel], prefix: str, *, first_line: str = "") -> list[str]:
    lines = [f"## {title}", "", first_line + _one_line(cls.__doc__), ""]
    nested: list[str] = []
    rows = []
    for name, field in cls.model_fields.items():
        inner = _settings_in(field.annotation)
        key = f"{prefix}{name}"
        if inner is not None:
            nested += _section(f"`{key}`", inner, f"{key}.")
            rows.append(f"| `{key}` | section | {_default(field)} | {_one_line(field.description)} |")
            continue
        rows.append(f"| `{key}` | {_type(field.annotation)} | {_default(field)} | {_one_line(field.description)} |")
    table = ["| key | type | default | meaning |", "|---|---|---|---|", *rows, ""] if rows else ["No settings.", ""]
    return [*lines, *table, *nested]


def _settings_in(annotation: object) -> type[BaseModel] | None:
    """The section behind a field, unless it is a plugin, which has a section of its own."""
    for candidate in (annotation, *typing.get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel) and not _is_plugin_base(candidate):
            return candidate
    return None


def _is_plugin_base(cls: type[BaseModel]) -> bool:
    return cls.__module__.endswith(".base")


def _type(annotation: object) -> str:
    if typing.get_origin(annotation) is typing.Literal:
        return " \\| ".join(f"`{value}`" for value in typing.get_args(annotation))
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return " \\| ".join(_type(a) for a in typing.get_args(annotation))
    if annotation is type(None):
        return "`null`"
    if typing.get_origin(annotation) is tuple:
        return f"list of {_type(typing.get_args(annotation)[0])}"
    if typing.get_origin(annotation) is dict:
        return "mapping"
    if typing.get_origin(annotation) is typing.Annotated:
        return _type(typing.get_args(annotation)[0])
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"a {annotation.__name__.lower()}"
    return str(getattr(annotation, "__name__", annotation))


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel) or (isinstance(value, tuple) and value and isinstance(value[0], BaseModel)):
        many = value if isinstance(value, tuple) else (value,)
        return ", ".join(f"`{plugins.name_of(v)}`" for v in many) if _is_leaf(many[0]) else "see below"
    shown = {None: "null", True: "true", False: "false"}.get(value) if isinstance(value, bool | None) else None
    return f"`{shown or (repr(value) if isinstance(value, str) else value)}`"


def _is_leaf(value: BaseModel) -> bool:
    return any(type(value).__module__.startswith(f"radistill.{kind}.") for kind in plugins.KINDS)


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")


def main() -> int:
    """Write or check; the exit code."""
    text = page()
    if "--check" in sys.argv[1:]:
        return 0 if PAGE.exists() and PAGE.read_text(encoding="utf-8") == text else 1
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
