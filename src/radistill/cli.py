"""The command line: parse, call a stage, turn a RadistillError into one message and exit code 2.

Nothing heavy is imported before a verb is chosen, so that `--help` answers at once.
"""

import json
import os
import sys
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from radistill import __version__
from radistill.cli_compare import compare
from radistill.cli_lab import lab
from radistill.cli_ledger import ledger
from radistill.cli_model import export, merge, push

if TYPE_CHECKING:
    from radistill.config import RunConfig
    from radistill.pipeline import StageOutcome

app = typer.Typer(
    name="radistill",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=True,
    help="Teach an instruction-tuned LLM a new skill without losing what it already knows (Rationale Distillation).",
)
app.add_typer(lab)
app.add_typer(ledger)
app.command("compare")(compare)
for verb in (merge, export, push):
    app.command(verb.__name__)(verb)
Config = Annotated[Path, typer.Argument(help="Run file (YAML); `radistill init` writes one.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY.SUB=VALUE]...", help="Settings that win over the run file's.", show_default=False),
]
Redo = Annotated[str | None, typer.Option(help="Do this stage and all after it again.", metavar="STAGE")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]

CTRL_C = 130
"""What typer makes of a KeyboardInterrupt that no stage has caught."""


def main() -> None:
    """Entry point of the `radistill` command."""
    from radistill import ranks
    from radistill.errors import RadistillError, disk_full_is_a_message
    from radistill.report_text import visible

    # Libraries' notices to each other and about their next versions; nothing a user of this program could change.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft|accelerate|torch)\b")
    try:
        with disk_full_is_a_message(Path.cwd()):
            app()
    except RadistillError as error:
        # Templates and data files are quoted in messages, and may hold what a terminal obeys.
        if ranks.speaks():
            typer.echo(f"error: {visible(str(error))}", err=True)
        sys.exit(2)
    except (KeyboardInterrupt, SystemExit) as ended:
        if isinstance(ended, SystemExit) and ended.code != CTRL_C:
            raise
        typer.echo("interrupted before a stage had begun. What was done before is kept.", err=True)
        sys.exit(2)
    except BrokenPipeError:
        # The reader of our output (`| head`) has gone; that is no error of ours.
        sys.stderr.close()
        sys.exit(0)


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
) -> None:
    if version:
        typer.echo(f"radistill {__version__}")
        raise typer.Exit


@app.command()
def run(config: Config, overrides: Overrides = None, redo: Redo = None, as_json: Json = False) -> None:
    """Do all five stages: generate, assemble, train, evaluate, report."""
    loaded = _load(config, overrides)
    _stages(loaded, None, redo)
    _show_report(Path(loaded.output_dir), as_json)


def _stage_verb(name: str, text: str) -> None:
    def verb(config: Config, overrides: Overrides = None, redo: bool = False, as_json: Json = False) -> None:
        loaded = _load(config, overrides)
        outcomes = _stages(loaded, (name,), name if redo else None)
        if as_json:
            from dataclasses import asdict

            typer.echo(json.dumps(asdict(outcomes[0].record), default=str))

    verb.__doc__ = text
    app.command(name)(verb)


@app.command()
def generate(
    config: Config,
    overrides: Overrides = None,
    redo: bool = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many requests, to try it out.")] = None,
    shard: Annotated[str | None, typer.Option(metavar="I/N", help="Only the I-th of N shares, from 0.")] = None,
    serve_with: Annotated[str | None, typer.Option(metavar="ENGINE", help="Start a server for it: vllm.")] = None,
    serve_env: Annotated[str | None, typer.Option(metavar="DIR", help="Environment it is installed in.")] = None,
    as_json: Json = False,
) -> None:
    """Stage 1: let the untouched model write what the method plans.

    With --shard or --limit a part of it is written into the ledger, by any number of processes at once; without them
    the stage is finished with what is there, and what is lacking is written. With --serve-with a server is started,
    asked through the backend `openai`, and stopped; what it says goes to server.log in the run folder.
    """
    from dataclasses import asdict

    from radistill.cli_serve import serving
    from radistill.errors import ConfigError
    from radistill.shares import Share

    loaded = _load(config, overrides)
    if serve_with is not None:
        loaded = _load(config, [*(overrides or []), *serving(loaded, serve_with, serve_env)])
    elif serve_env is not None:
        raise ConfigError("--serve-env says where the server is installed that --serve-with starts: give both.")
    share = Share.parse(shard, limit)
    if share is None:
        outcomes = _stages(loaded, ("generate",), "generate" if redo else None)
        if as_json:
            typer.echo(json.dumps(asdict(outcomes[0].record), default=str))
        return
    if redo:
        raise ConfigError("--redo begins the whole stage anew, so it cannot go with --shard or --limit.")
    from radistill import pipeline
    from radistill.terminal import share_line

    answered = pipeline.generate_share(loaded, share)
    typer.echo(json.dumps(asdict(answered)) if as_json else share_line(share, answered), err=not as_json)


