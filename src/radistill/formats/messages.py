"""OpenAI chat rows: `{"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}`."""

from collections.abc import Mapping

from radistill.formats._turns import conversation, turn
from radistill.formats.base import BadRow, Conversation, ObjectFormat
from radistill.records import Message, Role

ROLES: dict[str, Role] = {"system": "system", "user": "user", "assistant": "assistant"}


class Messages(ObjectFormat):
    """OpenAI chat rows; keys beside `messages` are not read."""

    shape = '{"messages": [{"role", "content"}]}'

    def fits(self, row: Mapping[str, object]) -> bool:
        """A list of turns under `messages`."""
        return isinstance(row.get("messages"), list)

    def content(self, row: Mapping[str, object]) -> Conversation:
        """The last assistant turn as the reference."""
        return conversation(turns(row.get("messages"), "messages"))


def turns(value: object, key: str) -> list[Message]:
    """The turns of a list of `{"role", "content"}`; `key` is where it stands, for the reason.

    Raises:
        BadRow: it is no such list.
    """
    if not isinstance(value, list) or not value:
        raise BadRow(f"{key!r} must be a list of turns with at least one")
    found = []
    for number, item in enumerate(value, start=1):
        if not isinstance(item, dict):
            raise BadRow(f"turn {number} of {key!r} is no object")
        found.append(turn(item.get("role"), item.get("content"), number, roles=ROLES))
    return found
