"""The `data:` section of a run file, and the examples it names.

Import is light: the settings need pydantic alone, readers are opened by `load`.
"""

import difflib
import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from radistill import instructions
from radistill.errors import DataError, did_you_mean
from radistill.known import Known
from radistill.lab import POCKET_DATA, POCKET_NAME
from radistill.records import Example, Message
from radistill.settings import Settings
from radistill.spool import Picked, Spool

if TYPE_CHECKING:
    from radistill.formats._find import Found
    from radistill.formats.base import Pair, Reject, Row

_NEARLY = 0.85
"""Likeness to a known task from which on a label is taken for a slip; `transliteration` stays below it."""
Part = Literal["train", "test", "validation"]
FormatName = Literal[
    "auto", "alma", "lines", "tsv", "source_target", "messages", "sharegpt", "alpaca", "prompt_completion"
]


class DataSource(Settings):
    """Where examples are read from."""

    path: str
    """A folder, a file, or what the names of two aligned line files share; relative to the working directory.
    `pocket`: the lab's Esperanto sentences, which come with the pocket model."""
    format: FormatName = "auto"
    """How the rows lie there; `auto` decides from the names and the first rows."""
    split: str = "train"
    """Which files of a folder: those whose names start with it. `test` where the source is `data.test`,
    `valid` where it is `data.validation`."""
    pairs: tuple[str, ...] | None = Field(None, min_length=1)
    """Directions of translation, as `[de-en, en-de]`; a direction without a file of its own is read backwards.
    null = those in the names of the files; a task whose `template` names no language needs none."""
    limit: int | None = Field(None, ge=1)
    """Only the first so many after a seeded shuffle of everything read."""

    @field_validator("pairs")
    @classmethod
    def _pairs_are_pairs(cls, pairs: tuple[str, ...] | None) -> tuple[str, ...] | None:
        from radistill.formats.base import Pair

        for number, pair in enumerate(pairs or ()):
            Pair.of(pair)
            if pair in (pairs or ())[:number]:
                raise ValueError(f"the pair {pair} is listed twice")
        return pairs


class DataSettings(Settings):
    """What is learned and what is tested."""

    task: str = "translation"
    """Name of the task the examples belong to: `translation`, or a word of your own for any other with references."""
    train: DataSource
    """Examples to learn from."""
    test: DataSource | None = None
    """Examples to test the new skill on."""
    validation: DataSource | None = None
    """Examples of the new skill by which a training is judged while it goes on (`train.eval_steps`)."""
    template: str | tuple[str, ...] | None = None
    """How parallel text is worded: names of built-in wordings (`alma`) or free text with `{source}`,
    `{source_language}`, `{target_language}`; of several, each example gets one by a seeded draw. Free text without
    languages, as `Summarise: {source}`, words any task. null = all built-in wordings (of translation)."""
    fraction: float = Field(1.0, ge=0.0, le=1.0)
    """Share of the training examples about which the untouched model writes; the others are trained on their reference
    alone. A smaller share is a part of a larger one."""
    system: str | None = None
    """System message put first, where a row has none of its own."""
    allow_contamination: bool = False
    """Go on although the test data occur in the training data."""
    max_contamination: float = Field(0.05, ge=0.0, le=1.0)
    """Largest share of test examples that may occur in the training data."""

    @field_validator("task")
    @classmethod
    def _is_no_slip_of_the_pen(cls, task: str) -> str:
        from radistill import plugins

        known = plugins.available("tasks")
        # Any label will do, so only what is nearly a known one is refused.
        if task not in known and difflib.get_close_matches(task, known, n=1, cutoff=_NEARLY):
            raise ValueError(
                f"{task!r} is no known task.{did_you_mean(task, known)} A task of your own may have any name that is "
                "not so close to one of these"
            )
        return task

    @field_validator("test", "validation")
    @classmethod
    def _tests_are_in_splits_of_their_own(cls, source: DataSource | None, info: ValidationInfo) -> DataSource | None:
        if source is None or "split" in source.model_fields_set:
            return source
        return source.model_copy(update={"split": "test" if info.field_name == "test" else "valid"})

    def source(self, part: Part) -> DataSource:
        """The source of one part.

        Raises:
            DataError: there is none.
        """
        source: DataSource | None = getattr(self, part)
        if source is None:
            use = {"test": "test on", "validation": "judge the training by"}[part]
            raise DataError(
                f"data.{part} is not set. Name the examples to {use}: data.{part}={{path: DIR, pairs: [de-en]}}."
            )
        return source


