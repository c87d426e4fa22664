"""RaDis, Rationale Distillation: the reference opens the answer, the untouched model goes on, and both are learned.

Source: Wu, Zhao, Xu, Liu, Zong: "Boosting LLM Translation Skills without General Ability Loss via Rationale
Distillation", Findings of ACL 2025, arXiv 2410.13944. The target is y' = CONCAT(y, r), the loss one causal-LM negative
log-likelihood of y' given the instruction: -log P(y | x) - log P(r | y, x). No official code is known and the paper's
body could not be read, so separator, sampling and hyper-parameters are this project's choice.

Departures: the paper uses rationales unfiltered; here those that are empty, cut within a sentence or say something over
and over give way to the plain reference, unless `generate.filters: {broken: false, degenerate: false}` is set.
`rationale_weight`, `pairing` and `train_end` are controls of our own.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field, field_validator

from radistill.chat import Chat
from radistill.errors import ConfigError
from radistill.methods.base import Method, record, reference_alone
from radistill.records import Example, Generation, Origin, Request, Sampling, TrainingRecord, only


class RaDis(Method):
    """Train on the reference and on the rationale that the untouched model wrote after it."""

    ours: ClassVar[bool] = True
    writes_rationales: ClassVar[bool] = True

    rationale_weight: float = Field(1.0, ge=0)
    """Loss weight of each rationale token, of the separator and of the end-of-turn; a reference token weighs 1."""
    separator: str = "\n\n"
    """What stands between reference and rationale; an empty string is the bare continuation."""
    pairing: Literal["own", "shuffled"] = "own"
    """`shuffled` gives each reference another example's rationale: is it the content, or merely the length?"""
    train_end: bool = True
    """Whether the end-of-turn after the rationale is learned."""

    @field_validator("separator")
    @classmethod
    def _no_blank_at_the_end(cls, value: str) -> str:
        # A blank belongs to the next word in nearly every vocabulary: after it the model is off its distribution.
        if value[-1:] in (" ", "\t", "\u00a0"):
            raise ValueError("may not end in a blank, because tokenizers join it to the word after it; use '\\n\\n'")
        return value

    def plan(self, example: Example, chat: Chat, sampling: Sampling) -> Sequence[Request]:
        """One continuation of the reference.

        Raises:
            ConfigError: more than one is asked for.
        """
        if sampling.n != 1:
            raise ConfigError(
                f"generate.sampling.n is {sampling.n}, but radis learns one rationale a reference: set it to 1."
            )
        opening = chat.opening(example.messages, example.reference, self.separator)
        return [
            Request(
                purpose="rationale",
                prompt_ids=opening.ids,
                spans=opening.spans,
                messages=example.messages,
                sampling=sampling,
                example_id=example.id,
            )
        ]

    def exchanges(self) -> bool:
        """Where they are shuffled."""
        return self.pairing == "shuffled"

    def donors(self, example_ids: Sequence[str], rng: np.random.Generator) -> Mapping[str, str]:
        """One's own, or that of the next example on one random ring, so that nobody keeps its own."""
        if self.pairing == "own":
            return super().donors(example_ids, rng)
        if len(example_ids) == 1:
            raise ConfigError("method.pairing: shuffled needs at least two examples to exchange rationales between.")
        ring = [example_ids[i] for i in rng.permutation(len(example_ids))]
        return dict(zip(ring, ring[1:] + ring[:1], strict=True))

    def assemble(self, example: Example, chat: Chat, generations: Sequence[Generation]) -> Sequence[TrainingRecord]:
        """Prompt (weight 0), reference (1), separator + rationale + end-of-turn (`rationale_weight`)."""
        rationale = only(generations)
        if not rationale.token_ids:
            # The model had nothing to add: the row is the reference with its end-of-turn, as in vanilla.
            return [reference_alone(example, chat, end_weight=1.0 if self.train_end else 0.0)]
        opening = chat.opening(example.messages, example.reference, self.separator)
        w = self.rationale_weight
        end_weight = (w if self.train_end else 0.0) if rationale.finish_reason == "stop" else None
        weights: dict[Origin, float] = {"reference": 1.0, "separator": w, "rationale": w}
        return [record(example, chat, opening, weights=weights, written=rationale, end_weight=end_weight)]
