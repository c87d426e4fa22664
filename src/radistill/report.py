"""Stage 5: what was learned, what was kept, what it cost; from run folders alone, without a model.

Scores are computed again from the stored predictions. `report.html` is one file that opens offline; whatever a model
or a data file wrote is text in it, never markup. `report.md` holds the same numbers, `report.json` has a stable
schema (`schema()`).
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from radistill.errors import RunFolderError
from radistill.files import write_json, write_text
from radistill.plots import ORIGINS
from radistill.report_data import Run, read_run, together
from radistill.report_scores import Result, as_json, results
from radistill.report_text import listed, markdown, visible
from radistill.report_view import View, view
from radistill.report_words import failures, summary
from radistill.runs import RunFolder
from radistill.tasks.base import Task

if TYPE_CHECKING:
    from jinja2 import Environment


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """Everything a report says, before it is laid out."""

    runs: tuple[Run, ...]
    results: tuple[Result, ...]
    numbers: dict[str, Any]
    """The content of report.json."""


def collect(
    runs: Sequence[RunFolder],
    *,
    margin: float,
    seed: int,
    title: str | None = None,
    tasks: Mapping[str, Task] | None = None,
) -> Collected:
    """Compute what `write_report` writes; the arguments are the same.

    Raises:
        RunFolderError: a folder is no run folder, or the runs cannot be compared.
        DataError: the predictions cannot be scored.
    """
    if not runs:
        raise RunFolderError("no run folder was named. Name one or more: radistill report runs/NAME")
    read, evaluations, notes = together([read_run(folder, tasks) for folder in runs])
    found = results(evaluations, seed=seed)
    numbers = as_json(
        read,
        found,
        margin=margin,
        seed=seed,
        title=visible(title or _title(read)),
        summary=[visible(sentence) for sentence in summary(read, found, margin=margin)],
        notes=[visible(note) for note in [*notes, *failures(found)]],
    )
    return Collected(runs=tuple(read), results=tuple(found), numbers=numbers)


def write_report(
    runs: Sequence[RunFolder],
    output: Path,
    *,
    margin: float,
    seed: int,
    title: str | None = None,
    examples: int = 40,
    tasks: Mapping[str, Task] | None = None,
) -> list[Path]:
    """Write report.html, report.md, report.json and figures/*.svg.

    Args:
        runs: finished runs; several are laid side by side against the first one's untouched model.
        output: folder to write to.
        margin: the loss of retention that still counts as retained, as a fraction.
        seed: of the bootstrap and of the sample of examples.
        title: heading of the report; made of the runs' names unless given.
        examples: so many test items per task are shown side by side.
        tasks: by name, where they are not to be made from each run's config.yaml.

    Returns:
        What was written.

    Raises:
        RunFolderError: a folder is no run folder, or the runs cannot be compared.
        DataError: the predictions cannot be scored.
    """
    found = collect(runs, margin=margin, seed=seed, title=title, tasks=tasks)
    said = {key: found.numbers[key] for key in ("title", "summary", "notes")}
    page = view(found.runs, found.results, **said, margin=margin, seed=seed, examples=examples, output=output)
    return _written(page, found.numbers, output)


def schema() -> dict[str, Any]:
    """The JSON Schema of report.json."""
    text = files("radistill").joinpath("schemas/report.schema.json").read_text(encoding="utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def _title(runs: Sequence[Run]) -> str:
    names = [run.name for run in runs]
    shown = names if len(names) <= 4 else [*names[:3], f"{len(names) - 3} other runs"]
    return f"Report on {listed(shown)}"


def _written(page: View, numbers: dict[str, Any], output: Path) -> list[Path]:
    figures = {output / "figures" / f"{d.name}.svg": d.svg for d in page.drawings}
    texts = {output / "report.html": _html(page), output / "report.md": _markdown(page), **figures}
    for path, text in texts.items():
        write_text(path, text)
    write_json(output / "report.json", numbers)
    return [*texts, output / "report.json"]


def _html(page: View) -> str:
    css = files("radistill").joinpath("templates/report.css").read_text(encoding="utf-8")
    return (
        _environment(visible, autoescape=True)
        .get_template("report.html.j2")
        .render(view=page, css=css, origins=ORIGINS)
    )


def _markdown(page: View) -> str:
    return _environment(markdown, autoescape=False).get_template("report.md.j2").render(view=page)


def _environment(clean: Callable[[str], str], *, autoescape: bool) -> "Environment":
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    def finalize(value: object) -> object:
        # On the way of everything that is printed, so that no template can forget it. Only our own text is Markup.
        return clean(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    environment = Environment(
        loader=PackageLoader("radistill"),
        autoescape=autoescape,
        finalize=finalize,
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["code"] = lambda text: Markup("\n".join(f"    {line}" for line in visible(text).splitlines()))
    return environment
