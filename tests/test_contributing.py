"""What CONTRIBUTING.md tells a newcomer is true."""

import re
from pathlib import Path

import numpy as np
import pytest

import radistill.metrics
from radistill import plugins
from radistill.metrics.base import Metric, Pair

REPOSITORY = Path(__file__).resolve().parents[1]
TEXT = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")


@pytest.fixture
def metric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Metric:
    """The tutorial's metric, put beside ours as one more file and found by its name."""
    (code,) = re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    (tmp_path / "numbers.py").write_text(code, encoding="utf-8")
    monkeypatch.setattr(radistill.metrics, "__path__", [*radistill.metrics.__path__, str(tmp_path)])
    assert "numbers" in plugins.available("metrics")
    found = plugins.load("metrics", "numbers")()
    assert isinstance(found, Metric)
    return found


def pair(answer: str, reference: str) -> Pair:
    return Pair(answer=answer, reference=reference, source="")


def test_the_tutorials_metric_counts_what_the_tutorial_says(metric: Metric) -> None:
    assert metric.score(metric.rows([pair("12 of 30", "12 von 31")], "en").sum(axis=0)) == 50.0


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [("5 and 5", "5", 100.0), ("5", "5 and 5", 50.0), ("no number", "none", 100.0), ("", "7", 0.0), ("17", "7", 0.0)],
)
def test_each_number_is_kept_once_and_whole(metric: Metric, answer: str, reference: str, expected: float) -> None:
    assert metric.score(metric.rows([pair(answer, reference)], "en").sum(axis=0)) == expected


def test_its_score_is_that_of_all_numbers_and_not_the_mean_of_rows(metric: Metric) -> None:
    rows = metric.rows([pair("1", "1 2 3"), pair("4", "4")], "en")
    assert rows.shape == (2, 2)
    np.testing.assert_array_equal(metric.rows([], "en"), np.zeros((0, 2)))
    assert metric.score(rows.sum(axis=0)) == 50.0


def test_every_command_it_names_is_a_target() -> None:
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    named = set(re.findall(r"`make ([a-z]+)", TEXT))
    assert {"env", "test", "lint", "types"} <= named
    assert {target for target in named if not re.search(rf"^{target}:", makefile, re.MULTILINE)} == set()
