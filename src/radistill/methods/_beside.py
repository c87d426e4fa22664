"""Records of what is trained on beside the examples, and what a chat template writes around a user's message."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

from radistill.chat import Chat
from radistill.records import Message, Origin, Segment, TrainingRecord, digest

PROBES = ("Hello", "Das Haus ist old", "7 dogs")
"""Messages that share neither first nor last token. They end in letters, with which nothing after them merges."""


@dataclass(frozen=True, slots=True)
class Part:
    """Ids of a record that have one origin and one weight."""

    origin: Origin
    ids: tuple[int, ...]
    text: str
    weight: float = 0.0


def joined(parts: Sequence[Part], *name: object) -> TrainingRecord:
    """The record of these parts that belongs to no example; `name` names it, with its ids."""
    kept = [part for part in parts if part.ids]
    ids: list[int] = []
    segments = []
    for part in kept:
        segments.append(Segment(part.origin, len(ids), len(ids) + len(part.ids), part.weight))
        ids += part.ids
    return TrainingRecord(
        id=digest(*name, ids),
        example_id=None,
        token_ids=tuple(ids),
        segments=tuple(segments),
        texts=tuple(part.text for part in kept),
    )


def end_of_turn(chat: Chat, before: Sequence[int], weight: float) -> Part:
    """The end-of-turn, where the model has ended by itself."""
    return Part("end", (chat.end_id,), chat.spell(before, [chat.end_id]), weight)


def empty_context(chat: Chat) -> tuple[int, ...]:
    """What stands before a text that nothing precedes: the BOS.

    Without one it is the token at which a text ends and the next begins: an id at which the model stops that is not the
    end of a turn, as Qwen's `<|endoftext|>`; where there is no other, the end of a turn.
    """
    bos, eos = chat.tokenizer.bos_token_id, chat.tokenizer.eos_token_id
    if bos is not None:
        return (int(bos),)
    of_texts = [i for i in (eos, *chat.stop_ids) if i is not None and i != chat.end_id]
    return (int(of_texts[0]) if of_texts else chat.end_id,)


@dataclass(frozen=True, slots=True)
class Turn:
    """What the template writes around the first message of a user."""

    opening: tuple[int, ...]
    """Up to the message, without what its first token would take in: the blank of ` Hello` belongs to the message."""
    closing: tuple[int, ...]
    """From the message to the place where the assistant begins to write."""
    opening_text: str
    closing_text: str
    markup: frozenset[int]
    """Ids that are no text: special tokens, and other added tokens that the template writes."""
    marks: tuple[str, ...]
    """What the template writes as plain text and no one else would: `[INST]`, `[/INST]`."""

    @property
    def end(self) -> str | int | None:
        """What ends a user's message: the first markup after it, or the mark that stands there as text."""
        first = next((i for i in self.closing if i in self.markup), None)
        return first if first is not None else (self.closing_text.strip() or None)


def user_turn(chat: Chat) -> Turn:
    """Found by rendering messages that have nothing in common.

    Raises:
        RowError: the template refuses a conversation of one user message.
    """
    shown = [chat.prompt([Message("user", probe)]).ids for probe in PROBES]
    opening = _common(shown)
    closing = _common([ids[::-1] for ids in shown])[::-1]
    added = chat.tokenizer.added_tokens_decoder
    special = {i for i, token in added.items() if token.special} | {*chat.tokenizer.all_special_ids, *chat.stop_ids}
    markup = frozenset(special | (added.keys() & {*opening, *closing}))
    # A BOS that comes back within a conversation opens turns.
    bos = {chat.tokenizer.bos_token_id} - {*closing}
    bare = [tuple(i for i in ids if i not in bos) for ids in (opening, closing)]
    # Text between special tokens, as `system` or `user`, is text that anybody writes.
    marks = [chat.spell((0,), ids).strip() for ids in bare if not markup.intersection(ids)]
    return Turn(
        opening,
        closing,
        chat.spell((), opening),
        chat.spell(opening, closing),
        markup,
        tuple(filter(None, marks)),
    )


def _common(rows: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The ids with which all begin."""
    same = takewhile(lambda column: len(set(column)) == 1, zip(*rows, strict=False))
    return tuple(column[0] for column in same)
