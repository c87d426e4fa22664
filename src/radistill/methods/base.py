"""What a method is: what the untouched model must write, what is trained on, and how much a token counts.

Hooks are pure functions of their arguments and of the settings. `assemble` is the only one a method must define; all
else (data, training loop, evaluation) is shared, or the comparison between methods would be void.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from radistill.chat import Chat, Opening
from radistill.records import Example, Generation, Origin, Request, Sampling, Segment, TrainingRecord, digest
from radistill.settings import Settings


class Method(Settings, ABC):
    """One way to learn a task and keep the rest. Its fields are the `method:` section of the run file."""

    ours: ClassVar[bool] = False
    """Whether reports show it as the method of this project, not as a rival."""

    def plan(self, example: Example, chat: Chat, sampling: Sampling) -> Sequence[Request]:  # noqa: ARG002
        """What the untouched model must write about this example before training; deterministic."""
        return ()

    def donors(self, example_ids: Sequence[str], rng: np.random.Generator) -> Mapping[str, str]:  # noqa: ARG002
        """Whose generations each example is assembled with; by default its own."""
        return {example_id: example_id for example_id in example_ids}

    @abstractmethod
    def assemble(self, example: Example, chat: Chat, generations: Sequence[Generation]) -> Sequence[TrainingRecord]:
        """Turn the example and what was written into zero or more records; the reference is never lost or cut."""


PLUGIN = Method


def record(
    example: Example,
    chat: Chat,
    opening: Opening,
    *,
    weights: Mapping[Origin, float],
    written: Generation | None = None,
    end_weight: float | None = None,
) -> TrainingRecord:
    """A record of exactly the ids that were shown and written.

    Args:
        example: whose record it is.
        chat: gives the end-of-turn.
        opening: prompt and reference (and separator), as the model was shown them.
        weights: per origin; what is not named weighs 0.
        written: what the model added, if anything.
        end_weight: weight of the end-of-turn; None = no end-of-turn, because the model did not end by itself.
    """
    segments = [Segment(s.origin, s.start, s.stop, weights.get(s.origin, 0.0)) for s in opening.spans]
    texts, ids = list(opening.texts), list(opening.ids)
    if written is not None and written.token_ids:
        segments.append(Segment("rationale", len(ids), len(ids) + written.n_tokens, weights.get("rationale", 0.0)))
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
