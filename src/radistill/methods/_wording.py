"""A conversation whose last user message is put into a template, beside the reference."""

import re
from collections.abc import Mapping

from radistill.chat import RowError
from radistill.records import Example, Message

PLACEHOLDER = re.compile(r"\{(\w+)\}")


def reworded(example: Example, template: str, *, prompt: str, reference: str) -> list[Message]:
    """The conversation with the template, filled, in the place of the last user message.

    Args:
        example: whose.
        template: with the placeholders of these names.
        prompt: name of the placeholder for the message itself.
        reference: name of the one for the reference.

    Raises:
        RowError: there is no user message.
    """
    turns = list(example.messages)
    at = next((i for i in reversed(range(len(turns))) if turns[i].role == "user"), None)
    if at is None:
        raise RowError("no user message that the reference could be shown in")
    parts: Mapping[str, str] = {prompt: turns[at].content.strip(), reference: example.reference.strip()}
    # In one pass: a message that speaks of "{reference}" keeps its words.
    filled = PLACEHOLDER.sub(lambda found: parts.get(found[1], found[0]), template)
    turns[at] = Message("user", filled)
    return turns
