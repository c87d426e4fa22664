"""BLEU and chrF are sacreBLEU's, to the last digit."""

import numpy as np
import pytest
from pydantic import ValidationError
from sacrebleu.metrics.bleu import BLEU as SacreBLEU
from sacrebleu.metrics.chrf import CHRF

from radistill.errors import MissingPackageError
from radistill.metrics.base import Metric, Pair
from radistill.metrics.bleu import BLEU
from radistill.metrics.chrf import ChrF

REFERENCES = [
    "The goods cost less than 20 euros.",
    "He said: “I'll come tomorrow,” and left.",
    "Two boys (aged 5 and 7) ate 1,000 plums…",
    "It rains.",
]
ANSWERS = [
    "The goods have cost under 20 euros.",
    "He said that he would come tomorrow, and he left.",
    "Two boys, five and seven years old, ate 1,000 plums.",
    "",
]
ZH_REFERENCES = ["这件商品的价格不到20欧元。", "他说他明天来。"]
ZH_ANSWERS = ["商品价格低于20欧元。", "他说，他明天会来。"]


def pairs(answers: list[str], references: list[str]) -> list[Pair]:
    return [Pair(a, r, "") for a, r in zip(answers, references, strict=True)]


def corpus(metric: Metric, answers: list[str], references: list[str], language: str) -> float:
    return metric.score(metric.rows(pairs(answers, references), language).sum(axis=0))


def test_bleu_equals_sacrebleu() -> None:
    expected = SacreBLEU().corpus_score(ANSWERS, [REFERENCES]).score
    assert corpus(BLEU(), ANSWERS, REFERENCES, "en") == expected
    assert 5 < expected < 60


def test_bleu_of_chinese_is_counted_by_characters() -> None:
    expected = SacreBLEU(trg_lang="zh").corpus_score(ZH_ANSWERS, [ZH_REFERENCES]).score
    assert corpus(BLEU(), ZH_ANSWERS, ZH_REFERENCES, "zh") == expected
    assert corpus(BLEU(tokenize="13a"), ZH_ANSWERS, ZH_REFERENCES, "zh") < expected


@pytest.mark.parametrize("word_order", [0, 2])
def test_chrf_equals_sacrebleu(word_order: int) -> None:
    expected = CHRF(word_order=word_order).corpus_score(ANSWERS, [REFERENCES]).score
    assert corpus(ChrF(word_order=word_order), ANSWERS, REFERENCES, "en") == expected


def test_the_score_of_a_resample_is_the_score_of_those_sentences() -> None:
    counts = np.array([3, 0, 1, 2])
    chosen = np.repeat(np.arange(4), counts)
    answers, references = [ANSWERS[i] for i in chosen], [REFERENCES[i] for i in chosen]
    bleu, chrf = BLEU(), ChrF()
    assert bleu.score(counts @ bleu.rows(pairs(ANSWERS, REFERENCES), "en")) == pytest.approx(
        SacreBLEU().corpus_score(answers, [references]).score, abs=1e-12
    )
    assert chrf.score(counts @ chrf.rows(pairs(ANSWERS, REFERENCES), "en")) == pytest.approx(
        CHRF().corpus_score(answers, [references]).score, abs=1e-12
    )


def test_signatures_are_those_of_sacrebleu() -> None:
    bleu, chrf = SacreBLEU(), CHRF(word_order=2)
    bleu.corpus_score(ANSWERS, [REFERENCES])
    chrf.corpus_score(ANSWERS, [REFERENCES])
    assert BLEU().signature("en") == str(bleu.get_signature())
    assert ChrF(word_order=2).signature("en") == str(chrf.get_signature())
    assert "tok:13a" in BLEU().signature("de")
    assert "tok:zh" in BLEU().signature("zh-Hans")
    assert "tok:char" in BLEU(tokenize="char").signature("zh")


@pytest.mark.parametrize(("language", "tokenizer"), [("ja", "ja-mecab"), ("ko_KR", "ko-mecab"), ("is", "13a")])
def test_the_tokenizer_is_that_of_the_target_language(language: str, tokenizer: str) -> None:
    assert BLEU().tokenizer(language) == tokenizer


@pytest.mark.parametrize(("language", "module"), [("ja", "tokenizer_ja_mecab"), ("ko", "tokenizer_ko_mecab")])
def test_a_missing_tokenizer_is_named_with_the_command_that_installs_it(
    language: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from radistill.metrics import bleu

    monkeypatch.setattr(f"sacrebleu.tokenizers.{module}.MeCab", None)
    bleu._sacrebleu.cache_clear()
    with pytest.raises(MissingPackageError, match=rf"pip install 'sacrebleu\[{language}\]'"):
        BLEU().rows(pairs(ZH_ANSWERS, ZH_REFERENCES), language)


def test_an_unknown_tokenizer_is_refused() -> None:
    with pytest.raises(ValidationError, match="13a"):
        BLEU.model_validate({"tokenize": "13b"})


@pytest.mark.parametrize("metric", [BLEU(), ChrF(), ChrF(word_order=2)])
def test_no_pairs_have_rows_of_the_same_width(metric: Metric) -> None:
    width = metric.rows(pairs(ANSWERS, REFERENCES), "en").shape[1]
    assert metric.rows([], "en").shape == (0, width)


@pytest.mark.parametrize("metric", [BLEU(), ChrF()])
def test_nothing_but_empty_answers_scores_zero(metric: Metric) -> None:
    assert corpus(metric, [""] * 4, REFERENCES, "en") == 0.0
