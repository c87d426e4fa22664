"""`radistill compare`: its own file, because it has more to say than a stage."""

import json
from pathlib import Path
from typing import Annotated

import typer


def compare(
    config: Annotated[Path, typer.Argument(help="Config of a comparison (YAML).", show_default=False)],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY.SUB=VALUE]...", help="Settings that win over the file's.", show_default=False),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Only what the config's `quick` leaves: minutes.")] = False,
    workers: Annotated[int, typer.Option(min=1, help="So many cells at once, each in a process of its own.")] = 1,
    cell: Annotated[
        int | None, typer.Option(min=0, help="Do only the cell of this number, as in a Slurm array.", metavar="K")
    ] = None,
    cells: Annotated[bool, typer.Option("--cells", help="List all cells with their numbers, and do nothing.")] = False,
    generate: Annotated[
        bool, typer.Option("--generate", help="Only let the untouched model write for all cells.")
    ] = False,
    report: Annotated[bool, typer.Option("--report", help="Only write the report of what is finished.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")] = False,
) -> None:
    """Compare methods: run a grid of methods, settings and seeds, and report the frontier of gain and loss.

    A comparison that was stopped goes on where it was; finished cells are never run again.
    """
    from radistill import compare as comparing
    from radistill.compare_config import cells_of, load_compare_config
    from radistill.errors import ConfigError

    if sum((cell is not None, cells, generate, report)) > 1:
        raise ConfigError("--cell, --cells, --generate and --report are four different things: give one of them.")
    loaded = load_compare_config(config, overrides or [])
    loaded = loaded.quickly() if quick else loaded
    planned = cells_of(loaded)
    if cell is not None and cell >= len(planned):
        raise ConfigError(f"--cell {cell}: the cells are 0 to {len(planned) - 1}; --cells lists them.")

    def say(text: str) -> None:
        typer.echo(text, err=True)

    if cells:
        rows = [{"cell": c.number, "name": c.name, "finished": comparing.is_finished(c)} for c in planned]
        lines = [f"{r['cell']:5} {r['name']}{'  finished' if r['finished'] else ''}" for r in rows]
        typer.echo(json.dumps(rows) if as_json else "\n".join(lines))
    elif generate:
        comparing.write_first(loaded, planned, say=say)
    elif cell is not None:
        if comparing.is_finished(planned[cell]):
            say(f"{planned[cell].name} was finished before")
        else:
            comparing.run_cell(planned[cell])
    else:
        again = comparing.default_command(["compare", str(config), *(overrides or []), *(["--quick"] if quick else [])])
        written = (
            comparing.write_report(loaded, say=say)
            if report
            else comparing.compare(loaded, workers=workers, say=say, command=again)
        )
        page = next(path for path in written if path.suffix == ".html")
        numbers = next(path for path in written if path.suffix == ".json")
        typer.echo(numbers.read_text(encoding="utf-8") if as_json else f"report: {page}", nl=not as_json)
