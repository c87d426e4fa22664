"""What the settings of a run add to the training loop: the untouched model beside it, and the methods' hooks."""

from collections.abc import Mapping, Sequence
from typing import Any

from radistill import data, losses, models, seeds
from radistill.config import RunConfig
from radistill.errors import ConfigError
from radistill.methods._composed import Several, flag, has, parts_of
from radistill.packing import Collator, Row
from radistill.records import Example
from radistill.speaker import Speaker
from radistill.trainer import Extras
from radistill.training_parts import Reference, Start


def extras_of(config: RunConfig, speaker: Speaker, model: Any, rows: Sequence[Row], collate: Collator) -> Extras:
    """What is added to the plain loss; freezes the parameters that the method does not train.

    Raises:
        ConfigError: the method leaves nothing to train.
    """
    method = config.method
    _freeze(config, model)
    # Rows that are written anew may have soft labels where those of the start have none.
    may_be_live = config.train.labels == "live" and config.generate.refresh_every is not None
    is_live = may_be_live or any((row.labels_T == losses.LIVE).any() for row in rows)
    reference = _reference(config, speaker, model) if is_live or flag(method, "uses_reference") else None

    def examples() -> Mapping[str, Example]:
        return {example.id: example for example in data.load(config.data, "train", seed=config.seed).examples}

    seed = seeds.number(config.seed, "method") % (1 << 32)
    start = Start(model, rows, reference, collate, speaker.chat, seed, examples, speaker.weights)
    return Extras(
        reference=reference,
        token_weights=method.token_weights if any(has(part, "token_weights") for part in parts_of(method)) else None,
        penalty=method.penalty(start),
        rollout=method.rollout(start),
        asks_about_task=any(part.uses_reference and has(part, "penalty") for part in parts_of(method)),
    )


def _reference(config: RunConfig, speaker: Speaker, model: Any) -> Reference:
    if config.train.lora is not None:
        return Reference(model, is_adapter=True)
    # In the arithmetic of the model in training, whose products are bfloat16 where a GPU makes that worth it.
    dtype = "bfloat16" if config.train.bf16 and models.device() == "cuda" else "float32"
    copy = models.load(
        speaker.weights,
        dtype=dtype,
        attention=config.train.attn_implementation or "sdpa",
        trust_remote_code=config.trust_remote_code,
    )
    return Reference(copy.requires_grad_(False), is_adapter=False)


def _freeze(config: RunConfig, model: Any) -> None:
    method = config.method
    if not any(has(part, "trains") for part in parts_of(method)):
        return
    n_layers = int(model.config.get_text_config().num_hidden_layers)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not method.trains(name, n_layers):
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        shown = "these methods together leave" if isinstance(method, Several) else "method: this method leaves"
        raise ConfigError(f"{shown} no parameter to train in a model of {n_layers} layers.")
