"""BLEU (Papineni et al., ACL 2002, P02-1040) exactly as sacreBLEU counts it (Post, WMT 2018, W18-6319).

The rows are sacreBLEU's own segment statistics: length of the answer, length of the reference, matched n-grams and
n-grams of the answer for n = 1 to 4. They are additive, so the corpus score is the score of their sum.

Departures: none. Tokenizers for which sacreBLEU would have to download a model are not offered.
"""

import functools
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from radistill.errors import MissingPackageError
from radistill.languages import base_code
from radistill.metrics.base import Metric, Pair

Tokenizer = Literal["13a", "zh", "ja-mecab", "ko-mecab", "intl", "char", "none"]
TOKENIZER_OF: dict[str, Tokenizer] = {"zh": "zh", "ja": "ja-mecab", "ko": "ko-mecab"}
"""sacreBLEU's tokenizer of a target language; every other language has `13a`."""
PACKAGE_OF = {"ja-mecab": "sacrebleu[ja]", "ko-mecab": "sacrebleu[ko]"}
N_STATISTICS = 10


class BLEU(Metric):
    """n-gram precision with a brevity penalty, over the whole corpus, 0 to 100."""

    tokenize: Tokenizer | None = None
    """sacreBLEU tokenizer; null = that of the target language: zh, ja-mecab, ko-mecab, otherwise 13a."""

    def rows(self, pairs: Sequence[Pair], language: str) -> NDArray[np.float64]:
        """The segment statistics of sacreBLEU: shape (N, 10)."""
        if not pairs:
            return np.zeros((0, N_STATISTICS))
        metric = _sacrebleu(self.tokenizer(language))
        statistics = metric._extract_corpus_statistics([p.answer for p in pairs], [[p.reference for p in pairs]])
        return np.asarray(statistics, dtype=np.float64)

    def score(self, total_K: NDArray[np.float64]) -> float:
        """Corpus BLEU with sacreBLEU's defaults: orders 1 to 4, exponential smoothing."""
        from sacrebleu.metrics.bleu import BLEU as SacreBLEU

        # Lists, because sacreBLEU loops over single numbers, which is several times slower on an array.
        sys_len, ref_len, *counts = total_K.tolist()
        return float(
            SacreBLEU.compute_bleu(
                correct=counts[:4], total=counts[4:], sys_len=int(sys_len), ref_len=int(ref_len), smooth_method="exp"
            ).score
        )

    def signature(self, language: str) -> str:
        """The signature string of sacreBLEU."""
        return str(_sacrebleu(self.tokenizer(language)).get_signature())

    def tokenizer(self, language: str) -> Tokenizer:
        """The tokenizer for answers in that language."""
        return self.tokenize or TOKENIZER_OF.get(base_code(language), "13a")


@functools.cache
def _sacrebleu(tokenize: Tokenizer) -> Any:
    from sacrebleu.metrics.bleu import BLEU as SacreBLEU

    try:
        metric = SacreBLEU(tokenize=tokenize)
    except RuntimeError as error:
        if tokenize not in PACKAGE_OF:
            raise
        raise MissingPackageError(
            f"BLEU with the tokenizer {tokenize} needs a package that is not installed. "
            f"Install it with: pip install '{PACKAGE_OF[tokenize]}'. "
            "Or choose another tokenizer, such as tokenize: char, whose scores cannot be compared with published ones."
        ) from error
    # Otherwise it knows how many references there are only after scoring, and has no signature before.
    metric.num_refs = 1
    return metric
