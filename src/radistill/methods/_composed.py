"""Several methods in one run: `method: [{name: radis}, {name: context_free, ratio: 0.5}]`.

At most one of them says what is trained on for each example (with none, it is the reference); at most one adds a
penalty, one weighs tokens while training, and one lets the model in training write. All others add up. What cannot be
combined is refused with the reason, not ranked in silence.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, SerializeAsAny, field_validator

from radistill import plugins
from radistill.chat import Chat
from radistill.methods.base import Method, Rounds, Whole
from radistill.records import Example, Generation, Request, Sampling, TrainingRecord

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from radistill.training_parts import Penalty, Rollout, Start

ONLY_ONE: dict[str, str] = {
    "assemble": "say what is trained on for each example",
    "penalty": "add a penalty to the loss",
    "token_weights": "weigh the tokens of a step",
    "rollout": "let the model in training write",
    "share_of_end": "mix the trained weights with those of the start",
}
"""Hook → what two methods that both have it would do."""


class Several(Method, ABC):
    """Several methods as one: what each hook does is told by the parts."""

    @property
    @abstractmethod
    def parts(self) -> tuple[Method, ...]:
        """The methods."""

    def plan(self, example: Example, chat: Chat, sampling: Sampling) -> Sequence[Request]:
        """Of the one that has it."""
        return self._one("assemble").plan(example, chat, sampling)

    def plan_more(self, whole: Whole, rounds: Rounds) -> Sequence[Request]:
        """Of all; each is told the answers to its own requests."""
        return [request for _, planned in self._rounds(whole, rounds) for request in planned]

    def exchanges(self) -> bool:
        """Whether any of them does."""
        return any(part.exchanges() for part in self.parts)

    def donors(self, example_ids: Sequence[str], rng: "np.random.Generator") -> Mapping[str, str]:
        """Of the one that says what is trained on."""
        return self._one("assemble").donors(example_ids, rng)

    def assemble(self, example: Example, chat: Chat, generations: Sequence[Generation]) -> Sequence[TrainingRecord]:
        """Of the one that has it; otherwise the reference alone."""
        return self._one("assemble").assemble(example, chat, generations)

    def reason(self, example: Example, text: str) -> str | None:
        """Of the one that says what is trained on."""
        return self._one("assemble").reason(example, text)

    def assemble_more(self, whole: Whole, rounds: Rounds) -> Iterable[TrainingRecord]:
        """Of all, one after another."""
        for part, own in self._shares(whole, rounds):
            yield from part.assemble_more(whole, own)

    def files(self) -> Sequence[Path]:
        """Of all."""
        return [file for part in self.parts for file in part.files()]

    def weigh(self, record: TrainingRecord, logprobs_T: "NDArray[np.float32]", typical: float) -> TrainingRecord:
        """By all that weigh, one after another."""
        for part in self.parts:
            record = part.weigh(record, logprobs_T, typical)
        return record

    def token_weights(self, logits_NV: "torch.Tensor", nll_N: "torch.Tensor") -> "torch.Tensor | None":
        """Of the one that has it."""
        return self._one("token_weights").token_weights(logits_NV, nll_N)

    def penalty(self, start: "Start") -> "Penalty | None":
        """Of the one that has it."""
        return self._one("penalty").penalty(start)

    def trains(self, name: str, n_layers: int) -> bool:
        """What all of them train."""
        return all(part.trains(name, n_layers) for part in self.parts)

    def rollout(self, start: "Start") -> "Rollout | None":
        """Of the one that has it."""
        return self._one("rollout").rollout(start)

    def finished_run(self) -> str | None:
        """Of the one that has it."""
        return self._one("finished_run").finished_run()

    def share_of_end(self) -> float:
        """Of the one that has it."""
        return self._one("share_of_end").share_of_end()

    def _one(self, hook: str) -> Method:
        return next((part for part in self.parts if has(part, hook)), self.parts[0])

    def _shares(self, whole: Whole, rounds: Rounds) -> list[tuple[Method, list[list[Generation]]]]:
        """Each method with the part of every round that is its own."""
        shares: list[tuple[Method, list[list[Generation]]]] = [(part, []) for part in self.parts]
        for answers in rounds:
            at = 0
            for part, own in shares:
                size = sum(request.sampling.n for request in part.plan_more(whole, own))
                own.append(list(answers[at : at + size]))
                at += size
        return shares

    def _rounds(self, whole: Whole, rounds: Rounds) -> list[tuple[Method, Sequence[Request]]]:
        return [(part, part.plan_more(whole, own)) for part, own in self._shares(whole, rounds)]


class Composed(Several):
    """The methods of a run file that lists several."""

    listed: tuple[SerializeAsAny[Method], ...] = Field(min_length=1)
    """In the order of the run file."""

    @property
    def parts(self) -> tuple[Method, ...]:
        """As listed."""
        return self.listed

    @field_validator("listed")
    @classmethod
    def _go_together(cls, parts: tuple[Method, ...]) -> tuple[Method, ...]:
        names = [plugins.name_of(part) for part in parts]
        if whole := [part for part in parts if isinstance(part, Several)]:
            own, one = ", ".join(plugins.name_of(part) for part in whole[0].parts), plugins.name_of(whole[0])
            others = " and ".join(name for name in names if name != one) or "itself"
            raise ValueError(
                f"{one} is several methods itself and cannot be listed with {others}; list those of its parts that you "
                f"want: {own}"
            )
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"{name} is listed twice; list it once")
        for hook, what in ONLY_ONE.items():
            both = [name for name, part in zip(names, parts, strict=True) if has(part, hook)]
            if len(both) > 1:
                raise ValueError(f"{both[0]} and {both[1]} both {what}; a run can have one of them")
        writing = [name for name, part in zip(names, parts, strict=True) if has(part, "rollout")]
        weighing = [n for n, p in zip(names, parts, strict=True) if has(p, "weigh") or has(p, "token_weights")]
        if writing and weighing:
            raise ValueError(
                f"{weighing[0]} weighs the tokens of references, on which {writing[0]} does not train; use one of them"
            )
        return parts


def has(method: Method, hook: str) -> bool:
    """Whether the method overrides the hook."""
    own: Callable[..., Any] = getattr(type(method), hook)
    return own is not getattr(Method, hook)


def parts_of(method: Method) -> tuple[Method, ...]:
    """The methods of a run, one or several."""
    return method.parts if isinstance(method, Several) else (method,)


def flag(method: Method, name: str) -> bool:
    """Whether any of the run's methods has the flag (`ours`, `is_scored`, `writes_rationales` …)."""
    return any(getattr(part, name) for part in (method, *parts_of(method)))


def title_of(method: Method) -> str:
    """What tables call it: `radis`, or `radis+context_free`."""
    parts = parts_of(method) if isinstance(method, Composed) else (method,)
    return "+".join(plugins.name_of(part) for part in parts)
