"""`radistill ledger …`: looking after the store of all generations."""

import json
from pathlib import Path
from typing import Annotated

import typer

ledger = typer.Typer(
    name="ledger",
    no_args_is_help=True,
    help="The store of all generations: what is in it, whether it is whole, and the rows a run uses.",
)
Folder = Annotated[Path, typer.Argument(help="Folder of the ledger (`generate.ledger`).")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]
DEFAULT = Path("runs/ledger")


@ledger.command()
def status(folder: Folder = DEFAULT, as_json: Json = False) -> None:
    """Count what is there: requests, rows, tokens, failures, bytes."""
    from radistill import ledger_care as care

    found = care.looked_through(folder)
    if as_json:
        typer.echo(care.as_json(found))
        return
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in found.finish_reasons.items())
    typer.echo(f"{found.path}: {found.shards:,} shards, {care.size_of(found.bytes)}")
    typer.echo(f"  {found.keys:,} requests, {found.rows:,} rows ({reasons or 'no text'}; {found.scored:,} scored)")
    typer.echo(f"  {found.tokens:,} tokens written; {found.failed:,} requests without a good answer")
    if found.doubled or found.unfinished_bytes:
        typer.echo(f"  {found.doubled:,} doubled rows, {care.size_of(found.unfinished_bytes)} of unfinished writes")
    if found.problems:
        typer.echo(f"  {care.size_of(found.damaged_bytes)} are damaged: see `radistill ledger verify {folder}`")


@ledger.command()
def verify(folder: Folder = DEFAULT, as_json: Json = False) -> None:
    """Read every byte and follow every entry of the index; exit code 2 if something is damaged."""
    from radistill import ledger_care as care

    found = care.looked_through(folder)
    if as_json:
        typer.echo(care.as_json(found))
    else:
        for problem in found.problems:
            typer.echo(f"problem: {problem}")
        typer.echo(f"{found.rows:,} rows in {found.shards:,} shards: {'damaged' if found.problems else 'whole'}")
        if found.unfinished_bytes:
            typer.echo(f"{care.size_of(found.unfinished_bytes)} belong to unfinished writes and are not read")
    if found.problems:
        raise typer.Exit(2)


@ledger.command()
def compact(folder: Folder = DEFAULT, as_json: Json = False) -> None:
    """Write it anew without doubled, superseded and unfinished rows, in as few files as need be."""
    from radistill import ledger_care as care

    done = care.compact(folder)
    if as_json:
        typer.echo(json.dumps(done))
        return
    before, after = care.size_of(done["bytes_before"]), care.size_of(done["bytes_after"])
    typer.echo(f"{done['shards_before']:,} shards, {before} → {done['shards_after']:,} shards, {after}")


@ledger.command()
def export(
    run: Annotated[Path, typer.Argument(help="Run folder.", show_default=False)],
    output: Annotated[Path, typer.Option(help="File to write (JSON Lines).", show_default=False)],
) -> None:
    """Write the rows a run uses, one a line, in the order of their keys; equal runs give equal files."""
    from radistill.ledger_export import export as export_rows

    typer.echo(f"{export_rows(run, output):,} rows → {output}")
