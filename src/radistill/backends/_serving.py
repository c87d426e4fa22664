"""Servers that radistill starts and stops itself, from an environment of their own if one is given."""

import json
import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from radistill.backends._lora import rank_of
from radistill.errors import BackendError, writing_into
from radistill.progress import progress
from radistill.speaker import Speaker

LINES = 12
"""So many of the last lines of a log are shown where a server could not be started."""
LOOK = 0.5
"""Seconds between two looks at a server that starts."""


ROOM = frozenset(
    f"--{name}"
    for name in (
        *("gpu-memory-utilization", "data-parallel-size", "max-num-seqs", "max-num-batched-tokens", "cpu-offload-gb"),
        *("kv-cache-memory-bytes", "download-dir", "api-server-count", "uvicorn-log-level"),
    )
)
"""Arguments of vLLM's server, each with a value, that change no answer."""


def telling_args(engine: str | None, args: Sequence[str]) -> list[str]:
    """The arguments that may change an answer."""
    found: list[str] = []
    rest = iter(args)
    for word in rest:
        name, equals, _ = word.partition("=")
        if engine != "vllm" or name not in ROOM:
            found.append(word)
        elif not equals:
            next(rest, None)
    return found


@dataclass(frozen=True)
class Serving:
    """How a server is started."""

    engine: str
    """`vllm` or `transformers`."""
    env: str | None
    """Virtual environment that it is installed in; None = that of this process, or the PATH."""
    args: Sequence[str]
    """More arguments for its command line."""
    log: Path
    """What it says goes there."""
    timeout: float
    """Seconds it may take to start."""


@dataclass(frozen=True)
class Served:
    """A server that answers."""

    url: str
    model: str
    """What it calls the model."""


@contextmanager
def served(serving: Serving, speaker: Speaker) -> Iterator[Served]:
    """Start a server for this model; it is ended with all its processes on exit, and also when this process is killed.

    Raises:
        BackendError: it is not installed, ends by itself, or does not answer in time.
    """
    port = _free_port()
    command, model = _command(serving, speaker, port)
    with writing_into(serving.log.parent):
        serving.log.parent.mkdir(parents=True, exist_ok=True)
    with writing_into(serving.log.parent), serving.log.open("ab") as log:
        log.write(f"$ {shlex.join(command)}\n".encode())
        log.flush()
        process = _watched(command, log)
        try:
            _wait(process, serving, port)
            yield Served(f"http://127.0.0.1:{port}/v1", model)
        finally:
            assert process.stdin is not None
            with suppress(BrokenPipeError):
                process.stdin.close()
            process.wait()


def _watched(command: Sequence[str], log: IO[bytes]) -> "subprocess.Popen[bytes]":
    # Nothing phones home. A key that others have set for their servers would lock us out of ours.
    quiet = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "radistill.backends._watch", *command],
        stdin=subprocess.PIPE,
        stdout=log,
        stderr=subprocess.STDOUT,
        env={name: value for name, value in (os.environ | quiet).items() if name != "VLLM_API_KEY"},
        start_new_session=True,  # Ctrl-C reaches this process alone
    )


def _wait(process: "subprocess.Popen[bytes]", serving: Serving, port: int) -> None:
    import httpx2

    began = time.monotonic()
    title = f"start {serving.engine}"
    with progress(title, 1, unit="server") as shown, httpx2.Client(trust_env=False, timeout=5.0) as http:
        while time.monotonic() - began < serving.timeout:
            if (code := process.poll()) is not None:
                raise BackendError(f"{serving.engine} has ended (exit code {code}) before it served:\n{_tail(serving)}")
            with suppress(httpx2.HTTPError):
                if http.get(f"http://127.0.0.1:{port}/health").status_code == 200:
                    shown.advance(1, note=f"its log is {serving.log}")
                    return
            time.sleep(LOOK)
    raise BackendError(
        f"{serving.engine} does not answer after {serving.timeout:.0f} s; give it longer with "
        f"generate.backend.serve_timeout. It said last:\n{_tail(serving)}"
    )


def _tail(serving: Serving) -> str:
    lines = serving.log.read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join(f"  {line}" for line in lines[-LINES:]) + f"\nAll of it: {serving.log}"


def _command(serving: Serving, speaker: Speaker, port: int) -> tuple[list[str], str]:
    """The server's command line, and what it will call the model."""
    where = ["--host", "127.0.0.1", "--port", str(port)]
    weights = speaker.weights
    code = ["--trust-remote-code"] if speaker.trust_remote_code else []
    if serving.engine == "transformers":
        if weights.adapter is not None:
            raise BackendError("transformers serve knows no adapters; merge it first, or serve with vllm.")
        program = _program(serving, "transformers", 'pip install "transformers[serving]"')
        return [program, "serve", str(weights.folder), *where, *code, *serving.args], str(weights.folder)
    python = _program(serving, "python", "python3 -m venv ENV && ENV/bin/pip install vllm", holds="vllm")
    adapter: list[str] = []
    if weights.adapter is not None:
        named = json.dumps({"name": weights.name, "path": str(weights.adapter)})
        adapter = ["--enable-lora", "--max-lora-rank", str(rank_of(weights.adapter)), "--lora-modules", named]
    name = "untouched" if weights.adapter is not None else weights.name
    steps = ["--no-enable-chunked-prefill"] if _is_for_cpus(python) else []
    known = ["--served-model-name", name, "--max-logprobs", "-1", "--enable-prefix-caching"]
    known += ["--generation-config", "vllm"]  # what is not said is neutral, whatever the model's own file says
    # Our own path may lead to packages that are not that environment's.
    bare = ["env", "-u", "PYTHONPATH"] if serving.env else []
    api = [*bare, python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(weights.folder)]
    return [*api, *where, *known, *steps, *adapter, *code, *serving.args], weights.name


def _program(serving: Serving, name: str, how: str, *, holds: str | None = None) -> str:
    """Path of a program of the environment.

    Args:
        serving: names the environment, or does not.
        name: of the program.
        how: it is installed.
        holds: a package that the environment must have.
    """
    folder = Path(serving.env).expanduser() if serving.env else Path(sys.prefix)
    program = folder / "bin" / name
    if not program.exists() or (holds is not None and not _says(program, f"u.find_spec({holds!r}) is not None")):
        raise BackendError(
            f"{serving.engine} is not installed in {folder}. Make an environment for it ({how}) and name its folder: "
            "--serve-env ENV, or generate.backend.serve_env."
        )
    return str(program.absolute())


def _is_for_cpus(python: str) -> bool:
    """Whether that vLLM runs on CPUs, where 0.32 dies of a seeded prompt that is read in two steps."""
    names = "(f'{d.name} {d.version}' for d in m.distributions())"
    return _says(Path(python), f"any(n.startswith('vllm') and 'cpu' in n for n in {names})")


def _says(python: Path, holds: str) -> bool:
    """Whether that interpreter finds it to be so; `u` and `m` are what it knows about packages."""
    code = f"import importlib.util as u, importlib.metadata as m, sys; sys.exit(0 if {holds} else 1)"
    # Not our own path: it is that environment which is asked.
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run([str(python), "-c", code], env=env, capture_output=True, check=False).returncode == 0


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
