"""The model that is trained: how its weights are held, what is adapted, by which kernels it computes.

- Full fine-tuning: all weights in float32, which are their own masters; with `bf16` products are bfloat16 (autocast). A
  second copy in bfloat16 would cost more memory than it saves. The result is saved in the precision of the base.
- LoRA: the frozen weights in bfloat16 (float32 without `bf16`), or in 4 bits; the adapter in float32.
"""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from radistill import models, seeds
from radistill.config import RunConfig
from radistill.errors import ConfigError, ModelError
from radistill.lab import POCKET_NAME
from radistill.speaker import Speaker
from radistill.stage_settings import TrainSettings

NEEDS_GPU = ("flex_attention", "flash_attention_2", "flash_attention_3")
PACKAGES = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}
COMPILER = "inductor"


def trained_model(config: RunConfig, speaker: Speaker) -> Any:
    """A fresh model, ready to be trained; equal configs give equal ones.

    Raises:
        ModelError: the base is an adapter, cannot be loaded, or lacks a target module.
    """
    settings = config.train
    models.refuse_adapter(speaker.weights)
    half = settings.bf16 and settings.lora is not None
    model = models.load(
        speaker.weights,
        dtype="bfloat16" if half else "float32",
        attention=settings.attn_implementation or "sdpa",
        trust_remote_code=config.trust_remote_code,
        quantization=settings.quantization,
    )
    if settings.quantization is not None:
        _as_quantised(model)
    if settings.lora is not None:
        if settings.gradient_checkpointing:
            model.enable_input_require_grads()
        # PEFT must find the base by this name: a hub id, or the folder.
        is_here = config.model == POCKET_NAME or Path(config.model).exists()
        base_name = str(speaker.weights.folder.resolve()) if is_here else config.model
        seed = seeds.number(config.seed, "lora") % (1 << 32)
        model = models.adapt(model, settings.lora, base_name=base_name, revision=config.revision, seed=seed)
    if settings.torch_compile:
        compile_layers(model)
    return model


def _as_quantised(model: Any) -> None:
    """Keep bitsandbytes from rewriting the weights on a CPU, rounded once more, when they are first used in evaluation.

    A packing probe or a live reference does that: the training would go on with others than it began with.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def compile_layers(model: Any) -> int:
    """Compile each layer in place; returns how many.

    Not the whole model: what keeps packed records apart is made outside the layers, by looking at the positions, which
    a compiled graph does not do; and the head is called piece by piece (`head.py`).

    Raises:
        ModelError: no list of layers is found.
    """
    from torch import nn

    n_layers = int(model.config.get_text_config().num_hidden_layers)
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == n_layers]
    if not lists:
        raise ModelError(f"train.torch_compile: {type(model).__name__} has no list of its layers. Set it to false.")
    for layer in lists[0]:
        layer.compile(backend=COMPILER, dynamic=True)
    return n_layers


def optimizer_of(trainer: Any, ratio: float) -> Any:
    """LoRA+: the Trainer's optimizer, with a learning rate of its own for the second factors."""
    from peft.optimizers import create_loraplus_optimizer

    made, options = trainer.get_optimizer_cls_and_kwargs(trainer.args, trainer.model)
    options = {name: value for name, value in options.items() if name != "lr"}
    return create_loraplus_optimizer(
        trainer.model,
        made,
        lr=trainer.args.learning_rate,
        loraplus_lr_ratio=ratio,
        loraplus_weight_decay=trainer.args.weight_decay,
        **options,
    )


@contextmanager
def offloading(on: bool) -> Iterator[None]:
    """What is saved for the backward pass goes to the memory of the CPU."""
    if not on:
        yield
        return
    import torch

    with torch.autograd.graph.save_on_cpu(pin_memory=torch.cuda.is_available()):
        yield


def refuse_unusable(config: RunConfig) -> None:
    """Find before anything is generated what cannot be trained with here.

    Raises:
        ConfigError: a setting needs an adapter, a GPU or a package that is not there, or does not go with another.
    """
    settings = config.train
    problems = [*_combinations(config), *_packages(settings)]
    if models.device() == "cpu":
        wanted = settings.attn_implementation
        if wanted in NEEDS_GPU:
            problems.append(f"train.attn_implementation: {wanted} cannot be trained with on a CPU; use sdpa or eager")
        if settings.use_liger_kernel:
            problems.append("train.use_liger_kernel: its kernels need a GPU; set it to false")
    if problems:
        raise ConfigError("\n".join(f"{problem}." for problem in problems))


def _combinations(config: RunConfig) -> Iterator[str]:
    settings = config.train
    if settings.quantization is not None and settings.lora is None:
        yield "train.quantization: weights of 4 bits cannot be trained themselves; set train.lora, or leave it out"
    if settings.attn_implementation in PACKAGES and not settings.bf16:
        yield f"train.attn_implementation: {settings.attn_implementation} knows no float32; set train.bf16=true"
    if settings.lora is not None and settings.lora.use_dora and config.method.share_of_end() != 1.0:
        yield (
            "train.lora.use_dora: between the start and the end of a DoRA adapter lies no straight line of weights, on "
            "which this method ends; set it to false"
        )


def _packages(settings: TrainSettings) -> Iterator[str]:
    """What is asked for and not installed."""
    wanted: dict[str, str] = {}
    if settings.quantization is not None:
        wanted["train.quantization"] = "bitsandbytes"
    if "bnb" in settings.optim or settings.optim.endswith("8bit"):
        wanted["train.optim"] = "bitsandbytes"
    if settings.use_liger_kernel:
        wanted["train.use_liger_kernel"] = "liger_kernel"
    if settings.attn_implementation in PACKAGES:
        wanted["train.attn_implementation"] = PACKAGES[settings.attn_implementation]
    how = {"bitsandbytes": "pip install 'radistill[gpu]'", "liger_kernel": "pip install 'radistill[gpu]'"}
    for key, package in wanted.items():
        if importlib.util.find_spec(package) is None:
            install = how.get(package, f"see the pages of {package} for a build that fits your GPU")
            yield f"{key} needs the package {package}, which is not installed: {install}, or choose another"
