"""Prompt and completion: `{"prompt": "…", "completion": "…"}`, both as text or both as lists of OpenAI turns."""

from collections.abc import Mapping

from radistill.formats._turns import conversation
from radistill.formats.base import BadRow, Conversation, ObjectFormat, text
from radistill.formats.messages import turns
from radistill.records import Message


class PromptCompletion(ObjectFormat):
    """Rows of prompt and completion, as TRL has them."""

    shape = '{"prompt", "completion"}'

    def fits(self, row: Mapping[str, object]) -> bool:
        """Both keys are there."""
        return "prompt" in row and "completion" in row

    def content(self, row: Mapping[str, object]) -> Conversation:
        """The completion as the reference; a prompt that is text becomes one user turn."""
        prompt, completion = row.get("prompt"), row.get("completion")
        if isinstance(prompt, list) != isinstance(completion, list):
            raise BadRow("'prompt' and 'completion' must both be text or both be lists of turns")
        if isinstance(prompt, list):
            return conversation([*turns(prompt, "prompt"), *turns(completion, "completion")])
        asked, answer = text(prompt, "'prompt'"), text(completion, "'completion'")
        return conversation([Message("user", asked), Message("assistant", answer)])
