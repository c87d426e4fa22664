"""Whether test data occur in the training data.

Compared is each side of a pair with everything in the same language on either side of the training data: a test from
German is contaminated by its English references too. Texts are normalised first (NFKC, case, white space, punctuation),
so that a changed quotation mark hides nothing; very short ones ("Thank you.") occur everywhere and do not count.
"""

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from radistill import instructions
from radistill.data import DataSettings
from radistill.errors import DataError
from radistill.records import Example

if TYPE_CHECKING:
    from radistill.data import Loaded

MIN_WORDS = 3
MIN_CHARACTERS = 10
# Thai, Lao, Burmese, Khmer, kana and Han are written without spaces between words: each character counts as a word.
_UNSPACED = re.compile(
    r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)
# A word of its own, so that a folder `palmares` is not taken for ALMA.
_ALMA = re.compile(r"(?<![a-z])alma(?![a-z])", re.IGNORECASE)
_FLORES = re.compile(r"(?<![a-z])flores", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Overlap:
    """Which test examples occur in the training data."""

    n_train: int
    n_test: int
    ids: tuple[str, ...]
    """Test examples of which a side that counts occurs in the training data, in the order of the tests."""
    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Pair → side (`source`, `reference`) → how many; an example may count on both. Pairs without any are absent."""

    @property
    def share(self) -> float:
        """Share of the test examples that overlap, 0 to 1."""
        return len(self.ids) / self.n_test if self.n_test else 0.0

    def __str__(self) -> str:
        said = f"{len(self.ids)} of {self.n_test} test examples ({self.share:.2%}) occur in the training data"
        sides = [
            f"{pair or 'no pair'}: {', '.join(f'{n} by {side}' for side, n in found.items())}"
            for pair, found in self.counts.items()
        ]
        return f"{said} ({'; '.join(sides)})" if sides else said


def overlap(train: Iterable[Example], test: Iterable[Example], *, exact: bool = False) -> Overlap:
    """Find the test examples that occur in the training data.

    Args:
        train: examples learned from; their `pair` and `source` tags are read.
        test: examples tested on.
        exact: compare the texts as they are and count short ones too.
    """
    known: set[bytes] = set()
    n_train = 0
    for example in train:
        n_train += 1
        known.update(key for _, key in _keys(example, exact))
    counts: dict[str, dict[str, int]] = {}
    ids = []
    n_test = 0
    for example in test:
        n_test += 1
        sides = [side for side, key in _keys(example, exact) if key in known]
        if sides:
            ids.append(example.id)
        found = counts.setdefault(example.tags.get("pair", ""), {}) if sides else {}
        for side in sides:
            found[side] = found.get(side, 0) + 1
    return Overlap(n_train, n_test, tuple(ids), counts)


def facts(settings: DataSettings, train: "Loaded", test: "Loaded") -> dict[str, object]:
    """How much of the test data occurs in the training data, for manifest and report.

    Raises:
        DataError: too much, and `data.allow_contamination` is not set.
    """
    found = overlap(train.examples, test.examples)
    refuse_if_contaminated(settings, found, train_files=train.files, test_files=test.files)
    return {"tested": found.n_test, "found": len(found.ids), "share": found.share, "by_pair": found.counts}


def normalise(text: str) -> str:
    """The text without what does not tell sentences apart: width, case, white space, punctuation, invisible marks."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(folded.translate(_marks()).split())


def words(normalised: str) -> list[str]:
    """The words of a normalised text; where a script sets none apart, its characters."""
    if not normalised.isascii():
        normalised = _UNSPACED.sub(r" \g<0> ", normalised)
    return normalised.split()


def is_long_enough(normalised: str) -> bool:
    """Whether a normalised text is long enough for its repetition to mean anything."""
    # A wide character carries about what two letters do.
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in normalised) if len(normalised) < MIN_CHARACTERS else 0
    return len(words(normalised)) >= MIN_WORDS and len(normalised) + wide >= MIN_CHARACTERS


def refuse_if_contaminated(
    settings: DataSettings, found: Overlap, *, train_files: Iterable[Path] = (), test_files: Iterable[Path] = ()
) -> None:
    """Stop before numbers are made that mean nothing.

    Args:
        settings: of the run; `allow_contamination` and `max_contamination` decide.
        found: what `overlap` gave for its examples.
        train_files: files read to train on; their names count beside the path in the settings.
        test_files: files read to test on, likewise.

    Raises:
        DataError: too many test examples occur in the training data, or FLORES is to test training on ALMA's data.
    """
    if settings.allow_contamination or settings.test is None:
        return
    forced = "To go on all the same, set data.allow_contamination=true; the report will say so."
    trained = [settings.train.path, *(file.name for file in train_files)]
    tested = [settings.test.path, *(file.name for file in test_files)]
    if any(map(_FLORES.search, tested)) and (any(map(_ALMA.search, trained)) or found.ids):
        raise DataError(
            f"data.test: {settings.test.path} is FLORES, and ALMA's training data contain FLORES-200 dev and devtest: "
            f"the score would measure memory. {found}. Test on WMT22 instead, which lies beside ALMA's training data "
            f"as test.de-en.json and the like. {forced}"
        )
    if found.share > settings.max_contamination:
        raise DataError(
            f"data.test: {found}; data.max_contamination is {settings.max_contamination:.2%}. Test on other data, or "
            f"take these examples out of the training data. {forced}"
        )


def _keys(example: Example, exact: bool) -> Iterator[tuple[str, bytes]]:
    """The sides of an example that count, each by language and text."""
    pair = example.tags.get("pair", "")
    languages = [_language(code) for code in pair.split("-")] if pair else ["", ""]
    source = example.tags.get("source", example.messages[-1].content)
    sides = [("source", languages[0], source)]
    if pair:
        # Without languages the reference may be one of a few labels, which are the same everywhere by design.
        sides.append(("reference", languages[1], example.reference))
    for side, language, text in sides:
        if not exact:
            text = normalise(text)
            if not is_long_enough(text):
                continue
        yield side, hashlib.blake2b(f"{language}\0{text}".encode(), digest_size=16).digest()


def _language(code: str) -> str:
    """One name for `de` and `deu_Latn`, so that FLORES is recognised in other people's data."""
    return instructions.language_name(code) if instructions.is_language(code) else code


class _Marks(dict[int, int | str | None]):
    """A table for `str.translate` that is filled with the characters as they occur."""

    def __missing__(self, code: int) -> int | str | None:
        category = unicodedata.category(chr(code))
        if category == "Cf":  # soft hyphens and the like stand inside words
            self[code] = None
        else:
            self[code] = " " if category[0] in "ZPS" or category == "Cc" else code
        return self[code]


@cache
def _marks() -> _Marks:
    return _Marks()
