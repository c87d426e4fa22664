"""One run: the five stages of one config, in order, each skipped if it was done before."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from radistill.assemble import assemble
from radistill.config import RunConfig, as_yaml
from radistill.errors import ConfigError, RadistillError, did_you_mean
from radistill.evaluate import evaluate
from radistill.generate import generate
from radistill.records import StageRecord
from radistill.report import write_report
from radistill.runs import STAGES, RunFolder, begin, require, working, write_text
from radistill.train import train

StageFunction = Callable[..., StageRecord | None]


class Interrupted(RadistillError):
    """Ctrl-C; what was finished is kept."""


@dataclass(frozen=True)
class StageOutcome:
    """What became of one stage."""

    name: str
    record: StageRecord
    reused: bool
    """It had been done before, with the same settings and inputs."""


def report(config: RunConfig, run: RunFolder, *, redo: bool = False) -> StageRecord | None:
    """Stage 5 of one run: report.html, report.md, report.json and figures in its folder."""
    evaluated = require(run, "evaluate")
    settings = {**config.report.model_dump(mode="json"), "seed": config.seed}
    inputs = [run.path / name for name in evaluated.outputs]
    stage = begin(run, "report", settings, [*inputs, run.summary, run.train_log], redo=redo)
    if stage is None:
        return None
    with working(stage):
        written = write_report(
            [run], run.path, margin=config.report.margin, seed=config.seed, examples=config.report.examples
        )
        return stage.finish(written)


FUNCTIONS: dict[str, StageFunction] = {
    "generate": generate,
    "assemble": assemble,
    "train": train,
    "evaluate": evaluate,
    "report": report,
}


def run(
    config: RunConfig,
    *,
    stages: tuple[str, ...] = STAGES,
    redo: str | None = None,
    done: Callable[[StageOutcome], None] = lambda _: None,
) -> list[StageOutcome]:
    """Do the stages in order.

    Args:
        config: what to do.
        stages: which of them.
        redo: do this stage and all after it again, whatever was done before.
        done: called after each stage.

    Raises:
        RadistillError: something the user can repair; what was finished is kept.
        Interrupted: Ctrl-C.
    """
    if redo is not None and redo not in STAGES:
        known = ", ".join(STAGES)
        raise ConfigError(f"--redo {redo}: there is no such stage; known: {known}.{did_you_mean(redo, STAGES)}")
    folder = RunFolder(Path(config.output_dir))
    outcomes = []
    with folder.lock():
        for name in stages:
            again = redo is not None and STAGES.index(name) >= STAGES.index(redo)
            try:
                record = FUNCTIONS[name](config, folder, redo=again)
            except KeyboardInterrupt as error:
                raise Interrupted(
                    f"interrupted in the stage `{name}`. What was done is kept in {folder.path}; the same command goes "
                    "on from there."
                ) from error
            outcome = StageOutcome(name, record or folder.stages()[name], reused=record is None)
            # Only after a stage has accepted the config, so that a refused one leaves the folder's own as it is.
            write_text(folder.config, as_yaml(config))
            done(outcome)
            outcomes.append(outcome)
    return outcomes
