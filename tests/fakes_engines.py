"""Commands in the environments of real engines."""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def run(
    *command: object, more: Mapping[str, str] | None = None, timeout: float = 1500
) -> "subprocess.CompletedProcess[str]":
    """A command in the project's folder, with its output."""
    # Without a limit vLLM takes half of the memory for keys and values.
    env = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "PYTHONPATH": str(ROOT / "src")} | dict(more or {})
    return subprocess.run(
        [str(part) for part in command], cwd=ROOT, env=env, capture_output=True, text=True, timeout=timeout, check=False
    )
