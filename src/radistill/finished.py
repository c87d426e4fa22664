"""Weights of a finished run, taken instead of training: for `interpolate`, many shares of one training."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from radistill import models
from radistill.errors import RunFolderError
from radistill.models import Weights
from radistill.records import StageRecord
from radistill.runs import RunFolder
from radistill.speaker import Speaker

COUNTED = ("steps", "tokens_processed", "tokens_trained", "tokens_reference", "tokens_rolled_out", "tokens_prepared")


@dataclass(frozen=True)
class Finished:
    """A run whose weights are taken."""

    run: RunFolder
    weights: Weights
    trained: StageRecord

    @property
    def files(self) -> list[Path]:
        """What it trained."""
        return sorted(self.run.model.glob(models.WEIGHT_FILES))

    def load(self) -> Any:
        """The trained model, in float32."""
        return models.load(self.weights, dtype="float32")

    @property
    def facts(self) -> dict[str, Any]:
        """What the training took, as if it had been done here."""
        known = {name: self.trained.facts[name] for name in COUNTED if name in self.trained.facts}
        asked = json.loads(self.run.summary.read_text(encoding="utf-8")).get("asked", {})
        return {**known, "asked": asked, "seconds_there": self.trained.seconds}


def finished_run(folder: str, speaker: Speaker) -> Finished:
    """The run in that folder.

    Raises:
        RunFolderError: it is not trained, its weights are gone, or it trained another model.
    """
    run = RunFolder(Path(folder))
    trained = run.stages().get("train")
    if trained is None or trained.status != "finished" or not list(run.model.glob(models.WEIGHT_FILES)):
        raise RunFolderError(
            f"method.run: {folder} holds no trained weights. Name the folder of a run that has finished the stage "
            "`train` and still has its folder `model`."
        )
    if trained.settings.get("model") != speaker.weights.identity:
        raise RunFolderError(
            f"method.run: {folder} started from another model than this run ({trained.settings.get('model')}, not "
            f"{speaker.weights.identity}), so there is no line between their weights."
        )
    return Finished(run, models.resolve(str(run.model)), trained)
