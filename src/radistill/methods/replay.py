"""Replay: data of the user's own, instructions or safety examples, are learned beside the examples.

Source: rehearsal, the oldest remedy for forgetting (Robins 1995, "Catastrophic Forgetting, Rehearsal and
Pseudorehearsal"). It needs what the other methods do without: data that stand for what is to be kept. The loss is that
of the examples, -log P(answer | conversation); per training example there are `ratio` records of it.

Departures: none; where the data came from is all there is to say about them. `path: pocket` are chats drawn by the
rules by which the pocket model was brought up, nearly all of them its own. So the lab can compare with true replay,
which is not to be had for other models.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from itertools import count
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from radistill import data
from radistill.chat import Chat, RowError
from radistill.data import DataSettings, DataSource, FormatName, Loaded
from radistill.errors import ConfigError, DataError
from radistill.lab import POCKET_NAME
from radistill.lab.world import WorldChoice, WorldSettings
from radistill.methods._beside import Part, end_of_turn, joined
from radistill.methods.base import Method, Rounds, Whole
from radistill.records import Example, Message, Request, TrainingRecord

TASK = "instructions"
POCKET_CHATS = 20_000
"""So many chats of the upbringing are drawn from."""


class Replay(Method):
    """Train on data of the user's own too, such as instructions or refusals, mixed in at a ratio."""

    brings_data: ClassVar[bool] = True

    path: str | None = None
    """A file or folder of conversations, or of prompts and answers, in any format that `data.train` may have; of a
    conversation the last answer is learned. `pocket`: chats drawn like those of the pocket model's upbringing."""
    format: FormatName = "auto"
    """How the rows lie there; `auto` decides from the names and the first rows."""
    split: str = "train"
    """Which files of a folder: those whose names start with it."""
    ratio: float = Field(0.2, gt=0)
    """Records per training example, drawn without replacement; if there are too few, all are drawn again from the
    start, as often as needed."""
    weight: float = Field(1.0, gt=0)
    """Loss weight of each token of the answers and of their end-of-turn; a reference token weighs 1."""
    world: WorldChoice = WorldSettings()
    """Of `path: pocket`: which world; its number alone will do."""

    def plan_more(self, whole: Whole, rounds: Rounds) -> Sequence[Request]:
        """Nothing has to be written; what cannot be read is said before anything else is.

        Raises:
            ConfigError: no path is given.
            DataError: it cannot be read, or no row of it can be used.
        """
        if not rounds:
            next(self._usable(whole))
        return ()

    def assemble_more(self, whole: Whole, rounds: Rounds) -> Iterable[TrainingRecord]:
        """So many of the answers, in the order of the draw.

        Raises:
            ConfigError, DataError: as `plan_more`.
        """
        wanted = max(1, round(self.ratio * whole.examples))
        drawn: list[tuple[Example, list[Part]]] = []
        for found in self._usable(whole):
            drawn.append(found)
            if len(drawn) == wanted:
                break
        for turn in count():
            for example, parts in drawn[: wanted - turn * len(drawn)]:
                yield joined(parts, "replay", example.id, turn)
            if (turn + 1) * len(drawn) >= wanted:
                return

    def files(self) -> Sequence[Path]:
        """Those that are read; the pocket model's upbringing is made by rule, without any."""
        return () if self.path == POCKET_NAME else self._load(seed=0).files

    def _usable(self, whole: Whole) -> Iterator[tuple[Example, list[Part]]]:
        """All rows that can be put into ids, in the order of the draw; at least one.

        Raises:
            ConfigError, DataError: there are none.
        """
        from radistill import seeds

        examples = _upbringing(self.world) if self.path == POCKET_NAME else self._load(seed=whole.seed).examples
        found, refused = 0, ""
        for example in sorted(examples, key=lambda e: (seeds.number(whole.seed, "replay", e.id), e.id)):
            try:
                parts = self._parts(whole.chat, example)
            except RowError as error:
                refused = refused or str(error)
                continue
            found += 1
            yield example, parts
        if not found:
            raise DataError(f"method replay: none of the {len(examples)} rows of {self.path} can be used: {refused}.")

    def _parts(self, chat: Chat, example: Example) -> list[Part]:
        opening = chat.opening(example.messages, example.reference, "")
        spans = zip(opening.spans, opening.texts, strict=True)
        parts = [
            Part("prompt", opening.ids[span.start : span.stop], text)
            if span.origin == "prompt"
            else Part("replay", opening.ids[span.start : span.stop], text, self.weight)
            for span, text in spans
        ]
        return [*parts, end_of_turn(chat, opening.ids, self.weight)]

    def _load(self, *, seed: int) -> Loaded:
        if not self.path:
            raise ConfigError(
                "method replay has no data: name a file or folder of your own, for example {name: replay, path: "
                "instructions.jsonl}."
            )
        source = DataSource(path=self.path, format=self.format, split=self.split)
        # Prompts are taken as they stand; the built-in wordings are of translation.
        settings = DataSettings(task=TASK, train=source, template="{source}")
        try:
            return data.load(settings, "train", seed=seed)
        except DataError as error:
            raise DataError(f"method replay: {str(error).removeprefix('data.train: ')}") from error


@cache
def _upbringing(settings: WorldSettings) -> tuple[Example, ...]:
    """The first chats that the pocket model of a world was brought up on."""
    from radistill.lab import upbringing
    from radistill.lab.world import world_of

    seen: Counter[tuple[str, str]] = Counter()
    found = []
    for chat in upbringing.chats(world_of(settings), POCKET_CHATS):
        key = chat.prompt, chat.answer
        found.append(Example.of(TASK, (Message("user", chat.prompt),), chat.answer, {}, ordinal=seen[key]))
        seen[key] += 1
    return tuple(found)
