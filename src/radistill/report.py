"""Stage 5: what was learned, what was kept, what it cost; from run folders alone, without a model.

Scores are computed again from the stored predictions. `report.html` is one file that opens offline; whatever a model
or a data file wrote is text in it, never markup. `report.md` holds the same numbers, `report.json` has a stable
schema (`schema()`). `predictions.html` holds every answer to every test item.
"""

import base64
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from radistill.errors import RunFolderError
from radistill.files import write_json, write_text
from radistill.plots import ORIGINS
from radistill.report_answers import Everything, every
from radistill.report_data import Run, read_run, together
from radistill.report_parts import View
from radistill.report_scores import Kept, Result, as_json, kept_by_all, results
from radistill.report_text import listed, markdown, visible
from radistill.report_view import view
from radistill.report_words import failures, summary
from radistill.runs import RunFolder
from radistill.tasks.base import Task

if TYPE_CHECKING:
    from jinja2 import Environment

PREDICTIONS = "predictions.html"


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """Everything a report says, before it is laid out."""

    runs: tuple[Run, ...]
    results: tuple[Result, ...]
    what_is_kept: dict[str, Kept]
    """By system."""
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
    what_is_kept = kept_by_all(found, read, margin=margin)
    told = summary(read, found, what_is_kept=what_is_kept, margin=margin)
    numbers = as_json(
        read,
        found,
        what_is_kept=what_is_kept,
        margin=margin,
        seed=seed,
        title=visible(title or _title(read)),
        summary=[visible(sentence) for sentence in told],
        notes=[visible(note) for note in [*notes, *failures(found)]],
    )
    return Collected(runs=tuple(read), results=tuple(found), what_is_kept=what_is_kept, numbers=numbers)


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
    """Write report.html, report.md, report.json, figures/*.svg and, beside them, predictions.html.

    Args:
        runs: finished runs; several are laid side by side against the first one's untouched model.
        output: folder to write to.
        margin: the loss of retention that still counts as retained, as a fraction.
        seed: of the bootstrap and of the sample of examples.
        title: heading of the report; made of the runs' names unless given.
        examples: so many test items of each skill, and as many of all other tests together, are shown side by side in
            report.html; predictions.html shows all.
        tasks: by name, where they are not to be made from each run's config.yaml.

    Returns:
        What was written.

    Raises:
        RunFolderError: a folder is no run folder, or the runs cannot be compared.
        DataError: the predictions cannot be scored.
    """
    found = collect(runs, margin=margin, seed=seed, title=title, tasks=tasks)
    said = {key: found.numbers[key] for key in ("title", "summary", "notes")}
    page = view(
        found.runs,
        found.results,
        **said,
        what_is_kept=found.what_is_kept,
        margin=margin,
        seed=seed,
        examples=examples,
        output=output,
    )
    texts = {output / "report.html": _html(page), output / "report.md": _markdown(page)}
    if page.has_predictions:
        texts[output / PREDICTIONS] = _predictions(every(found.results, title=page.title))
    texts |= {output / "figures" / f"{d.name}.svg": d.svg for d in page.drawings}
    for path, text in texts.items():
        write_text(path, text)
    write_json(output / "report.json", found.numbers)
    return [*texts, output / "report.json"]


def schema() -> dict[str, Any]:
    """The JSON Schema of report.json."""
    text = files("radistill").joinpath("schemas/report.schema.json").read_text(encoding="utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def _title(runs: Sequence[Run]) -> str:
    names = [run.name for run in runs]
    shown = names if len(names) <= 4 else [*names[:3], f"{len(names) - 3} other runs"]
    return f"Report on {listed(shown)}"


def _html(page: View) -> str:
    template = templates(visible, autoescape=True).get_template("report.html.j2")
    return template.render(view=page, css=asset("report.css"), origins=ORIGINS, predictions=PREDICTIONS)


def _predictions(page: Everything) -> str:
    css, script = asset("report.css") + asset("predictions.css"), asset("predictions.js")
    # The browser is to run this script and no other, whatever a model wrote.
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    template = templates(visible, autoescape=True).get_template("predictions.html.j2")
    return template.render(page=page, css=css, script=script, allowed=allowed)


def asset(name: str) -> str:
    """The text of a file that stands beside the templates."""
    return files("radistill").joinpath(f"templates/{name}").read_text(encoding="utf-8")


def _markdown(page: View) -> str:
    return templates(markdown, autoescape=False).get_template("report.md.j2").render(view=page, predictions=PREDICTIONS)


def templates(clean: Callable[[str], str], *, autoescape: bool) -> "Environment":
    """The pages' templates; every text that they print goes through `clean`."""
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
