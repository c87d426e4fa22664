"""What `check` tells of the training to come: memory at its worst moment, and time. See `estimate.py`."""

import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from radistill import seeds
from radistill.config import RunConfig
from radistill.methods._composed import flag
from radistill.records import Request
from radistill.speaker import Speaker

if TYPE_CHECKING:
    from radistill.check import Findings

TOLERANCE = 0.25
"""By so much the estimate of memory may be off."""
HOW = (
    "memory played through without weights, rationales as long as they may become; time of some steps of fewer layers "
    "with random weights on this machine, without what soft labels, penalties and the model's own writing add"
)


@dataclass(frozen=True)
class Lengths:
    """Tokens of some records, as long as they may become, and how many of them are trained."""

    whole: Sequence[int]
    trained: Sequence[int]

    @classmethod
    def of(cls, requests: Sequence[Request], openings: Sequence[Any], context: int | None, new: int) -> "Lengths":
        """Of what is asked about examples; where nothing is asked, of their openings."""
        whole, trained = [], []
        for ids, spans in [(r.prompt_ids, r.spans) for r in requests] or [(o.ids, o.spans) for o in openings]:
            prompt = max((span.stop for span in spans if span.origin == "prompt"), default=len(ids) if requests else 0)
            size = min(len(ids) + new + 1, context or len(ids) + new + 1)
            whole.append(size)
            trained.append(max(1, size - prompt))
        return cls(whole, trained)


def look(config: RunConfig, speaker: Speaker, lengths: Lengths, *, total: int, found: "Findings") -> None:
    """Put the estimate into the facts, and a problem or a note beside it where memory will not or may not suffice."""
    try:
        told = facts(config, speaker, lengths, total=total)
    except Exception as error:  # an architecture that cannot be played through can still be trained
        first = str(error).strip().partition("\n")[0]
        found.notes.append(f"memory and time of the training are not known: {type(error).__name__}: {first}")
        return
    found.facts["training"] = told
    need, there = told["memory_bytes"]["total"], told["memory_bytes"]["available"]
    if there is None or need < there * (1 - TOLERANCE):
        return
    said = (
        f"training takes about {need / 1e9:.1f} GB of the {there / 1e9:.1f} GB of {told['device']}. Set "
        "train.auto_find_batch_size=true, train.gradient_checkpointing=true, or train.lora, if you have not"
    )
    (found.problems if need > there * (1 + TOLERANCE) else found.notes).append(said)


def facts(config: RunConfig, speaker: Speaker, lengths: Lengths, *, total: int) -> dict[str, Any]:
    """Bytes and seconds.

    Args:
        config: the run's.
        speaker: the model that is trained.
        lengths: of some records.
        total: so many records are trained on in an epoch.
    """
    from radistill import models
    from radistill.estimate import Shape, Training

    settings = config.train
    size, packing = settings.per_device_train_batch_size, settings.packing
    order = sorted(range(len(lengths.whole)), key=lambda i: -lengths.whole[i])[:size]
    draw = seeds.generator(config.seed, "check", "time").permutation(len(lengths.whole))[:size]
    worst, usual = (
        Shape.of([lengths.whole[i] for i in at], [lengths.trained[i] for i in at], packing=packing)
        for at in (order, draw)
    )
    training = Training(
        speaker.weights,
        settings,
        trust_remote_code=config.trust_remote_code,
        has_untouched=settings.labels == "live" or flag(config.method, "uses_reference"),
        device=models.device(),
    )
    memory = training.memory(worst)
    each_pass, each_step = training.seconds(usual)
    accumulation = settings.gradient_accumulation_steps
    steps = settings.max_steps
    if steps <= 0:
        steps = max(1, math.ceil(math.ceil(total / (size * accumulation)) * settings.num_train_epochs))
    seconds = each_pass * accumulation + each_step
    return {
        "device": models.device_name(),
        "memory_bytes": {**asdict(memory), "total": memory.total, "available": available(training.device)},
        "longest_micro_batch": {
            "records": min(size, len(lengths.whole)),
            "rows": worst.rows,
            "tokens_each": worst.width,
        },
        "steps": steps,
        "seconds_each": float(np.round(seconds, 4)),
        "seconds": float(np.round(steps * seconds, 1)),
        "how": HOW,
    }


def available(device: str) -> int | None:
    """Bytes that a device has in all; None if it does not say."""
    if device == "cuda":
        import torch

        return int(torch.cuda.get_device_properties(0).total_memory)
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


def lines(told: dict[str, Any]) -> list[str]:
    """For people."""
    memory = told["memory_bytes"]
    parts = ", ".join(
        f"{name} {_size(memory[name])}"
        for name in ("parameters", "gradients", "optimizer", "activations", "untouched")
        if memory[name]
    )
    of = "" if memory["available"] is None else f" of {_size(memory['available'])}"
    batch = told["longest_micro_batch"]
    minutes = told["seconds"] / 60
    spent = (
        f"{told['seconds']:.0f} s"
        if minutes < 2
        else f"{minutes:.0f} min"
        if minutes < 120
        else f"{minutes / 60:.1f} h"
    )
    return [
        f"memory of training: about {_size(memory['total'])}{of} on {told['device']} ({parts}), with the "
        f"{batch['records']} longest records in {batch['rows']} rows of {batch['tokens_each']} tokens",
        f"time of training: about {spent} for {told['steps']:,} steps of {told['seconds_each']:.3g} s",
        f"  ({told['how']})",
    ]


def _size(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
