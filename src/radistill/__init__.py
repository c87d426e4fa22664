"""Teach an instruction-tuned LLM a new skill without losing what it already knows (Rationale Distillation).

The public names below are loaded when they are first used: importing the package costs nothing.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from radistill.backends.base import Backend
    from radistill.config import RunConfig, config_from, load_config
    from radistill.errors import RadistillError
    from radistill.methods.base import Method
    from radistill.metrics.base import Metric
    from radistill.pipeline import run
    from radistill.records import Example, Generation, Message, Prediction, Request, Sampling, Score, TrainingRecord
    from radistill.report import write_report
    from radistill.runs import RunFolder
    from radistill.tasks.base import Task

__version__ = "0.1.0"

_HOMES = {
    "Backend": "backends.base",
    "Example": "records",
    "Generation": "records",
    "Message": "records",
    "Method": "methods.base",
    "Metric": "metrics.base",
    "Prediction": "records",
    "RadistillError": "errors",
    "Request": "records",
    "RunConfig": "config",
    "RunFolder": "runs",
    "Sampling": "records",
    "Score": "records",
    "Task": "tasks.base",
    "TrainingRecord": "records",
    "config_from": "config",
    "load_config": "config",
    "run": "pipeline",
    "write_report": "report",
}
__all__ = [
    "Backend",
    "Example",
    "Generation",
    "Message",
    "Method",
    "Metric",
    "Prediction",
    "RadistillError",
    "Request",
    "RunConfig",
    "RunFolder",
    "Sampling",
    "Score",
    "Task",
    "TrainingRecord",
    "__version__",
    "config_from",
    "load_config",
    "run",
    "write_report",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
