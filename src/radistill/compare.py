"""`radistill compare`: many runs, methods x configurations x seeds, and one page that says where each method stands.

A cell is finished when its evaluation is: then only its rows of statistics are needed, so that a comparison goes on
where it stopped, also on another machine that has been given the run folders without their weights.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import yaml

from radistill import pipeline
from radistill.compare_config import Cell, CompareConfig, cells_of
from radistill.config import as_dict, stored_config
from radistill.errors import RadistillError, RunFolderError
from radistill.runs import RunFolder

STAGES = ("generate", "assemble", "train", "evaluate")
Say = Callable[[str], None]


def compare(
    config: CompareConfig,
    *,
    workers: int = 1,
    say: Say = lambda _: None,
    command: Sequence[str] = (),
) -> list[Path]:
    """Do all cells that are not finished, then write the report; returns its files.

    Args:
        config: the comparison.
        workers: so many cells at once, each in a process of its own.
        say: told what is going on.
        command: what does one cell when `--cell K` is added, for several workers.

    Raises:
        RadistillError: a cell cannot be run; what was finished is kept.
    """
    cells = cells_of(config)
    todo = [cell for cell in cells if not is_finished(cell)]
    say(f"{len(cells) - len(todo)} of {len(cells)} cells are finished")
    if todo:
        write_first(config, todo, say=say)
        if workers > 1:
            _in_processes(cells, todo, workers, command, say)
        else:
            for cell in todo:
                _timed(cell, len(cells), say)
        if not config.keep_models:
            forget_models(cells)
    return write_report(config, say=say)


def write_report(config: CompareConfig, *, say: Say = lambda _: None) -> list[Path]:
    """The page, the tables and the numbers of what is finished so far.

    Raises:
        RunFolderError: nothing is.
    """
    from radistill.compare_report import write_comparison
    from radistill.compare_results import comparison

    return write_comparison(comparison(config, cells_of(config), say=say), Path(config.output_dir))


def write_first(config: CompareConfig, cells: Sequence[Cell], *, say: Say = lambda _: None) -> None:
    """Let the untouched model write for all cells before the first is trained; what two cells ask is written once."""
    with RunFolder(Path(config.output_dir)).lock():
        for cell in cells:
            if not _begun(cell):
                say(f"{cell.name}: generate")
                pipeline.run(cell.config, stages=("generate",))


def run_cell(cell: Cell) -> None:
    """Generate, assemble, train and evaluate one cell.

    Raises:
        RunFolderError: another cell must come first.
    """
    for name in cell.needs:
        if not RunFolder(cell.folder.parent / name).model.exists():
            raise RunFolderError(
                f"the cell {cell.name} reads the weights of {name}, which is not trained or whose model was deleted. "
                "Run that cell first, and set keep_models: true where cells are run one by one."
            )
    pipeline.run(cell.config, stages=STAGES)
    _thin(RunFolder(cell.folder))


def is_finished(cell: Cell) -> bool:
    """Whether the cell was evaluated with these settings.

    Raises:
        RunFolderError: with others.
    """
    run = RunFolder(cell.folder)
    record = run.stages().get("evaluate")
    if record is None or record.status != "finished" or not run.config.exists():
        return False
    lost = [name for name in record.outputs if name.startswith("rows/") and not (run.path / name).exists()]
    if lost:
        return False
    if differing := _differing(_stored(run.config), as_dict(cell.config)):
        raise RunFolderError(
            f"{run.path} was run with another {differing}. Delete that folder to run the cell again, or choose another "
            "output_dir for the comparison."
        )
    return True


def _stored(path: Path) -> dict[str, Any]:
    """The settings of a run, with those that came into being after it."""
    try:
        return as_dict(stored_config(path))
    except RadistillError:
        written: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
        return written


def forget_models(cells: Sequence[Cell]) -> None:
    """Delete the weights of finished cells that no unfinished cell needs."""
    needed = {name for cell in cells if not is_finished(cell) for name in cell.needs}
    for cell in cells:
        if cell.name not in needed and is_finished(cell):
            shutil.rmtree(RunFolder(cell.folder).model, ignore_errors=True)


def _thin(run: RunFolder) -> None:
    """Delete what a finished cell needs no longer: checkpoints."""
    for checkpoint in run.model.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    if not run.config.exists():
        raise RunFolderError(f"{run.config} is missing.")


def _begun(cell: Cell) -> bool:
    return "generate" in RunFolder(cell.folder).stages()


def _differing(stored: object, wanted: object, key: str = "") -> str:
    """The first key that two configs do not have in common; where the folders lie does not matter."""
    if isinstance(stored, dict) and isinstance(wanted, dict):
        for name in [*wanted, *(n for n in stored if n not in wanted)]:
            dotted = f"{key}.{name}" if key else str(name)
            if dotted in ("output_dir", "generate.ledger", "generate.max_attempts", "method.run"):
                continue
            if name not in stored or name not in wanted:
                return dotted
            if found := _differing(stored[name], wanted[name], dotted):
                return found
        return ""
    if isinstance(stored, list) and isinstance(wanted, list | tuple) and len(stored) == len(wanted):
        pairs = enumerate(zip(stored, wanted, strict=True))
        return next(filter(None, (_differing(a, b, f"{key}.{n}") for n, (a, b) in pairs)), "")
    return "" if stored == wanted or (key.endswith(".run") and key.startswith("method.")) else key


def _timed(cell: Cell, total: int, say: Say) -> None:
    clock = time.monotonic()
    say(f"{cell.name}: cell {cell.number} of {total}")
    run_cell(cell)
    say(f"{cell.name}: done in {time.monotonic() - clock:.0f} s")


def _in_processes(cells: Sequence[Cell], todo: Sequence[Cell], workers: int, command: Sequence[str], say: Say) -> None:
    """Cells begin in their order; one that needs others waits until those are done."""
    threads = max(1, (os.cpu_count() or 1) // workers)
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads))}

    def one(cell: Cell) -> str:
        done = subprocess.run(
            [*command, "--cell", str(cell.number)], env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RadistillError(f"{cell.name} failed:\n{(done.stderr or done.stdout).strip()[-2000:]}")
        return cell.name

    with ThreadPoolExecutor(workers) as pool:
        running: dict[str, Future[str]] = {}

        def after(needed: Sequence[Future[str]], cell: Cell) -> str:
            for future in needed:
                future.result()
            return one(cell)

        for cell in todo:
            # Those stand before it and begin in order, so that what is waited for has begun.
            needed = [running[name] for name in cell.needs if name in running]
            running[cell.name] = pool.submit(after, needed, cell)
        try:
            for number, finished in enumerate(as_completed(running.values()), start=1):
                say(f"{finished.result()}: done ({number} of {len(todo)}; {len(cells)} cells in all)")
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def default_command(arguments: Sequence[str]) -> list[str]:
    """This program again, with other arguments."""
    return [sys.executable, "-m", "radistill.cli", *arguments]
