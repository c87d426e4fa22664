"""The log of a training, train_log.jsonl, and a stop on Ctrl-C that keeps every finished step."""

import json
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from radistill import ranks
from radistill.progress import Progress


class Recorder(TrainerCallback):  # type: ignore[misc]
    """Writes train_log.jsonl, shows progress and stops on request."""

    def __init__(self, path: Path, shown: Progress, *, start_step: int) -> None:
        self.path = path
        self.shown = shown
        self.step = start_step
        self.stop_requested = False
        self.count_tokens: Callable[[], int] = lambda: 0
        self.tokens_shown = 0
        self.clock = time.monotonic()
        self.tokens: float = 0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Start the clock after all loading is done."""
        self.tokens_shown = self.count_tokens()
        self.clock = time.monotonic()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """A checkpoint always has a log line of its own step, so that a resumed log has no half window."""
        self.shown.advance(state.global_step - self.step, self.count_tokens() - self.tokens_shown)
        self.step, self.tokens_shown = state.global_step, self.count_tokens()
        self.stop_requested = ranks.any_of(self.stop_requested)
        if self.stop_requested:
            control.should_save = control.should_training_stop = True
        if control.should_save or state.global_step == args.max_steps:
            control.should_log = True

    def on_log(self, _args: TrainingArguments, state: TrainerState, _control: Any, **given: Any) -> None:
        """Append one line."""
        logs: dict[str, Any] = given["logs"]
        if "eval_score" in logs and state.is_world_process_zero:
            self.clock += logs["eval_runtime"]  # it is no time of training
            self._write({"step": state.global_step, **logs})
            self.shown.advance(0, note=f"score {logs['eval_score']:.1f}")
            return
        if "loss" not in logs or not state.is_world_process_zero:
            return
        now = time.monotonic()
        speed = (logs["tokens"] - self.tokens) / max(now - self.clock, 1e-9) if self.tokens else None
        self.tokens, self.clock = logs["tokens"], now
        row = {"step": state.global_step, **logs, **({"tokens_per_second": round(speed, 1)} if speed else {})}
        self._write(row)
        self.shown.advance(0, note=f"loss {logs['loss']:.3f}")

    def _write(self, row: Mapping[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


@contextmanager
def stopping_on_signals(recorder: Recorder) -> Iterator[None]:
    """The first Ctrl-C (or SIGTERM) ends after the step in work, with a checkpoint; the second at once."""

    def handle(_number: int, _frame: FrameType | None) -> None:
        # Of several processes one must not leave alone; launchers send the signal to all, some of them twice.
        if recorder.stop_requested and ranks.size() == 1:
            raise KeyboardInterrupt
        recorder.stop_requested = True

    try:
        before = {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: whoever owns it handles signals
        yield
        return
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
