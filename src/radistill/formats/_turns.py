"""From the turns of a conversation to what is asked and what is answered."""

from collections.abc import Sequence

from radistill.formats.base import BadRow, Conversation, text
from radistill.records import Message, Role


def turn(role: object, content: object, number: int, *, roles: dict[str, Role]) -> Message:
    """One turn; `roles` says what the format calls whom.

    Raises:
        BadRow: the role is unknown or the content is no text.
    """
    if not isinstance(role, str) or role not in roles:
        raise BadRow(f"turn {number}: unknown role {role!r}; known: {', '.join(roles)}")
    return Message(roles[role], text(content, f"turn {number} ({role})"))


def conversation(turns: Sequence[Message], *, source: str | None = None) -> Conversation:
    """The last turn as the reference, the turns before it as the messages.

    User and assistant must alternate: most chat templates refuse anything else, or join turns in silence.

    Raises:
        BadRow: the turns are in another order, or the assistant does not have the last word.
    """
    if not any(m.role == "assistant" for m in turns):
        raise BadRow("no assistant turn, so nothing to learn from")
    if turns[-1].role != "assistant":
        raise BadRow(f"the last turn is the {turns[-1].role}'s, not the assistant's")
    first = 1 if turns[0].role == "system" else 0
    for number, message in enumerate(turns[first:]):
        expected = "assistant" if number % 2 else "user"
        if message.role != expected:
            raise BadRow(f"turn {first + number + 1} is the {message.role}'s where the {expected}'s should be")
    # Stripped like parallel text: chat templates strip an answer too, and then its ids would not be the template's.
    return Conversation(tuple(turns[:-1]), turns[-1].content.strip(), turns[-2].content if source is None else source)