@dataclass(frozen=True)
class Loaded:
    """Examples, and what became of everything else."""

    examples: Sequence[Example]
    """In the order of the files; with a `limit`, in the order of the shuffle. Not all of them are in memory."""
    rejects: "tuple[Reject, ...]"
    files: tuple[Path, ...]
    """All files that were read."""
    counts: Mapping[str, int]
    """`rows` read from the files, `rejected` of them, `equal` examples (copies of another), `usable` examples before
    the limit, `examples` after it."""
    notes: tuple[str, ...] = ()
    """Choices made while reading that the user should see."""

    @property
    def pairs(self) -> dict[str, int]:
        """Examples per direction of translation."""
        return dict(Counter(e.tags["pair"] for e in self.examples if "pair" in e.tags))


@dataclass
class _Reading:
    """What has been read so far."""

    settings: DataSettings
    source: DataSource
    templates: tuple[str, ...]
    seed: int
    examples: Spool[Example] = field(default_factory=lambda: Spool(_packed, _unpacked))
    rejects: "dict[tuple[str, int, str], Reject]" = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    known: Known = field(default_factory=Known)
    """Ids of all examples."""
    copies: Counter[str] = field(default_factory=Counter)
    """Of those that came more than once, how many more."""
    rows: int = 0

    def add(self, messages: Sequence[Message], reference: str, tags: Mapping[str, str]) -> None:
        """One more example; a copy of an earlier one gets its own id."""
        system = self.settings.system
        if system is not None and messages[0].role != "system":
            messages = (Message("system", system), *messages)
        example = Example.of(self.settings.task, messages, reference, tags)
        if not self.known.add(example.id):
            self.copies[example.id] += 1
            example = Example.of(self.settings.task, messages, reference, tags, self.copies[example.id])
            self.known.add(example.id)
        self.examples.append(example)

    def refuse(self, reject: "Reject") -> None:
        """One more refused row; counted once, though both its directions were asked for."""
        self.rejects.setdefault((reject.file, reject.line, reject.reason), reject)

    def tags(self, row: "Row", pair: "Pair | None", source: str) -> dict[str, str]:
        """What is kept about an example for breakdowns, and to find it again."""
        told = {"split": self.source.split, "source": source, "file": row.file.name, "row": str(row.number)}
        return told if pair is None else {"pair": str(pair), **told}


def load(settings: DataSettings, part: Part, *, seed: int) -> Loaded:
    """Read the examples of one part.

    Args:
        settings: what to read.
        part: `train`, `test` or `validation`.
        seed: of the run. All but training examples are drawn and worded by seed 0 whatever it is, so that runs of
            different seeds are scored on the same items.

    Raises:
        DataError: a file is missing, empty, unaligned, not UTF-8 or in no known format, or the template is wrong.
    """
    source = settings.source(part)
    try:
        templates = instructions.wordings(settings.template)
    except DataError as error:
        raise DataError(f"data.template: {error}") from error
    reading = _Reading(settings, source, templates, seed if part == "train" else 0)
    try:
        return _load(reading, part)
    except (DataError, OSError) as error:
        raise DataError(f"data.{part}: {error}") from error


def _load(reading: _Reading, part: Part) -> Loaded:
    from radistill.formats._find import Wanted, find
    from radistill.formats.base import Pair

    source = reading.source
    wanted = Wanted(
        path=POCKET_DATA if source.path == POCKET_NAME else Path(source.path).expanduser(),
        split=source.split,
        pairs=tuple(Pair.of(pair) for pair in source.pairs or ()),
        kinds=_kinds(source.format),
        is_test=part == "test",
        needs_languages=any(map(instructions.names_languages, reading.templates)),
        notes=reading.notes,
    )
    found = find(wanted)
    for files in found:
        _read(files, reading)
    examples = _limited(reading.examples, source.limit, reading.seed)
    counts = {
        "rows": reading.rows,
        "rejected": len(reading.rejects),
        "equal": reading.copies.total(),
        "usable": len(reading.examples),
        "examples": len(examples),
    }
    files_read = tuple(dict.fromkeys(file for f in found for file in f.files))
    return Loaded(examples, tuple(reading.rejects.values()), files_read, counts, tuple(dict.fromkeys(reading.notes)))


def _kinds(name: FormatName) -> tuple[str, ...]:
    from radistill.formats._find import KINDS

    if name == "auto":
        return KINDS
    return (name,) if name in ("lines", "tsv") else ("objects",)


