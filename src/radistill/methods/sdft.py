"""SDFT, Self-Distillation Fine-Tuning: the model words the reference in its own way, and is trained on that.

Source: Yang et al.: "Self-Distillation Bridges Distribution Gap in Language Model Fine-Tuning", ACL 2024, arXiv
2402.13669; templates and filter as in github.com/sail-sg/sdft. Loss: -log P(y' | x) with y' ~ P0(y' | template(x, y)),
where P0 is the model before training; y' = y where y' does not pass the filter.

Departures: the official templates stand in the last user turn, in the model's own chat format, their system text
first (not every chat template has a system role, and a task's own system message stays). The answer checks of the
source for mathematics, functions and code are not built. For translation, where it checks nothing, a guard is added:
`check_language`, `length_ratio`, `similarity`; and an empty or looping rewrite gives way as well. In the records
the origin of a rewrite is `model`, that of an example that fell back is `reference`.
"""

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field, field_validator, model_validator

from radistill import plugins
from radistill.chat import Chat
from radistill.errors import did_you_mean
from radistill.languages import has_spaces
from radistill.methods._guard import Unfit, answer_alone, request, target_language, unfit
from radistill.methods._wording import reworded
from radistill.methods.base import Method, reference_alone
from radistill.pathologies import is_off_target
from radistill.records import Example, Generation, Message, Request, Sampling, TrainingRecord, only

if TYPE_CHECKING:
    from radistill.metrics.base import Metric

Reason = Unfit | Literal["phrase", "language", "length", "similarity"]

_BODY = "\n\n### Instruction:\n{instruction}\n\n### Reference Answer:\n{reference}\n\n### Response:\n"
_TASK = "Below are an instruction that describes a task along with a reference answer. "
TEMPLATES: dict[str, str] = {
    "refer": f"{_TASK}Refer to the reference answer and write your own response.{_BODY}",
    "using": f"{_TASK}Using the reference answer as a guide, write your own response.{_BODY}",
}
"""Name → wording. The source takes `refer` for code and functions, `using` for general instructions."""

PHRASES = ("reference answer", "your response", "my response", "your own response", "now it's your turn")
"""A rewrite that holds one of these, in capitals or not, speaks of the template."""
OPENING_PHRASE = "Your turn"
"""So does one that begins with this."""

CHRF, CHRF_UNSPACED = 30.0, 10.0
"""500 sentences each of two systems in ten WMT22 directions: 95 % of translations of *another* sentence have a chrF of
at most 29 with the reference, into Chinese 7. Of translations of the sentence itself, made without the reference, half
have over 50, into Chinese about 30; and 98 % are between half as long as the reference and about twice as long."""


class SDFT(Method):
    """Train on the reference as the untouched model words it (Yang et al. 2024), or on itself where that fails."""

    template: str = "using"
    """How the model is asked: `using`, `refer`, or free text with `{instruction}` and `{reference}`."""
    check_language: bool = True
    """For translation: a rewrite in another than the target language is not used; skipped where that is unknown."""
    length_ratio: float | None = Field(2.0, ge=1)
    """For translation: nor is one that has more than so many times the reference's characters, or fewer than its
    characters divided by this; null = any length."""
    similarity: str | None = "chrf"
    """For translation: nor is one too far from the reference by this metric (a name of `radistill list metrics`, with
    its default settings); null = not asked."""
    threshold: float | None = None
    """The worst value of `similarity` that is still used. null, for chrf alone: 30, in languages without spaces 10."""

    @field_validator("template")
    @classmethod
    def _is_known_or_has_both(cls, value: str) -> str:
        lacking = [name for name in ("{instruction}", "{reference}") if name not in value]
        if value not in TEMPLATES and lacking:
            raise ValueError(
                f"lacks {' and '.join(lacking)}; write free text with both, or one of the built-in "
                f"{', '.join(TEMPLATES)}.{did_you_mean(value, TEMPLATES)}"
            )
        return value

    @field_validator("similarity")
    @classmethod
    def _is_a_metric(cls, value: str | None) -> str | None:
        known = plugins.available("metrics")
        if value is not None and value not in known:
            raise ValueError(f"no metric {value!r}; known: {', '.join(known)}.{did_you_mean(value, known)}")
        return value

    @model_validator(mode="after")
    def _has_a_threshold(self) -> "SDFT":
        if self.similarity not in (None, "chrf") and self.threshold is None:
            raise ValueError(f"similarity: {self.similarity} needs a threshold, in that metric's own unit; set both")
        return self

    def plan(self, example: Example, chat: Chat, sampling: Sampling) -> Sequence[Request]:
        """One rewrite of the reference.

        Raises:
            ConfigError: more than one is asked for.
            RowError: no user message holds an instruction.
        """
        return [request(example, chat, self.messages(example), sampling, purpose="rewrite", name="sdft")]

    def messages(self, example: Example) -> list[Message]:
        """The conversation with the template, filled, in the place of the last user message.

        Raises:
            RowError: there is none.
        """
        template = TEMPLATES.get(self.template, self.template)
        return reworded(example, template, prompt="instruction", reference="reference")

    def reason(self, example: Example, text: str) -> Reason | None:
        """Why a rewrite is not trained on; None if it is."""
        text = text.strip()
        found = unfit(example, text)
        if found is not None:
            return found
        if speaks_of_template(text):
            return "phrase"
        return self._guard(example, text) if example.task == "translation" else None

    def assemble(self, example: Example, chat: Chat, generations: Sequence[Generation]) -> Sequence[TrainingRecord]:
        """Plain prompt (weight 0) and rewrite (1), or the reference where there is a reason against the rewrite."""
        rewrite = only(generations)
        if self.reason(example, rewrite.text) is not None:
            return [reference_alone(example, chat)]
        return [answer_alone(example, chat, rewrite)]

    def _guard(self, example: Example, text: str) -> Reason | None:
        language = target_language(example)
        if self.check_language and language and is_off_target(text, language):
            return "language"
        ratio = len(text) / max(1, len(example.reference.strip()))
        if self.length_ratio is not None and not 1 / self.length_ratio <= ratio <= self.length_ratio:
            return "length"
        if self.similarity is not None and not self._is_near(self.similarity, example, text, language):
            return "similarity"
        return None

    def _is_near(self, name: str, example: Example, text: str, language: str) -> bool:
        from radistill.metrics.base import Pair
        from radistill.tasks.translation import source_of

        metric = _metric(name)
        pair = Pair(answer=text, reference=example.reference.strip(), source=source_of(example))
        value = metric.score(metric.rows([pair], language)[0])
        worst = self.threshold
        if worst is None:
            worst = CHRF if has_spaces(language) else CHRF_UNSPACED
        return value >= worst if metric.higher_is_better else value <= worst


def speaks_of_template(text: str) -> bool:
    """The filter of the source: whether the text holds one of its phrases."""
    lowered = text.lower()
    return any(phrase in lowered for phrase in PHRASES) or text.startswith(OPENING_PHRASE)


@functools.cache
def _metric(name: str) -> "Metric":
    from radistill.metrics.base import Metric

    made = plugins.load("metrics", name)()
    assert isinstance(made, Metric)
    return made
