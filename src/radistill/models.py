"""Models: find, identify, load, adapt, save.

Weights are read from safetensors only. `resolve` touches no weights but to hash them; torch is imported where a model
is really loaded.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from radistill.errors import ModelError, RadistillError, did_you_mean
from radistill.files import sha256, write_json
from radistill.lab import POCKET, POCKET_NAME

if TYPE_CHECKING:
    from radistill.stage_settings import LoraSettings

WEIGHT_FILES = "*.safetensors"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
ADAPTER = "adapter_model.safetensors"
HUB_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")
HUB_COPIES = ("original/*", "consolidated*.safetensors")
"""The same weights once more, in the format of whoever made them."""


@dataclass(frozen=True)
class Weights:
    """A model on this machine: a folder, and perhaps an adapter's folder on top of it."""

    name: str
    """As the user wrote it: what adapters and model cards refer to."""
    folder: Path
    identity: str
    """Hash of the weights and of the config, or hub id and commit: equal identities answer alike."""
    adapter: Path | None = None

    @property
    def tokenizer_folder(self) -> Path:
        """Where the tokenizer lies: with the adapter if that brought one."""
        if self.adapter and (self.adapter / "tokenizer_config.json").exists():
            return self.adapter
        return self.folder


def resolve(name: str, *, revision: str | None = None, trust_remote_code: bool = False) -> Weights:
    """Find a model by folder, run folder or hub id; nothing is loaded, but what the hub has is fetched.

    `pocket` is the lab's model, which comes with this package, whatever the working directory holds.

    Raises:
        ModelError: it is not there, holds no safetensors weights, or cannot be fetched.
    """
    path = POCKET if name == POCKET_NAME else Path(name).expanduser()
    if not path.exists():
        return _from_hub(name, revision, with_code=trust_remote_code)
    for folder in (path / "model", path):
        if (folder / "adapter_config.json").exists():
            return _adapted(folder, with_code=trust_remote_code)
        if (folder / "config.json").exists():
            _require_safetensors(folder, name)
            return Weights(name=name, folder=folder, identity=fingerprint(folder))
    raise ModelError(
        f"{name} holds no model: neither config.json nor adapter_config.json is there, nor in {name}/model. "
        "Name a Hugging Face model folder, an adapter, a finished run folder or a hub id."
    )


def fingerprint(folder: Path) -> str:
    """sha256 over config and weights of a folder; remembered by size and time so that it is computed once."""
    files = sorted(
        [
            *folder.glob(WEIGHT_FILES),
            *(p for p in [folder / "config.json", folder / "adapter_config.json"] if p.exists()),
        ]
    )
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name}\0{_remembered_sha256(file)}\n".encode())
    return f"sha256:{digest.hexdigest()[:32]}"


def load(
    weights: Weights,
    *,
    dtype: str = "auto",
    attention: str | None = None,
    trust_remote_code: bool = False,
    quantization: str | None = None,
) -> Any:
    """The model on this machine's device (the first GPU, else the CPU), in evaluation mode.

    Args:
        weights: from `resolve`.
        dtype: `auto` (as stored), `float32`, `bfloat16` or `float16`.
        attention: transformers' `attn_implementation`; None = its choice.
        trust_remote_code: run code that came with the model.
        quantization: `nf4`: linear layers but the head in 4 bits, by bitsandbytes, computed with in `dtype`.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, GenerationConfig

    options: dict[str, Any] = {"attn_implementation": attention} if attention else {}
    if quantization is not None:
        options |= {"quantization_config": _four_bits(getattr(torch, dtype)), "device_map": {"": device()}}
    model: Any
    found: Any
    try:
        with without_bars():
            model, found = AutoModelForCausalLM.from_pretrained(
                str(weights.folder),
                dtype=dtype if dtype == "auto" else getattr(torch, dtype),
                use_safetensors=True,
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
                **options,
            )
        if weights.adapter is not None:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, str(weights.adapter))
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{weights.name} cannot be loaded: {str(error).strip().partition(chr(10))[0]}") from error
    if found["missing_keys"]:
        # transformers would go on with random numbers in their place.
        some = ", ".join(sorted(found["missing_keys"])[:3])
        raise ModelError(f"{weights.name} lacks {len(found['missing_keys'])} of its tensors ({some}): fetch it again.")
    # The model's own defaults (repetition penalty, top_k …) must not leak into what the run's settings say.
    model.generation_config = GenerationConfig()
    return model.eval() if quantization is not None else model.to(device()).eval()


def _four_bits(dtype: Any) -> Any:
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


@contextmanager
def without_bars() -> Iterator[None]:
    """Transformers' bars for reading and writing shards would stand between the lines of our own progress."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of any engine means that memory did not suffice."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text


