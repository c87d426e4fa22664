"""Vanilla supervised fine-tuning: cross-entropy on the reference, nothing else.

The baseline of every comparison. Loss: the mean of -log P(y | x, I) over the tokens of the reference and its
end-of-turn. Departures: none.
"""

from collections.abc import Sequence

from radistill.chat import Chat
from radistill.methods.base import Method, record
from radistill.records import Example, Generation, TrainingRecord


class Vanilla(Method):
    """Train on the reference alone."""

    def assemble(self, example: Example, chat: Chat, generations: Sequence[Generation]) -> Sequence[TrainingRecord]:
        """Prompt (weight 0), reference and end-of-turn (weight 1)."""
        assert not generations
        opening = chat.opening(example.messages, example.reference, "")
        return [record(example, chat, opening, weights={"reference": 1.0}, end_weight=1.0)]
