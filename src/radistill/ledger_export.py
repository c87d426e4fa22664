"""The rows of a ledger that a run uses, as a file in which nothing differs between two equal runs."""

from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

from radistill import ledger_shards as files
from radistill.config import stored_config
from radistill.errors import RunFolderError
from radistill.files import atomic
from radistill.ledger import Ledger, open_ledger
from radistill.making import Making
from radistill.records import Generation, json_line
from radistill.runs import RunFolder, require
from radistill.speaker import teacher, untouched
from radistill.tables import read_predictions

CHUNK = 1000
"""Keys that are read together."""


def export(folder: Path, output: Path) -> int:
    """Write all rows of the ledger that a run uses, one JSON object a line, in the order of their keys.

    There is nothing in it that differs between two equal runs. Returns the number of rows.

    Raises:
        RunFolderError: nothing was generated there yet, or the ledger has lost what was.
    """
    run = RunFolder(folder)
    if not run.config.exists():
        raise RunFolderError(f"{folder} is no run folder: it has no config.yaml.")
    config = stored_config(run.config)
    generated = require(run, "generate")
    with open_ledger(Path(config.generate.ledger)) as ledger:
        rows = 0
        with atomic(output) as file:
            keys = _sorted(chain(_generated(config, ledger, generated.facts), _predicted(run)))
            while some := list(islice(keys, CHUNK)):
                stored = ledger.read(some)
                if lost := [key for key in some if key not in stored]:
                    raise RunFolderError(f"the ledger {ledger.path} has lost the answer to {lost[0]}.")
                for generation in (g for key in some for g in stored[key]):
                    file.write(json_line(_plain(generation), compact=True))
                    rows += 1
        return rows


def _sorted(keys: Iterable[str]) -> Iterator[str]:
    """Each of them once; as bytes, in which millions of them take a third of the room."""
    import numpy as np

    for key in np.unique(np.fromiter((key.encode("ascii") for key in keys), dtype="S32")):
        yield key.decode("ascii")


def _generated(config: Any, ledger: Ledger, facts: Any) -> Iterator[str]:
    """Keys of what the stage `generate` asked for."""
    from radistill import data

    speaker, writer = untouched(config), teacher(config)
    train = data.load(config.data, "train", seed=config.seed)
    making = Making(config, speaker.chat, train.examples, writer.chat if writer else None)
    identity, own = str(facts["identity"]), str(facts["own"])
    for made in making.of_examples(ledger, identity, own):
        yield from (g.key for g in made.generations)
        yield from (r.addressed_to(own).key for r in made.probes)
        if making.needs_scores:
            yield from (r.addressed_to(own).key for r in making.scores(made).values())
    beside = making.beside(ledger, own)
    yield from (g.key for g in beside.generations)
    if making.needs_scores:
        yield from (r.addressed_to(own).key for r in making.scores(beside).values())


def _predicted(run: RunFolder) -> Iterator[str]:
    """Keys of what the stage `evaluate` asked for, if it is finished."""
    record = run.stages().get("evaluate")
    if record is None or record.status != "finished":
        return
    for name in record.outputs:
        if name.startswith("predictions/"):
            yield from (prediction.key for prediction in read_predictions(run.path / name))


def _plain(generation: Generation) -> dict[str, Any]:
    row: dict[str, Any] = {name: getattr(generation, name) for name in files.FIELDS}
    if (top := generation.logprobs) is not None:
        row |= {"logprobs": top.given_T.tolist(), "top_ids": top.top_ids_TK.tolist()}
        row |= {"top_logprobs": top.top_values_TK.tolist()}
    return row
