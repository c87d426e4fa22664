"""One of the processes that train together: `python -m radistill.rank JOB PARENT`, started by `launch.py`."""

import os
import signal
import sys
import threading
import time
import traceback
import warnings
from pathlib import Path

from radistill import ranks
from radistill.config import load_config
from radistill.errors import RadistillError, writing_into
from radistill.files import write_json, write_text
from radistill.models import read_object
from radistill.runs import RunFolder, Stage

STOPPED = 130


def main(job: Path, parent: int) -> int:
    """Train, and leave in the job's folder what is to be known; returns the exit code."""
    # The terminal's Ctrl-C reaches everybody; the parent passes it on, once.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Libraries' notices to each other about their next versions, as at the command line.
    warnings.filterwarnings(
        "ignore", category=FutureWarning, module=r"(transformers|peft|accelerate|torch|deepspeed)\b"
    )
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    try:
        _train(job)
    except RadistillError as error:
        write_json(job / f"error.{ranks.rank()}.json", {"kind": type(error).__name__, "text": str(error)})
        return 2
    except KeyboardInterrupt:
        return STOPPED
    except Exception:
        write_text(job / f"traceback.{ranks.rank()}.txt", traceback.format_exc())
        return 1
    return 0


def _train(job: Path) -> None:
    from radistill.speaker import untouched
    from radistill.train import fit_and_save

    config = load_config(job / "config.yaml")
    run = RunFolder(Path(config.output_dir))
    stage = Stage(run=run, clock=time.monotonic(), **read_object(job / "stage.json"))
    ranks.join()
    with writing_into(run.model):
        facts = fit_and_save(config, run, untouched(config), stage)
    if ranks.is_first():
        write_json(job / "facts.json", facts)
    ranks.barrier()


def _end_with(parent: int) -> None:
    """Nobody holds the run folder any more when the parent was killed."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


if __name__ == "__main__":
    code = main(Path(sys.argv[1]), int(sys.argv[2]))
    sys.stdout.flush()
    sys.stderr.flush()
    # Without waiting for threads of engines that others have left.
    os._exit(code)
