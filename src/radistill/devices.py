"""How many devices train, on which engine, and what such a training is in the words of the stage's settings."""

import importlib.util
from typing import Any

from radistill import models, ranks
from radistill.config import RunConfig
from radistill.errors import ConfigError, MissingPackageError
from radistill.methods._composed import has, parts_of, title_of
from radistill.stage_settings import TrainSettings

SHARDED = ("fsdp2", "zero2", "zero3")
"""Engines that keep of something (weights, gradients or what the optimizer remembers) only a part on each device."""
WITHOUT_WEIGHTS = ("fsdp2", "zero3")
"""Those where no process has the whole weights."""


def count(settings: TrainSettings) -> int:
    """So many processes train.

    Raises:
        ConfigError: a launcher started another number than the run file names.
    """
    ranks.adopt_slurm()
    if ranks.launched():
        if settings.devices not in (None, ranks.size()):
            raise ConfigError(
                f"train.devices: the run file asks for {settings.devices}, but a launcher started {ranks.size()} "
                "processes. Set train.devices=null, which takes as many as there are, or start so many."
            )
        return ranks.size()
    return settings.devices or _visible()


def launches(settings: TrainSettings) -> bool:
    """Whether this process starts others to train, and waits for them."""
    return not ranks.launched() and count(settings) > 1


def _visible() -> int:
    if models.device() != "cuda":
        return 1
    import torch

    return int(torch.cuda.device_count())


def learned(settings: TrainSettings) -> dict[str, Any]:
    """The section as what it teaches: of equal global batches nobody asks how many devices share them."""
    told = settings.model_dump(mode="json", exclude={"devices", "parallel"})
    told["per_device_train_batch_size"] = settings.per_device_train_batch_size * count(settings)
    return told


def refuse_unusable_devices(config: RunConfig) -> None:
    """Find what could not be trained so, before anything is loaded.

    Raises:
        ConfigError: more devices than there are, an engine that has nothing to shard over, or a method that needs whole
            weights where nobody has them.
        MissingPackageError: DeepSpeed is not installed.
    """
    settings = config.train
    wanted = count(settings)
    on_gpu = models.device() == "cuda"
    if on_gpu and not ranks.launched() and wanted > _visible():
        raise ConfigError(
            f"train.devices: {wanted} are asked for and {_visible()} GPUs are visible here. Set train.devices=null, "
            "which takes all, or see CUDA_VISIBLE_DEVICES."
        )
    if settings.parallel in SHARDED and wanted == 1:
        raise ConfigError(
            f"train.parallel: {settings.parallel} divides a training among devices, and here is one. Set "
            "train.devices to 2 or more, or train.parallel=ddp."
        )
    if settings.parallel.startswith("zero") and importlib.util.find_spec("deepspeed") is None:
        raise MissingPackageError(
            f"train.parallel: {settings.parallel} needs DeepSpeed: pip install 'radistill[deepspeed]' (with "
            "--no-build-isolation where it does not find torch), or set train.parallel=fsdp2, which needs nothing more."
        )
    if settings.parallel in WITHOUT_WEIGHTS and any(has(part, "rollout") for part in parts_of(config.method)):
        raise ConfigError(
            f"train.parallel: {title_of(config.method)} lets the model in training write, which {settings.parallel} "
            "cannot, because no process has the whole weights. Set train.parallel to ddp or zero2."
        )
    if settings.parallel in SHARDED and settings.eval_steps is not None:
        raise ConfigError(
            f"train.eval_steps: with {settings.parallel} the model in training cannot be asked, because it is divided "
            "among processes. Set train.parallel=ddp, or train.eval_steps=null."
        )


def refuse_unusable_penalty(settings: TrainSettings, *, reads_weights: bool) -> None:
    """Refuse a penalty on weights that no process has.

    Raises:
        ConfigError: it is one.
    """
    if reads_weights and settings.parallel in WITHOUT_WEIGHTS:
        raise ConfigError(
            f"train.parallel: the method's penalty looks at the weights, and with {settings.parallel} no process has "
            "them whole. Set train.parallel to ddp or zero2."
        )
