"""Alpaca rows: `{"instruction": "…", "input": "…", "output": "…"}`, where `input` may be empty or absent.

LLaMA-Factory's optional `system` and `history` (`[["question", "answer"], …]`) are read too. Instruction and input are
joined by a line end, as its converter does; the wrapper "Below is an instruction …" is for models without a chat
template and is not added.
"""

from collections.abc import Mapping

from radistill.formats._turns import conversation
from radistill.formats.base import BadRow, Conversation, ObjectFormat, text
from radistill.records import Message


class Alpaca(ObjectFormat):
    """Alpaca rows."""

    shape = '{"instruction", "input", "output"}'

    def fits(self, row: Mapping[str, object]) -> bool:
        """`instruction` and `output`; `input` is optional."""
        return "instruction" in row and "output" in row

    def content(self, row: Mapping[str, object]) -> Conversation:
        """The output as the reference."""
        asked = instruction = text(row.get("instruction"), "'instruction'")
        given = row.get("input")
        if given is not None and given != "":
            asked = f"{instruction}\n{text(given, repr('input'))}"
        found = [Message("system", text(row["system"], "'system'"))] if row.get("system") else []
        for question, answer in _history(row.get("history")):
            found += [Message("user", question), Message("assistant", answer)]
        found += [Message("user", asked), Message("assistant", text(row.get("output"), "'output'"))]
        return conversation(found, source=str(given) if given else instruction)


def _history(value: object) -> list[tuple[str, str]]:
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(p, list | tuple) and len(p) == 2 for p in value):
        raise BadRow("'history' must be a list of [question, answer]")
    return [(text(q, "a question of 'history'"), text(a, "an answer of 'history'")) for q, a in value]