def device() -> str:
    """`cuda`, `mps` or `cpu`: where models run in this process."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def device_name() -> str:
    """The device in words, for manifests."""
    import platform

    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return f"{device()} ({platform.machine()}, {torch.get_num_threads()} threads)"


def context_length(folder: Path) -> int | None:
    """How many positions the model was made for, if its config says."""
    config = read_object(folder / "config.json")
    found = config.get("max_position_embeddings") or config.get("n_positions")
    return int(found) if found else None


def stored_dtype(folder: Path) -> Any:
    """The torch dtype that the model's config names, float32 where it names none."""
    import torch

    config = read_object(folder / "config.json")
    return getattr(torch, str(config.get("dtype") or config.get("torch_dtype") or "float32"))


def refuse_adapter(weights: Weights) -> None:
    """Refuse to train what is an adapter: a second one on top of it could not be loaded again.

    Raises:
        ModelError: these weights are an adapter and its base.
    """
    if weights.adapter is not None:
        raise ModelError(
            f"{weights.name} is an adapter itself, and one on top of it could not be loaded again. Merge it into its "
            f"base first, and name the merged folder as model: radistill merge {weights.name} --output NEW_FOLDER."
        )


def refuse_unknown_targets(weights: Weights, settings: "LoraSettings", *, trust_remote_code: bool = False) -> None:
    """Look for the LoRA targets in the model's skeleton, without loading its weights.

    Raises:
        ModelError: a target module is not in the model.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    if settings.target_modules == "all-linear":
        return
    config = AutoConfig.from_pretrained(str(weights.folder), trust_remote_code=trust_remote_code)
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    adapt(skeleton, settings, base_name=weights.name, seed=0)


def length_limit(folder: Path, wanted: int | None) -> int | None:
    """The longest record that may be trained on: what the user wants, but never more than the model's context."""
    known = [limit for limit in (wanted, context_length(folder)) if limit is not None]
    return min(known, default=None)


def adapt(model: Any, settings: "LoraSettings", *, base_name: str, seed: int, revision: str | None = None) -> Any:
    """The model with fresh LoRA adapters; all other weights are frozen.

    Raises:
        ModelError: a target module is not in the model, or is the output head.
    """
    import torch
    from peft import LoraConfig, get_peft_model

    from radistill.targets import targets_of

    targets = targets_of(model, settings)
    config = LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=targets,
        use_dora=settings.use_dora,
        use_rslora=settings.use_rslora,
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(seed)
    try:
        adapted = get_peft_model(model, config)
    except ValueError as error:
        raise ModelError(f"train.lora: {str(error).strip().partition(chr(10))[0]}") from error
    # PEFT would store the resolved folder; a hub id is what another machine can find.
    stored = adapted.peft_config["default"]
    stored.base_model_name_or_path = base_name
    stored.revision = revision
    # A set, whose order is another in each process: equal adapters would not have equal files, nor one identity.
    stored.target_modules = sorted(stored.target_modules)
    return adapted


def move_back(model: Any, start: Weights, share: float, *, is_adapter: bool) -> None:
    """Make every weight of a trained model start + share x (end - start), in place (WiSE-FT, arXiv 2109.01903).

    An adapter's update is a product of two factors, of which the second is scaled.
    """
    import torch

    with torch.no_grad():
        if is_adapter:
            for name, parameter in model.named_parameters():
                if "lora_B" in name or "lora_embedding_B" in name:
                    parameter.mul_(share)
            return
        before = dict(load(start, dtype="float32").named_parameters())
        for name, parameter in model.named_parameters():
            parameter.lerp_(before[name].to(parameter), 1.0 - share)