_stage_verb("assemble", "Stage 2: put references and rationales together into training records.")
_stage_verb("train", "Stage 3: fine-tune on the records.")


@app.command()
def evaluate(
    config: Annotated[Path | None, typer.Argument(help="Run file (YAML).", show_default=False)] = None,
    overrides: Overrides = None,
    redo: bool = False,
    predictions: Annotated[Path | None, typer.Option(help="Score these finished answers, one per line.")] = None,
    references: Annotated[Path | None, typer.Option(help="References of those answers, one per line.")] = None,
    sources: Annotated[Path | None, typer.Option(help="Sources of those answers, one per line.")] = None,
    language: Annotated[str, typer.Option(help="Language of those answers; decides BLEU's tokenizer.")] = "en",
    as_json: Json = False,
) -> None:
    """Stage 4: let untouched and tuned model answer the tests, and score them.

    With --predictions and --references, score finished outputs instead; no run file is needed.
    """
    from dataclasses import asdict

    from radistill.errors import ConfigError

    if (predictions is None) != (references is None) or (config is None) == (predictions is None):
        raise ConfigError("evaluate takes a run file, or --predictions FILE with --references FILE.")
    if predictions is not None and references is not None:
        from radistill import scoring

        scores = scoring.score_files(predictions, references, sources, language=language)
        if as_json:
            typer.echo(json.dumps([asdict(s) for s in scores]))
        for s in [] if as_json else scores:
            typer.echo(f"{s.metric:24} {s.value:6.2f}  [{s.low:.2f}, {s.high:.2f}]  n={s.n}  {s.signature}")
        return
    assert config is not None
    loaded = _load(config, overrides)
    _stages(loaded, ("evaluate",), "evaluate" if redo else None)
    scores_file = Path(loaded.output_dir) / "scores.json"
    if as_json:
        typer.echo(scores_file.read_text(encoding="utf-8"), nl=False)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders; several are compared.", show_default=False)],
    output_dir: Annotated[Path | None, typer.Option(help="Where the report goes; by default the run's folder.")] = None,
    as_json: Json = False,
) -> None:
    """Stage 5: compute all scores again from the stored predictions and write the report; needs no model."""
    from radistill.config import load_config
    from radistill.errors import ConfigError, RunFolderError
    from radistill.report import write_report
    from radistill.runs import RunFolder

    for folder in runs:
        if not (folder / "manifest.json").exists():
            raise RunFolderError(f"{folder} is no run folder: it has no manifest.json.")
    if len(runs) > 1 and output_dir is None:
        raise ConfigError("a report on several runs needs a folder of its own: --output-dir DIR.")
    first = load_config(runs[0] / "config.yaml")
    output = output_dir or runs[0]
    folders = [RunFolder(folder) for folder in runs]
    with RunFolder(output).lock() if RunFolder(output).manifest.exists() else nullcontext():
        write_report(folders, output, margin=first.report.margin, seed=first.seed, examples=first.report.examples)
    _show_report(output, as_json)


@app.command()
def check(config: Config, overrides: Overrides = None, as_json: Json = False) -> None:
    """Find everything that can be found without loading weights: keys, files, template, lengths, contamination."""
    from radistill import check as checking

    loaded = _load(config, overrides)
    found = checking.check(loaded, shown=lambda step: typer.echo(f"checking {step} …", err=True))
    if as_json:
        typer.echo(json.dumps(checking.as_dict(found), default=str, ensure_ascii=False))
    else:
        from radistill.terminal import show_findings

        show_findings(found)
    if found.problems:
        raise typer.Exit(2)


@app.command()
def preview(
    config: Config,
    overrides: Overrides = None,
    rows: Annotated[int, typer.Option(min=1, help="How many examples.")] = 3,
) -> None:
    """Show examples as they will be trained: coloured segments, weights, ids."""
    from radistill.terminal import show_preview

    show_preview(_load(config, overrides), rows)


