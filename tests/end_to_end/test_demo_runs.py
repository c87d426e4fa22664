"""The demo as a user starts it, with few sentences and questions."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from radistill import demo
from radistill.cli import app
from radistill.config import RunConfig, as_dict, config_from


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixteen sentences, four questions of three kinds."""
    really = demo.run_config

    def small(name: str, output_dir: Path, *, quick: bool, seed: int = 0) -> RunConfig:
        raw: dict[str, Any] = as_dict(really(name, output_dir, quick=quick, seed=seed))
        raw["data"]["train"]["limit"], raw["data"]["test"]["limit"] = 16, 4
        raw["train"] |= {"num_train_epochs": 1, "bf16": False}
        tested = [task for task in raw["evaluate"] if task.get("ability") in (None, "arithmetic", "refusal", "lists")]
        raw["evaluate"] = [{**task, "max_new_tokens": 8} | ({"items": 4} if "items" in task else {}) for task in tested]
        return config_from(raw)

    monkeypatch.setattr(demo, "run_config", small)


@pytest.mark.usefixtures("few")
def test_the_demo_ends_in_a_table_three_sentences_and_a_report(tmp_path: Path) -> None:
    said = CliRunner().invoke(app, ["demo", "--quick", "--output-dir", str(tmp_path)])
    assert said.exit_code == 0, said.output
    for name in ("base", "vanilla", "vanilla-half-lr", "radis"):
        assert name in said.output
    for start in ("The untouched model translates", "At the same learning rate", "Beside vanilla at half"):
        assert start in said.output
    assert str(tmp_path / "quick" / "report.html") in said.output.replace("\n", "")
    numbers = json.loads((tmp_path / "quick" / "report.json").read_text(encoding="utf-8"))
    assert [run["name"] for run in numbers["runs"]] == ["base", *demo.RUNS]
    assert {"arithmetic", "refusal", "lists"} == set(numbers["runs"][1]["abilities"])
    assert (tmp_path / "quick" / "figures" / "skill-and-retention.svg").exists()


@pytest.mark.usefixtures("few")
def test_more_seeds_are_more_runs_and_what_was_done_is_reused(tmp_path: Path) -> None:
    first = CliRunner().invoke(app, ["demo", "--quick", "--output-dir", str(tmp_path)])
    assert first.exit_code == 0, first.output
    again = CliRunner().invoke(app, ["demo", "--quick", "--seeds", "2", "--output-dir", str(tmp_path)])
    assert again.exit_code == 0, again.output
    assert again.output.count("reused") == 4 * len(demo.RUNS)
    numbers = json.loads((tmp_path / "quick" / "report.json").read_text(encoding="utf-8"))
    assert len(numbers["runs"]) == 1 + 2 * len(demo.RUNS)
