"""chrF (Popović, WMT 2015, W15-3049) exactly as sacreBLEU counts it; chrF++ (WMT 2017, W17-4770) with `word_order: 2`.

The rows are sacreBLEU's own segment statistics: for each n-gram order the n-grams of the answer, those of the
reference, and the matches. They are additive, so the corpus score is the score of their sum.

Departures: none; beta = 2 and character n-grams up to 6 as in chrF2.
"""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from radistill.metrics.base import Metric, Pair

CHARACTER_ORDER = 6


class ChrF(Metric):
    """F-score of character n-grams, recall counted twice, over the whole corpus, 0 to 100."""

    word_order: int = Field(0, ge=0, le=4)
    """0 = chrF2; 2 = chrF++, which counts single words and word pairs too."""

    def rows(self, pairs: Sequence[Pair], language: str) -> NDArray[np.float64]:
        """The segment statistics of sacreBLEU: shape (N, 3 x orders)."""
        if not pairs:
            return np.zeros((0, 3 * (CHARACTER_ORDER + self.word_order)))
        metric = _sacrebleu(self.word_order)
        statistics = metric._extract_corpus_statistics([p.answer for p in pairs], [[p.reference for p in pairs]])
        return np.asarray(statistics, dtype=np.float64)

    def score(self, total_K: NDArray[np.float64]) -> float:
        """Corpus chrF with sacreBLEU's defaults."""
        return float(_sacrebleu(self.word_order)._compute_f_score(total_K.tolist()))

    def signature(self, language: str) -> str:
        """The signature string of sacreBLEU."""
        return str(_sacrebleu(self.word_order).get_signature())


@functools.cache
def _sacrebleu(word_order: int) -> Any:
    from sacrebleu.metrics.chrf import CHRF

    metric = CHRF(char_order=CHARACTER_ORDER, word_order=word_order)
    # Otherwise it knows how many references there are only after scoring, and has no signature before.
    metric.num_refs = 1
    return metric
