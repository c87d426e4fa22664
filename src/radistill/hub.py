"""A model and its card → the Hugging Face hub, when the user says so. Nothing else in radistill uploads anything.

The token comes from the environment (`HF_TOKEN`), is handed to huggingface_hub and written nowhere; a token that some
other program has stored on this machine is not used.
"""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from radistill import adapters, cards, models
from radistill.errors import SharingError
from radistill.runs import require

FILES = (*models.HUB_FILES, "README.md", "*.py")
"""What makes up a model; checkpoints and what radistill has noted for itself stay here."""
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Pushed:
    """What was uploaded, and where it is now."""

    url: str
    files: tuple[str, ...]


def push(name: Path, repo: str, *, private: bool = True, say: Callable[[str], None] = lambda _: None) -> Pushed:
    """Upload the model of a run, or a model's folder, in one commit.

    Args:
        name: run folder, or the folder of a model or adapter.
        repo: `owner/name`; made if it is not there.
        private: who may see it if it is made now.
        say: told what is going on.

    Raises:
        SharingError: there is no token, the hub refuses, or the model is one that others could not load.
        ModelError: there is no model.
        RunFolderError: the run is not trained.
    """
    if not REPOSITORY.fullmatch(repo):
        raise SharingError(f"--repo: {repo!r} is no name of a repository on the hub, which is OWNER/NAME.")
    folder = _folder(name.expanduser())
    _refuse_local_base(folder)
    token = os.environ.get("HF_TOKEN", "").strip()
    if not token:
        raise SharingError(
            "pushing needs a token of the hub that may write, in the environment variable HF_TOKEN (it is written "
            "nowhere). Make one at https://huggingface.co/settings/tokens."
        )
    files = files_of(folder)
    say(f"uploading {', '.join(files)} to {repo}")
    from huggingface_hub import HfApi

    with _refusals_are_messages(repo, token):
        api = HfApi(token=token)
        made = api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repo, folder_path=folder, allow_patterns=list(files), commit_message="Upload model with radistill"
        )
        return Pushed(str(made), files)


def files_of(folder: Path) -> tuple[str, ...]:
    """Names of the files that are uploaded: those of the model, at the top of its folder."""
    found = {file.name for pattern in FILES for file in folder.glob(pattern) if file.is_file()}
    return tuple(sorted(name for name in found if not name.startswith(".")))


def _folder(path: Path) -> Path:
    run = adapters.run_of(path)
    if run is not None:
        require(run, "train")
    for folder in (path / "model", path):
        if any((folder / name).exists() for name in ("adapter_config.json", "config.json")):
            if not list(folder.glob(models.WEIGHT_FILES)):
                raise SharingError(f"{folder} holds no weights ({models.WEIGHT_FILES}): there is nothing to upload.")
            return folder
    raise SharingError(
        f"{path} holds no model: neither it nor {path / 'model'} has a config.json or adapter_config.json."
    )


def _refuse_local_base(folder: Path) -> None:
    """An adapter without its base is of no use, and a path of this machine is nobody's business."""
    if not (folder / "adapter_config.json").exists():
        return
    base = str(models.read_object(folder / "adapter_config.json").get("base_model_name_or_path"))
    if cards.hub_id(base) is None:
        raise SharingError(
            f"{folder} is an adapter of {base}, which is a folder of this machine: nobody else could load it. Merge it "
            "with radistill merge, and push the merged folder."
        )


@contextmanager
def _refusals_are_messages(repo: str, token: str) -> Iterator[None]:
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    # HTTPError of whichever library this version of huggingface_hub asks with.
    no_answer: type[Exception] = HfHubHTTPError.__mro__[1]
    try:
        yield
    except (no_answer, HFValidationError, OfflineModeIsEnabled, OSError, ValueError) as error:
        reason = " ".join(str(error).split()).replace(token, "HF_TOKEN")
        raise SharingError(
            f"{repo} could not be uploaded: {reason} Check the name, that the token may write there, and the network; "
            "the same command again goes on."
        ) from None
