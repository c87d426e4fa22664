"""`radistill generate --serve-with vllm`: the settings that it stands for."""

import json
from pathlib import Path

from radistill import plugins
from radistill.config import RunConfig


def serving(config: RunConfig, engine: str, env: str | None) -> list[str]:
    """Settings, as on the command line, with which the backend `openai` starts its own server.

    Args:
        config: the run; what it says about the backend `openai` stays, any other backend is replaced.
        engine: what is started.
        env: environment that it is installed in.
    """
    backend = config.generate.backend
    wanted = {"serve_with": engine, "serve_log": str(Path(config.output_dir) / "server.log")}
    if env is not None:
        wanted["serve_env"] = env
    if plugins.name_of(backend) == "openai":
        return [f"generate.backend.{key}={json.dumps(value)}" for key, value in wanted.items()]
    return [f"generate.backend={json.dumps({'name': 'openai', **wanted})}"]
