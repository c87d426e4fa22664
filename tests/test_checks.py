"""The checks themselves: size limits, the count of tests and `.ci/run`."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


def run(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, **environment},
    )


def check_sizes(root: Path, name: str, text: str) -> subprocess.CompletedProcess[str]:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return run(sys.executable, REPOSITORY / "scripts/check_sizes.py", root)


def function_of(n_lines: int, *, indent: str = "", head: str = "def") -> str:
    return f"{indent}{head} long():\n" + f"{indent}    x = 1\n" * (n_lines - 1)


def test_files_and_functions_at_the_limit_pass(tmp_path: Path) -> None:
    done = check_sizes(tmp_path, "src/a.py", function_of(60) + "x = 1\n" * 340)
    assert (done.returncode, done.stdout) == (0, "1 files within the limits\n")


@pytest.mark.parametrize("folder", ["src/pkg", "tests", "scripts", "benchmarks", "examples"])
def test_a_file_over_the_limit_is_named(tmp_path: Path, folder: str) -> None:
    done = check_sizes(tmp_path, f"{folder}/a.py", "x = 1\n" * 401)
    assert done.returncode == 1
    assert f"{folder}/a.py:1: the file has 401 lines, at most 400" in done.stdout


@pytest.mark.parametrize("head", ["def", "async def"])
def test_a_function_over_the_limit_is_named_wherever_it_stands(tmp_path: Path, head: str) -> None:
    done = check_sizes(tmp_path, "src/a.py", "class A:\n" + function_of(61, indent="    ", head=head))
    assert done.returncode == 1
    assert "src/a.py:2: long has 61 lines, at most 60" in done.stdout


def test_nothing_to_look_at_is_no_success(tmp_path: Path) -> None:
    assert run(sys.executable, REPOSITORY / "scripts/check_sizes.py", tmp_path).returncode == 1


TESTS = {
    "good": ("def test_a(): pass\n", "1 passed, 0 failed, 0 skipped", 0),
    "mixed": (
        "import pytest\n"
        "@pytest.fixture\ndef broken(): raise ValueError\n"
        "def test_a(): pass\ndef test_b(): pass\ndef test_c(): assert 0\ndef test_d(broken): pass\n"
        "def test_e(): pytest.skip('no GPU')\n",
        "2 passed, 2 failed, 1 skipped",
        1,
    ),
    "skipped": ("import pytest\ndef test_a(): pytest.skip('no GPU')\n", "0 passed, 0 failed, 1 skipped", 1),
    "unreadable": ("def test_a(:\n", "0 passed, 1 failed, 0 skipped", 1),
    "empty": ("", "0 passed, 0 failed, 0 skipped", 1),
}


@pytest.mark.parametrize("name", TESTS)
def test_the_count_is_that_of_pytest(tmp_path: Path, name: str) -> None:
    text, line, code = TESTS[name]
    (tmp_path / "test_x.py").write_text(text)
    junit = tmp_path / "tests.xml"
    run(sys.executable, "-m", "pytest", "-c", os.devnull, "--rootdir", tmp_path, f"--junitxml={junit}", tmp_path)
    done = run(sys.executable, REPOSITORY / "scripts/count_tests.py", junit)
    assert (done.stdout.strip(), done.returncode) == (line, code)


def test_a_pytest_that_never_started_is_counted_as_none(tmp_path: Path) -> None:
    done = run(sys.executable, REPOSITORY / "scripts/count_tests.py", tmp_path / "missing.xml")
    assert (done.stdout.strip(), done.returncode) == ("0 passed, 0 failed, 0 skipped", 1)


# Writes what the real targets would leave, and fails where it is told to.
FAKE_MAKE = r"""#!/bin/sh
for word in "$@"; do
  case "$word" in
    --*) ;;
    PYTEST_ARGS=*) junit=${word##*--junitxml=} ;;
    DEMO_ARGS=*) output=${word##*--output-dir } ;;
    *) target=$word ;;
  esac
done
echo "$target" >>"$FAKE/log"
[ "$target" = test ] && cp "$FAKE/tests.xml" "$junit"
if [ "$target" = demo ] && [ ! -e "$FAKE/no_report" ]; then
  mkdir -p "$output" && head -c 5000 /dev/zero >"$output/report.html"
fi
[ ! -e "$FAKE/$target" ]
"""
JUNIT = '<testsuites><testsuite errors="0" failures="{failed}" skipped="1" tests="{tests}" /></testsuites>'


@dataclass(frozen=True)
class Continuous:
    """A checkout whose `make` is a fake."""

    root: Path
    fake: Path

    def run(self) -> subprocess.CompletedProcess[str]:
        return run(self.root / ".ci/run", PATH=f"{self.fake}:{os.environ['PATH']}", FAKE=str(self.fake), CI="true")


@pytest.fixture
def continuous(tmp_path: Path) -> Continuous:
    if not shutil.which("bash"):
        pytest.skip("needs bash, which is not installed here")
    root, fake = tmp_path / "project", tmp_path / "fake"
    fake.mkdir()
    (fake / "make").write_text(FAKE_MAKE)
    (fake / "make").chmod(0o755)
    (fake / "tests.xml").write_text(JUNIT.format(tests=8, failed=0))
    for folder in (".ci", "scripts"):
        shutil.copytree(REPOSITORY / folder, root / folder)
    (root / ".venv/bin").mkdir(parents=True)
    (root / ".venv/bin/python").symlink_to(sys.executable)
    return Continuous(root, fake)


def test_ci_runs_every_check_and_closes_with_the_count(continuous: Continuous) -> None:
    done = continuous.run()
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "7 passed, 0 failed, 1 skipped"
    assert (continuous.fake / "log").read_text().split() == ["test", "lint", "types", "demo"]


@pytest.mark.parametrize("target", ["test", "lint", "types", "demo"])
def test_ci_fails_with_any_check_and_still_runs_the_others(continuous: Continuous, target: str) -> None:
    (continuous.fake / target).touch()
    done = continuous.run()
    assert done.returncode == 1
    assert done.stdout.splitlines()[-2:] == [f"FAILED: {target}", "7 passed, 0 failed, 1 skipped"]
    assert (continuous.fake / "log").read_text().split() == ["test", "lint", "types", "demo"]


def test_ci_fails_when_the_demo_leaves_no_report(continuous: Continuous) -> None:
    (continuous.fake / "no_report").touch()
    done = continuous.run()
    assert done.returncode == 1
    assert "the demo left no report.html" in done.stderr


@pytest.mark.parametrize(("tests", "failed"), [(1, 0), (8, 2)])
def test_ci_believes_the_count_more_than_an_exit_code(continuous: Continuous, tests: int, failed: int) -> None:
    (continuous.fake / "tests.xml").write_text(JUNIT.format(tests=tests, failed=failed))
    done = continuous.run()
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == f"{tests - failed - 1} passed, {failed} failed, 1 skipped"


def test_ci_fails_when_there_is_no_environment_at_all(continuous: Continuous) -> None:
    (continuous.root / ".venv/bin/python").unlink()
    done = continuous.run()
    assert done.returncode != 0
    assert done.stdout.splitlines()[-1] == "0 passed, 0 failed, 0 skipped"
