"""An adapter, the base that it belongs to, and the run that it comes from."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from radistill import cards, models
from radistill.errors import ModelError, SharingError
from radistill.models import Weights
from radistill.runs import RunFolder, require

if TYPE_CHECKING:
    from radistill.config import RunConfig


@dataclass(frozen=True)
class Source:
    """An adapter with its base, and the run that it comes from, if it comes from one."""

    weights: Weights
    run: RunFolder | None
    config: "RunConfig | None"
    base_name: str
    """As the adapter, or the user, names the base."""

    @property
    def title(self) -> str:
        """What the merged model is called."""
        assert self.weights.adapter is not None
        return self.config.name if self.config is not None else self.weights.adapter.name

    @property
    def adapter_identity(self) -> str:
        """Hash of the adapter alone."""
        assert self.weights.adapter is not None
        return models.fingerprint(self.weights.adapter)


def find(name: str, *, base: str | None = None, trust_remote_code: bool = False) -> Source:
    """The adapter of that name, its base and its run.

    Raises:
        SharingError: it is a full model.
        ModelError: adapter or base cannot be found, or the adapter was trained on another base.
        RunFolderError: the run is not trained.
    """
    folder, run = adapter_folder(name, trust_remote_code=trust_remote_code)
    named = str(models.read_object(folder / "adapter_config.json").get("base_model_name_or_path") or "")
    if base is None:
        try:
            weights = models.resolve(str(folder), trust_remote_code=trust_remote_code)
        except ModelError as error:
            raise ModelError(f"{error} If the base is elsewhere now, say where: --base FOLDER_OR_HUB_ID.") from error
    else:
        below = models.resolve(base, trust_remote_code=trust_remote_code)
        if below.adapter is not None:
            raise ModelError(f"--base: {base} is an adapter itself. Name the full model that {folder} was trained on.")
        identity = f"{below.identity}+{models.fingerprint(folder)}"
        weights = replace(below, name=str(folder), identity=identity, adapter=folder)
    _refuse_another_base(weights, run, named, base or named)
    return Source(weights, run, _config_of(run), cards.hub_id(named) or base or named)


def adapter_folder(name: str, *, trust_remote_code: bool = False) -> tuple[Path, RunFolder | None]:
    """The adapter's folder, and the run folder it is in.

    Raises:
        SharingError: it is a full model.
        ModelError: there is none.
        RunFolderError: the run is not trained.
    """
    path = Path(name).expanduser()
    run = run_of(path)
    if run is not None:
        require(run, "train")
    folder = next((f for f in (path / "model", path) if (f / "adapter_config.json").exists()), None)
    if folder is not None:
        return folder, run
    weights = models.resolve(name, trust_remote_code=trust_remote_code)
    if weights.adapter is None:
        raise SharingError(
            f"{name} holds a full model, not an adapter: there is nothing to merge. Use {weights.folder} as it is."
        )
    return weights.adapter, None


def run_of(path: Path) -> RunFolder | None:
    """The run that this folder is, or whose `model` it is."""
    places = (path, path.parent) if path.name == "model" else (path,)
    return next((RunFolder(place) for place in places if (place / "manifest.json").exists()), None)


def refuse_quantised(weights: Weights, named: str) -> None:
    """Refuse a base whose weights are stored in fewer bits than they are computed in.

    Raises:
        ModelError: it is one.
    """
    quantised = models.read_object(weights.folder / "config.json").get("quantization_config")
    if quantised:
        how = quantised.get("quant_method", "quantised") if isinstance(quantised, dict) else "quantised"
        raise ModelError(
            f"the base {named} holds quantised weights ({how}); merged into them, most of what the adapter has learned "
            "would be rounded away. Name the model that they were made of: --base FOLDER_OR_HUB_ID."
        )


def _refuse_another_base(weights: Weights, run: RunFolder | None, named: str, taken: str) -> None:
    """A run has written down what it was trained on; hub ids and folders can only be compared with their like."""
    trained = run.stages()["train"].settings.get("model") if run is not None else None
    found = weights.identity.split("+")[0]
    if not isinstance(trained, str) or trained == found or ("@" in trained) != ("@" in found):
        return
    if named != taken and _is_quantised(named):
        return  # its unquantised original, which must be another
    assert run is not None
    raise ModelError(
        f"{run.path} was trained on another base than {taken} is now ({trained}, not {found}), so the adapter does not "
        "belong to these weights. Name the base as it was: --base FOLDER_OR_HUB_ID."
    )


def _is_quantised(name: str) -> bool:
    try:
        return bool(models.read_object(models.resolve(name).folder / "config.json").get("quantization_config"))
    except ModelError:
        return False


def _config_of(run: RunFolder | None) -> "RunConfig | None":
    from radistill.config import load_config

    return load_config(run.config) if run is not None and run.config.exists() else None
