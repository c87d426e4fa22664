"""What an evaluation task is: how a reply is read, how it is grouped, and by which metrics it is scored."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

from pydantic import Field, SerializeAsAny

from radistill import plugins
from radistill.metrics.base import Metric
from radistill.records import Example, Generation, Prediction, Sampling
from radistill.settings import Settings

Kind = Literal["skill", "ability", "probe"]
LABELS = ("empty", "copied", "off_target", "loop", "truncated", "leaked_rationale")


class Task(Settings, ABC):
    """One evaluation. Its settings are the entry under `evaluate:` in the run file."""

    kind: ClassVar[Kind]
    """`skill`: what is being taught; `ability`: what could be lost, and so enters retention; `probe`: is shown, and
    enters nothing."""
    labels: ClassVar[tuple[str, ...]] = LABELS
    """Pathologies `read` looks for; each has its rate in the scores."""

    metrics: tuple[SerializeAsAny[Metric], ...] = Field(min_length=1)
    """What the answers are scored by; the first is the headline."""

    @property
    def title(self) -> str:
        """What files, tables and figures call it; every task of a run needs another."""
        return plugins.name_of(self)

    @property
    def chance(self) -> float:
        """Score of a guesser, 0 to 100."""
        return 0.0

    @property
    def is_rehearsed(self) -> bool | None:
        """Whether rationales touch the ability, where that is known by construction."""
        return None

    def examples(self) -> tuple[Example, ...] | None:
        """The task's own test examples; None: those of `data.test`."""
        return None

    def validation_examples(self, count: int) -> tuple[Example, ...]:
        """So many examples of the task's own by which a training is judged, none of them among `examples`; or fewer.

        Asked only of a task that has examples of its own. One that gives none takes no part in the judgement.
        """
        return ()

    @abstractmethod
    def sampling(self) -> Sampling:
        """How answers are decoded; the same for every system."""

    @abstractmethod
    def read(self, system: str, example: Example, generation: Generation) -> Prediction:
        """What the model wrote, cut to its answer and labelled with what is wrong with it."""

    @abstractmethod
    def group(self, tags: Mapping[str, str]) -> str:
        """Name of the group the example is scored in (`de-en`); groups are averaged without weights."""

    @abstractmethod
    def language(self, group: str) -> str:
        """Code of the language the answers of that group should be in."""

    def reading(self) -> str:
        """How replies are cut to answers, for signatures; `none` when they are taken whole."""
        return "none"

    def refuse_unusable(self, examples: Sequence[Example]) -> None:
        """Find before anything is generated what would fail when the answers are scored.

        Raises:
            RadistillError: an example belongs to no group, or a metric cannot score a group's language.
        """
        for group in sorted({self.group(example.tags) for example in examples}):
            for metric in self.metrics:
                metric.signature(self.language(group))


PLUGIN = Task