def save(model: Any, tokenizer: Any, folder: Path, *, generation_config: Path | None = None) -> None:
    """Write model or adapter, tokenizer and the untouched model's generation config in Hugging Face / PEFT layout."""
    folder.mkdir(parents=True, exist_ok=True)
    with without_bars():
        model.save_pretrained(str(folder), safe_serialization=True)
    tokenizer.save_pretrained(str(folder))
    for file in folder.glob(WEIGHT_FILES):
        # safetensors makes files that only their owner may read.
        file.chmod((folder / "tokenizer_config.json").stat().st_mode & 0o666)
    if generation_config is not None and generation_config.exists():
        write_json(folder / "generation_config.json", json.loads(generation_config.read_text(encoding="utf-8")))


def _adapted(folder: Path, *, with_code: bool) -> Weights:
    config = read_object(folder / "adapter_config.json")
    if not (folder / ADAPTER).exists():
        # PEFT would open adapter_model.bin instead, which can run code.
        raise ModelError(f"{folder} is an adapter without {ADAPTER}. Save it again with safe_serialization.")
    named = config.get("base_model_name_or_path")
    if not named:
        raise ModelError(f"{folder} is an adapter whose adapter_config.json names no base_model_name_or_path.")
    if Path(named).exists() and Path(named).resolve() in (folder.resolve(), folder.resolve().parent):
        raise ModelError(f"{folder} is an adapter that names itself as its base. Correct its adapter_config.json.")
    try:
        base = resolve(str(named), revision=config.get("revision"), trust_remote_code=with_code)
    except ModelError as error:
        raise ModelError(f"{folder} is an adapter, and its base cannot be found: {error}") from error
    if base.adapter is not None:
        raise ModelError(
            f"{folder} is an adapter of {named}, which is an adapter itself. Merge that one into its base first."
        )
    identity = f"{base.identity}+{fingerprint(folder)}"
    return Weights(name=str(folder), folder=base.folder, identity=identity, adapter=folder)


def _require_safetensors(folder: Path, name: str) -> None:
    if list(folder.glob(WEIGHT_FILES)):
        return
    pickles = sorted(p.name for pattern in PICKLES for p in folder.glob(pattern) if p.name != "training_args.bin")
    if not pickles:
        raise ModelError(f"{name} holds a config.json but no weights ({WEIGHT_FILES}).")
    raise ModelError(
        f"{name} holds its weights only as {', '.join(pickles[:3])}: pickle files can run code when they are opened, "
        "so radistill reads safetensors only. Convert them on a machine you trust: "
        "AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER)."
    )


def _from_hub(name: str, revision: str | None, *, with_code: bool) -> Weights:
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(f"no model at {name}: the folder does not exist.{_near(name)}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    wanted = [*HUB_FILES, *(["*.py"] if with_code else [])]
    try:
        snapshot = snapshot_download(name, revision=revision, allow_patterns=wanted, ignore_patterns=list(HUB_COPIES))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ModelError(
            f"no model {name!r}: there is no such folder here, and it cannot be fetched from the hub ({reason})."
            f"{_near(name)} Name a folder, or check the hub id, the network and HF_TOKEN."
        ) from error
    folder = Path(snapshot)
    if (folder / "adapter_config.json").exists():
        return _adapted(folder, with_code=with_code)
    _require_safetensors(folder, name)
    return Weights(name=name, folder=folder, identity=f"{name}@{folder.name}")


def _near(name: str) -> str:
    parent = Path(name).parent
    siblings: Iterable[Path] = parent.iterdir() if parent.is_dir() else ()
    return did_you_mean(name, [str(p) for p in siblings if p.is_dir()])


def _remembered_sha256(path: Path) -> str:
    stat = path.stat()
    key = f"{path.resolve()}:{stat.st_size}:{stat.st_mtime_ns}"
    known: Any = {}
    cache = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "radistill" / "checksums.json"
    # A home that is not there or cannot be written to costs a second hashing, nothing else.
    with contextlib.suppress(OSError, ValueError):
        known = json.loads(cache.read_text(encoding="utf-8"))
    if not isinstance(known, dict) or not isinstance(known.get(key, ""), str):
        known = {}
    if key not in known:
        known[key] = sha256(path)
        with contextlib.suppress(OSError, RadistillError):
            write_json(cache, known)
    return str(known[key])


def read_object(file: Path) -> dict[str, Any]:
    """The object in a JSON file of a model."""
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{file} is not valid JSON ({error}). Fetch the model again.") from error
    if not isinstance(stored, dict):
        raise ModelError(f"{file} holds no JSON object. Fetch the model again.")
    return stored
