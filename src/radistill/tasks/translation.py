"""Translation: read the answer off a reply, and say what is wrong with it.

A model trained by RaDis writes its translation and then a rationale; an untouched chat model may write a preamble
first and notes afterwards. All are read by the same rule, and the uncut replies are scored beside the answers:

1. A paragraph is text up to a blank line (a line that holds nothing or only white space).
2. A first paragraph that ends in a colon (`:` or `：`, emphasis such as `**` aside) and is followed by another one is
   a preamble and skipped, unless the source's own first paragraph ends in a colon.
3. The answer is the paragraphs that follow, as many as the source has; the rest is cut.

With `¶` for a blank line:

| source | reply | answer |
|---|---|---|
| `Guten Tag.` | `Good day.` | `Good day.` |
| `Guten Tag.` | `Good day.¶Note: "Tag" means day.` | `Good day.` |
| `Guten Tag.` | `Here is the translation:¶Good day.¶It is polite.` | `Good day.` |
| `Wir brauchen:¶Brot.` | `We need:¶Bread.¶Note: no article.` | `We need:¶Bread.` |
| `Guten Tag.` | `Good day.` and a single line break, then `Note: ...` | both lines: a line break is part of a text |

What the rule does not do: it knows no phrases ("Note", "Translation"), and no languages.
"""

import json
import re
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

from pydantic import Field, SerializeAsAny, field_validator

from radistill.errors import DataError
from radistill.metrics.base import Metric
from radistill.metrics.bleu import BLEU
from radistill.metrics.chrf import ChrF
from radistill.pathologies import labels_of
from radistill.records import Example, FinishReason, Generation, Prediction, Sampling
from radistill.tasks.base import Kind, Task

BLANK_LINE = re.compile(r"\n[^\S\n]*\n\s*")


class Reading(NamedTuple):
    """A reply, read."""

    answer: str
    is_complete: bool
    """All of the answer was written: a separator closes it."""
    is_leaking: bool
    """Something stood after the answer and was cut."""


class Translation(Task):
    """Translate a sentence or a text; BLEU and chrF for each language pair, and their mean."""

    kind: ClassVar[Kind] = "skill"

    metrics: tuple[SerializeAsAny[Metric], ...] = Field((BLEU(), ChrF()), min_length=1)
    """What the answers are scored by; the first is the headline."""
    max_new_tokens: int = Field(256, ge=1)
    """At most so many tokens are written, rationale included."""
    cut_at: str = "\n\n"
    """What ends a paragraph; a blank line may hold white space. "" = nothing is cut."""

    @field_validator("metrics")
    @classmethod
    def _are_different(cls, metrics: tuple[Metric, ...]) -> tuple[Metric, ...]:
        if any(metric in metrics[:at] for at, metric in enumerate(metrics)):
            raise ValueError("a metric is listed twice with the same settings; list it once")
        return metrics

    def sampling(self) -> Sampling:
        """Greedy."""
        return Sampling(temperature=0.0, top_p=1.0, max_new_tokens=self.max_new_tokens)

    def read(self, system: str, example: Example, generation: Generation) -> Prediction:
        """The reply cut to its translation, with its pathologies."""
        source = source_of(example)
        reading = self.cut(generation.text, source)
        labels = self._labels(reading, source, example, generation.finish_reason)
        return Prediction.of(system, example, generation, source=source, answer=reading.answer, labels=labels)

    def cut(self, raw: str, source: str) -> Reading:
        """The answer within a reply to that source, by the rule above."""
        found, of_source = self._paragraphs(raw), self._paragraphs(source)
        wanted = max(1, len(of_source))
        source_opens_with_colon = bool(of_source) and _ends_in_colon(source[slice(*of_source[0])])
        if len(found) > 1 and _ends_in_colon(raw[slice(*found[0])]) and not source_opens_with_colon:
            found = found[1:]
        kept = found[:wanted]
        if not kept:
            return Reading("", is_complete=False, is_leaking=False)
        stop = kept[-1][1]
        # A paragraph that nothing separates from what follows reaches the end of the reply.
        is_complete = len(kept) == wanted and stop < len(raw)
        return Reading(raw[kept[0][0] : stop].strip(), is_complete, is_leaking=bool(raw[stop:].strip()))

    def group(self, tags: Mapping[str, str]) -> str:
        """The language pair."""
        if "pair" not in tags:
            raise DataError(
                "the task translation needs the language pair of every test example, and these have none: name it "
                "(data.test.pairs=[de-en]), or do only the stages generate, assemble and train."
            )
        return tags["pair"]

    def language(self, group: str) -> str:
        """The target language: `en` for `de-en`, `zh_Hans` for `en-zh_Hans`."""
        source, _, target = group.partition("-")
        return target or source

    def reading(self) -> str:
        """`none`, `blank-line`, or the separator."""
        return {"": "none", "\n\n": "blank-line"}.get(self.cut_at, json.dumps(self.cut_at))

    def _paragraphs(self, text: str) -> list[tuple[int, int]]:
        """Where the paragraphs start and stop, without those that hold only white space."""
        if not self.cut_at:
            return [(0, len(text))] if text.strip() else []
        separator = BLANK_LINE if self.cut_at == "\n\n" else re.compile(re.escape(self.cut_at))
        # Leading blank lines separate nothing.
        start = len(text) - len(text.lstrip())
        spans = []
        for match in separator.finditer(text, start):
            spans.append((start, match.start()))
            start = match.end()
        return [(a, b) for a, b in [*spans, (start, len(text))] if text[a:b].strip()]

    def _labels(self, reading: Reading, source: str, example: Example, finish_reason: FinishReason) -> tuple[str, ...]:
        # A reply that could not be had says nothing about the model.
        if finish_reason == "error":
            return ()
        pair = self.group(example.tags)
        of_answer = labels_of(
            reading.answer,
            source=source,
            reference=example.reference,
            language=self.language(pair),
            source_language=pair.partition("-")[0],
        )
        is_truncated = finish_reason == "length" and not reading.is_complete
        of_cut = (("truncated", is_truncated), ("leaked_rationale", reading.is_leaking))
        return (*of_answer, *(label for label, holds in of_cut if holds))


def source_of(example: Example) -> str:
    """The text to translate: the tag `source` if the last user message holds it, otherwise that whole message."""
    said = [message.content for message in example.messages if message.role == "user"]
    whole, tag = said[-1] if said else "", example.tags.get("source", "")
    return tag if tag and tag in whole else whole


def _ends_in_colon(paragraph: str) -> bool:
    return paragraph.rstrip().rstrip("*_").endswith((":", "："))
