"""The Makefile's set-up, with a Python that only writes down what it is asked to install."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
TORCH = next(line for line in (REPOSITORY / "constraints.txt").read_text().splitlines() if line.startswith("torch=="))

pytestmark = pytest.mark.skipif(
    not (shutil.which("make") and shutil.which("bash")), reason="needs make and bash, which are not installed here"
)

# Stands for the system's Python and, copied into .venv, for that one too. What it does wrong is in files beside it.
FAKE_PYTHON = r"""#!/bin/sh
has() { [ -e "$FAKE/$1" ]; }
case "$*" in
  "-c import sys; sys.exit"*) if has too_old; then exit 1; fi ;;
  "-c import sys; print"*) if has other_version; then echo 3.12; else echo 3.11; fi ;;
  "-c import venv"*) if has no_venv; then exit 1; fi ;;
  --version) echo "Python 3.x of the test" ;;
  "-m venv .venv")
    echo venv >>"$FAKE/log"
    mkdir -p .venv/bin && cp "$0" .venv/bin/python
    printf '#!/bin/sh\necho "radistill $*" >>"$FAKE/log"\n' >.venv/bin/radistill
    chmod +x .venv/bin/radistill ;;
  "-m pip install"*)
    echo "$*" | sed 's/-m pip install -qq --disable-pip-version-check/pip/' >>"$FAKE/log"
    if has pip_hangs; then "$REAL_PYTHON" -c 'import time; print("hangs", flush=True); time.sleep(60)' >>"$FAKE/log"; fi
    if has pip_killed; then kill -9 $$; fi
    if has pip_fails; then echo "no matching distribution" >&2; exit 1; fi ;;
