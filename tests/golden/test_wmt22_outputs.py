"""True outputs of two systems on WMT22 (Icelandic: WMT21): our numbers are sacreBLEU 2.6.0's.

The anchors were made from the same files with
`sacrebleu REF -i HYP -l SRC-TGT -m bleu chrf`, the intervals and p-values with `sacrebleu.significance.PairedTest`
(`test_type="bs", n_samples=1000`).
"""

import functools
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from radistill import stats
from radistill.metrics.base import Pair
from radistill.metrics.bleu import BLEU
from radistill.metrics.chrf import ChrF

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
ANCHORS = DATA / "alma_outputs" / "anchors_sacrebleu_2.6.0.tsv"
FAST = {"en-de", "en-zh"}
"""One of each tokenizer; the others take half a minute."""

pytestmark = pytest.mark.skipif(not ANCHORS.exists(), reason="no ../shared/data/alma_outputs here")


class Anchor(NamedTuple):
    system: str
    pair: str
    segments: int
    bleu: float
    chrf: float
    empty: int


def anchors() -> list[Anchor]:
    if not ANCHORS.exists():
        return []
    rows = [line.split("\t") for line in ANCHORS.read_text(encoding="utf-8").splitlines()[2:]]
    return [Anchor(r[1], r[2], int(r[3]), float(r[4]), float(r[5]), int(r[6])) for r in rows]


def marked(anchor: Anchor) -> object:
    marks = [] if anchor.pair in FAST else [pytest.mark.slow]
    return pytest.param(anchor, id=f"{anchor.system}-{anchor.pair}", marks=marks)


@functools.cache
def pairs_of(system: str, pair: str) -> tuple[Pair, ...]:
    source, target = pair.split("-")
    folder = f"{source if source != 'en' else target}en"
    rows = json.loads((DATA / "alma" / folder / f"test.{pair}.json").read_text(encoding="utf-8"))
    hypotheses = DATA / "alma_outputs" / "wmt22_outputs" / system / f"{source}{target}" / f"test.{pair}.{target}"
    answers = hypotheses.read_text(encoding="utf-8").split("\n")[:-1]
    return tuple(
        Pair(a, r["translation"][target], r["translation"][source]) for a, r in zip(answers, rows, strict=True)
    )


@functools.cache
def rows_of(system: str, pair: str, metric: BLEU | ChrF) -> NDArray[np.float64]:
    return metric.rows(pairs_of(system, pair), pair.split("-")[1])


@pytest.mark.parametrize("anchor", [marked(anchor) for anchor in anchors()])
def test_bleu_and_chrf_are_those_of_sacrebleu(anchor: Anchor) -> None:
    bleu = BLEU().score(rows_of(anchor.system, anchor.pair, BLEU()).sum(axis=0))
    chrf = ChrF().score(rows_of(anchor.system, anchor.pair, ChrF()).sum(axis=0))
    assert len(pairs_of(anchor.system, anchor.pair)) == anchor.segments
    assert (bleu, chrf) == pytest.approx((anchor.bleu, anchor.chrf), abs=0.01)
    assert sum(not p.answer.strip() for p in pairs_of(anchor.system, anchor.pair)) == anchor.empty


def test_the_wrong_tokenizer_would_be_noticed() -> None:
    metric = BLEU(tokenize="13a")
    assert metric.score(rows_of("ALMA-13B-R", "en-zh", metric).sum(axis=0)) == pytest.approx(17.27, abs=0.01)


@pytest.mark.parametrize(("metric", "half_widths"), [(BLEU(), (0.96, 0.85)), (ChrF(), (0.61, 0.63))])
def test_intervals_are_as_wide_as_those_of_sacrebleu(metric: BLEU | ChrF, half_widths: tuple[float, float]) -> None:
    for system, expected in zip(("WMT_Winners", "ALMA-13B-R"), half_widths, strict=True):
        found = stats.bootstrap(rows_of(system, "en-de", metric), metric.score, seed=0)
        assert found.low < found.value < found.high
        # The ends of an interval of 1,000 draws vary by a few percent with the seed.
        assert (found.high - found.low) / 2 == pytest.approx(expected, rel=0.08)


def test_the_paired_difference_is_that_of_sacrebleu() -> None:
    winners, alma = rows_of("WMT_Winners", "en-de", BLEU()), rows_of("ALMA-13B-R", "en-de", BLEU())
    found = stats.paired(winners, alma, BLEU().score, seed=0)
    assert found.difference == pytest.approx(-10.73, abs=0.01)
    assert found.p_value == pytest.approx(0.001, abs=1e-4)
    assert found.low < -10.73 < found.high < 0


def test_a_leaked_rationale_costs_as_much_as_was_measured() -> None:
    note = (
        " Note: the translation keeps the tone of the source and renders its idioms with natural English equivalents."
    )
    clean = pairs_of("ALMA-13B-R", "de-en")
    for every, bleu, chrf in ((1, 15.11, 49.36), (10, 28.46, 55.67)):
        leaking = [p._replace(answer=p.answer + note) if at % every == 0 else p for at, p in enumerate(clean)]
        assert BLEU().score(BLEU().rows(leaking, "en").sum(axis=0)) == pytest.approx(bleu, abs=0.01)
        assert ChrF().score(ChrF().rows(leaking, "en").sum(axis=0)) == pytest.approx(chrf, abs=0.01)


@pytest.mark.parametrize("metric", [pytest.param(BLEU(), marks=pytest.mark.slow), ChrF()], ids=["bleu", "chrf"])
def test_the_p_value_of_a_small_difference_fits_its_interval_and_is_not_under_that_of_sacrebleu(
    metric: BLEU | ChrF,
) -> None:
    from sacrebleu.metrics.bleu import BLEU as SacreBLEU
    from sacrebleu.metrics.chrf import CHRF
    from sacrebleu.significance import PairedTest

    winners, alma = pairs_of("WMT_Winners", "is-en"), pairs_of("ALMA-13B-R", "is-en")
    theirs: Any = (SacreBLEU if isinstance(metric, BLEU) else CHRF)(references=[[p.reference for p in winners]])
    systems: Any = [("winners", [p.answer for p in winners]), ("alma", [p.answer for p in alma])]
    table: Any = PairedTest(systems, {"": theirs}, None, test_type="bs", n_samples=1000)()[1]
    baseline, other = table["BLEU" if isinstance(metric, BLEU) else "chrF2"]
    rows = {system: rows_of(system, "is-en", metric) for system in ("WMT_Winners", "ALMA-13B-R")}
    ours = stats.paired(rows["WMT_Winners"], rows["ALMA-13B-R"], metric.score, seed=0)
    assert ours.difference == pytest.approx(other.score - baseline.score, abs=1e-6)
    assert ours.p_value >= other.p_value
    z = 1.96 * ours.difference / ((ours.high - ours.low) / 2)
    assert ours.p_value == pytest.approx(math.erfc(abs(z) / math.sqrt(2)), abs=0.04)
