"""Real engines write what `transformers` writes, are started and stopped, and end with the run that started them."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fakes_engines import ROOT, environment, run

pytestmark = pytest.mark.servers

EAGER = "generate.backend.serve_args=[--dtype, float32, --enforce-eager]"


@pytest.fixture
def vllm() -> Path:
    return environment("vllm")


@pytest.fixture
def transformers_serve() -> Path:
    return environment("transformers")


def agreement(python: Path, file: Path, *options: object) -> dict[str, dict[str, object]]:
    done = run(python, ROOT / "benchmarks" / "agreement.py", "--json", file, *options)
    assert done.returncode == 0, done.stderr[-3000:]
    engines: dict[str, dict[str, object]] = json.loads(file.read_text(encoding="utf-8"))["engines"]
    return engines


def test_vllm_in_this_process_and_as_a_server_writes_what_transformers_writes(vllm: Path, tmp_path: Path) -> None:
    found = agreement(vllm / "bin" / "python", tmp_path / "a.json", "--serve-with", "vllm", "--serve-env", vllm)
    assert set(found) == {"vllm", "vllm server, ids", "vllm server, text"}
    for name, told in found.items():
        assert told["prompts"] == 200
        assert told["failed"] == 0, name
        assert told["unexplained"] == [], name
        assert int(str(told["equal"])) >= 0.98 * 200, name


def test_vllm_writes_with_an_adapter_what_transformers_writes_with_it(vllm: Path, tmp_path: Path) -> None:
    options = ("--quick", "--adapter", "--serve-with", "vllm", "--serve-env", vllm)
    found = agreement(vllm / "bin" / "python", tmp_path / "a.json", *options)
    assert set(found) == {"vllm", "vllm server, ids", "vllm server, text"}
    for name, told in found.items():
        assert (told["prompts"], told["failed"], told["unexplained"]) == (24, 0, []), name


def test_transformers_serve_writes_what_transformers_writes(transformers_serve: Path, tmp_path: Path) -> None:
    options = ("--quick", "--serve-with", "transformers", "--serve-env", transformers_serve)
    (told,) = agreement(Path(sys.executable), tmp_path / "a.json", *options).values()
    assert (told["prompts"], told["failed"], told["unexplained"]) == (24, 0, [])
    assert int(str(told["equal"])) >= 0.8 * 24, "it gives no ids, so some rows are spelt in other tokens"


def test_the_contract_of_all_backends_holds_for_vllm(vllm: Path) -> None:
    done = run(vllm / "bin" / "python", "-m", "pytest", "tests/contracts/test_every_backend.py", "-k", "vllm")
    assert done.returncode == 0, done.stdout[-3000:]
    assert "passed" in done.stdout
    assert "skipped" not in done.stdout.replace("1 skipped", ""), "it works off no batches, and that is all"


@pytest.mark.parametrize(
    "tests", ["tests/test_ray_backend.py", "tests/faults/test_ray_killed.py", "tests/contracts/test_every_backend.py"]
)
def test_what_is_said_about_ray_holds_on_a_real_cluster(tests: str) -> None:
    done = run(environment("ray") / "bin" / "python", "-m", "pytest", tests, "-k", "ray", timeout=3000)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "passed" in done.stdout


def run_file(folder: Path) -> Path:
    rows = "".join(f"The old dog sees tree {n}.\tLa malnova hundo vidas arbon {n}.\n" for n in range(60))
    (folder / "rows.tsv").write_text(f"en\teo\n{rows}", encoding="utf-8")
    config = {
        "model": "pocket",
        "output_dir": str(folder / "run"),
        "data": {"train": {"path": str(folder / "rows.tsv"), "pairs": ["en-eo"]}},
        "generate": {"ledger": str(folder / "ledger"), "sampling": {"max_new_tokens": 48}},
    }
    (folder / "run.yaml").write_text(json.dumps(config), encoding="utf-8")
    return folder / "run.yaml"


def of_folder(folder: Path) -> list[int]:
    """Processes that serve for the run in that folder: the watcher, and the server, which is told the log's name."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            said = (place / "environ").read_bytes()
        except OSError:
            continue
        if f"RADISTILL_TEST={folder}".encode() in said:
            found.append(int(place.name))
    return found


@pytest.mark.parametrize("engine", ["vllm", "transformers"])
def test_a_server_is_started_asked_and_ended(engine: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    env: Path = request.getfixturevalue(engine if engine == "vllm" else "transformers_serve")
    more = [EAGER] if engine == "vllm" else []
    file = run_file(tmp_path)
    command = [
        sys.executable,
        "-m",
        "radistill.cli",
        "generate",
        file,
        "generate.backend=openai",
        *more,
        "--limit",
        "8",
    ]
    done = run(*command, "--serve-with", engine, "--serve-env", env, more={"RADISTILL_TEST": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    assert "8/8 rows" in done.stderr
    assert (tmp_path / "run" / "server.log").read_text(encoding="utf-8").startswith("$ ")
    assert of_folder(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_server_ends_with_the_run_that_started_it(vllm: Path, tmp_path: Path, number: signal.Signals) -> None:
    file = run_file(tmp_path)
    command = [sys.executable, "-m", "radistill.cli", "generate", str(file), "generate.backend=openai", EAGER]
    env = os.environ | {"RADISTILL_TEST": str(tmp_path), "VLLM_CPU_KVCACHE_SPACE": "1", "PYTHONPATH": str(ROOT / "src")}
    process = subprocess.Popen(
        [*command, "--serve-with", "vllm", "--serve-env", str(vllm)], env=env, stderr=subprocess.PIPE, cwd=ROOT
    )
    try:
        wait_for(lambda: len(of_folder(tmp_path)) >= 3)
    finally:
        process.send_signal(number)
        process.communicate()
    wait_for(lambda: not of_folder(tmp_path))


def test_a_server_that_cannot_be_started_is_a_message_with_what_it_said(vllm: Path, tmp_path: Path) -> None:
    file = run_file(tmp_path)
    wrong = "generate.backend.serve_args=[--no-such-option]"
    command = [sys.executable, "-m", "radistill.cli", "generate", file, "generate.backend=openai", wrong]
    done = run(*command, "--serve-with", "vllm", "--serve-env", vllm)
    assert done.returncode == 2
    assert "before it served" in done.stderr
    assert "--no-such-option" in done.stderr
    assert "Traceback" not in done.stderr.split("before it served")[0]


def wait_for(holds: Callable[[], bool], seconds: float = 120.0) -> None:
    began = time.monotonic()
    while not holds():
        assert time.monotonic() - began < seconds, "it does not come to be"
        time.sleep(0.2)
