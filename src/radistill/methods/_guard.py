"""What methods share that train on the model's own answer: asking for it, what it must not be, and its record."""

from collections.abc import Sequence
from typing import Literal

from radistill.chat import Chat, Opening, Prompt
from radistill.errors import ConfigError
from radistill.methods.base import record
from radistill.pathologies import is_empty, is_loop
from radistill.records import Example, Generation, Message, Purpose, Request, Sampling, Span, TrainingRecord

Unfit = Literal["empty", "loop"]
"""Why no model's answer would be trained on, whatever the method."""


def unfit(example: Example, text: str) -> Unfit | None:
    """Whether nothing was written, or something over and over that the reference does not repeat as well."""
    if is_empty(text):
        return "empty"
    language = target_language(example)
    return "loop" if is_loop(text, language) and not is_loop(example.reference, language) else None


def target_language(example: Example) -> str:
    """Code of the language the answer should be in; an empty string where that is not known."""
    return example.tags.get("pair", "").partition("-")[2]


def request(
    example: Example, chat: Chat, messages: Sequence[Message], sampling: Sampling, *, purpose: Purpose, name: str
) -> Request:
    """The one answer to a conversation.

    Args:
        example: what it is about.
        chat: renders the conversation.
        messages: the conversation.
        sampling: how the answer is drawn.
        purpose: what it is for.
        name: of the method, for the message to the user.

    Raises:
        ConfigError: more than one answer is asked for.
    """
    if sampling.n != 1:
        raise ConfigError(
            f"generate.sampling.n is {sampling.n}, but {name} learns one {purpose} an example: set it to 1."
        )
    shown = _opening(chat.prompt(messages))
    return Request(
        purpose=purpose,
        prompt_ids=shown.ids,
        spans=shown.spans,
        messages=tuple(messages),
        sampling=sampling,
        example_id=example.id,
    )


def answer_alone(example: Example, chat: Chat, answer: Generation) -> TrainingRecord:
    """Prompt (weight 0), the ids the model wrote (1), and the end-of-turn (1) if it ended by itself."""
    end_weight = 1.0 if answer.finish_reason == "stop" else None
    opening = _opening(chat.prompt(example.messages))
    return record(
        example, chat, opening, weights={"model": 1.0}, written=answer, origin="model", end_weight=end_weight
    )  # fmt: skip


def _opening(prompt: Prompt) -> Opening:
    return Opening(ids=prompt.ids, spans=(Span("prompt", 0, len(prompt.ids)),), texts=(prompt.text,))
