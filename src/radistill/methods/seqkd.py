"""Sequence-level knowledge distillation from oneself: train on the model's own answers, not on the references.

Source: Kim and Rush: "Sequence-Level Knowledge Distillation", EMNLP 2016, arXiv 1606.07947; used for self-distillation
as a baseline of the RaDis paper (arXiv 2410.13944). Loss: -log P(y' | x) with y' ~ P0(y' | x), where P0 is the model
before training.

Departures: the teacher is the untouched model itself, and its answers are drawn with `generate.sampling` where the
source searches for the most probable one by beam search (`generate.sampling.temperature=0` is greedy). An answer that
is empty or loops gives way to the reference, whose origin in the records is `reference` instead of `model`.
"""

from collections.abc import Sequence

from radistill.chat import Chat
from radistill.methods._guard import Unfit, answer_alone, request, unfit
from radistill.methods.base import Method, reference_alone
from radistill.records import Example, Generation, Request, Sampling, TrainingRecord, only


class SeqKD(Method):
    """Train on the untouched model's own answers instead of the references."""

    def plan(self, example: Example, chat: Chat, sampling: Sampling) -> Sequence[Request]:
        """One answer to the plain prompt.

        Raises:
            ConfigError: more than one is asked for.
        """
        return [request(example, chat, example.messages, sampling, purpose="response", name="seqkd")]

    def reason(self, example: Example, text: str) -> Unfit | None:
        """Why an answer is not trained on; None if it is."""
        return unfit(example, text)

    def assemble(self, example: Example, chat: Chat, generations: Sequence[Generation]) -> Sequence[TrainingRecord]:
        """Prompt (weight 0) and the model's answer (1), or the reference where there is a reason against the answer."""
        answer = only(generations)
        if self.reason(example, answer.text) is not None:
            return [reference_alone(example, chat)]
        return [answer_alone(example, chat, answer)]
