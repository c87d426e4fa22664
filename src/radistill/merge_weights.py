"""Base + adapter: loaded whole, added in float32, rounded once, written."""

import gc
import shutil
import warnings
from pathlib import Path
from typing import Any

from radistill import merge_check, models
from radistill.chat import Chat, ChatSettings, load_chat
from radistill.errors import ModelError, SharingError
from radistill.models import Weights

TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json"),
    *("merges.txt", "vocab.txt", "*.model", "*.tiktoken", "chat_template.*", "generation_config.json"),
)


def add(
    weights: Weights, part: Path, probes: list[merge_check.Probe], dtype: str, chat: Chat, *, trust_remote_code: bool
) -> merge_check.Exact:
    """Add, round and write; what base and adapter, base alone and the sum say in float32.

    Raises:
        ModelError: the adapter was made for another model.
        SharingError: it is of a kind that cannot be added to the weights.
    """
    import torch

    model: Any = load(weights, "float32", trust_remote_code=trust_remote_code)
    if not hasattr(model.base_model, "merge_and_unload"):
        kind = type(model.base_model).__name__
        raise SharingError(f"{weights.name} is an adapter of the kind {kind}, which is no part of the weights.")
    asked = merge_check.asked(model, probes, chat, weights)
    with model.disable_adapter():
        untouched = merge_check.logits(model, probes)
    untie(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about tied weights, which are looked after here
        model = model.merge_and_unload(safe_merge=True)
    retie(model)
    exact = merge_check.Exact(asked, untouched, merge_check.logits(model, probes))
    merge_check.refuse_inexact(exact)
    model = model.to(getattr(torch, dtype))
    stored = part / "generation_config.json"
    ends = stored.read_bytes() if stored.exists() else None
    with models.without_bars():
        model.save_pretrained(str(part), safe_serialization=True)
    # What was written with the weights is neutral and would hide where answers end.
    stored.unlink(missing_ok=True)
    if ends is not None:
        stored.write_bytes(ends)
    del model
    gc.collect()
    return exact


def load(weights: Weights, dtype: str, *, trust_remote_code: bool) -> Any:
    """Base and adapter, of which every tensor has found its place.

    Raises:
        ModelError: the adapter was made for another model.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # PEFT's, about what is refused below
        model = models.load(weights, dtype=dtype, trust_remote_code=trust_remote_code)
    from peft import get_peft_model_state_dict
    from safetensors import safe_open

    assert weights.adapter is not None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        has = set(get_peft_model_state_dict(model, save_embedding_layers=False))
    with safe_open(weights.adapter / models.ADAPTER, framework="pt") as file:
        stored = set(file.keys())
    lost, empty = stored - has - set(model.state_dict()), has - stored
    if lost or empty:
        some = min(lost or empty)
        raise ModelError(
            f"{weights.name} was made for another model than {weights.folder.name}: {len(lost)} of its tensors have no "
            f"place there, {len(empty)} places stay empty ({some}). Name its own base: --base FOLDER_OR_HUB_ID."
        )
    return model


def untie(model: Any) -> None:
    """Give input and output embeddings a weight each where an adapter changes one of a shared pair.

    Both use the same tensor, but only one of them adds the adapter's update: added to the tensor it would reach both.
    """
    import torch
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    inner = model.get_base_model()
    ends: tuple[Any, Any] = inner.get_input_embeddings(), inner.get_output_embeddings()
    adapted = (BaseTunerLayer, AuxiliaryTrainingWrapper)
    if any(end is None for end in ends) or not any(isinstance(end, adapted) for end in ends):
        return
    plain = [e.get_base_layer() if isinstance(e, BaseTunerLayer) else e for e in ends]
    first: Any
    last: Any
    first, last = (e.original_module if isinstance(e, AuxiliaryTrainingWrapper) else e for e in plain)
    if first.weight is last.weight:
        last.weight = torch.nn.Parameter(last.weight.detach().clone(), requires_grad=False)


def retie(model: Any) -> None:
    """Let the config say whether input and output embeddings are one tensor, and make them one if they are equal."""
    import torch

    ends = model.get_input_embeddings(), model.get_output_embeddings()
    if any(end is None for end in ends) or ends[0].weight is ends[1].weight:
        return
    configs = {id(c): c for c in (model.config, model.config.get_text_config())}.values()
    if not any(getattr(config, "tie_word_embeddings", False) for config in configs):
        return
    if torch.equal(ends[0].weight, ends[1].weight):
        ends[1].weight = ends[0].weight
        return
    for config in configs:
        config.tie_word_embeddings = False


def copy_tokenizer(weights: Weights, part: Path, *, with_code: bool) -> None:
    """Copy tokenizer, chat template and generation config byte by byte: saved anew they would be another version's."""
    own, below = weights.tokenizer_folder, weights.folder
    patterns = (*TOKENIZER_FILES, *(("*.py",) if with_code else ()))
    # SentencePiece's file and the generation config of the base as well, where the adapter brings none.
    found = [*below.glob("*.model"), *below.glob("generation_config.json")]
    found += [file for pattern in patterns for file in own.glob(pattern)]
    for file in found:
        shutil.copyfile(file, part / file.name)
    if (own / "chat_templates").is_dir():
        shutil.copytree(own / "chat_templates", part / "chat_templates")


def refuse_another_tokenizer(chat: Chat, weights: Weights, settings: ChatSettings, *, trust_remote_code: bool) -> None:
    """Refuse a copy that spells anything otherwise, as one would of which a file is not known here.

    Raises:
        SharingError: it does.
    """
    before = load_chat(weights.tokenizer_folder, settings, name=weights.name, trust_remote_code=trust_remote_code)
    one, other = before.tokenizer, chat.tokenizer
    spelled = one.backend_tokenizer.to_str() == other.backend_tokenizer.to_str()
    if not spelled or one.chat_template != other.chat_template:
        raise SharingError(
            f"the tokenizer of {weights.name} is another one after it was copied. Nothing was kept; please report "
            f"the names of the files in {weights.tokenizer_folder}."
        )
