"""Self-rehearsal with a pull: a model is held by what it says itself in three ways, and by the weights it needs for it.

This project's own mixture of published parts; what it does beside each of them is measured in
`docs/evidence/larger-pocket-model.md`. For references r and the untouched model p,

    loss = mean over r of -log q
         + sum over the three kinds of self-written text of the mean of KL(p || q) at their tokens
         + pull / 2 x sum over weights of F_i (theta_i - theta_0,i)^2,

where the three kinds are rationales after the reference (`radis`), texts from the empty context (`context_free`) and
answers to messages of random tokens (`pseudorehearsal`), p is known by its stored most probable tokens
(`train.labels: stored`), each kind is averaged by itself (`train.weighting: segments`), and F is the Fisher
information of the untouched model on those same texts (`ewc` with `samples_of: records`), divided by its mean.

Why together: the texts hold the model where they reach, each kind elsewhere than the others; the Fisher information is
what they say about all weights at once, to second order, and holds between the texts. Everything is written once,
by the untouched model, and nothing is brought from outside. `pull` is the dial: more of it keeps more and learns less.

Sources: Wu et al. 2025, arXiv 2410.13944; Bansal and Sanghavi 2025, arXiv 2505.13811; Robins 1995; Kirkpatrick et al.,
PNAS 2017, arXiv 1612.00796; Hinton et al. 2015, arXiv 1503.02531 (soft labels). Departures: those of each part.
"""

from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar, Literal

from pydantic import Field

from radistill.methods._composed import Several
from radistill.methods.base import Method
from radistill.methods.context_free import ContextFree
from radistill.methods.ewc import EWC
from radistill.methods.pseudorehearsal import Pseudorehearsal
from radistill.methods.radis import RaDis


class SelfRehearsal(Several):
    """Train on the reference, with soft labels on all that the untouched model writes and a pull on its weights."""

    ours: ClassVar[bool] = True
    prefers: ClassVar[Mapping[str, Any]] = {"labels": "stored", "weighting": "segments"}

    pull: float = Field(0.002, ge=0)
    """Strength of the pull towards the starting weights; the dial between keeping (more) and learning (less)."""
    texts: float = Field(0.5, gt=0)
    """Unprompted texts per training example."""
    messages: float = Field(1.0, gt=0)
    """Messages of random tokens per training example."""
    start: Literal["empty", "user", "both"] = "empty"
    """Where unprompted texts begin: see `context_free`."""
    max_new_tokens: int = Field(128, ge=1)
    """At most so many tokens are written of an unprompted text and of an answer to a message."""
    samples: int = Field(1000, ge=1)
    """Of so many of the texts the Fisher information is taken."""

    @cached_property
    def _own(self) -> tuple[Method, ...]:
        return (
            RaDis(),
            ContextFree(ratio=self.texts, start=self.start, max_new_tokens=self.max_new_tokens),
            Pseudorehearsal(ratio=self.messages, max_new_tokens=self.max_new_tokens),
            EWC(weight=self.pull, samples_of="records", samples=self.samples),
        )

    @property
    def parts(self) -> tuple[Method, ...]:
        """Rationales, texts, answers, and the pull."""
        return self._own
