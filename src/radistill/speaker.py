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
    return Speaker(weights=weights, chat=_chat(config, weights), trust_remote_code=config.trust_remote_code)


def tuned(config: "RunConfig", folder: "Path") -> Speaker:
    """The model that training left in that folder; prompts are rendered as for the untouched one."""
    weights = models.resolve(str(folder))
    return Speaker(weights=weights, chat=_chat(config, weights), trust_remote_code=config.trust_remote_code)


def _chat(config: "RunConfig", weights: Weights) -> Chat:
    return load_chat(
        weights.tokenizer_folder, config.chat, name=weights.name, trust_remote_code=config.trust_remote_code
    )
