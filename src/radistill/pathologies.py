"""What can be wrong with an answer, told without its score: pure functions of the texts.

The limits were set on true outputs (two systems, ten WMT22 directions, 34,942 answers): at most 0.25 % of the answers
of one direction are called off target, most of them rich in foreign names, and at least 92 % of untranslated sources.
"""

import unicodedata
import zlib
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version

from radistill.languages import can_guess, canonical, guess, has_spaces, script_share

MIN_CHARACTERS = 20
"""Shorter texts are too short to tell their language: nothing is claimed about them."""
MIN_CONFIDENCE = 0.8
"""The classifier must be this sure that the language is another one; close languages share their probability."""
MIN_SCRIPT_SHARE = 0.25
"""Product names leave some good Chinese and Russian sentences with fewer than half of their letters in the script."""
LOOP_TIMES = 4
LOOP_TOKENS = 16
MAX_COMPRESSION = 4.0
"""Running text stays under 2.6 however long it is."""
NO_LANGUAGE = "zxx"


def labels_of(answer: str, *, source: str, reference: str, language: str, source_language: str) -> tuple[str, ...]:
    """What is wrong with one answer: some of `empty`, `copied`, `off_target`, `loop`.

    A name or a code is rightly left as it is, and a source that says something over and over is rightly rendered so:
    neither is held against the answer.
    """
    holds = {
        "empty": is_empty(answer),
        "copied": is_copied(answer, source) and not is_copied(reference, source),
        "off_target": is_off_target(answer, language),
        "loop": is_loop(answer, language) and not is_loop(source, source_language),
    }
    return tuple(label for label in holds if holds[label])


def signature_of(label: str) -> str:
    """The label with all that can change how often it is given."""
    classifier = f"py3langid:{version('py3langid')}>={MIN_CONFIDENCE}"
    limits = {
        "off_target": f"chars:{MIN_CHARACTERS}|script:{MIN_SCRIPT_SHARE}|{classifier}",
        "loop": f"times:{LOOP_TIMES}|tokens:{LOOP_TOKENS}|compression:{MAX_COMPRESSION}",
    }
    return f"{label}|{limits[label]}" if label in limits else label


def is_empty(answer: str) -> bool:
    """Nothing but white space."""
    return not answer.strip()


def is_copied(answer: str, source: str) -> bool:
    """The answer is the source, apart from case, width and white space; an empty answer copies nothing."""
    return not is_empty(answer) and _plain(answer) == _plain(source)


def is_off_target(answer: str, language: str) -> bool:
    """The answer is not in that language: its script is another, or the classifier is sure of another language.

    False for texts of fewer than 20 characters, and for languages that neither test knows.
    """
    text = answer.strip()
    if len(text) < MIN_CHARACTERS or not any(map(str.isalpha, text)):
        return False
    share = script_share(text, language)
    if share is not None and share < MIN_SCRIPT_SHARE:
        return True
    if not can_guess(language):
        return False
    found = guess(text)
    return found.confidence >= MIN_CONFIDENCE and found.code not in (canonical(language), NO_LANGUAGE)


def is_loop(text: str, language: str) -> bool:
    """Something is said over and over.

    Either a unit is repeated at least 4 times in a row over at least 16 tokens (so every 4-gram said four times),
    or the text compresses more than fourfold. Tokens are words, or letters where words are not spaced.
    """
    return says_over_and_over(text, spaced=has_spaces(language))


def says_over_and_over(text: str, *, spaced: bool, most: float = MAX_COMPRESSION) -> bool:
    """The same of a text of which only is known whether it puts spaces between words.

    Args:
        text: the text.
        spaced: whether it does.
        most: the compression from which on it is a loop.
    """
    tokens = text.split() if spaced else [c for c in text if c.isalnum()]
    return _repeats(tokens) or _compression(text) > most


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _repeats(tokens: Sequence[str]) -> bool:
    # Cheap and sufficient to rule a loop out: every run this long says some 4-gram four times.
    grams = Counter(zip(tokens, tokens[1:], tokens[2:], tokens[3:], strict=False))
    if not grams or max(grams.values()) < LOOP_TIMES:
        return False
    return any(_run(tokens, period) for period in range(1, len(tokens) // LOOP_TIMES + 1))


def _run(tokens: Sequence[str], period: int) -> bool:
    wanted = max(LOOP_TIMES * period, LOOP_TOKENS) - period
    run = 0
    for before, after in zip(tokens, tokens[period:], strict=False):
        run = run + 1 if before == after else 0
        if run >= wanted:
            return True
    return False


def _compression(text: str) -> float:
    # Characters are numbered by first appearance, so that scripts of two and three bytes have no advantage.
    numbers: dict[str, int] = {}
    ids = [numbers.setdefault(c, len(numbers)) for c in text]
    packed = bytes(ids) if len(numbers) <= 256 else text.encode("utf-16-le", "surrogatepass")
    return len(packed) / len(zlib.compress(packed, 9)) if packed else 0.0