esac
"""


@dataclass(frozen=True)
class Project:
    """A copy of the build files, and the fake Python's folder."""

    root: Path
    fake: Path

    def command(self, *arguments: str) -> tuple[list[str], dict[str, str]]:
        ours = ("MAKE", "MFLAGS", "PYTHON", "TORCH_INDEX", "DEMO_ARGS")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        path = f"{self.fake}:{os.environ['PATH']}"
        return ["make", "--no-print-directory", *arguments], {
            **kept,
            "PATH": path,
            "FAKE": str(self.fake),
            "REAL_PYTHON": sys.executable,
        }

    def make(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command, environment = self.command(*arguments)
        return subprocess.run(
            command, cwd=self.root, env=environment, capture_output=True, text=True, timeout=60, check=False
        )

    def start(self, *arguments: str) -> "subprocess.Popen[bytes]":
        command, environment = self.command(*arguments)
        return subprocess.Popen(
            command,
            cwd=self.root,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            # A shell that was started with SIGINT ignored cannot be interrupted, whoever starts the tests.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def log(self) -> list[str]:
        """What was done since the last call."""
        path = self.fake / "log"
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return lines

    def set(self, fault: str) -> None:
        (self.fake / fault).touch()

    def unset(self, fault: str) -> None:
        (self.fake / fault).unlink()


@pytest.fixture
def project(tmp_path: Path) -> Project:
    root, fake = tmp_path / "project", tmp_path / "fake"
    fake.mkdir()
    root.mkdir()
    (fake / "python3").write_text(FAKE_PYTHON)
    (fake / "python3").chmod(0o755)
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(REPOSITORY / name, root / name)
    shutil.copytree(REPOSITORY / "scripts", root / "scripts")
    (root / "benchmarks").mkdir()
    return Project(root, fake)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "waited 20 s in vain"
        time.sleep(0.02)


def test_torch_is_installed_first_and_alone_then_the_project_with_the_pins(project: Project) -> None:
    done = project.make("demo", "DEMO_ARGS=--quick --output-dir x")
    assert done.returncode == 0, done.stderr
    assert project.log() == [
        "venv",
        f"pip -c constraints.txt {TORCH}",
        "pip -c constraints.txt -e .",
        "radistill demo --quick --output-dir x",
    ]


def test_torch_index_is_given_to_torch_only_and_is_kept_for_later(project: Project) -> None:
    project.make("demo", "TORCH_INDEX=https://example.org/cpu")
    assert project.log()[1:3] == [f"pip --index-url https://example.org/cpu {TORCH}", "pip -c constraints.txt -e ."]
    project.make("env")
    assert project.log()[0] == f"pip --index-url https://example.org/cpu {TORCH}"


def test_another_torch_index_makes_the_environment_anew(project: Project) -> None:
    project.make("env")
    project.log()
    project.make("env", "TORCH_INDEX=https://example.org/cu130")
    assert project.log()[:2] == ["venv", f"pip --index-url https://example.org/cu130 {TORCH}"]


def test_a_second_set_up_does_and_says_nothing(project: Project) -> None:
    assert project.make("env").returncode == 0
    assert project.log()[-1] == "pip -c constraints.txt -e .[dev,docs,bench]"
    again = project.make("env")
    assert (again.returncode, again.stdout, again.stderr, project.log()) == (0, "", "", [])


def test_a_higher_layer_serves_the_lower_ones(project: Project) -> None:
    project.make("env")
    project.log()
    project.make("demo")
    assert project.log() == ["radistill demo"]


def test_a_lower_layer_is_built_upon(project: Project) -> None:
    project.make("demo")
    project.log()
    project.make("test")
    log = project.log()
    assert "venv" not in log
    assert log[1] == "pip -c constraints.txt -e .[test]"


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_new_pins_renew_all_that_is_installed(project: Project, name: str) -> None:
    project.make("env")
    project.log()
    later = time.time() + 10
    os.utime(project.root / name, (later, later))
    project.make("demo")
    assert project.log()[1] == "pip -c constraints.txt -e .[dev,docs,bench]"


@pytest.mark.parametrize("blow", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_set_up_is_repaired_by_running_again(project: Project, blow: signal.Signals) -> None:
    project.set("pip_hangs")
    running = project.start("demo")
    wait_until(lambda: (project.fake / "log").exists() and "hangs" in (project.fake / "log").read_text())
    os.killpg(running.pid, blow)
    assert running.wait(timeout=20) != 0
    assert project.log() == ["venv", f"pip -c constraints.txt {TORCH}", "hangs"]
    (project.root / ".venv/half_written.py").touch()
    project.unset("pip_hangs")
    again = project.make("demo")
    assert again.returncode == 0, again.stderr
    assert "interrupted" in again.stderr
    assert project.log()[0] == "venv"
    assert not (project.root / ".venv/half_written.py").exists()


def test_a_pip_that_was_killed_by_itself_is_repaired_too(project: Project) -> None:
    project.set("pip_killed")
    assert "begins anew" in project.make("demo").stderr
    project.unset("pip_killed")
    project.log()
    assert project.make("demo").returncode == 0
    assert project.log()[0] == "venv"


def test_a_failed_download_keeps_what_worked_and_the_next_run_goes_on(project: Project) -> None:
    project.make("demo")
    project.set("pip_fails")
    failed = project.make("env")
    assert failed.returncode != 0
    assert "no matching distribution" in failed.stderr
    assert "run the same command again" in failed.stderr
    project.log()
    assert project.make("demo").returncode == 0
    assert project.log() == ["radistill demo"]
    project.unset("pip_fails")
    project.make("env")
    assert "venv" not in project.log()
    assert project.make("env").stderr == ""


def test_two_set_ups_at_once_do_not_destroy_each_other(project: Project) -> None:
    project.set("pip_hangs")
    running = project.start("demo")
    wait_until(lambda: (project.fake / "log").exists() and "hangs" in (project.fake / "log").read_text())
    second = project.make("env")
    os.killpg(running.pid, signal.SIGKILL)
    running.wait(timeout=20)
    assert second.returncode != 0
    assert "wait for it" in second.stderr
    assert project.log().count("venv") == 1


def test_a_moved_checkout_gets_a_new_environment(project: Project) -> None:
    project.make("env")
    project.log()
    moved = Project(project.root.rename(project.root.with_name("moved")), project.fake)
    moved.make("env")
    assert moved.log()[0] == "venv"


def test_another_python_asked_for_by_name_makes_the_environment_anew(project: Project) -> None:
    project.make("env")
    shutil.copy(project.fake / "python3", project.fake / "python3.12")
    # Only what is not in .venv is of another version.
    (project.fake / "python3.12").write_text(FAKE_PYTHON.replace("if has other_version", "if true"))
    project.log()
    project.make("env", "PYTHON=python3.12")
    assert project.log()[0] == "venv"
    project.make("env")
    assert project.log() == []


@pytest.mark.parametrize(
    ("fault", "said"), [("too_old", "3.11 or newer is needed"), ("no_venv", "cannot make virtual environments")]
)
def test_a_python_that_will_not_do_is_refused_before_anything_is_made(project: Project, fault: str, said: str) -> None:
    project.set(fault)
    refused = project.make("demo")
    assert refused.returncode != 0
    assert said in refused.stderr
    assert not (project.root / ".venv").exists()


def test_a_python_that_is_not_there_is_named(project: Project) -> None:
    refused = project.make("demo", "PYTHON=python9.9")
    assert "there is no 'python9.9' here" in refused.stderr
    assert not (project.root / ".venv").exists()


def test_bench_without_a_script_says_that_nothing_was_measured(project: Project) -> None:
    empty = project.make("bench")
    assert empty.returncode != 0
    assert "nothing was measured" in empty.stderr
    assert project.log() == []


def test_help_lists_every_target(project: Project) -> None:
    phony = next(line for line in (REPOSITORY / "Makefile").read_text().splitlines() if line.startswith(".PHONY:"))
    listed = project.make("help").stdout
    assert [target for target in phony.split()[1:] if f"make {target} " not in listed] == []
