"""A model → a GGUF file, by the converter of a llama.cpp checkout, in whatever environment that needs.

radistill converts nothing itself: tokenizers and architectures are llama.cpp's business, and the converter says best
what it does not know.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from radistill import adapters, models
from radistill.errors import ModelError, RunFolderError, SharingError, did_you_mean
from radistill.files import part_folder, settle, sync_folder
from radistill.merge import merge
from radistill.runs import require

SCRIPT = "convert_hf_to_gguf.py"
TYPES = ("f32", "f16", "bf16", "q8_0", "auto")
"""What the converter writes by itself."""
MAGIC = b"GGUF"
TAIL = 15
"""Lines of what the converter said that are shown when it fails."""


@dataclass(frozen=True)
class Conversion:
    """How to convert."""

    checkout: Path
    """Of llama.cpp."""
    outtype: str = "q8_0"
    env: Path | None = None
    """Environment in which the converter runs; None = radistill's own."""

    @property
    def script(self) -> Path:
        """The converter."""
        return self.checkout.expanduser() / SCRIPT

    @property
    def python(self) -> Path:
        """The interpreter that runs it."""
        return self.env.expanduser() / "bin" / "python" if self.env is not None else Path(sys.executable)


def export(
    name: str,
    output: Path,
    how: Conversion,
    *,
    base: str | None = None,
    redo: bool = False,
    trust_remote_code: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Path:
    """Write a GGUF file, whole or not at all; the run's merged model is made for it if it holds an adapter.

    Args:
        name: run folder, or the folder of a full model.
        output: file to write.
        how: converter, type of the weights, environment.
        base: of the adapter, where it is not where that says.
        redo: replace a file that is there.
        trust_remote_code: run code that came with the model, to merge it.
        say: told what is going on.

    Raises:
        SharingError: there is no converter, or it fails.
        RunFolderError: the file is there already, or the run is not trained.
        ModelError: there is no model.
    """
    _refuse_unusable(output, how, redo=redo)
    folder = _full_model(name, base=base, trust_remote_code=trust_remote_code, say=say)
    say(f"converting {folder} to {how.outtype} with {how.script}")
    with part_folder(output) as part:
        made = part / output.name
        _convert(folder, made, how)
        settle(made)
        made.replace(output)
        sync_folder(output.parent)
    return output


def _refuse_unusable(output: Path, how: Conversion, *, redo: bool) -> None:
    if how.outtype not in TYPES:
        smaller = " Smaller ones are made by llama.cpp's llama-quantize from a file of type f16 or bf16."
        raise SharingError(
            f"--type: {how.outtype!r} is none of {', '.join(TYPES)}.{did_you_mean(how.outtype, TYPES) or smaller}"
        )
    if not how.script.is_file():
        raise SharingError(
            f"{how.checkout} is no checkout of llama.cpp: it has no {SCRIPT}. Get one with git clone "
            "https://github.com/ggml-org/llama.cpp, and name its folder: --llama-cpp DIR."
        )
    if not how.python.exists():
        raise SharingError(f"--env: {how.env} is no environment: there is no {how.python}.")
    if output.is_dir():
        raise RunFolderError(f"{output} is a folder. Name the file to write: --output {output / 'model.gguf'}.")
    if output.exists() and not redo:
        raise RunFolderError(f"{output} is there already. Replace it with --redo, or name another file.")


def _full_model(name: str, *, base: str | None, trust_remote_code: bool, say: Callable[[str], None]) -> Path:
    """The folder to convert: of a run's full model, of its merged one, or the one that was named."""
    path = Path(name).expanduser()
    run = adapters.run_of(path)
    if run is not None:
        require(run, "train")
    weights = None if base is not None else _resolved(name, trust_remote_code=trust_remote_code)
    if weights is not None and weights.adapter is None:
        adapters.refuse_quantised(weights, name)
        return weights.folder
    if run is None:
        raise SharingError(
            f"{name} is an adapter outside a run folder. Merge it first, radistill merge {name} --output DIR, and "
            "export that folder."
        )
    return merge(name, base=base, trust_remote_code=trust_remote_code, say=say).folder


def _resolved(name: str, *, trust_remote_code: bool) -> models.Weights | None:
    """None if it is an adapter whose base is not where that says: merging has its own words for it."""
    try:
        return models.resolve(name, trust_remote_code=trust_remote_code)
    except ModelError:
        path = Path(name).expanduser()
        if any((place / "adapter_config.json").exists() for place in (path, path / "model")):
            return None
        raise


def _convert(folder: Path, made: Path, how: Conversion) -> None:
    """Run the converter.

    Raises:
        SharingError: it fails, or leaves no GGUF file.
    """
    # Absolute, but not resolved: the interpreter of an environment is a link to another one.
    command = [how.python.absolute(), how.script.resolve(), folder.resolve(), "--outfile", made.resolve()]
    done = subprocess.run(
        [*map(str, command), "--outtype", how.outtype],
        env=_environment(how),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    said = "\n".join(f"  {line}" for line in done.stdout.strip().splitlines()[-TAIL:]) or "  nothing"
    if done.returncode != 0:
        missing = "ModuleNotFoundError" in done.stdout
        hint = "\nName an environment that has it: --env DIR (llama.cpp lists what it needs in requirements/)."
        raise SharingError(
            f"{how.script} failed (exit code {done.returncode}). The last it said:\n{said}{hint if missing else ''}"
        )
    with made.open("rb") if made.exists() else open(os.devnull, "rb") as file:
        begins = file.read(len(MAGIC))
    if begins != MAGIC:
        raise SharingError(f"{how.script} ended well and wrote no GGUF file. The last it said:\n{said}")


def _environment(how: Conversion) -> Mapping[str, str]:
    """Ours without our token, and without our path, which may lead to packages that are not that environment's."""
    left_out = {"HF_TOKEN", *({"PYTHONPATH"} if how.env is not None else ())}
    return {name: value for name, value in os.environ.items() if name not in left_out}
