"""What is read off a training while it runs: when a step ended, how much memory it took, and where the loss came to be.

The same for every rival. It needs nothing but torch, so that it also works in environments without radistill; a
rival built on transformers' Trainer gets it as a callback (`watched`), a bare loop calls it.
"""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

PROBED = 8
"""Records on which the loss is taken in the end, the first ones of the file."""
IGNORED = -100


def rows_of(path: Path) -> list[dict[str, list[int]]]:
    """Records as `input_ids` and `labels`, the latter IGNORED where nothing is trained."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def loss_of(model: Any, rows: Path) -> float:
    """Mean over the trained tokens of some records, one by one: neither padding nor packing has a part in it."""
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    summed, count = 0.0, 0
    with torch.no_grad(), torch.autocast(device.type, dtype=torch.bfloat16):
        for row in rows_of(rows)[:PROBED]:
            logits = model(input_ids=torch.tensor([row["input_ids"]], device=device), use_cache=False).logits[0]
            labels = torch.tensor(row["labels"][1:], device=device)
            summed += float(F.cross_entropy(logits[:-1].float(), labels, ignore_index=IGNORED, reduction="sum"))
            count += int((labels != IGNORED).sum())
    model.train(was_training)
    return summed / count


class Meter:
    """Of one training in this process."""

    def __init__(self, job: Mapping[str, Any]) -> None:
        self.job = job
        self.on_gpu = torch.cuda.is_available()
        self.floor = 0
        """Bytes in use before any weights were there."""
        self.weights = 0
        """Bytes of the loaded model, without adapters."""
        self.peak = 0
        self.marks: list[tuple[int, int | None, float, float]] = []
        """Step, real tokens so far, clock, and seconds that this process has computed."""
        self.steps = 0
        self.trained: int | None = None
        self.loss = float("nan")
        self.probe_seconds = 0.0

    def imported(self) -> None:
        """Called when all libraries are there and no weights are."""
        self.floor = torch.cuda.memory_allocated() if self.on_gpu else _status("VmRSS")

    def begin(self, model: Any) -> None:
        """Called before the first step."""
        named = list(model.named_parameters())
        self.weights = sum(p.numel() * p.element_size() for name, p in named if "lora_" not in name)
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats()
        else:
            _forget_peak()

    def step(self) -> None:
        """Called at the end of each optimizer step, before anything is saved."""
        self.steps += 1
        self.peak = torch.cuda.max_memory_allocated() if self.on_gpu else _status("VmHWM")

    def mark(self, step: int, tokens: int | None) -> None:
        """So many tokens, without padding, have been trained with by now."""
        if self.on_gpu:
            torch.cuda.synchronize()
        self.marks.append((step, tokens, time.perf_counter(), time.process_time()))

    def end(self, model: Any) -> None:
        """Take the loss; what that takes is no part of the whole."""
        started = time.perf_counter()
        self.loss = loss_of(model, Path(self.job["rows"]))
        self.probe_seconds = time.perf_counter() - started

    def found(self) -> dict[str, Any]:
        """The numbers, with `tokens_per_second` from the first mark, which ends the warm-up, to the last."""
        (first, tokens_first, began, busy), (last, tokens_last, ended, spent) = self.marks[0], self.marks[-1]
        if tokens_first is None or tokens_last is None:
            # Without a count of its own: as if every step had the same share of the tokens.
            tokens = self.job["tokens"] * (last - first) / last
        else:
            tokens = tokens_last - tokens_first
        return {
            "tokens_per_second": tokens / (ended - began),
            "tokens_per_cpu_second": tokens / (spent - busy),
            "memory": self.peak - self.floor - self.weights,
            "peak": self.peak,
            "loss": self.loss,
            "steps": self.steps,
            "tokens": tokens_last if last == self.steps else None,
            "tokens_trained": self.trained,
            "probe_seconds": self.probe_seconds,
        }


@contextmanager
def watched(meter: Meter) -> Iterator[None]:
    """Every transformers' Trainer made in here, by whomever, tells the meter."""
    from transformers import TrainerCallback, trainer

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *_: Any, **given: Any) -> None:
            meter.begin(given["model"])

        def on_step_end(self, *_: Any, **__: Any) -> None:
            meter.step()

        def on_log(self, _args: Any, state: Any, _control: Any, **given: Any) -> None:
            logs = given["logs"]
            if "loss" not in logs:
                return
            # Ours, TRL's, and what transformers counts where it was told to.
            names = ("tokens", "num_tokens", "num_input_tokens_seen")
            counted = next((int(logs[name]) for name in names if logs.get(name)), None)
            meter.mark(state.global_step, counted)
            meter.trained = logs.get("tokens_trained", meter.trained)

        def on_train_end(self, *_: Any, **given: Any) -> None:
            meter.end(given["model"])

    clock = Clock()
    trainer.DEFAULT_CALLBACKS.append(clock)
    try:
        yield
    finally:
        trainer.DEFAULT_CALLBACKS.remove(clock)


def _status(name: str) -> int:
    """Bytes, as Linux counts them for this process; elsewhere the highest there was so far."""
    file = Path("/proc/self/status")
    if file.exists():
        line = next(line for line in file.read_text(encoding="ascii").splitlines() if line.startswith(name))
        return int(line.split()[1]) << 10
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _forget_peak() -> None:
    """Let the highest resident memory be that from here on."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return
