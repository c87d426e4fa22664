"""The processes that train together: how many, which of them this is, and what only the first of them does.

A launcher (torchrun, `accelerate launch`, Ray Train) names them in the environment; of Slurm's own names the same is
made. Nothing here loads torch before processes talk to each other.
"""

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

from radistill.errors import ConfigError, RadistillError

T = TypeVar("T")
PATIENCE = timedelta(hours=2)
"""So long the others wait for what the first process does alone, such as hashing and writing large files."""
SLURM = {"RANK": "SLURM_PROCID", "WORLD_SIZE": "SLURM_STEP_NUM_TASKS", "LOCAL_RANK": "SLURM_LOCALID"}


def adopt_slurm() -> None:
    """Under `srun` with several tasks, take its names for processes, unless a launcher has given others.

    Raises:
        ConfigError: they run on several machines and none is named where they meet.
    """
    found = os.environ
    # The batch script itself is no task, although Slurm counts it as number 0 of all: only a step has this name.
    if "RANK" in found or int(found.get("SLURM_STEP_NUM_TASKS") or 1) < 2 or "SLURM_PROCID" not in found:
        return
    if "MASTER_ADDR" not in found and int(found.get("SLURM_STEP_NUM_NODES") or 1) > 1:
        raise ConfigError(
            "srun started processes on several machines, and they do not know where to meet. Before srun, say so: "
            'export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)'
        )
    found.update({ours: found[theirs] for ours, theirs in SLURM.items() if theirs in found})
    found.setdefault("MASTER_ADDR", "127.0.0.1")
    found.setdefault("MASTER_PORT", str(20000 + int(found.get("SLURM_JOB_ID") or 0) % 10000))


def launched() -> bool:
    """Whether a launcher started this process as one of those that train together."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def size() -> int:
    """So many processes a launcher started; 1 without one."""
    return int(os.environ["WORLD_SIZE"]) if launched() else 1


def rank() -> int:
    """Which of them this is, from 0."""
    return int(os.environ["RANK"]) if launched() else 0


def is_first() -> bool:
    """Whether this process writes the run's files."""
    return rank() == 0


def join() -> None:
    """Let the processes talk to each other; does nothing for one alone."""
    if size() == 1:
        return
    import torch
    import torch.distributed as dist

    if dist.is_initialized():
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, timeout=PATIENCE)


def on_first(work: Callable[[], T]) -> T:
    """Let the first process do it and all have its result; what a user can repair is raised in all of them."""
    if size() == 1:
        return work()
    join()
    import torch
    import torch.distributed as dist

    outcome: list[Any] = [None, None]
    if is_first():
        try:
            outcome[0] = work()
        except (RadistillError, KeyboardInterrupt) as error:
            outcome[1] = error
    dist.broadcast_object_list(outcome, src=0, device=torch.device("cpu"))
    if outcome[1] is not None:
        raise outcome[1]
    result: T = outcome[0]
    return result


def barrier() -> None:
    """Wait until all processes are here."""
    on_first(lambda: None)


def any_of(flag: bool) -> bool:
    """Whether it is so in any of the processes; all must ask."""
    if size() == 1:
        return flag
    import torch
    import torch.distributed as dist

    found = torch.tensor([int(flag)])
    if "gloo" not in dist.get_backend_config():
        found = found.cuda()
    dist.all_reduce(found, op=dist.ReduceOp.MAX)
    return bool(found.item())


def speaks() -> bool:
    """Whether this process says what went wrong: one of all that meet the same error."""
    if size() == 1:
        return True
    import torch.distributed as dist

    if not dist.is_initialized():
        return is_first()  # they have read the same files, and found the same in them
    store = dist.distributed_c10d._get_default_store()
    return int(store.add("radistill/said", 1)) == 1
