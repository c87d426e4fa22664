"""What the tests ask, and whether the model wrote it down.

`contamination` compares the user's own examples with the tests and refuses the run. This module looks into what was
generated or replayed, which nobody has chosen: a row that holds a test is dropped. Looked for in it are

- the **prompt**: the last user message of a test, whole, anywhere in the text;
- the **source** within that message, for translations the **reference**, and the **sentences** that a test names (its
  tag of that name, one a line): anywhere in the text if they have at least `PHRASE` words; shorter ones only where they
  stand as a sentence of their own, because `What is the...` is a test of WMT22 and the beginning of many a sentence.

Texts are normalised as `contamination` does, and those that are too short there are too short here, but for prompts:
one of two words (`Define onion.`) is looked for as a sentence of its own. Words match whole.
As marks do not count, `34 + 23` and `34 - 23` are the same words: rather one row too many is dropped.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, Literal

from radistill import contamination, data
from radistill.records import Example, Origin, Segment, TrainingRecord, digest

if TYPE_CHECKING:
    from radistill.config import RunConfig
    from radistill.tasks.base import Task

PHRASE = 6
"""From so many words on, a sentence is looked for within others. Of 2,000 answers of a chat model, 65 hold a WMT22 test
of three words or more ("Hope this helps!"), 5 one of six or more."""
WRITTEN: frozenset[Origin] = frozenset({"rationale", "model", "replay", "free"})
"""Origins of text that is not the user's own."""
FOREIGN: frozenset[Origin] = frozenset({"replay", "free"})
"""Origins of text that brings its own prompt."""
_FIRST = contamination.MIN_WORDS
_APART = re.compile(
    r"""[.!?:;\u2026\u3002\uff0e\uff61\uff01\uff1f\uff1a\uff1b\u0964\u061f\u06d4\r\n\t]  # ends of sentences and lines
    |["\u201c\u201d\u201e\u00ab\u00bb\u2039\u203a\u300c-\u300f\uff08\uff09()\[\]{}<>|*`=]  # quotation, brackets, markup
    |(?<!\w)['\u2018\u2019\u201a]|['\u2018\u2019](?!\w)  # not the apostrophe within a word""",
    re.VERBOSE,
)
Side = Literal["prompt", "source", "reference", "sentence"]


@dataclass(frozen=True, slots=True)
class Leak:
    """A test that was found."""

    example_id: str
    """Of the test."""
    side: Side
    text: str
    """What was looked for, as the test has it."""
    origin: Origin
    """Of the first segment of the text that holds it."""
    written: str
    """That text."""


@dataclass(frozen=True, slots=True)
class _Wanted:
    example_id: str
    side: Side
    text: str
    anywhere: bool
    """Within other sentences too."""


