"""The model in training is judged on validation items: how good it is, whether it is the best, whether to stop.

Answers are greedy and go into the ledger under a name that says which training, and after how many steps, as those of
`refresh.py` do. A training that goes on from a checkpoint finds there what it answered, and what was measured before it
in its log; so it chooses and stops where an undisturbed one does. Of several processes the first one asks and measures.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from radistill import ranks, scoring, stats
from radistill.ask import answers_to, ask
from radistill.backends.transformers import Transformers
from radistill.chat import RowError
from radistill.choosing import Choice, Measured, Point, point_of
from radistill.columns import MACRO, measures
from radistill.config import RunConfig
from radistill.errors import ConfigError, DataError, RunFolderError
from radistill.ledger import open_ledger
from radistill.records import BASE, Example, Prediction, Request
from radistill.refresh import InTraining
from radistill.speaker import Speaker
from radistill.tasks.base import Task
from radistill.validation import Items, usable_items

if TYPE_CHECKING:
    from radistill.trainer import SegmentTrainer

TUNED = "tuned"
"""Name of the model in training among the predictions."""


@dataclass
class Judged(InTraining):
    """The model in training, in the arithmetic it is trained in."""

    autocast: bool = False
    quantization: str | None = None

    @property
    def identity(self) -> str:
        """Before the first step it is the untouched model, whatever training follows."""
        own = super().identity
        if not self.step:
            own = own.partition("|trained:")[0]
        return f"{own}|autocast {self.autocast}|{self.quantization or 'unquantised'}"

    @contextmanager
    def speaking(self) -> Iterator[None]:
        """bfloat16 products where the training has them."""
        kind = self.model.device.type
        with torch.autocast(kind, dtype=torch.bfloat16, enabled=self.autocast):
            yield


@dataclass
class Judge:
    """Evaluates; remembers all evaluations of the training."""

    items: Items
    choice: Choice
    generator: Judged
    ledger: Path
    margin: float
    seed: int
    points: list[Point] = field(default_factory=list)
    measured: dict[int, Measured] = field(default_factory=dict)
    """By step, of those that this process made; 0 is the untouched model."""
    tokens: int = 0
    """So many were read and written for all evaluations."""
    requests: dict[str, list[tuple[Example, Request]]] = field(default_factory=dict)
    base: dict[str, list[Prediction]] = field(default_factory=dict)

    @classmethod
    def of(cls, config: RunConfig, speaker: Speaker, model: Any, *, training: str) -> "Judge":
        """As the settings say; the untouched model is evaluated at once.

        Args:
            config: the run's.
            speaker: the untouched model.
            model: the one in training, before its first step.
            training: names all that decides which weights it has after how many steps.

        Raises:
            ConfigError: what the score needs cannot be measured.
        """
        backend, settings = config.generate.backend, config.train
        size = backend.batch_size if isinstance(backend, Transformers) else Transformers().batch_size
        generator = Judged(
            Transformers(batch_size=size),
            model,
            speaker.chat,
            speaker.weights,
            training=training,
            autocast=settings.bf16 and settings.lora is None,
            quantization=settings.quantization,
        )
        choice = Choice(
            metric=settings.metric_for_best_model,
            exchange_rate=settings.exchange_rate,
            patience=settings.early_stopping_patience,
            criterion=settings.early_stopping_on,
        )
        judge = cls(
            items=usable_items(config),
            choice=choice,
            generator=generator,
            ledger=Path(config.generate.ledger),
            margin=config.report.margin,
            seed=config.seed,
        )
        judge._begin()
        return judge

    @property
    def untouched(self) -> Point:
        """Where the training starts."""
        return self.measured[0].point

    @property
    def best(self) -> Point | None:
        """The best evaluation so far."""
        return self.choice.best(self.points)

    @property
    def should_stop(self) -> bool:
        """Whether patience has run out."""
        return self.choice.should_stop(self.points, self.untouched)

    def go_on(self, log: Iterable[Mapping[str, Any]]) -> None:
        """Take the evaluations from the log of the training that is continued."""
        rows = list(log)
        self.points = [point for row in rows if (point := point_of(dict(row))) is not None]
        self.tokens = int(rows[-1].get("tokens_validated", self.tokens)) if rows else self.tokens

    def __call__(self, model: Any, step: int) -> dict[str, float]:
        """Evaluate the model after so many steps: what is logged of it."""
        self.generator.model, self.generator.step = model, step
        measured = ranks.on_first(lambda: self._measure(self._answers(TUNED)))
        self.measured[step] = measured
        self.points.append(measured.point)
        self.tokens += measured.tokens
        return self._line(measured)

    @property
    def facts(self) -> dict[str, Any]:
        """For manifest and report."""
        best = self.best
        return {
            "metric_for_best_model": self.choice.metric,
            "exchange_rate": self.choice.exchange_rate,
            "items": {task.title: len(examples) for task, examples in self.items.all},
            "left_out": self.items.left_out,
            "untouched": self._told(self.untouched),
            "evaluations": [self._told(point) for point in self.points],
            "best": self._told(best) if best else None,
            "stopped_early": self.should_stop,
        }

    def _told(self, point: Point) -> dict[str, Any]:
        return {**asdict(point), "score": self.choice.score(point)}

    def _begin(self) -> None:
        chat = self.generator.chat
        for task, examples in self.items.all:
            asked = self.requests[task.title] = []
            for example in examples:
                try:
                    ids = chat.prompt(example.messages).ids
                except RowError as error:
                    raise DataError(f"a validation item of {task.title} cannot be put into ids: {error}") from error
                asked.append(
                    (
                        example,
                        Request(
                            purpose="prediction",
                            prompt_ids=ids,
                            messages=example.messages,
                            sampling=task.sampling(),
                            example_id=example.id,
                        ),
                    )
                )
        measured = ranks.on_first(self._measure_untouched)
        if self.choice.metric != "skill" and measured.point.retention is None:
            raise ConfigError(
                "train.metric_for_best_model: none of the abilities can be measured on the validation items, because "
                "the untouched model is no better than a guesser in them. Raise train.eval_items, add tasks, or set "
                "train.metric_for_best_model=skill."
            )
        self.measured[0] = measured
        self.tokens = measured.tokens

    def _measure_untouched(self) -> Measured:
        self.base = self._answers(BASE)
        return self._measure({})

    def _answers(self, system: str) -> dict[str, list[Prediction]]:
        """What the model answers now, read by each task."""
        generator, found = self.generator, {}
        with open_ledger(self.ledger) as ledger, generator.speaking():
            for task, _ in self.items.all:
                asked = [(e, r.addressed_to(generator.identity)) for e, r in self.requests[task.title]]
                requests = [request for _, request in asked]
                ask(requests, generator, ledger, title=f"step {generator.step}: {task.title}")
                answers = answers_to(requests, ledger)
                found[task.title] = [task.read(system, e, answers[r.key][0]) for e, r in asked]
        return found

    def _measure(self, answers: Mapping[str, Sequence[Prediction]]) -> Measured:
        """Skill and retention of these answers; of the untouched model's own where there are none."""
        system = TUNED if answers else BASE
        scored = {
            task.title: scoring.score(
                [*self.base[task.title], *answers.get(task.title, ())], task, task.title, seed=self.seed
            )
            for task, _ in self.items.all
        }
        skill = self._skill(scored, system)
        kept = {
            task.title: scoring.retention(scored[task.title], system=system, margin=self.margin)
            for task, _ in self.items.abilities
        }
        macro = stats.macro_retention(kept)
        said = answers or self.base
        prompts = sum(len(r.prompt_ids) for asked in self.requests.values() for _, r in asked)
        return Measured(
            point=Point(
                step=self.generator.step,
                skill=skill.value if skill else None,
                retention=macro.value if macro else None,
            ),
            skill=skill,
            retention=stats.Interval(macro.value, macro.low, macro.high) if macro else None,
            abilities={name: r.value for name, r in kept.items() if r.value is not None},
            n=sum(map(len, said.values())),
            tokens=prompts + sum(p.n_tokens for of in said.values() for p in of),
        )

    def _skill(self, scored: Mapping[str, scoring.Scored], system: str) -> stats.Interval | None:
        if self.items.skill is None:
            return None
        task: Task = self.items.skill[0]
        score = scored[task.title].find(system=system, metric=next(iter(measures(task))), group=MACRO)
        assert score is not None, "every system is scored in every group"
        return stats.Interval(score.value, score.low, score.high)

    def _line(self, measured: Measured) -> dict[str, float]:
        point = measured.point
        line: dict[str, float] = {"eval_score": self.choice.score(point)}
        for name, value, around in (
            ("skill", point.skill, measured.skill),
            ("retention", point.retention, measured.retention),
        ):
            if value is not None and around is not None:
                line |= {f"eval_{name}": value, f"eval_{name}_low": around.low, f"eval_{name}_high": around.high}
        line |= {f"eval_retention/{name}": value for name, value in measured.abilities.items()}
        return line | {"eval_n": float(measured.n)}


