"""Every script in benchmarks/ runs in its quick form and writes its ratios."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = sorted((Path(__file__).resolve().parents[1] / "benchmarks").glob("[a-z]*.py"))


def test_there_is_something_to_run() -> None:
    stems = [script.stem for script in SCRIPTS]
    assert stems == ["agreement", "compare_worlds", "generate", "kill", "lab_radis", "ledger"]


@pytest.mark.slow
def test_the_lab_is_measured_and_goes_on_where_it_was(tmp_path: Path) -> None:
    script = next(script for script in SCRIPTS if script.stem == "lab_radis")
    command = [sys.executable, str(script), "--quick", "--seeds", "1", "--only", "vanilla-0.001"]
    for _ in range(2):
        done = subprocess.run(
            [*command, "--output-dir", str(tmp_path / "runs"), "--json", str(tmp_path / "numbers.json")],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        numbers = json.loads((tmp_path / "numbers.json").read_text(encoding="utf-8"))
        assert numbers["vanilla-0.001-seed0"]["skill"]["value"] > numbers["base"]["skill"]["value"]
        assert "| vanilla-0.001 |" in done.stdout


@pytest.mark.slow
def test_the_quick_form_measures_and_writes_its_ratios(tmp_path: Path) -> None:
    script = next(script for script in SCRIPTS if script.stem == "generate")
    file = tmp_path / "ratios.json"
    done = subprocess.run(
        [sys.executable, str(script), "--quick", "--json", str(file)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    ratios = json.loads(file.read_text(encoding="utf-8"))["ratios"]
    assert ratios["vs_plain"] > 0
    assert set(ratios) == {"vs_plain", "vs_vllm", "vs_client"}


@pytest.mark.slow
def test_the_worlds_are_brought_up_and_compared_and_summed_up(tmp_path: Path) -> None:
    script = next(script for script in SCRIPTS if script.stem == "compare_worlds")
    command = [sys.executable, str(script), "--tiny", "--worlds", "101", "--output-dir", str(tmp_path / "worlds")]
    for _ in range(2):
        done = subprocess.run(
            [*command, "--json", str(tmp_path / "numbers.json")], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        numbers = json.loads((tmp_path / "numbers.json").read_text(encoding="utf-8"))
        means = numbers["means"]
        assert set(means) == {"vanilla", "replay"}
        assert means["vanilla"]["hypervolume"] == numbers["worlds"]["101"]["vanilla"]["hypervolume"]["value"]
    assert "2 of 2 cells are finished" in done.stdout
    told = json.loads((tmp_path / "worlds" / "101" / "upbringing" / "upbringing.json").read_text(encoding="utf-8"))
    assert told["world"] == {"number": 101, "rationale_overlap": 1.0, "word_order": "sov", "morphology": "prefixes"}
    assert (tmp_path / "worlds" / "101" / "exam.json").exists()


@pytest.mark.slow
def test_the_scale_of_the_ledger_is_measured(tmp_path: Path) -> None:
    script = next(script for script in SCRIPTS if script.stem == "ledger")
    file = tmp_path / "scale.json"
    done = subprocess.run(
        [sys.executable, str(script), "--quick", "--json", str(file)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(file.read_text(encoding="utf-8"))
    assert found["rows"] == 20_000
    assert found["memory_ratio"] < 1.5
    assert found["stage_bytes_per_row"] < 1000


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["echo", "server"])
def test_runs_are_killed_and_compared_and_not_killed_again_when_that_was_done(tmp_path: Path, backend: str) -> None:
    script = next(script for script in SCRIPTS if script.stem == "kill")
    file = tmp_path / "kill.json"
    command = [sys.executable, str(script), "--quick", "--backend", backend, "--output-dir", str(tmp_path / "kill")]
    said = []
    for _ in range(2):
        done = subprocess.run([*command, "--json", str(file)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        if "not tested" in done.stdout:
            pytest.skip(done.stdout)
        said.append(done.stdout.count("whole ("))
        found = json.loads(file.read_text(encoding="utf-8"))["backends"][backend]
        assert (found["runs"], found["whole"], found["lost"], found["doubled"]) == (1, 1, 0, 0)
        assert found["kills"] + found["kills_that_came_too_late"] > 0
    assert said == [1, 0]
