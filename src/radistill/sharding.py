"""Engines that divide a training among devices: what transformers is told, whether they do it, and what they leave.

The engines are PyTorch's (DDP, FSDP2) and DeepSpeed's (ZeRO-2, ZeRO-3), driven by transformers' Trainer.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from radistill import models, ranks
from radistill.errors import RadistillError, RunFolderError
from radistill.progress import say
from radistill.stage_settings import TrainSettings


def engine_arguments(settings: TrainSettings) -> dict[str, Any]:
    """What TrainingArguments are told of the engine; wins over what they are told of the rest."""
    if settings.parallel == "fsdp2":
        return {"fsdp": True, "fsdp_config": {"version": 2, "state_dict_type": "SHARDED_STATE_DICT"}}
    if not settings.parallel.startswith("zero"):
        return {}
    stage = int(settings.parallel[-1])
    told: dict[str, Any] = {
        "zero_optimization": {"stage": stage, "stage3_gather_16bit_weights_on_model_save": stage == 3},
        "zero_allow_untested_optimizer": True,  # the Trainer's own, of whatever name
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
    }
    if settings.bf16:
        # As elsewhere: bfloat16 arithmetic on float32 weights. DeepSpeed's `bf16` would round the weights themselves.
        told["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
    return {"deepspeed": told, "bf16": False}


def complete(trainer: Any) -> None:
    """Let accelerate shard where it would not, and sum gradients in float32.

    It shards on GPUs only: on a CPU, FSDP is silently DDP. PyTorch's `fully_shard` knows no such difference.
    """
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
    from torch.distributed.fsdp import MixedPrecisionPolicy

    if not trainer.args.fsdp:
        return
    state = trainer.accelerator.state
    if not trainer.is_fsdp_enabled:
        state.fsdp_plugin = FullyShardedDataParallelPlugin(**trainer.args.fsdp_plugin_args)
        PartialState._shared_state["distributed_type"] = state.distributed_type = DistributedType.FSDP
        trainer.is_fsdp_enabled = True
    half = torch.bfloat16 if trainer.args.bf16 else None
    state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=torch.float32)


class Engine(TrainerCallback):  # type: ignore[misc]
    """Looks at what really runs when it begins, says it, and stops a training that is not as it was asked for."""

    def __init__(self, trainer: Any, settings: TrainSettings) -> None:
        self.trainer, self.settings = trainer, settings
        self.facts: dict[str, Any] = {}

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """All is wrapped now.

        Raises:
            RadistillError: sharding was asked for and is not there.
        """
        wrapped, parallel = self.trainer.model_wrapped, self.settings.parallel
        held = _held(self.trainer)
        self.facts = {
            "processes": self.trainer.args.world_size,
            "parallel": parallel,
            "wrapper": type(wrapped).__name__,
            "share_held": held,
        }
        if self.trainer.args.world_size != ranks.size():
            raise RadistillError(
                f"train.devices: {ranks.size()} processes were started, but transformers counts "
                f"{self.trainer.args.world_size}, so each would train a copy of its own. Set "
                "train.parallel to fsdp2 or ddp."
            )
        wanted = {"fsdp2": ("weights", "gradients", "optimizer"), "zero3": ("weights", "gradients", "optimizer")}
        missing = [what for what in wanted.get(parallel, ()) if held[what] == 1.0]
        if parallel == "zero2":
            missing = [what for what in ("gradients", "optimizer") if held[what] == 1.0]
        if missing:
            raise RadistillError(
                f"train.parallel: {parallel} was asked for, but every process would hold all {' and '.join(missing)} "
                f"({self.facts['wrapper']}, {self.facts['processes']} processes). Set train.parallel=ddp, or train on "
                "devices and with versions of torch, accelerate and DeepSpeed that shard here."
            )
        if ranks.is_first() and self.trainer.args.world_size > 1:
            say(in_words(self.facts))


def in_words(facts: dict[str, Any]) -> str:
    """One line on what a training runs on."""
    shares = {what: share for what, share in facts["share_held"].items() if share < 1.0}
    sharded = ", ".join(f"{share:.0%} of the {what}" for what, share in shares.items())
    holds = f"each holds {sharded}" if shares else "nothing is sharded: each holds all"
    return f"train: {facts['processes']} processes, {facts['parallel']} ({facts['wrapper']}); {holds}"


def _held(trainer: Any) -> dict[str, float]:
    """Which share of weights, gradients and optimizer states this process holds, as it really is."""
    from torch.distributed.tensor import DTensor

    parameters = [p for p in trainer.model.parameters() if p.requires_grad]
    whole = sum(_numel(p) for p in parameters)
    if trainer.is_deepspeed_enabled:
        engine = trainer.model_wrapped
        stage = int(engine.zero_optimization_stage())
        kept = sum(p.ds_tensor.numel() if hasattr(p, "ds_tensor") else p.numel() for p in parameters)
        weights = round(kept / whole, 3)
        groups = [p for group in engine.optimizer.optimizer.param_groups for p in group["params"]]
        states = round(min(1.0, sum(p.numel() for p in groups) / whole), 3)
        if stage == 3:
            # Its optimizer holds flat pieces, each of the part of the weights that is kept here.
            states = weights
        return {"weights": weights, "gradients": states if stage >= 2 else 1.0, "optimizer": states}
    kept = sum(p.to_local().numel() if isinstance(p, DTensor) else p.numel() for p in parameters)
    share = round(kept / whole, 3)
    return {"weights": share, "gradients": share, "optimizer": share}


def _numel(parameter: Any) -> int:
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def sizes(model: Any) -> dict[str, int]:
    """How many numbers a model has, and how many of them are trained; whatever of them is here."""
    parameters = list(model.parameters())
    return {
        "parameters": sum(map(_numel, parameters)),
        "trainable": sum(_numel(p) for p in parameters if p.requires_grad),
    }


def whole(trainer: Any, settings: TrainSettings, skeleton: Callable[[], Any]) -> Any:
    """The trained model in one piece; all processes must ask, and only the first has it where weights are sharded.

    Args:
        trainer: after the training.
        settings: its.
        skeleton: makes an equal model without weights.
    """
    accelerator = trainer.accelerator
    if settings.parallel.startswith("zero"):
        from transformers.integrations.deepspeed import unset_hf_deepspeed_config

        unset_hf_deepspeed_config()  # or every model made from now on would be divided, too
    if settings.parallel in ("ddp", "zero2"):
        return accelerator.unwrap_model(trainer.model)
    if settings.parallel == "zero3":
        is_adapter = settings.lora is not None
        state = trainer.model_wrapped._zero3_consolidated_16bit_state_dict(exclude_frozen_parameters=is_adapter)
    else:
        state = accelerator.get_state_dict(trainer.model_wrapped)
    if not ranks.is_first():
        return None
    with torch.device("meta"):
        model = skeleton()
    found = model.load_state_dict(state, strict=False, assign=True)
    if found.unexpected_keys or any(_is_trained(name, settings) for name in found.missing_keys):
        raise RuntimeError(f"the shards do not make up the model: {found}")
    if settings.lora is None:
        model.tie_weights()
    return model


def _is_trained(name: str, settings: TrainSettings) -> bool:
    return settings.lora is None or "lora_" in name


def skeleton_of(folder: Path, settings: TrainSettings, *, trust_remote_code: bool) -> Any:
    """The model of a folder without its weights, with an adapter if one is trained."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(str(folder), trust_remote_code=trust_remote_code)
    model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code, dtype=torch.float32)
    if settings.lora is None:
        return model
    return models.adapt(model, settings.lora, base_name=str(folder), revision=None, seed=0)


