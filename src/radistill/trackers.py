"""Trackers that a training may report to (`train.report_to`): what they write stays on this machine.

wandb would ask for an account, and mlflow tells its makers of its use; both are told not to, unless the user has said
otherwise by the same variables of the environment. The local `train_log.jsonl` is written whatever is reported to.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from radistill.runs import RunFolder

PROJECT = "radistill"
AT_HOME = {
    "WANDB_MODE": "offline",
    "WANDB_ERROR_REPORTING": "false",
    "WANDB_PROJECT": PROJECT,
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_EXPERIMENT_NAME": PROJECT,
    "GRADIO_ANALYTICS_ENABLED": "False",
}
"""By wandb, mlflow and what trackio is made of."""


@contextmanager
def at_home(run: RunFolder) -> Iterator[None]:
    """While training, unless the user has set them: nothing is sent, and TensorBoard writes into the run folder."""
    # Imported after WANDB_MODE is set, it prints a line about wandb, whoever is reported to.
    import transformers.integrations.integration_utils  # noqa: F401

    wanted = {**AT_HOME, "TENSORBOARD_LOGGING_DIR": str(run.path / "tensorboard")}
    ours = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)
