"""`generate.refresh_every: k`: the model in training writes anew about every example, and is trained on that.

Before step k + 1, 2k + 1, … the model as it then is answers what the method plans about each example; the records are
made as `assemble` makes them and take the places of those before. What cannot be trained on (too long, a test in it,
nothing to train, not written) gives way to the row of the untouched model. What stands beside the examples stays.

What is written goes into the ledger under a name that says which training, and after how many steps. As a training's
steps are a function of its settings and records, a training that goes on from a checkpoint finds there what it wrote.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from radistill import data, held_out, models
from radistill.ask import ask
from radistill.backends.transformers import Transformers, TransformersGenerator
from radistill.chat import RowError
from radistill.config import RunConfig
from radistill.held_out import HeldOut
from radistill.ledger import Ledger, open_ledger
from radistill.making import Made, Making, filters_of
from radistill.packing import Row
from radistill.records import Generation, Request, TrainingRecord
from radistill.speaker import Speaker
from radistill.trainer import Rows


@dataclass
class InTraining(TransformersGenerator):
    """The model in training as something that answers."""

    training: str = ""
    """Names the training: all that decides which weights it has after how many steps."""
    step: int = 0

    @property
    def identity(self) -> str:
        """The untouched model's, the training and the steps done."""
        return f"{super().identity}|trained:{self.training}|step {self.step}"

    def answer(self, unit: Sequence[Request]) -> list[Generation]:
        """In evaluation mode, or dropout would take part."""
        was_training = self.model.training
        self.model.eval()
        try:
            return super().answer(unit)
        finally:
            self.model.train(was_training)


def settings(config: RunConfig, speaker: Speaker) -> dict[str, Any]:
    """All that can change the rows which are written while training, beside what decides the rows of the start."""
    filters = filters_of(config)
    return {
        **({"filters": filters.plain()} if filters.active else {}),
        **({"on_long": config.train.on_long} if config.train.on_long != "drop" else {}),
        "every": config.generate.refresh_every,
        "sampling": config.generate.sampling.model_dump(exclude={"seed"}),
        "keep_tokens": config.generate.keep_tokens,
        "fraction": config.data.fraction,
        "chat": speaker.chat.identity,
        "held_out": held_out.of_run(config).digest,
    }


@dataclass
class Refresh:
    """Keeps the rows of a training up to date; see `trainer.Extras.refresh`."""

    every: int
    making: Making
    generator: InTraining
    rows: Rows
    """What is trained on; rows in it are replaced."""
    ledger: Path
    tests: HeldOut
    max_length: int | None
    done: int = 0
    """The rows are as the model wrote them after so many steps; 0 = the untouched one."""
    counts: Counter[str] = field(default_factory=Counter)
    """Of the last refresh: rows `replaced`, and for each reason why rows of the untouched model stayed, how many."""

    def __post_init__(self) -> None:
        self.first: list[Row] = list(self.rows.rows)

    @classmethod
    def of(cls, config: RunConfig, speaker: Speaker, model: Any, rows: Rows, *, training: str) -> "Refresh":
        """As the settings say.

        Args:
            config: the run's.
            speaker: the untouched model.
            model: the one in training.
            rows: what it is trained on.
            training: names all that decides which weights it has after how many steps.
        """
        backend = config.generate.backend
        size = backend.batch_size if isinstance(backend, Transformers) else Transformers().batch_size
        generator = InTraining(
            Transformers(batch_size=size), model, speaker.chat, speaker.weights, training=training
        )  # fmt: skip
        assert config.generate.refresh_every is not None
        return cls(
            every=config.generate.refresh_every,
            making=Making(config, speaker.chat, data.load(config.data, "train", seed=config.seed).examples),
            generator=generator,
            rows=rows,
            ledger=Path(config.generate.ledger),
            tests=held_out.of_run(config),
            max_length=models.length_limit(speaker.weights.folder, config.train.max_length),
        )

    @property
    def facts(self) -> dict[str, Any]:
        """Of the last refresh."""
        return {"refreshed": {"after_step": self.done, **self.counts}}

    def __call__(self, step: int) -> int:
        """Before the step after so many; returns how many tokens were read and written for it."""
        last = step // self.every * self.every
        if last == self.done:
            return 0
        self.generator.step = self.done = last
        requests = self._requests()
        with open_ledger(self.ledger) as ledger:
            if last == step:
                ask(requests, self.generator, ledger, title=f"write anew after step {step}")
            # Otherwise the training goes on from a checkpoint between two refreshes: the model that wrote is gone.
            written = self._replace(ledger)
        # A log line of a checkpoint has what was written before it, so what is only read again is not counted twice.
        read = {request.key: len(request.prompt_ids) * request.sampling.n for request in requests}
        return sum(read.values()) + written if last == step else 0

    def _requests(self) -> list[Request]:
        planned = []
        for example in self.making.examples:
            try:
                planned += self.making.plan(example)
            except RowError:  # refused by `generate` already
                continue
        return [request.addressed_to(self.generator.identity) for request in planned]

    def _replace(self, ledger: Ledger) -> int:
        """Put the new rows into the places of the old; returns how many tokens were written about all examples."""
        places: dict[str, list[int]] = {}
        for row in self.first:
            if row.example_id is not None:
                places.setdefault(row.example_id, []).append(row.index)
        self.counts.clear()
        tokens: dict[tuple[str, int], int] = {}  # what equal examples share counts once
        for made in self.making.of_examples(ledger, self.generator.identity):
            assert made.example is not None
            tokens |= {(generation.key, generation.index): generation.n_tokens for generation in made.generations}
            if made.generations:
                for row in self._renewed(made, [self.first[i] for i in places.get(made.example.id, ())]):
                    self.rows.rows[row.index] = row
        return sum(tokens.values())

    def _renewed(self, made: Made, before: Sequence[Row]) -> Iterator[Row]:
        """A row for each of those the untouched model had written about."""
        if made.problem is not None or len(made.records) != len(before):
            # Which of them was dropped when they were assembled first is not known.
            self.counts[made.problem[0] if made.problem else "of another number"] += len(before)
            yield from before
            return
        for row, record in zip(before, made.records, strict=True):
            renewed = replace(Row.of(record), index=row.index)
            reason = self._unfit(record, renewed)
            self.counts[reason or "replaced"] += 1
            yield row if reason else renewed

    def _unfit(self, record: TrainingRecord, row: Row) -> str | None:
        """Why a record is not trained on, in the words of `assemble`."""
        if self.max_length is not None and len(record.token_ids) > self.max_length:
            return "too long"
        if self.tests.in_record(record) is not None:
            return "contains a test prompt"
        return None if (row.weights_T > 0).any() else "nothing to train"
