"""Small functions on text."""

import re
import unicodedata
from collections.abc import Iterable


def any_of(words: Iterable[str]) -> re.Pattern[str]:
    """A pattern that finds any of the words, the longest first; without words it finds nothing."""
    ordered = sorted(filter(None, words), key=lambda word: (-len(word), word))
    return re.compile("|".join(map(re.escape, ordered)) or r"(?!)")


def squeezed(text: str) -> str:
    """Without any white space."""
    return "".join(text.split())


def nfkc(text: str) -> str:
    """In the Unicode form that writes equal characters alike."""
    return unicodedata.normalize("NFKC", text)