def _read(found: "Found", reading: _Reading) -> None:
    """Read one set of files, once for all its directions."""
    from radistill import formats
    from radistill.formats._detect import detect
    from radistill.formats.base import Conversation, Reject

    name = reading.source.format if reading.source.format != "auto" else detect(found)
    shown = " + ".join(map(str, found.files))
    rejects_before, counted = len(reading.rejects), reading.rows

    def rows(*, again: bool = False) -> "Iterator[Row]":
        """The usable rows; read from the files once more for each further direction, so that none need be kept."""
        for row in formats.named(name).rows(found.files, found.columns):
            reading.rows += not again
            if isinstance(row, Reject):
                reading.refuse(row)
            else:
                yield row

    first = next(rows(), None)
    if first is None and reading.rows == counted:
        raise DataError(f"{shown} holds no rows. Fill it, or name another file.")
    if first is None:
        raise _nothing_usable(shown, reading, rejects_before)
    reading.rows = counted
    if isinstance(first.content, Conversation):
        _add_conversations(rows(), found, reading)
        return
    for number, pair in enumerate(found.pairs or (_languages(first, shown, reading),)):
        if not _add_translations(rows(again=number > 0), pair, reading):
            raise _nothing_usable(f"{shown}, for {pair},", reading, rejects_before)


def _add_conversations(rows: "Iterable[Row]", found: "Found", reading: _Reading) -> None:
    from radistill.formats.base import Conversation

    shown = found.files[0]
    if len(found.pairs) > 1 or (found.pairs and found.columns and found.pairs[0] != found.columns):
        raise DataError(
            f"the rows of {shown} are conversations, which cannot be turned round and do not say their languages. "
            f"Name one pair, to which all of them belong, or none; asked for were {', '.join(map(str, found.pairs))}."
        )
    if reading.settings.template is not None:
        reading.notes.append(
            f"{shown} holds conversations, which bring their own wording: `template` is not used for them"
        )
    pair = found.pairs[0] if found.pairs else None
    for row in rows:
        assert isinstance(row.content, Conversation), "a file is read by one format"
        reading.add(row.content.messages, row.content.reference, reading.tags(row, pair, row.content.source))


def _add_translations(rows: "Iterable[Row]", pair: "Pair", reading: _Reading) -> int:
    """Make an example of each row in one direction; returns of how many rows one could be made."""
    from radistill.formats.base import UNNAMED, BadRow, Conversation, text

    added = 0
    languages = None if pair == UNNAMED else pair
    for row in rows:
        assert not isinstance(row.content, Conversation), "a file is read by one format"
        try:
            source, target = (text(row.content.get(code), f"the {code} side").strip() for code in pair)
        except BadRow as error:
            reading.refuse(row.rejected(str(error)))
            continue
        template = instructions.choose(reading.templates, str(pair), source, target, seed=reading.seed)
        prompt = instructions.render(template, source=source, source_language=pair.source, target_language=pair.target)
        reading.add((Message("user", prompt),), target, reading.tags(row, languages, source))
        added += 1
    return added


def _languages(row: "Row", shown: str, reading: _Reading) -> "Pair":
    """The direction of rows that name two languages, or none, where nobody named one."""
    from radistill.formats._find import NAME_THEM
    from radistill.formats.base import UNNAMED, Conversation, Pair

    assert not isinstance(row.content, Conversation), "conversations have no sides"
    codes = tuple(row.content)
    if set(codes) == set(UNNAMED):
        if any(map(instructions.names_languages, reading.templates)):
            raise DataError(f"the rows of {shown} do not say which languages they are in. {NAME_THEM}")
        return UNNAMED
    if len(codes) != 2:
        raise DataError(f"the rows of {shown} have the languages {', '.join(codes)}. Name the pairs: pairs: [de-en].")
    return Pair.of("-".join(codes))


def _nothing_usable(shown: str, reading: _Reading, rejects_before: int) -> DataError:
    refused = list(reading.rejects.values())[rejects_before:]
    first = f", the first at line {refused[0].line}: {refused[0].reason}" if refused else ""
    return DataError(f"{shown} has no usable row. Refused: {len(refused)}{first}.")


def _limited(examples: Sequence[Example], limit: int | None, seed: int) -> Sequence[Example]:
    """The first `limit` after a shuffle by content: neither the order of rows nor the wording decides who is in."""
    if limit is None:
        return examples
    from radistill import seeds  # numpy: not needed to show the settings

    def place(numbered: tuple[int, Example]) -> tuple[int, str, int]:
        at, example = numbered
        content = (example.tags.get("pair", ""), example.tags["source"], example.reference)
        return seeds.number(seed, "limit", *content), example.id, at  # copies of one row differ by id alone

    return Picked(examples, [at for _, _, at in heapq.nsmallest(limit, map(place, enumerate(examples)))])


def _packed(example: Example) -> tuple[object, ...]:
    turns = tuple((m.role, m.content) for m in example.messages)
    return example.id, example.task, turns, example.reference, dict(example.tags)


def _unpacked(packed: tuple[Any, ...]) -> Example:
    name, task, turns, reference, tags = packed
    messages = tuple(Message(role, content) for role, content in turns)
    return Example(id=name, task=task, messages=messages, reference=reference, tags=tags)
