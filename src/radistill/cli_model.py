"""`radistill merge`, `export` and `push`: a trained model, made fit for others to use."""

import json
from pathlib import Path
from typing import Annotated

import typer

Folder = Annotated[str, typer.Argument(help="Run folder, or an adapter's folder.", show_default=False)]
Base = Annotated[str | None, typer.Option(help="Its base, if that is elsewhere now: folder or hub id.")]
Code = Annotated[bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.")]


def merge(
    run: Folder,
    output: Annotated[Path | None, typer.Option(help="Folder to write; by default RUN/merged.")] = None,
    dtype: Annotated[str, typer.Option(help="auto (as the base is stored), bfloat16, float16 or float32.")] = "auto",
    base: Base = None,
    redo: Annotated[bool, typer.Option("--redo", help="Replace another merged model that is there.")] = False,
    trust_remote_code: Code = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the comparison as JSON on standard output.")] = False,
) -> None:
    """Add a run's adapter to its base: a full model, compared with base and adapter before it is kept."""
    from dataclasses import asdict

    from radistill import merge as merging

    done = merging.merge(
        run, output=output, dtype=dtype, base=base, redo=redo, trust_remote_code=trust_remote_code, say=_say
    )
    if as_json:
        told = {"folder": str(done.folder), "dtype": done.dtype, "is_new": done.is_new, **asdict(done.comparison)}
        typer.echo(json.dumps(told))
        return
    found = done.comparison
    typer.echo(f"{done.folder}: {done.dtype}{'' if done.is_new else ', there already'}")
    typer.echo(
        f"  logits, merged and unmerged: {found.mean:.2g} apart on average, {found.largest:.2g} at most; rounding "
        f"alone makes {found.rounding_mean:.2g}, the adapter {found.adapter_mean:.2g}"
    )
    alone = f"; rounding alone leaves {found.rounding_equal_answers}" if done.dtype != "float32" else ""
    typer.echo(f"  {found.equal_answers} of {found.answers} greedy answers are equal{alone}")


def export(
    run: Annotated[str, typer.Argument(help="Run folder, or a full model's folder.", show_default=False)],
    llama_cpp: Annotated[Path, typer.Option(help="Checkout of llama.cpp.", show_default=False)],
    output: Annotated[Path, typer.Option(help="File to write (.gguf).", show_default=False)],
    outtype: Annotated[str, typer.Option("--type", help="f32, f16, bf16, q8_0 or auto.")] = "q8_0",
    env: Annotated[Path | None, typer.Option(help="Environment with what llama.cpp's script needs.")] = None,
    base: Base = None,
    redo: Annotated[bool, typer.Option("--redo", help="Replace a file that is there.")] = False,
    trust_remote_code: Code = False,
) -> None:
    """Convert a run's model to GGUF, by a checkout of llama.cpp; an adapter is merged first."""
    from radistill import gguf

    options = gguf.Conversion(checkout=llama_cpp, outtype=outtype, env=env)
    done = gguf.export(run, output, options, base=base, redo=redo, trust_remote_code=trust_remote_code, say=_say)
    typer.echo(f"{done}: {done.stat().st_size / 1e6:,.1f} MB, {outtype}")


def push(
    run: Annotated[Path, typer.Argument(help="Run folder, or a model's folder.", show_default=False)],
    repo: Annotated[str, typer.Option(help="OWNER/NAME on the hub.", show_default=False)],
    private: Annotated[bool, typer.Option("--private/--public", help="Who may see a repository made for it.")] = True,
) -> None:
    """Upload a run's model with its card to the Hugging Face hub. Nothing else in radistill uploads anything.

    The token is read from HF_TOKEN and written nowhere.
    """
    from radistill import hub

    done = hub.push(run, repo, private=private, say=_say)
    typer.echo(f"{done.url}: {len(done.files)} files")


def _say(line: str) -> None:
    typer.echo(line, err=True)
