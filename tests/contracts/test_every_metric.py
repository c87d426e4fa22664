"""What every metric must do, whoever wrote it."""

import subprocess
import sys

import numpy as np
import pytest

from radistill import plugins
from radistill.metrics.base import Metric, Pair

PAIRS = [
    Pair(
        "The goods cost less than 20 euros.",
        "The goods cost less than 20 euros.",
        "Die Ware hat unter 20 Euro gekostet.",
    ),
    Pair("A fee of 40% is due.", "The fee would equal 40% of the value of the goods.", "Die Gebühr entspricht 40%."),
    Pair("", "It is raining.", "Es regnet."),
    Pair("Yes.", "Yes, of course; who would not?", "Ja, natürlich."),
]

OF_ITS_OWN = {
    "lab_accuracy": [
        Pair("10 + 20 = 30", "30", "What is 10 + 20?"),
        Pair("10 + 21 = 30", "31", "What is 10 + 21?"),
        Pair("", "32", "Add 10 and 22."),
        Pair("30", "33", "Work out 10 + 23."),
    ],
    "lab_rationale": [
        Pair('"hundo" means dog.', "The sentence has 4 words.", "La hundo ne kuras."),
        Pair("Good day.", "The sentence is negated.", "La kato ne kuras."),
        Pair("", "An apple is a kind of food.", "Pomo."),
        Pair('"pomo" means', '"pomo" means apple.', "La pomo."),
    ],
}
"""Pairs for metrics that judge by a rule of their own: the reference is right by that rule."""


@pytest.fixture
def pairs(metric: Metric) -> list[Pair]:
    return OF_ITS_OWN.get(plugins.name_of(metric), PAIRS)


@pytest.fixture(params=plugins.available("metrics"))
def metric(request: pytest.FixtureRequest) -> Metric:
    made = plugins.load("metrics", request.param)()
    assert isinstance(made, Metric)
    return made


def test_a_metric_needs_no_settings_and_describes_those_it_has(metric: Metric) -> None:
    assert type(metric).__doc__
    assert all(field.description for field in type(metric).model_fields.values())
    assert type(metric).model_validate(metric.model_dump()) == metric


def test_rows_are_one_per_pair_and_finite(metric: Metric, pairs: list[Pair]) -> None:
    rows = metric.rows(pairs, "en")
    assert rows.ndim == 2
    assert len(rows) == len(pairs)
    assert rows.dtype == np.float64
    assert np.isfinite(rows).all()


def test_a_pairs_row_depends_on_nothing_else(metric: Metric, pairs: list[Pair]) -> None:
    together = metric.rows(pairs, "en")
    alone = np.concatenate([metric.rows([pair], "en") for pair in pairs])
    backwards = metric.rows(pairs[::-1], "en")[::-1]
    np.testing.assert_array_equal(together, alone)
    np.testing.assert_array_equal(together, backwards)


def test_a_perfect_system_is_not_beaten_and_an_empty_one_beats_nobody(metric: Metric, pairs: list[Pair]) -> None:
    def score(scored: list[Pair]) -> float:
        return metric.score(metric.rows(scored, "en").sum(axis=0))

    sign = 1 if metric.higher_is_better else -1
    perfect = score([Pair(p.reference, p.reference, p.source) for p in pairs])
    empty = score([Pair("", p.reference, p.source) for p in pairs])
    assert sign * perfect > sign * score(pairs) > sign * empty


def test_scoring_leaves_the_total_as_it_was(metric: Metric, pairs: list[Pair]) -> None:
    total = metric.rows(pairs, "en").sum(axis=0)
    before = total.copy()
    assert metric.score(total) == metric.score(total)
    np.testing.assert_array_equal(total, before)


def test_the_signature_is_the_same_before_and_after_scoring(metric: Metric, pairs: list[Pair]) -> None:
    before = metric.signature("en")
    metric.rows(pairs, "en")
    metric.rows([], "en")
    assert before
    assert metric.signature("en") == before


def test_no_metric_loads_an_engine_when_it_is_imported() -> None:
    names = [f"radistill.metrics.{name}" for name in plugins.available("metrics")]
    code = f"import sys, {', '.join(names)}; print(*{{'torch', 'sacrebleu', 'transformers'}} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