class HeldOut:
    """The texts of tests, made for being looked for in many others."""

    def __init__(self, tests: Iterable[Example]) -> None:
        self._wanted: dict[str, _Wanted] = {}
        self._short: dict[str, _Wanted] = {}
        for test in tests:
            for wanted in _looked_for(test):
                self._add(wanted)
        lengths: dict[str, set[int]] = {}
        for key in self._wanted:
            words = key.split()
            lengths.setdefault(" ".join(words[:_FIRST]), set()).add(len(words))
        self._lengths = {first: sorted(found) for first, found in lengths.items()}

    def __len__(self) -> int:
        """How many different texts are looked for."""
        return len(self._wanted) + len(self._short)

    @property
    def digest(self) -> str:
        """Names what is looked for; neither the order of the tests nor their ids and settings change it."""
        return digest(sorted((key, wanted.anywhere) for key, wanted in self._wanted.items()), sorted(self._short))

    def in_record(self, record: TrainingRecord) -> Leak | None:
        """The first test that the generated or replayed part of a record holds."""
        for segments in _searched(record):
            written = "".join(text for _, text in segments)
            found = self._first(written)
            if found is not None:
                return Leak(found.example_id, found.side, found.text, segments[0][0].origin, written)
        return None

    def is_in(self, text: str) -> bool:
        """Whether a text holds any of the tests."""
        return self._first(text) is not None

    def _add(self, wanted: _Wanted) -> None:
        normalised = contamination.normalise(wanted.text)
        words = contamination.words(normalised)
        if wanted.side == "prompt" and wanted.anywhere and len(words) == _FIRST - 1:
            self._short.setdefault(" ".join(words), wanted)
        if not contamination.is_long_enough(normalised):
            return
        wanted = _Wanted(wanted.example_id, wanted.side, wanted.text, anywhere=wanted.anywhere or len(words) >= PHRASE)
        key = " ".join(words)
        if key not in self._wanted or (wanted.anywhere and not self._wanted[key].anywhere):
            self._wanted[key] = wanted

    def _first(self, text: str) -> _Wanted | None:
        words, edges = _words_and_edges(text)
        if self._short:
            short = (self._short.get(" ".join(words[a:b])) for a, b in pairwise(sorted(edges)) if b - a == _FIRST - 1)
            if found := next(filter(None, short), None):
                return found
        for start in range(len(words) - _FIRST + 1):
            for length in self._lengths.get(" ".join(words[start : start + _FIRST]), ()):
                stop = start + length
                wanted = self._wanted.get(" ".join(words[start:stop]))
                if wanted is not None and (wanted.anywhere or (start in edges and stop in edges)):
                    return wanted
        return None


def of_run(config: "RunConfig") -> HeldOut:
    """What must not stand in the training data of a run: the tests of all its tasks.

    Raises:
        DataError: data.test cannot be read.
    """
    return HeldOut(example for _, tests in by_task(config, given(config)) for example in tests or ())


def given(config: "RunConfig") -> Sequence[Example] | None:
    """The examples of `data.test`; None where it is not set.

    Raises:
        DataError: it cannot be read.
    """
    return None if config.data.test is None else data.load(config.data, "test", seed=config.seed).examples


def by_task(config: "RunConfig", of_data: Sequence[Example] | None) -> list[tuple["Task", Sequence[Example] | None]]:
    """Each task with what it is tested on: its own examples, otherwise those of `data.test`."""
    own = [(task, task.examples()) for task in config.evaluate]
    return [(task, of_data if examples is None else examples) for task, examples in own]


def _looked_for(test: Example) -> Iterator[_Wanted]:
    said = [message.content for message in test.messages if message.role == "user"]
    prompt, source = said[-1] if said else "", test.tags.get("source", "")
    is_translation = "pair" in test.tags
    # Asked by the bare sentence, a translation has no prompt that would tell it from a turn of phrase.
    yield _Wanted(test.id, "prompt", prompt, anywhere=not (is_translation and source.strip() == prompt.strip()))
    if source and source in prompt:
        yield _Wanted(test.id, "source", source, anywhere=False)
    for sentence in filter(None, test.tags.get("sentences", "").splitlines()):
        yield _Wanted(test.id, "sentence", sentence, anywhere=False)
    if is_translation:
        # Otherwise it may be one of a few labels, which are the same everywhere by design.
        yield _Wanted(test.id, "reference", test.reference, anywhere=False)


def _searched(record: TrainingRecord) -> Iterator[list[tuple[Segment, str]]]:
    """What is not the user's own, in pieces that stand together."""
    origins = {segment.origin for segment in record.segments}
    is_own = record.example_id is not None and ("reference" in origins or not origins & FOREIGN)
    parts = zip(record.segments, record.texts, strict=True)
    for searched, pieces in groupby(parts, key=lambda part: not is_own or part[0].origin in WRITTEN):
        if searched:
            yield list(pieces)


def _words_and_edges(text: str) -> tuple[list[str], set[int]]:
    """The words, and where among them sentences begin and end."""
    words: list[str] = []
    edges = {0}
    for sentence in _APART.split(text):
        words += contamination.words(contamination.normalise(sentence))
        edges.add(len(words))
    return words, edges