class Choosing(TrainerCallback):  # type: ignore[misc]
    """Asks for evaluations, keeps the best model as a checkpoint, and stops when patience has run out."""

    def __init__(self, judge: Judge, *, every: int, keeps_best: bool) -> None:
        self.judge, self.every, self.keeps_best = judge, every, keeps_best

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """A line of the log stands before every evaluation, because a checkpoint may follow."""
        if state.global_step % self.every == 0 or state.global_step >= args.max_steps:
            control.should_evaluate = control.should_log = True

    def on_evaluate(self, _: TrainingArguments, state: TrainerState, control: TrainerControl, **__: Any) -> None:
        """What follows from the evaluation that was just made."""
        best = self.judge.best
        if self.keeps_best and best is not None and best.step == state.global_step:
            control.should_save = True
        if self.judge.should_stop:
            control.should_save = control.should_training_stop = True


def take_best(trainer: "SegmentTrainer", judge: Judge) -> None:
    """Give the trainer's model the weights of the best evaluation.

    Raises:
        RunFolderError: its checkpoint is gone.
    """
    best = judge.best
    assert best is not None, "the last step is evaluated"
    if best.step == trainer.state.global_step:
        return
    folder = Path(trainer.args.output_dir) / f"checkpoint-{best.step}"
    if not folder.exists():
        raise RunFolderError(
            f"{folder}, the best of the training, was taken away. Begin the stage anew with --redo train."
        )
    trainer._load_from_checkpoint(str(folder))
