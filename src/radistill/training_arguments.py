"""The run file's `train:` section as transformers' TrainingArguments."""

from pathlib import Path
from typing import Any

from radistill import devices, models, seeds, trackers, training_model, validation
from radistill.config import RunConfig
from radistill.errors import ConfigError
from radistill.methods._composed import flag, has, parts_of, title_of
from radistill.runs import RunFolder
from radistill.stage_settings import TrainSettings

PASSED_ON = (
    "learning_rate",
    "num_train_epochs",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "max_grad_norm",
    "optim",
    "bf16",
    "logging_steps",
    "save_steps",
    "save_total_limit",
)
"""Settings that are transformers' own, under their own names."""


def arguments(config: RunConfig, run: RunFolder, steps: int, engine: dict[str, Any] | None = None) -> Any:
    """TrainingArguments of a training of that many optimizer steps, with what the engine of many devices adds.

    Raises:
        ConfigError: transformers refuses one of the settings.
    """
    from transformers import TrainingArguments

    settings = config.train
    passed = settings.model_dump(include=set(PASSED_ON))
    on_cpu = models.device() == "cpu"
    try:
        told = {
            "output_dir": str(run.model),
            **passed,
            "max_steps": steps,
            "seed": seeds.number(config.seed, "train") % (1 << 31),
            "data_seed": seeds.number(config.seed, "order") % (1 << 31),
            **_checkpointing(settings),
            "use_liger_kernel": settings.use_liger_kernel,
            # Without its loss: `head.py` calls the head itself.
            "liger_kernel_config": {"cross_entropy": False, "fused_linear_cross_entropy": False},
            "save_strategy": "steps",
            "report_to": settings.report_to if isinstance(settings.report_to, str) else list(settings.report_to),
            "run_name": config.name,
            **_trackers(),
            "remove_unused_columns": False,
            "dataloader_pin_memory": not on_cpu,
            "use_cpu": on_cpu,
            "disable_tqdm": True,
            "logging_nan_inf_filter": False,
            "label_names": [],
            # Only parameters that are trained are waited for, and all of them are in every batch.
            "ddp_find_unused_parameters": False,
        }
        if settings.load_best_model_at_end:
            # So that the best checkpoint outlives `save_total_limit`; `judging.py` evaluates and chooses.
            told |= {"metric_for_best_model": "score", "greater_is_better": True}
        passed_on = TrainingArguments(**told | (engine or {}))
    except ValueError as error:
        raise ConfigError(f"train: {str(error).strip().partition(chr(10))[0]}") from error
    # Without a launcher the Trainer would spread a batch over all GPUs with DataParallel, whose replicas would each
    # read the whole batch's places: one process uses one GPU.
    passed_on._n_gpu = min(passed_on.n_gpu, 1)
    return passed_on


def refuse_unusable_settings(config: RunConfig) -> None:
    """Find what transformers would refuse only after hours of generation.

    Raises:
        ConfigError: a name of a schedule, optimizer or tracker that does not exist or is not installed; or the model in
            training cannot write what it is to.
    """
    from transformers.integrations import get_available_reporting_integrations

    refuse_unusable_writing(config)
    devices.refuse_unusable_devices(config)
    if config.train.eval_steps is not None:
        validation.usable_items(config)
    training_model.refuse_unusable(config)
    arguments(config, RunFolder(Path(config.output_dir)), 1)
    wanted = config.train.report_to
    installed = get_available_reporting_integrations()
    for name in [wanted] if isinstance(wanted, str) else wanted:
        if name not in ("none", "all", *installed):
            usable = ", ".join(["none", *sorted(installed)])
            raise ConfigError(
                f"train.report_to: the tracker {name!r} is not installed or does not exist; usable here: {usable}. "
                f"Install it (pip install {name}) or choose another."
            )


def refuse_unusable_writing(config: RunConfig) -> None:
    """Find what the model in training could not be trained on, had it written it.

    Raises:
        ConfigError: `generate.refresh_every` or a method that writes while training does not go with the rest.
    """
    title, parts = title_of(config.method), parts_of(config.method)
    if config.data.fraction < 1 and any(has(part, "rollout") for part in parts):
        raise ConfigError(
            f"data.fraction is {config.data.fraction}, but with {title} the model in training writes about every "
            "example: set it to 1."
        )
    if config.generate.refresh_every is None:
        return
    labels, teacher, processes = config.train.labels, config.generate.teacher, devices.count(config.train)
    is_scored = flag(config.method, "is_scored")
    wrong = {
        f"{title} plans nothing to be written about an example": not any(has(part, "plan") for part in parts),
        "train.labels: stored are of the first text; set train.labels=live, which asks again": labels == "stored",
        f"generate.teacher ({teacher}) writes, not the model in training; unset one of them": teacher is not None,
        f"{title} weighs tokens by what the untouched model thought of the first text": is_scored,
        f"{processes} processes train, and only one can write; set train.devices=1": processes > 1,
    }
    reasons = [reason for reason, is_so in wrong.items() if is_so]
    if reasons:
        raise ConfigError(f"generate.refresh_every cannot be used here: {'; '.join(reasons)}.")


def _trackers() -> dict[str, Any]:
    from transformers import TrainingArguments

    # transformers got them within version 5; a static Space would be made on the hub.
    wanted = {"project": trackers.PROJECT, "trackio_static_space_id": False}
    return {name: value for name, value in wanted.items() if name in TrainingArguments.__dataclass_fields__}


def _checkpointing(settings: TrainSettings) -> dict[str, Any]:
    from transformers import TrainingArguments

    if not settings.gradient_checkpointing:
        return {}
    # transformers renamed the argument within version 5.
    new = "activation_checkpointing"
    name = new if new in TrainingArguments.__dataclass_fields__ else "gradient_checkpointing"
    return {name: True, f"{name}_kwargs": {"use_reentrant": False}}
