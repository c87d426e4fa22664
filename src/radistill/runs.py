"""The run folder: paths, manifest, fingerprints, locks.

A stage is skipped if and only if its record says `finished` and its settings and input files are the same now as
then. If they are not, `begin` names the field or file that differs and stops, unless the stage is to be redone.
"""

import contextlib
import json
import platform
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from radistill.errors import RunFolderError, writing_into
from radistill.files import sha256, write_json
from radistill.records import StageRecord

COMPARED_BYTES = 64 << 20
STAGES = ("generate", "assemble", "train", "evaluate", "report")
RECORDED_VERSIONS = ("radistill", "torch", "transformers", "peft", "accelerate", "tokenizers", "sacrebleu", "numpy")


def versions() -> dict[str, str]:
    """Versions of what can change a result."""
    found = {"python": platform.python_version()}
    for package in RECORDED_VERSIONS:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


@dataclass(frozen=True)
class RunFolder:
    """Where everything of one run lies. Making one touches no file."""

    path: Path

    @property
    def name(self) -> str:
        """Name of the run: the folder's."""
        return self.path.resolve().name

    @property
    def config(self) -> Path:
        """The resolved, complete run file; loadable again."""
        return self.path / "config.yaml"

    @property
    def manifest(self) -> Path:
        """One StageRecord per stage."""
        return self.path / "manifest.json"

    @property
    def records(self) -> Path:
        """What is trained on."""
        return self.path / "records.parquet"

    @property
    def summary(self) -> Path:
        """Counts, drops with reasons, token shares by origin."""
        return self.path / "records.summary.json"

    @property
    def rejects(self) -> Path:
        """Every input row that was refused, with file, line and reason."""
        return self.path / "rejects.jsonl"

    @property
    def filtered(self) -> Path:
        """Every rationale that a filter has taken away, with its text; those merely not selected are counted only."""
        return self.path / "filtered.jsonl"

    @property
    def model(self) -> Path:
        """The tuned model or adapter, in Hugging Face / PEFT layout."""
        return self.path / "model"

    @property
    def train_log(self) -> Path:
        """One JSON object per logged step."""
        return self.path / "train_log.jsonl"

    @property
    def events(self) -> Path:
        """What the stages are doing, for who watches."""
        return self.path / "events.jsonl"

    @property
    def scores(self) -> Path:
        """All scores of all systems."""
        return self.path / "scores.json"

    @property
    def figures(self) -> Path:
        """SVG figures of the report."""
        return self.path / "figures"

    def predictions(self, task: str) -> Path:
        """Every prediction of every system for one task."""
        return self.path / "predictions" / f"{task}.parquet"

    def rows(self, task: str, metric: str) -> Path:
        """Sufficient statistics of one metric: arrays (N, K) named `system/group`."""
        return self.path / "rows" / f"{task}.{metric}.npz"

    def stages(self) -> dict[str, StageRecord]:
        """The manifest, or an empty one."""
        if not self.manifest.exists():
            return {}
        try:
            stored = json.loads(self.manifest.read_text(encoding="utf-8"))["stages"]
            return {name: StageRecord(**record) for name, record in stored.items()}
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise RunFolderError(
                f"{self.manifest} is not a manifest of this version ({error}). Move the folder away, or choose another "
                "output_dir."
            ) from error

    def put_stage(self, record: StageRecord | None, *, forget: Iterable[str] = ()) -> None:
        """Write one stage's record into the manifest; drop the records of the stages in `forget`."""
        stages = {k: v for k, v in self.stages().items() if k not in set(forget)}
        if record is not None:
            stages[record.stage] = record
        ordered = {s: asdict(stages[s]) for s in STAGES if s in stages}
        write_json(self.manifest, {"schema": 1, "stages": ordered})

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder for this process.

        Raises:
            RunFolderError: another process works in it.
        """
        with writing_into(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path / ".lock")
            try:
                lock.acquire(timeout=0)
            except Timeout as error:
                raise RunFolderError(
                    f"{self.path} is in use by another radistill process. Wait for it, stop it, or choose another "
                    "output_dir."
                ) from error
        try:
            self._clean()
            yield
        finally:
            lock.release()

    def _clean(self) -> None:
        """Delete what a killed process had begun to write."""
        for folder in (self.path, self.path / "predictions", self.path / "rows", self.model, self.figures):
            for part in folder.glob(".*.part"):
                shutil.rmtree(part) if part.is_dir() else part.unlink(missing_ok=True)


@dataclass
class Stage:
    """One stage that is being worked on; `finish` makes it count."""

    run: RunFolder
    name: str
    settings: dict[str, Any]
    inputs: dict[str, str]
    started_at: str
    clock: float
    spent_before: float = 0.0
    facts: dict[str, Any] = field(default_factory=dict)
    fresh: bool = True
    """It does not go on with work of an earlier process."""
    is_recorded: bool = False
    """It stands in the manifest as started."""

    def record(self) -> None:
        """Let it stand as started, so that a restart with other settings is refused before it mixes two configs' work.

        Until then the folder is as it was: free, or holding what is done again.
        """
        if not self.is_recorded:
            self.pause(self.spent_before)
            self.is_recorded = True

    def pause(self, seconds: float) -> None:
        """Write down that it has been worked on for so long and is not finished."""
        self.run.put_stage(
            StageRecord(
                stage=self.name,
                status="started",
                settings=self.settings,
                inputs=self.inputs,
                started_at=self.started_at,
                seconds=seconds,
            )
        )

    def finish(self, outputs: Sequence[Path], *, device: str = "", forget_later: bool = True) -> StageRecord:
        """Record what was made, so that the same work is not done again; with it, by default, later stages are void."""
        record = StageRecord(
            stage=self.name,
            status="finished",
            settings=self.settings,
            inputs=self.inputs,
            outputs={_shown(p, self.run): sha256(p) for p in outputs if p.exists()},
            versions=versions(),
            device=device,
            started_at=self.started_at,
            seconds=round(self.spent_before + time.monotonic() - self.clock, 3),
            facts=self.facts,
        )
        later = STAGES[STAGES.index(self.name) + 1 :] if self.name in STAGES and forget_later else ()
        self.run.put_stage(record, forget=later)
        return record


def begin(
    run: RunFolder, name: str, settings: Mapping[str, Any], inputs: Iterable[Path], *, redo: bool, late: bool = False
) -> Stage | None:
    """Start or continue a stage; None if it is finished and still valid.

    Args:
        run: where.
        name: of the stage.
        settings: all that can change what it makes.
        inputs: the files that it reads.
        redo: do it again whatever was done before.
        late: it is recorded as started when it says so (`Stage.record`), not at once.

    Raises:
        RunFolderError: the stage was run here with other settings or inputs and `redo` is not set.
    """
    now = {_named(path, run): _input_sha256(path, run) for path in inputs}
    wanted = json.loads(json.dumps(settings, default=str))
    before = run.stages().get(name)
    if before is not None and not redo:
        differences = [*_differing(before.settings, wanted), *_changed_files(before.inputs, now)]
        if differences:
            raise RunFolderError(
                f"{run.path} holds the stage `{name}` of another config:\n"
                + "\n".join(f"  {line}" for line in differences)
                + f"\nChoose another output_dir, or do it again from there with --redo {name}."
            )
        if before.status == "finished":
            changed = _changed_outputs(before, run)
            if not changed:
                return None
            if name == "train":  # hours of work, which a touched log must not throw away
                raise RunFolderError(
                    f"{run.path}: the stage `train` is finished, but {', '.join(changed)} was changed or taken away "
                    "since. Put it back, or train again with --redo train."
                )
    resumed = before if before is not None and before.status == "started" and not redo else None
    stage = Stage(
        run=run,
        name=name,
        settings=wanted,
        inputs=now,
        started_at=resumed.started_at if resumed else datetime.now(UTC).isoformat(timespec="seconds"),
        clock=time.monotonic(),
        spent_before=resumed.seconds if resumed else 0.0,
        fresh=resumed is None,
        is_recorded=resumed is not None,
    )
    if not late:
        stage.record()
    return stage


@contextmanager
def working(stage: Stage) -> Iterator[None]:
    """Keep the time spent so far when the block is left by an error or by Ctrl-C."""
    try:
        yield
    except BaseException:
        if stage.is_recorded:
            with contextlib.suppress(OSError):  # a full disk must not hide the first error
                stage.pause(round(stage.spent_before + time.monotonic() - stage.clock, 3))
        raise


@contextmanager
def before_work(stage: Stage) -> Iterator[None]:
    """A config that is refused before any work was done must not bind the folder: a corrected one may follow."""
    try:
        yield
    except BaseException:
        if stage.fresh and stage.is_recorded:
            stage.run.put_stage(None, forget=[stage.name])
            stage.is_recorded = False
        raise


def require(run: RunFolder, stage: str) -> StageRecord:
    """The record of an earlier stage.

    Raises:
        RunFolderError: it is not finished.
    """
    record = run.stages().get(stage)
    if record is None or record.status != "finished":
        raise RunFolderError(
            f"the stage `{stage}` is not finished in {run.path}. Run `radistill {stage} CONFIG` first, or "
            "`radistill run CONFIG`, which does all stages in order."
        )
    return record


def _differing(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    lines = []
    for key in sorted({*before, *now}):
        old, new = before.get(key), now.get(key)
        if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
            old, new = ({str(i): value for i, value in enumerate(values)} for values in (old, new))
        if isinstance(old, dict) and isinstance(new, dict):
            lines += _differing(old, new, f"{prefix}{key}.")
        elif old != new:
            there, here = (json.dumps(value, ensure_ascii=False) for value in (old, new))
            lines.append(f"{prefix}{key}: {there} there, {here} now")
    return lines


def _changed_files(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    lines = [f"{path}: the file has changed since" for path in now if path in before and before[path] != now[path]]
    lines += [f"{path}: was not an input there" for path in now if path not in before]
    return lines + [f"{path}: was an input there, is none now" for path in before if path not in now]


def _changed_outputs(record: StageRecord, run: RunFolder) -> list[str]:
    """What the stage wrote and is no longer there as it wrote it; files of gigabytes are only looked for."""
    files = {name: run.path / name for name in record.outputs}
    return [
        name
        for name, path in files.items()
        if not path.exists() or (_size(path) <= COMPARED_BYTES and sha256(path) != record.outputs[name])
    ]


def _size(path: Path) -> int:
    return path.stat().st_size


def _shown(path: Path, run: RunFolder) -> str:
    return path.resolve().relative_to(run.path.resolve()).as_posix()


def _named(path: Path, run: RunFolder) -> str:
    """Files of the run by their place in it, so that its folder can be moved; others as the config names them."""
    return _shown(path, run) if path.resolve().is_relative_to(run.path.resolve()) else str(path)


def _input_sha256(path: Path, run: RunFolder) -> str:
    try:
        return sha256(path)
    except FileNotFoundError as error:
        stages = [name for name, record in run.stages().items() if _named(path, run) in record.outputs]
        hint = f" It is made by the stage `{stages[0]}`: do it again with --redo {stages[0]}." if stages else ""
        raise RunFolderError(f"{path} is needed here and is not there.{hint}") from error
