"""ShareGPT rows: `{"conversations": [{"from": "human", "value": "…"}, {"from": "gpt", "value": "…"}]}`."""

from collections.abc import Mapping

from radistill.formats._turns import conversation, turn
from radistill.formats.base import BadRow, Conversation, ObjectFormat, text
from radistill.records import Message, Role

ROLES: dict[str, Role] = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
}


class ShareGPT(ObjectFormat):
    """ShareGPT rows; a `system` beside the turns is put before them, as LLaMA-Factory's rows have it."""

    shape = '{"conversations": [{"from", "value"}]}'

    def fits(self, row: Mapping[str, object]) -> bool:
        """A list of turns under `conversations`."""
        return isinstance(row.get("conversations"), list)

    def content(self, row: Mapping[str, object]) -> Conversation:
        """The last assistant turn as the reference."""
        value = row.get("conversations")
        if not isinstance(value, list) or not value:
            raise BadRow("'conversations' must be a list of turns with at least one")
        found = [Message("system", text(row["system"], "'system'"))] if row.get("system") else []
        for number, item in enumerate(value, start=1):
            if not isinstance(item, dict):
                raise BadRow(f"turn {number} of 'conversations' is no object")
            found.append(turn(item.get("from"), item.get("value"), number, roles=ROLES))
        return conversation(found)
