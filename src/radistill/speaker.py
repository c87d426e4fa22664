"""Whose text is asked for: the weights, and the chat that spells their ids."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from radistill import models
from radistill.chat import Chat, load_chat
from radistill.models import Weights

if TYPE_CHECKING:
    from pathlib import Path

    from radistill.config import RunConfig


@dataclass(frozen=True)
class Speaker:
    """A model with its chat."""

    weights: Weights
    chat: Chat
    trust_remote_code: bool = False
    is_untouched: bool = True
    """False of a teacher and of what training has left: a server with the run's model must not answer for them."""


def untouched(config: "RunConfig") -> Speaker:
    """The model as it was before training.

    Raises:
        ModelError, ChatTemplateError: it cannot be found or used.
    """
    weights = models.resolve(config.model, revision=config.revision, trust_remote_code=config.trust_remote_code)
    return Speaker(weights=weights, chat=_chat(config, weights), trust_remote_code=config.trust_remote_code)


def teacher(config: "RunConfig") -> Speaker | None:
    """The other model that writes about the examples, if the run names one (`generate.teacher`).

    Raises:
        ModelError, ChatTemplateError: it cannot be found or used.
    """
    name = config.generate.teacher
    if name is None:
        return None
    weights = models.resolve(name, trust_remote_code=config.trust_remote_code)
    return _other(config, weights)


def tuned(config: "RunConfig", folder: "Path") -> Speaker:
    """The model that training left in that folder; prompts are rendered as for the untouched one."""
    return _other(config, models.resolve(str(folder)))


def _other(config: "RunConfig", weights: Weights) -> Speaker:
    chat = _chat(config, weights)
    return Speaker(weights=weights, chat=chat, trust_remote_code=config.trust_remote_code, is_untouched=False)


def _chat(config: "RunConfig", weights: Weights) -> Chat:
    return load_chat(
        weights.tokenizer_folder, config.chat, name=weights.name, trust_remote_code=config.trust_remote_code
    )