def refuse_foreign_checkpoint(checkpoint: Path | None, settings: TrainSettings, processes: int) -> None:
    """Refuse to go on from what another engine has left.

    Raises:
        RunFolderError: it cannot read it.
    """
    if checkpoint is None:
        return
    made_by, shards = _maker(checkpoint)
    if made_by != settings.parallel:
        raise RunFolderError(
            f"train.parallel: {checkpoint} was written by {made_by}, and {settings.parallel} cannot go on from it. Set "
            f"train.parallel={made_by}, or begin the stage anew with --redo train."
        )
    if shards not in (None, processes):
        raise RunFolderError(
            f"train.devices: {checkpoint} was written by {shards} processes, and DeepSpeed cannot go on from it with "
            f"{processes}. Train on {shards} devices, or begin the stage anew with --redo train; ddp and fsdp2 go on "
            "with any number of devices."
        )


def _maker(checkpoint: Path) -> tuple[str, int | None]:
    """Which engine wrote a checkpoint, and in how many parts if they matter."""
    if list(checkpoint.glob("pytorch_model_fsdp*")):
        return "fsdp2", None
    for step in checkpoint.glob("global_step*"):
        shards = len(list(step.glob("*_optim_states.pt")))
        return ("zero3" if list(step.glob("zero_pp_rank_*_model_states.pt")) else "zero2"), shards
    return "ddp", None