@app.command()
def init(
    path: Annotated[Path, typer.Argument(help="Run file to write.")] = Path("radistill.yaml"),
    model: Annotated[str, typer.Option(help="Hub id or folder.")] = "mistralai/Mistral-7B-Instruct-v0.2",
    data: Annotated[str, typer.Option(help="Folder or file with your examples.")] = "data",
    pair: Annotated[str, typer.Option(help="Direction of translation.")] = "de-en",
) -> None:
    """Write a run file to start from."""
    import shlex

    from radistill.errors import ConfigError
    from radistill.files import write_text
    from radistill.starter import run_file

    if path.exists():
        raise ConfigError(f"{path} exists already; name another file, or delete it first.")
    write_text(path, run_file(path, model=model, data=data, pair=pair))
    typer.echo(f"wrote {path}; next: radistill check {shlex.quote(str(path))}")


@app.command()
def chat(
    model: Annotated[str, typer.Option(help="Run folder, model folder, adapter or hub id.")],
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 = greedy.")] = 0.7,
    top_p: Annotated[float, typer.Option(min=0.01, max=1.0)] = 0.95,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 512,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    trust_remote_code: Annotated[bool, typer.Option(help="Run code that comes with the model.")] = False,
) -> None:
    """Talk to a model at the terminal; its answer appears as it is written."""
    from radistill.conversation import converse
    from radistill.records import Sampling

    sampling = Sampling(temperature=temperature, top_p=top_p, max_new_tokens=max_new_tokens, seed=seed)
    converse(model, system=system, sampling=sampling, trust_remote_code=trust_remote_code)


@app.command("list")
def list_plugins(
    kind: Annotated[str | None, typer.Argument(help="methods, backends, metrics or tasks")] = None,
    as_json: Json = False,
) -> None:
    """List what can be named in a run file, with its settings."""
    from radistill.terminal import described_plugins, show_plugins

    if as_json:
        typer.echo(json.dumps(described_plugins(kind), indent=1, ensure_ascii=False))
    else:
        show_plugins(kind)


@app.command()
def schema(
    of: Annotated[str, typer.Argument(help="config, report or compare")] = "config",
) -> None:
    """Print the JSON schema of the run file (for completion in editors), of report.json or of compare.json."""
    from radistill.schema import schema_of

    typer.echo(json.dumps(schema_of(of), indent=2, ensure_ascii=False))


@app.command()
def env() -> None:
    """Print versions and devices, for bug reports."""
    from radistill import models
    from radistill.runs import versions

    for name, version in versions().items():
        typer.echo(f"{name:14} {version}")
    typer.echo(f"{'device':14} {models.device_name()}")


@app.command()
def demo(
    quick: Annotated[bool, typer.Option("--quick", help="Smaller test sets, fewer sentences.")] = False,
    seeds: Annotated[int, typer.Option(min=1, help="So many seeds, one after another.")] = 1,
    output_dir: Annotated[Path, typer.Option(help="Where everything goes.")] = Path("runs/demo"),
) -> None:
    """The pocket model learns Esperanto in three ways; ends in a report on what it gained and lost."""
    from radistill.demo import demo as run_demo
    from radistill.demo import report_folder
    from radistill.demo_words import seen
    from radistill.terminal_lab import show_demo

    folders = run_demo(output_dir, quick=quick, seeds=seeds, say=lambda s: typer.echo(s, err=True), done=_say_outcome)
    show_demo(seen(folders, seeds=range(seeds)))
    typer.echo(f"report: {report_folder(output_dir, quick=quick) / 'report.html'}")


def _load(path: Path, overrides: list[str] | None) -> "RunConfig":
    from radistill.config import load_config

    return load_config(path, overrides or ())


def _stages(config: "RunConfig", stages: tuple[str, ...] | None, redo: str | None) -> "list[StageOutcome]":
    from radistill import pipeline
    from radistill.runs import STAGES

    return pipeline.run(config, stages=stages or STAGES, redo=redo, done=_say_outcome)


def _say_outcome(outcome: "StageOutcome") -> None:
    from radistill.terminal import outcome_line

    typer.echo(outcome_line(outcome), err=True)


def _show_report(folder: Path, as_json: bool) -> None:
    text = (folder / "report.json").read_text(encoding="utf-8")
    if as_json:
        typer.echo(text, nl=False)
        return
    from radistill.terminal import show_scores

    found: dict[str, Any] = json.loads(text)
    show_scores(found)
    typer.echo(f"report: {folder / 'report.html'}")


if __name__ == "__main__":
    main()
