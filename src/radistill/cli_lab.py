"""`radistill lab …`: the pocket model's upbringing, its table, and the sentences of a world."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from radistill.lab.world import WorldSettings

lab = typer.Typer(
    name="lab",
    no_args_is_help=True,
    help="The lab: a closed world with a pocket model, in which skill and forgetting are measured exactly.",
)
World = Annotated[int, typer.Option("--world", min=0, help="Another number is another country, language and facts.")]
Overlap = Annotated[float, typer.Option(min=0, max=1, help="Share, in fifths, of what rationales may rehearse.")]
Order = Annotated[str, typer.Option("--word-order", help="Of the language to be taught: svo, sov, vso.")]
Morphology = Annotated[str, typer.Option(help="Its endings: suffixes (Esperanto's), prefixes, particles.")]


@lab.command()
def pretrain(
    output_dir: Annotated[Path, typer.Argument(help="Folder to work in; the model is its `model`.")],
    world: World = 0,
    rationale_overlap: Overlap = 1.0,
    word_order: Order = "svo",
    morphology: Morphology = "suffixes",
    seed: Annotated[int, typer.Option(min=0, help="Of the weights and of the order of the texts.")] = 0,
    texts: Annotated[int, typer.Option(min=1, help="Plain texts of phase 1.")] = 40_000,
    chats: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Chats of a round of phase 2; give it once for each round. [default: 360000, 240000]"),
    ] = None,
    practice: Annotated[int, typer.Option(min=0, help="Chats of a last round, with more lists in it.")] = 120_000,
    mixed: Annotated[int, typer.Option(min=0, help="Texts and chats, half each, of the last phase.")] = 80_000,
    hidden_size: Annotated[int, typer.Option(help="Width of the model, a multiple of 64.")] = 192,
    layers: Annotated[int, typer.Option(min=1, help="Depth of the model.")] = 5,
    batch_size: Annotated[int, typer.Option(min=1, help="Texts or chats a step.")] = 64,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate; a wider model needs a lower one.")] = 2.5e-3,
) -> None:
    """Bring up a pocket model from nothing, or go on where it was interrupted."""
    from radistill.errors import ConfigError
    from radistill.lab.pretrain import HEAD, Upbringing, pretrain

    if hidden_size < HEAD or hidden_size % HEAD:
        raise ConfigError(f"--hidden-size: {hidden_size} is no multiple of {HEAD}; a head has so many dimensions.")
    if not learning_rate > 0:
        raise ConfigError(f"--learning-rate: {learning_rate:g} is not above 0.")
    settings = Upbringing(
        world=_world(world, rationale_overlap, word_order, morphology),
        seed=seed,
        texts=texts,
        practice=practice,
        mixed=mixed,
        **({"chats": tuple(chats)} if chats else {}),
        hidden_size=hidden_size,
        intermediate_size=8 * hidden_size // 3,
        layers=layers,
        batch_size=batch_size,
        learning_rate=learning_rate,
    )
    folder = pretrain(settings, output_dir, say=_say)
    typer.echo(f"model: {folder}; its table: radistill lab exam {folder}")


@lab.command()
def exam(
    model: Annotated[str, typer.Argument(help="`pocket`, a folder, or a run folder.")] = "pocket",
    world: Annotated[
        int | None, typer.Option(min=0, help="Test it in this world; by default in the one it was brought up in.")
    ] = None,
    items: Annotated[int, typer.Option(min=2, help="Held-out items per ability, or all that exist.")] = 500,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")] = False,
) -> None:
    """Test a model on fresh items of every ability of a world."""
    from radistill import models
    from radistill.lab.exam import exam as examine
    from radistill.lab.home_world import home_world
    from radistill.lab.world import WorldSettings
    from radistill.terminal_lab import show_exam

    # Its options are those of its own world, whichever number it is tested in.
    settings = home_world(models.resolve(model).folder) or WorldSettings()
    if world is not None:
        settings = settings.model_copy(update={"number": world})
    found = examine(model, settings, items=items, say=_say)
    if as_json:
        typer.echo(json.dumps(asdict(found), ensure_ascii=False))
    else:
        show_exam(found)


@lab.command()
def data(
    output_dir: Annotated[Path, typer.Argument(help="Folder to write to.")],
    world: World = 0,
    word_order: Order = "svo",
    morphology: Morphology = "suffixes",
    train: Annotated[int, typer.Option(min=1, help="Sentences to learn from.")] = 3000,
    test: Annotated[int, typer.Option(min=1, help="Held-out sentences in each direction.")] = 400,
    compare: Annotated[int, typer.Option(min=1, help="Others, to compare methods on: split `compare`.")] = 1350,
) -> None:
    """Write a world's sentences in English and its new language as aligned line files."""
    from radistill.lab.pairs import write_pairs
    from radistill.lab.world import world_of

    chosen = world_of(_world(world, 1.0, word_order, morphology))
    for path in write_pairs(chosen, output_dir, train=train, test=test, compare=compare):
        typer.echo(path)


def _world(number: int, overlap: float, word_order: str, morphology: str) -> "WorldSettings":
    from pydantic import ValidationError

    from radistill.errors import ConfigError
    from radistill.lab.world import WorldSettings

    raw: dict[str, Any] = {
        "number": number,
        "rationale_overlap": overlap,
        "word_order": word_order,
        "morphology": morphology,
    }
    try:
        return WorldSettings(**raw)
    except ValidationError as error:
        first = error.errors()[0]
        option = f"--{str(first['loc'][0]).replace('_', '-')}"
        raise ConfigError(f"{option}: {first['msg']}, not {first['input']!r}.") from error


def _say(line: str) -> None:
    typer.echo(line, err=True)
