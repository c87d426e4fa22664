"""Every script in benchmarks/ runs in its quick form and writes its ratios."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = sorted((Path(__file__).resolve().parents[1] / "benchmarks").glob("[a-z]*.py"))


def test_there_is_something_to_run() -> None:
    assert [script.stem for script in SCRIPTS] == ["generate"]


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.stem)
def test_the_quick_form_measures_and_writes_its_ratios(script: Path, tmp_path: Path) -> None:
    file = tmp_path / "ratios.json"
    done = subprocess.run(
        [sys.executable, str(script), "--quick", "--json", str(file)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    ratios = json.loads(file.read_text(encoding="utf-8"))["ratios"]
    assert ratios["vs_plain"] > 0
    assert set(ratios) == {"vs_plain", "vs_vllm", "vs_client"}
