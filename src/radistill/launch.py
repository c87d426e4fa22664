"""Starts the processes that train together, with torchrun's own engine, and waits for them.

This process keeps the run folder's lock and its manifest; the others train, and the first of them writes the model. A
stop is passed on to them once, whoever asked for it, so that they save a checkpoint together.
"""

import logging
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil

from radistill import errors
from radistill.config import RunConfig, as_yaml
from radistill.errors import ModelError, RadistillError
from radistill.files import write_json, write_text
from radistill.models import read_object
from radistill.runs import Stage

MODULE = "radistill.rank"
SECONDS_TO_END = 10
"""So long the other processes may take when one of them has failed."""


def train_together(config: RunConfig, stage: Stage, processes: int) -> dict[str, Any]:
    """Train in so many new processes; returns what they found out.

    Raises:
        RadistillError: what one of them has met.
        KeyboardInterrupt: after they saved a checkpoint, when they were told to stop.
    """
    with tempfile.TemporaryDirectory(prefix="radistill-") as name, _threads_for(processes):
        job = Path(name)
        write_text(job / "config.yaml", as_yaml(config))
        write_json(job / "stage.json", {k: v for k, v in asdict(stage).items() if k not in ("run", "clock")})
        failed = _run(job, processes)
        stage.is_recorded = stage.name in stage.run.stages()
        if failed is None:
            return read_object(job / "facts.json")
        _raise_what_was_met(job, failed)
        raise AssertionError("unreachable")


def _run(job: Path, processes: int) -> Any:
    """The first failure, if any."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # it would say again what we say
    plan = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        run_id=job.name,
        max_restarts=0,
        monitor_interval=0.1,
        local_addr="localhost",
        shutdown_timeout=SECONDS_TO_END,
    )
    outcome: list[BaseException] = []

    def work() -> None:
        try:
            elastic_launch(plan, sys.executable)("-m", MODULE, str(job), str(os.getpid()))
        except BaseException as error:
            outcome.append(error)

    # Not in the main thread, where it would take the signals for itself and end the others in the middle of a step.
    thread = threading.Thread(target=work, daemon=True)
    with _passing_on_stops() as stops:
        thread.start()
        while thread.is_alive():
            thread.join(0.2)
    if stops:
        raise KeyboardInterrupt
    if not outcome:
        return None
    if not isinstance(outcome[0], ChildFailedError):
        raise outcome[0]
    return outcome[0].get_first_failure()


@contextmanager
def _passing_on_stops() -> Iterator[list[int]]:
    """The first Ctrl-C (or SIGTERM) asks all to end after the step in work; the second ends them at once."""
    stops: list[int] = []

    def handle(number: int, _frame: Any) -> None:
        stops.append(number)
        for child in psutil.Process().children():
            try:
                if MODULE in child.cmdline():
                    child.send_signal(signal.SIGTERM if len(stops) == 1 else signal.SIGKILL)
            except psutil.Error:
                continue

    try:
        before = {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: whoever owns it handles signals
        yield stops
        return
    try:
        yield stops
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _threads_for(processes: int) -> Iterator[None]:
    """Processes on one CPU share its cores, unless somebody has said how."""
    if "OMP_NUM_THREADS" in os.environ:
        yield
        return
    os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // processes))
    try:
        yield
    finally:
        del os.environ["OMP_NUM_THREADS"]


def _raise_what_was_met(job: Path, failure: tuple[int, Any]) -> None:
    said = sorted(job.glob("error.*.json"), key=lambda file: file.stat().st_mtime_ns)
    if said:
        found = read_object(said[0])
        kind = getattr(errors, str(found["kind"]), RadistillError)
        raise kind(found["text"])
    rank, process = failure
    if process.exitcode == -signal.SIGKILL:
        raise ModelError(
            f"the training process {rank} was killed from outside (signal 9), as systems do when memory runs out. Set "
            "train.gradient_checkpointing=true, or a smaller train.per_device_train_batch_size with more "
            "train.gradient_accumulation_steps. The same command goes on from the last checkpoint."
        )
    traces = sorted(job.glob("traceback.*.txt"), key=lambda file: file.stat().st_mtime_ns)
    trace = traces[0].read_text(encoding="utf-8") if traces else "it left no traceback"
    raise RuntimeError(f"the training process {rank} ended with exit code {process.exitcode}:\n{trace}")
