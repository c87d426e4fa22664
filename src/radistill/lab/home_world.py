"""Which world a model was brought up in, and whether a run tests it in that one."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from radistill import models
from radistill.errors import ConfigError, ModelError
from radistill.lab.world import WorldSettings
from radistill.tasks.lab import Lab
from radistill.tasks.lab_rationales import LabRationales

if TYPE_CHECKING:
    from radistill.config import RunConfig
    from radistill.models import Weights

SETTINGS = "upbringing.json"
"""The file beside a model's weights that says how it was brought up."""
NAMED = 3
"""So many keys are named in a message; of the others, how many there are."""


def home_world(folder: Path) -> WorldSettings | None:
    """The world that the model in the folder was brought up in; None where that is not written beside it.

    Raises:
        ModelError: what is written there cannot be read.
    """
    stored = folder / SETTINGS
    if not stored.exists():
        return None
    try:
        return WorldSettings.model_validate(json.loads(stored.read_text(encoding="utf-8"))["world"])
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{stored} does not say in which world the model was brought up. `radistill lab pretrain` writes it: put "
            "back the file that came with the model, or delete it if the model is none of the lab's."
        ) from error


def refuse_other_world(config: "RunConfig", weights: "Weights | None" = None) -> None:
    """Refuse to test a model of the lab in another world than its own: it has never met its names, facts and words.

    Args:
        config: the run.
        weights: of its untouched model; looked for if not given, and only where a test has a world.

    Raises:
        ConfigError: a test's world is not the model's own.
        ModelError: the model is not there.
    """
    tested = {
        f"`evaluate.{at}.world`": task.world
        for at, task in enumerate(config.evaluate)
        if isinstance(task, Lab | LabRationales)
    }
    if not tested:
        return
    if weights is None:
        weights = models.resolve(config.model, revision=config.revision, trust_remote_code=config.trust_remote_code)
    home = home_world(weights.folder)
    others = {key: world for key, world in tested.items() if home is not None and world != home}
    if home is None or not others:
        return
    keys = ", ".join(list(others)[:NAMED]) + (f" and {len(others) - NAMED} more" if len(others) > NAMED else "")
    elsewhere = " and ".join(dict.fromkeys(map(as_written, others.values())))
    told = "is" if len(others) == 1 else "are"
    raise ConfigError(
        f"{keys} {told} {elsewhere}, but the model {config.model} was brought up in world {as_written(home)}. Write "
        f"`world: {as_written(home)}` there, or name a model of the other world."
    )


def as_written(world: WorldSettings) -> str:
    """The world as a run file names it: by its number where all else is as usual."""
    options = world.model_dump(mode="json", exclude_defaults=True) | {"number": world.number}
    if len(options) == 1:
        return str(world.number)
    return "{" + ", ".join(f"{key}: {options[key]}" for key in WorldSettings.model_fields if key in options) + "}"
