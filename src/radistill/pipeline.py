"""One run: the five stages of one config, in order, each skipped if it was done before."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from radistill import held_out, models, ranks
from radistill.ask import Answered
from radistill.assemble import assemble
from radistill.config import RunConfig, as_yaml
from radistill.errors import ConfigError, RadistillError, did_you_mean, writing_into
from radistill.evaluate import evaluate
from radistill.files import write_text
from radistill.generate import generate, generate_share_of
from radistill.lab.home_world import refuse_other_world
from radistill.records import StageRecord
from radistill.report import write_report
from radistill.runs import STAGES, RunFolder, begin, require, working
from radistill.shares import Share
from radistill.speaker import untouched
from radistill.train import train
from radistill.training_arguments import refuse_unusable_settings

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


def _refuse_what_would_fail_late(config: RunConfig, folder: RunFolder, stages: tuple[str, ...]) -> None:
    """What can be known before the first stage must not be found after hours, in a later one."""
    if "evaluate" in stages and config.data.test is None and any(t.examples() is None for t in config.evaluate):
        raise ConfigError(
            "data.test is missing: name what to test on, for example {path: FOLDER, split: test}; or do the stages one "
            "by one (radistill generate, assemble, train)."
        )
    if stages != ("report",) and "evaluate" not in folder.stages():
        refuse_other_world(config)
    if "evaluate" in stages and len(stages) > 1 and "evaluate" not in folder.stages():
        for task, tests in held_out.by_task(config, held_out.given(config)):
            task.refuse_unusable(tests or ())
    if "train" in stages and len(stages) > 1 and "train" not in folder.stages():
        if "evaluate" in stages and (problem := config.generate.backend.only_untouched()):
            raise ConfigError(problem)
        refuse_unusable_settings(config)
        weights = untouched(config).weights
        models.refuse_adapter(weights)
        if config.train.lora is not None:
            models.refuse_unknown_targets(weights, config.train.lora, trust_remote_code=config.trust_remote_code)


def _begun(folder: RunFolder, name: str) -> bool:
    record = folder.stages().get(name)
    return record is not None and record.status == "started"


@contextmanager
def _lock(folder: RunFolder) -> Iterator[None]:
    """Hold the folder; of several processes the first holds it for all."""
    with ExitStack() as held:
        ranks.on_first(lambda: held.enter_context(folder.lock()))
        yield


def generate_share(config: RunConfig, share: Share) -> Answered:
    """A part of the first stage, by one of several processes; the run folder is not locked.

    Raises:
        RadistillError: something the user can repair; what was written is kept.
        Interrupted: Ctrl-C.
    """
    folder = RunFolder(Path(config.output_dir))
    refuse_other_world(config)
    with writing_into(folder.path):
        folder.path.mkdir(parents=True, exist_ok=True)
    try:
        return generate_share_of(config, folder, share)
    except KeyboardInterrupt as error:
        raise Interrupted(f"interrupted in {share}. What was written is kept; the same command goes on.") from error


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
    ranks.adopt_slurm()
    if ranks.size() > 1 and stages != ("train",):
        raise ConfigError(
            f"a launcher started {ranks.size()} processes, and only the stage `train` is done by several at once. Run "
            f"`radistill {'run' if len(stages) > 1 else stages[0]}` without it (train.devices: N starts the processes "
            "by itself), or launch `radistill train` alone."
        )
    folder = RunFolder(Path(config.output_dir))
    outcomes = []
    with _lock(folder):
        _refuse_what_would_fail_late(config, folder, stages)
        for name in stages:
            again = redo is not None and STAGES.index(name) >= STAGES.index(redo)
            more = {"by_itself": len(stages) == 1} if name == "generate" else {}
            try:
                record = FUNCTIONS[name](config, folder, redo=again, **more)
            except KeyboardInterrupt as error:
                raise Interrupted(
                    f"interrupted in the stage `{name}`. What was done is kept in {folder.path}; the same command"
                    f"{' without --redo' if redo and _begun(folder, name) else ''} goes on from there."
                ) from error
            outcome = StageOutcome(name, record or folder.stages()[name], reused=record is None)
            # Only when a stage was really done: a later one may still refuse the config, and the folder's own must be
            # the one its results were made with.
            if (record is not None or not folder.config.exists()) and ranks.is_first():
                write_text(folder.config, as_yaml(config))
            done(outcome)
            outcomes.append(outcome)
        if stages == STAGES and folder.config.read_text(encoding="utf-8") != as_yaml(config):
            write_text(folder.config, as_yaml(config))  # a killed run may have finished a stage and not come to this
    return outcomes
