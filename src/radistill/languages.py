"""What is known about languages: their scripts, whether they put spaces between words, and how a text's is told.

Names of languages, as an instruction spells them, are in `instructions.py`.
"""

import functools
import re
import unicodedata
from typing import Any, NamedTuple

_SCRIPTS = {
    "LATIN": "af az bs br ca cs cy da de en eo es et eu fi fo fr fy ga gd gl ha hr ht hu id ig is it jv ku la lb lg ln "
    "lt lv mg ms mt nl no oc om pl pt qu ro rw sk sl sn so sq sr st sv sw tk tl tr uz vi wa xh yo zu",
    "CYRILLIC": "ba be bg kk ky mk mn ru sr tg tt uk uz",
    "GREEK": "el",
    "ARABIC": "ar ckb fa ku ps sd ug ur",
    "HEBREW": "he yi",
    "ARMENIAN": "hy",
    "GEORGIAN": "ka",
    "ETHIOPIC": "am ti",
    "DEVANAGARI": "hi mr ne sa",
    "BENGALI": "as bn",
    "GURMUKHI": "pa",
    "GUJARATI": "gu",
    "ORIYA": "or",
    "TAMIL": "ta",
    "TELUGU": "te",
    "KANNADA": "kn",
    "MALAYALAM": "ml",
    "SINHALA": "si",
    "THAI": "th",
    "LAO": "lo",
    "TIBETAN": "bo dz",
    "MYANMAR": "my",
    "KHMER": "km",
    "HANGUL": "ko",
    "CJK": "ja zh",
    "HIRAGANA": "ja",
    "KATAKANA": "ja",
    "KATAKANA-HIRAGANA": "ja",
}
"""Script, as the first word of a character's Unicode name → the languages that are written in it."""
_UNSPACED = frozenset({"zh", "ja", "th", "lo", "km", "my", "bo", "dz"})
_SAME = {"cmn": "zh", "yue": "zh", "wuu": "zh", "nb": "no", "nn": "no", "iw": "he", "fil": "tl"}
"""Codes that a reader of the language would not call another language."""


class Guess(NamedTuple):
    """The most likely language of a text and how likely it is, 0 to 1."""

    code: str
    confidence: float


def base_code(language: str) -> str:
    """The language without script and region: `zh` for `zh-Hans`, `pt` for `pt_BR`."""
    return re.split("[-_]", language.strip().lower(), maxsplit=1)[0]


def canonical(language: str) -> str:
    """The base code under which varieties of one language are counted as one: `zh` for `yue`, `no` for `nb`."""
    code = base_code(language)
    return _SAME.get(code, code)


def has_spaces(language: str) -> bool:
    """Whether words are told apart by spaces in that language."""
    return canonical(language) not in _UNSPACED


def spaces_by_script(text: str) -> bool:
    """Whether a text puts spaces between words, by the scripts of most of its letters."""
    letters = [c for c in text if c.isalpha()]
    return 2 * sum(_script(letter) in _unspaced_scripts() for letter in letters) <= len(letters)


def scripts(language: str) -> frozenset[str]:
    """Scripts the language is written in; empty when that is not known."""
    code = canonical(language)
    return frozenset(script for script, codes in _SCRIPTS.items() if code in codes.split())


def script_share(text: str, language: str) -> float | None:
    """Share of the text's letters that belong to the language's scripts; None if either is unknown."""
    wanted = scripts(language)
    letters = [c for c in unicodedata.normalize("NFKC", text) if c.isalpha()]
    if not wanted or not letters:
        return None
    return sum(_script(letter) in wanted for letter in letters) / len(letters)


def guess(text: str) -> Guess:
    """The language of a text by py3langid; a text without features gets a confidence near 0."""
    code, confidence = _classifier().classify(text)
    return Guess(canonical(code), float(confidence))


def can_guess(language: str) -> bool:
    """Whether `guess` knows that language."""
    return canonical(language) in _guessable()


@functools.cache
def _unspaced_scripts() -> frozenset[str]:
    return frozenset(script for code in _UNSPACED for script in scripts(code))


@functools.cache
def _guessable() -> frozenset[str]:
    return frozenset(canonical(label) for label in _classifier().labels)


@functools.cache
def _script(letter: str) -> str:
    return unicodedata.name(letter, "?").split()[0]


@functools.cache
def _classifier() -> Any:
    # Built once per process: unpacking the model takes about a second.
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
