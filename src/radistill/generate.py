"""Stage 1: the untouched model writes what the method plans, into the ledger.

Not here: what is done with it (`assemble.py`), and how text is drawn (`backends/`).
"""

from collections.abc import Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path

from radistill import contamination, data, models
from radistill.ask import Answered, ask
from radistill.chat import Chat, RowError
from radistill.config import RunConfig, plugin_settings
from radistill.data import Loaded
from radistill.errors import DataError
from radistill.ledger import open_ledger
from radistill.records import Example, Request, StageRecord
from radistill.runs import RunFolder, before_work, begin, working
from radistill.speaker import Speaker, untouched
from radistill.tables import put_rejects

REHEARSED = 3
"""So many examples are rendered as finished conversations before anything is generated."""


def generate(config: RunConfig, run: RunFolder, *, redo: bool = False) -> StageRecord | None:
    """Write every planned generation; None if that was done before and nothing has changed.

    Raises:
        RadistillError: data, model or template cannot be used, or the test set is in the training data.
    """
    speaker = untouched(config)
    train = data.load(config.data, "train", seed=config.seed)
    stage = begin(run, "generate", settings(config, speaker), train.files, redo=redo)
    if stage is None:
        return None
    with working(stage):
        with before_work(stage):
            _refuse_contaminated_tests(config, train)
            rehearse(config, speaker.chat, train.examples[:REHEARSED])
            requests, refused = plan(config, speaker.chat, train.examples)
            refused = [*({**asdict(r), "file": str(r.file)} for r in train.rejects), *refused]
            put_rejects(run.rejects, "generate", refused)
            if len(refused) >= len(train.examples) + len(train.rejects):
                raise DataError(f"all {len(refused)} rows were refused; the reasons stand in {run.rejects}.")
        answered, identity = _write(config, speaker, requests)
        stage.facts |= {**asdict(answered), "rejected": len(refused), "identity": identity}
        return stage.finish([], device=models.device_name() if requests else "")


def settings(config: RunConfig, speaker: Speaker) -> dict[str, object]:
    """All that can change what is generated."""
    return {
        "model": speaker.weights.identity,
        "seed": config.seed,
        "data": {**config.data.model_dump(mode="json", include={"task", "train", "template", "system"})},
        "chat": {**config.chat.model_dump(mode="json"), "identity": speaker.chat.identity},
        "method": plugin_settings(config.method),
        "backend": plugin_settings(config.generate.backend),
        "sampling": config.generate.sampling.model_dump(exclude={"seed"}),
    }


def plan(config: RunConfig, chat: Chat, examples: Sequence[Example]) -> tuple[list[Request], list[dict[str, object]]]:
    """All requests of the method, and the rows that cannot be put into ids."""
    sampling = config.generate.sampling.model_copy(update={"seed": config.seed})
    requests: list[Request] = []
    refused: list[dict[str, object]] = []
    for example in examples:
        try:
            requests += config.method.plan(example, chat, sampling)
        except RowError as error:
            refused.append({"example_id": example.id, "reason": str(error), "row": asdict(example)})
    return requests, refused


def rehearse(config: RunConfig, chat: Chat, examples: Sequence[Example]) -> list[str]:
    """Render a few finished conversations through the template; what differs, once."""
    notes: list[str] = list(chat.shape.notes)
    separator = getattr(config.method, "separator", "")
    for example in islice(examples, REHEARSED):
        answer = example.reference.strip() + (f"{separator}Note: a word." if separator else "")
        note = chat.check_rerendering(example.messages, answer)
        if note:
            return [*notes, note]
    return notes


def _write(config: RunConfig, speaker: Speaker, requests: list[Request]) -> tuple[Answered, str]:
    if not requests:
        return Answered(requests=0, from_ledger=0, written=0, tokens=0, failed=0), ""
    with (
        open_ledger(Path(config.generate.ledger)) as ledger,
        config.generate.backend.open(speaker) as generator,
    ):
        addressed = [request.addressed_to(generator.identity) for request in requests]
        return ask(addressed, generator, ledger, title="generate"), generator.identity


def _refuse_contaminated_tests(config: RunConfig, train: Loaded) -> None:
    """Before anything is generated, not only where the tests are used."""
    if config.data.test is not None:
        contamination.facts(config.data, train, data.load(config.data, "test", seed=config.seed))
