"""What a method is: what the untouched model must write, what is trained on, and how much a token counts.

Hooks are functions of their arguments and of the settings, and all are optional: a method that overrides none trains on
the references alone. All else (data, training loop, evaluation) is shared, or the comparison between methods would be
void. Methods compose (`_composed.py`): each may add records, weigh tokens or pull the weights; one of them says what
is trained on for each example.

Shapes: N trained tokens, V vocabulary, T ids of a record.
"""

from abc import ABC
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from radistill.chat import Chat, Opening
from radistill.records import Example, Generation, Origin, Request, Sampling, Segment, TrainingRecord, digest
from radistill.settings import Settings

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from radistill.training_parts import Penalty, Rollout, Start

Rounds = Sequence[Sequence[Generation]]
"""What was written in answer to each round of `plan_more`: one list a round, in the order of its requests."""


@dataclass(frozen=True, slots=True)
class Whole:
    """The run as a whole, for hooks that are not about one example."""

    chat: Chat
    sampling: Sampling
    """The run's `generate.sampling`, with its seed."""
    examples: int
    """How many examples are learned from."""
    seed: int
    task: str = "translation"
    """The run's `data.task`."""


class Method(Settings, ABC):
    """One way to learn a task and keep the rest. Its fields are the `method:` section of the run file."""

    ours: ClassVar[bool] = False
    """Whether reports show it as the method of this project, not as a rival."""
    brings_data: ClassVar[bool] = False
    """Whether it learns from data beside the examples that the untouched model did not write."""
    is_scored: ClassVar[bool] = False
    """Whether `weigh` needs to know how probable each token of a record was to the untouched model."""
    writes_rationales: ClassVar[bool] = False
    """Whether it plans requests of the purpose `rationale`, on whose answers `generate.filters` act."""
    uses_reference: ClassVar[bool] = False
    """Whether training needs the untouched model beside the one that is trained."""
    prefers: ClassVar[Mapping[str, Any]] = {}
    """Settings of the section `train` that a run with this method has unless its run file says otherwise."""

    def plan(self, example: Example, chat: Chat, sampling: Sampling) -> Sequence[Request]:
        """What the untouched model must write about this example before training; deterministic."""
        return ()

    def plan_more(self, whole: Whole, rounds: Rounds) -> Sequence[Request]:
        """What it must write beside that; asked again, with the answers to all earlier rounds, until all is said."""
        return ()

    def exchanges(self) -> bool:
        """Whether examples are assembled with each other's generations; only then is `donors` asked."""
        return False

    def donors(self, example_ids: Sequence[str], rng: "np.random.Generator") -> Mapping[str, str]:
        """Whose generations each example is assembled with; by default its own."""
        return {example_id: example_id for example_id in example_ids}

    def assemble(
        self,
        example: Example,
        chat: Chat,
        generations: Sequence[Generation],
    ) -> Sequence[TrainingRecord]:
        """Turn the example and what was written into zero or more records; by default the reference alone.

        The reference is never lost or cut.
        """
        assert not generations, "what was planned must be assembled"
        return [reference_alone(example, chat)]

    def reason(self, example: Example, text: str) -> str | None:
        """Why what was written about an example is not trained on, so that its reference is; None if it is."""
        return None

    def assemble_more(self, whole: Whole, rounds: Rounds) -> Iterable[TrainingRecord]:
        """Records that belong to no example."""
        return ()

    def files(self) -> Sequence[Path]:
        """Files that `assemble_more` reads, so that a change of them is noticed."""
        return ()

    def weigh(
        self,
        record: TrainingRecord,
        logprobs_T: "NDArray[np.float32]",
        typical: float,
    ) -> TrainingRecord:
        """The record with token weights by what the untouched model thought of it. Asked if `is_scored`.

        Args:
            record: as assembled.
            logprobs_T: log-probability of each of its ids, in nats; of the first, 0.
            typical: the median over all examples' records of the mean negative log-likelihood of their trained tokens.
        """
        return record

    def token_weights(self, logits_NV: "torch.Tensor", nll_N: "torch.Tensor") -> "torch.Tensor | None":
        """What multiplies the loss of each hard-labelled token of references and answers in a step; no gradient."""
        return None

    def penalty(self, start: "Start") -> "Penalty | None":
        """What is added to the loss."""
        return None

    def trains(self, name: str, n_layers: int) -> bool:
        """Whether the parameter of that name is trained, in a model of so many layers."""
        return True

    def rollout(self, start: "Start") -> "Rollout | None":
        """What writes the rows of a step with the model in training."""
        return None

    def finished_run(self) -> str | None:
        """Folder of a finished run whose weights are taken instead of training."""
        return None

    def share_of_end(self) -> float:
        """After training, every weight becomes start + this x (end - start)."""
        return 1.0


PLUGIN = Method


def record(
    example: Example,
    chat: Chat,
    opening: Opening,
    *,
    weights: Mapping[Origin, float],
    written: Generation | None = None,
    origin: Origin = "rationale",
    end_weight: float | None = None,
) -> TrainingRecord:
    """A record of exactly the ids that were shown and written.

    Args:
        example: whose record it is.
        chat: gives the end-of-turn.
        opening: prompt and reference (and separator), as the model was shown them.
        weights: per origin; what is not named weighs 0.
        written: what the model added, if anything.
        origin: of what the model added.
        end_weight: weight of the end-of-turn; None = no end-of-turn, because the model did not end by itself.
    """
    segments = [Segment(s.origin, s.start, s.stop, weights.get(s.origin, 0.0)) for s in opening.spans]
    texts, ids = list(opening.texts), list(opening.ids)
    if written is not None and written.token_ids:
        segments.append(Segment(origin, len(ids), len(ids) + written.n_tokens, weights.get(origin, 0.0)))
        texts.append(written.text)
        ids += written.token_ids
    if end_weight is not None:
        segments.append(Segment("end", len(ids), len(ids) + 1, end_weight))
        texts.append(chat.spell(ids, [chat.end_id]))
        ids.append(chat.end_id)
    return TrainingRecord(
        id=digest(example.id, ids),
        example_id=example.id,
        token_ids=tuple(ids),
        segments=tuple(segments),
        texts=tuple(texts),
    )


def reference_alone(example: Example, chat: Chat, *, end_weight: float = 1.0) -> TrainingRecord:
    """Prompt (weight 0), reference (1) and end-of-turn."""
    return record(
        example, chat, chat.opening(example.messages, example.reference, ""), weights={"reference": 1.0},
        end_weight=end_weight,
    )  # fmt: skip
