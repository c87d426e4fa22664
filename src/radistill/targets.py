"""Which modules of a model an adapter is put on: never the output head."""

from typing import Any

from radistill.errors import ModelError, did_you_mean
from radistill.stage_settings import LoraSettings


def targets_of(model: Any, settings: LoraSettings) -> str | list[str]:
    """The target modules as PEFT takes them; it would leave out in silence what it does not find.

    Raises:
        ModelError: one is not in the model, or is the output head.
    """
    import torch

    if settings.target_modules == "all-linear":
        return "all-linear"
    wanted = settings.target_modules
    targets = [wanted] if isinstance(wanted, str) else list(wanted)
    modules = {name: module for name, module in model.named_modules() if name}
    head = next((name for name, module in modules.items() if module is model.get_output_embeddings()), None)
    linear = [name for name, module in modules.items() if isinstance(module, torch.nn.Linear) and name != head]
    known = sorted({name.rpartition(".")[2] for name in linear})
    places = {target: [n for n in modules if n == target or n.endswith(f".{target}")] for target in targets}
    unknown = tuple(target for target in targets if not places[target])
    if unknown:
        raise ModelError(
            f"train.lora.target_modules: {unknown!r} is not in this model; it has {known}."
            f"{did_you_mean(unknown[0], known)}"
        )
    if any(head in found for found in places.values()):
        raise ModelError(
            f"train.lora.target_modules: {head!r} is the output head, which is never adapted; there are {known}."
        )
    return targets
