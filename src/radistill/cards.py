"""Model cards: what a model is made of, for people and for the hub.

A card may be published, so it names no place on this machine: of a folder only its name is written.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from radistill import __version__, plugins
from radistill.config import RunConfig, plugin_settings
from radistill.lab import POCKET_NAME
from radistill.methods._composed import parts_of, title_of

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


def hub_id(name: str) -> str | None:
    """The name if it is a hub id; None for a folder of this machine and for the lab's own model."""
    is_here = name == POCKET_NAME or Path(name).expanduser().exists()
    return None if is_here or not HUB_ID.fullmatch(name) else name


def shown(name: str) -> str:
    """A model as a card may name it: its hub id, or the name of its folder."""
    return hub_id(name) or Path(name).name


def of_run(config: RunConfig) -> str:
    """The card of what a run has trained, an adapter or a full model."""
    is_adapter = config.train.lora is not None
    kind = "adapter (PEFT LoRA)" if is_adapter else "full model"
    head = _head(config.name, config.model, "peft" if is_adapter else "transformers", config)
    return f"""{head}# {config.name}

A fine-tuned {kind} of `{shown(config.model)}`, trained with the method `{title_of(config.method)}` by radistill \
{__version__}.

{how_trained(config)}

The licences of the base model and of the training data apply. What was learned and what was lost stands in the
`report.html` of the run.
"""


def of_merged(title: str, base: str, facts: Sequence[str], config: RunConfig | None) -> str:
    """The card of a model that an adapter was merged into.

    Args:
        title: what the model is called.
        base: the model that was adapted, as it was named.
        facts: what was compared before and after, one line of Markdown each.
        config: of the run that has trained the adapter, if it is known.
    """
    trained = f"\n## Training\n\n{how_trained(config)}\n" if config is not None else ""
    return f"""{_head(title, base, "transformers", config)}# {title}

`{shown(base)}` with a fine-tuned adapter (PEFT) merged into its weights by radistill {__version__}: a full model,
loaded like any other.
{trained}
## Merged and unmerged

{chr(10).join(facts)}

The licences of the base model and of the training data apply.
"""


def how_trained(config: RunConfig) -> str:
    """Method, training and data, one line each."""
    steps, epochs = config.train.max_steps, config.train.num_train_epochs
    length = f"{steps} steps" if steps > 0 else f"{epochs:g} epochs"
    return f"""- method: `{json.dumps(plugin_settings(config.method))}`
- training: learning rate {config.train.learning_rate}, {length}, seed {config.seed}
- data: task `{config.data.task}`"""


def _head(title: str, base: str, library: str, config: RunConfig | None) -> str:
    """The facts that the hub and llama.cpp read; the hub refuses a `base_model` that is none of its own."""
    methods = [plugins.name_of(part) for part in parts_of(config.method)] if config is not None else []
    named: Mapping[str, Any] = {"base_model": hub_id(base)} if hub_id(base) else {}
    facts = {
        "model_name": title,
        **named,
        "library_name": library,
        "pipeline_tag": "text-generation",
        "tags": ["radistill", *methods],
    }
    return f"---\n{yaml.safe_dump(facts, sort_keys=False, allow_unicode=True)}---\n"
