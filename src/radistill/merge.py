"""An adapter and its base → one full model, in Hugging Face layout, of which it is shown that it answers alike.

The sum is made in float32 and rounded once, to the precision of the result. What lies on the disk then is read back and
compared with base and adapter (`merge_check`): more than rounding, and nothing is left of it. A base whose weights are
quantised is refused: what was rounded away there would stay away.
"""

import gc
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypedDict

from radistill import adapters, cards, merge_check, merge_weights, models
from radistill.adapters import Source
from radistill.chat import ChatSettings, load_chat
from radistill.errors import RadistillError, RunFolderError, SharingError
from radistill.files import atomic_folder, write_json, write_text
from radistill.merge_check import Comparison
from radistill.models import Weights
from radistill.runs import versions

DTYPES = ("auto", "bfloat16", "float16", "float32")
MERGED = "merged"
"""Name of the folder in a run folder."""
NOTE = "merge.json"
"""What was merged, and what the comparison said; a folder without it is none of ours."""
Say = Callable[[str], None]


class _Code(TypedDict):
    trust_remote_code: bool


@dataclass(frozen=True)
class Merged:
    """A merged model on this machine."""

    folder: Path
    dtype: str
    comparison: Comparison
    is_new: bool
    """False: it was there before, made of the same weights in the same way."""


def merge(
    name: str,
    *,
    output: Path | None = None,
    dtype: str = "auto",
    base: str | None = None,
    redo: bool = False,
    trust_remote_code: bool = False,
    say: Say = lambda _: None,
) -> Merged:
    """Write base + adapter as one model; nothing is done where that was done before.

    Args:
        name: run folder, adapter's folder or hub id of an adapter.
        output: folder to write; None = `merged` in the run folder.
        dtype: of the weights that are written; `auto` = that of the base.
        base: folder or hub id of the base, where it is not where the adapter says.
        redo: replace an earlier merged model that is not of these weights.
        trust_remote_code: run code that came with the model.
        say: told what is going on.

    Raises:
        SharingError: there is nothing to merge, or the result is another model.
        ModelError: base or adapter cannot be found, loaded or put together.
        RunFolderError: the run is not trained, or something else is at `output`.
    """
    if dtype not in DTYPES:
        raise SharingError(f"--dtype: {dtype!r} is none of {', '.join(DTYPES)}.")
    source = adapters.find(name, base=base, trust_remote_code=trust_remote_code)
    adapters.refuse_quantised(source.weights, source.base_name)
    folder = output or (source.run.path / MERGED if source.run is not None else None)
    if folder is None:
        raise SharingError(f"{name} belongs to no run folder, so name one for the merged model: --output DIR.")
    wanted = models.stored_dtype(source.weights.folder) if dtype == "auto" else dtype
    precision = str(wanted).removeprefix("torch.")
    made_of = {"base": source.weights.identity.split("+")[0], "adapter": source.adapter_identity, "dtype": precision}
    before = _there(folder, made_of, redo=redo)
    if before is not None:
        return before
    inside = source.run is not None and folder.resolve().is_relative_to(source.run.path.resolve())
    with source.run.lock() if source.run is not None and inside else nullcontext(), atomic_folder(folder) as part:
        comparison = _written(source, part, precision, trust_remote_code=trust_remote_code, say=say)
        note = {"schema": 1, "made_of": made_of, "compared": asdict(comparison), "versions": versions()}
        write_json(part / NOTE, note)
        facts = merge_check.in_words(comparison, precision)
        write_text(part / "README.md", cards.of_merged(source.title, source.base_name, facts, source.config))
    return Merged(folder, precision, comparison, is_new=True)


def _there(folder: Path, made_of: dict[str, str], *, redo: bool) -> Merged | None:
    """The merged model that is at that place already, if it is the one that is wanted.

    Raises:
        RunFolderError: it is another one and must stay, or no merged model at all.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    note = read_note(folder)
    if note is None:
        raise RunFolderError(
            f"{folder} is there already and is no merged model, so it is left alone. Name another one: --output DIR."
        )
    if redo:
        return None
    before = note["made_of"]
    different = [key for key in made_of if before.get(key) != made_of[key]]
    differing = [f"  {key}: {before.get(key)} there, {made_of[key]} now" for key in different]
    found = _comparison(note)
    if found is None:
        differing.append("  another version of radistill has written it")
    if found is None or differing:
        raise RunFolderError(
            f"{folder} holds another merged model:\n" + "\n".join(differing) + "\nReplace it with radistill merge "
            "--redo, or name another folder with --output DIR."
        )
    return Merged(folder, made_of["dtype"], found, is_new=False)


def read_note(folder: Path) -> dict[str, Any] | None:
    """What is written down about a merged model; None where it is none of ours."""
    try:
        stored = json.loads((folder / NOTE).read_text(encoding="utf-8"))
        dict(stored["made_of"])
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return dict(stored)


def _comparison(note: dict[str, Any]) -> Comparison | None:
    try:
        return Comparison(**note["compared"])
    except (LookupError, TypeError):
        return None


def _written(source: Source, part: Path, dtype: str, *, trust_remote_code: bool, say: Say) -> Comparison:
    """Fill the folder, read it back and compare."""
    weights, options = source.weights, _Code(trust_remote_code=trust_remote_code)
    settings = ChatSettings() if source.config is None else source.config.chat
    settings = settings.model_copy(update={"on_mismatch": "warn"})  # nothing is trained here
    merge_weights.copy_tokenizer(weights, part, with_code=trust_remote_code)
    # Read from where it was copied to: that is the chat of the merged model.
    chat = load_chat(part, settings, name=source.title, **options)
    merge_weights.refuse_another_tokenizer(chat, weights, settings, **options)
    records = source.run.records if source.run is not None else None
    probes = merge_check.probes(records, chat, models.context_length(weights.folder))
    with _memory_is_a_message():
        say(f"adding the adapter of {source.title} to {cards.shown(source.base_name)}, in float32")
        exact = merge_weights.add(weights, part, probes, dtype, chat, **options)
        asked = exact.unmerged
        if dtype != "float32":
            say(f"asking base and adapter {len(probes)} questions, in {dtype}")
            asked = merge_check.asked(merge_weights.load(weights, dtype, **options), probes, chat, weights)
            gc.collect()
        say(f"asking what was written the same, in {dtype}")
        read_back = Weights(name=str(part), folder=part, identity=MERGED)
        found = merge_check.asked(models.load(read_back, dtype=dtype, **options), probes, chat, read_back)
        gc.collect()
    return merge_check.compared(exact, asked, found, dtype=dtype)


@contextmanager
def _memory_is_a_message() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, RadistillError) or not models.is_out_of_memory(error):
            raise
        raise SharingError(
            "merging does not fit into memory: it takes 4 bytes for each parameter of the base. On a GPU that is too "
            "small, merge on the CPU: set CUDA_VISIBLE_DEVICES to nothing and run the same command again."
        ) from error
