"""JSON schemas of what people and programs write and read, derived from the settings classes."""

from typing import Any

from radistill import plugins
from radistill.config import RunConfig
from radistill.errors import ConfigError, did_you_mean

SLOTS: dict[str, tuple[plugins.Kind, str]] = {
    "Method": ("methods", "name"),
    "Backend": ("backends", "name"),
    "Metric": ("metrics", "name"),
    "Task": ("tasks", "task"),
}


def schema_of(what: str) -> dict[str, Any]:
    """The schema of `config`, `report` or `compare`.

    Raises:
        ConfigError: there is no such schema.
    """
    known = {"config": config_schema, "report": report_schema, "compare": compare_schema}
    if what not in known:
        raise ConfigError(f"no schema {what!r}; known: {', '.join(known)}.{did_you_mean(what, known)}")
    return known[what]()


def config_schema() -> dict[str, Any]:
    """The run file's schema: every plugin with its own settings, or its bare name as the short form."""
    schema = RunConfig.model_json_schema()
    definitions: dict[str, Any] = schema["$defs"]
    for base, (kind, key) in SLOTS.items():
        members: list[dict[str, Any]] = [{"enum": list(plugins.available(kind))}]
        for name in plugins.available(kind):
            leaf = plugins.load(kind, name).model_json_schema()
            nested = leaf.pop("$defs", {})
            definitions |= {k: v for k, v in nested.items() if k not in definitions}
            leaf["properties"] = {key: {"const": name}, **leaf.get("properties", {})}
            leaf["required"] = [key, *leaf.get("required", [])]
            title = f"{kind}.{name}"
            definitions[title] = leaf
            members.append({"$ref": f"#/$defs/{title}"})
        definitions[base] = {"anyOf": members}
    # name and output_dir have defaults that depend on the file, which pydantic cannot know.
    schema["required"] = [r for r in schema["required"] if r not in ("name", "output_dir")]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "radistill run file", **schema}


def report_schema() -> dict[str, Any]:
    """The schema of report.json."""
    from radistill.report import schema

    return schema()


def compare_schema() -> dict[str, Any]:
    """The schema of compare.json."""
    from radistill.compare_report import schema

    return schema()
