"""The environments of real engines, which `make test-servers` makes, and commands in them."""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HOME = Path(os.environ.get("RADISTILL_SERVERS", ROOT / ".servers"))


def environment(name: str) -> Path:
    """The folder of an engine's environment; skips aloud where there is none."""
    folder = HOME / name
    if not (folder / ".ready").exists():
        pytest.skip(f"no environment with {name} at {folder}: make test-servers makes it")
    return folder.absolute()


def run(
    *command: object, more: Mapping[str, str] | None = None, timeout: float = 1500
) -> "subprocess.CompletedProcess[str]":
    """A command in the project's folder, with its output."""
    # Without a limit vLLM takes half of the memory for keys and values.
    env = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "PYTHONPATH": str(ROOT / "src")} | dict(more or {})
    return subprocess.run(
        [str(part) for part in command], cwd=ROOT, env=env, capture_output=True, text=True, timeout=timeout, check=False
    )
