"""Which rationales of a run are trained on: the filters of `generate.filters`, applied.

What is judged is what the untouched model wrote after an example's reference (requests of the purpose `rationale`),
always beside the example that it was written about: `pairing: shuffled` hands out what has passed, and so its rows are
made of the same rationales. The text is the one that would be trained on, after `generate.keep_tokens` has cut it;
whether it was broken off is asked of what the model wrote.

First each rationale is asked about by itself, by every filter that is on; one that fails several is counted for each.
What has passed them all is compared for near-duplicates, of which the first in the order of the examples stays; and of
what is left, `select` takes what the budget allows.
"""

import importlib
import os
import sys
from array import array
from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from radistill import filters, near_duplicates
from radistill.errors import ConfigError
from radistill.filters import FilterSettings
from radistill.near_duplicates import NearDuplicates
from radistill.pathologies import is_empty
from radistill.records import Example, Generation
from radistill.selection import Selection

Custom = Callable[[Example, str], bool]
"""Given an example and its rationale: whether the rationale is kept."""


@dataclass(frozen=True, slots=True)
class Rationale:
    """What was written after one reference."""

    about: Example
    """Whose reference it was written after."""
    written: Generation
    """As it was written."""
    taken: Generation
    """As it would be trained on: in the ids of the model that is trained, cut to `generate.keep_tokens`."""
    perplexity: float | None = None
    """Of its tokens under the untouched model; None = not asked for, longer than the model's context, or failed."""
    is_unscored: bool = False
    """That the perplexity is not known is a failure of the engine, and not the length."""

    @property
    def said_before(self) -> str:
        """The conversation and the reference."""
        return "\n".join([*(message.content for message in self.about.messages), self.about.reference])


@dataclass(frozen=True, slots=True)
class Judged:
    """A rationale and the names of the filters that it fails."""

    rationale: Rationale
    failed: tuple[str, ...]

    @property
    def used(self) -> Generation:
        """What the method is given: the rationale, or an empty one in its place."""
        taken = self.rationale.taken
        if not self.failed:
            return taken
        return Generation(key=taken.key, index=taken.index, token_ids=(), text="", finish_reason="stop")

    def as_row(self) -> dict[str, Any]:
        """For filtered.jsonl."""
        written = self.rationale.written
        found = {} if self.rationale.perplexity is None else {"perplexity": round(self.rationale.perplexity, 4)}
        return {
            "example_id": self.rationale.about.id,
            "key": written.key,
            "index": written.index,
            "filters": list(self.failed),
            "tokens": self.rationale.taken.n_tokens,
            **found,
            "reference": self.rationale.about.reference,
            "text": written.text,
        }


@dataclass
class _Found:
    """What each rationale of a run fails: 12 bytes a rationale."""

    starts: "array[int]" = field(default_factory=lambda: array("Q"))
    """For each example the number of its first rationale."""
    bits: "array[int]" = field(default_factory=lambda: array("I"))
    """For each rationale, one bit for each filter that is on."""


class Filtering:
    """The filters of one run.

    Raises:
        ConfigError: the user's own function cannot be used.
        MissingPackageError: near-duplicates are asked for without the package that finds them.
    """

    def __init__(self, settings: FilterSettings, seed: int) -> None:
        self.settings, self.seed = settings, seed
        self._custom = custom_of(settings.custom) if settings.custom is not None else None
        self._found: _Found | None = None

    def judge_all(self, rows: Iterable[Sequence[Rationale]]) -> None:
        """Find out what hangs on all rationales together.

        Args:
            rows: of every example, in order, what was written about it; may be nothing.
        """
        active, found = self.settings.active, _Found()
        share, select = self.settings.near_duplicates, self.settings.select
        near = NearDuplicates(share) if share is not None else None
        selection = Selection(select, self.seed) if select is not None else None
        passed = array("Q")
        for rationales in rows:
            found.starts.append(len(found.bits))
            for rationale in rationales:
                failed = self._alone(rationale)
                found.bits.append(sum(1 << active.index(name) for name in failed))
                if failed or not rationale.taken.token_ids:
                    continue
                passed.append(len(found.bits) - 1)
                if near is not None:
                    near.add(rationale.taken.text)
                if selection is not None:
                    selection.add(rationale.taken.text, rationale.taken.n_tokens)
        gone_N = np.zeros(len(passed), dtype=bool)
        for place in near.found() if near is not None else ():
            gone_N[place] = True
            found.bits[passed[place]] |= 1 << active.index("near_duplicates")
        for place in selection.left_out(gone_N) if selection is not None else ():
            found.bits[passed[place]] |= 1 << active.index("select")
        self._found = found

    def judge(self, place: int, rationales: Sequence[Rationale]) -> list[Judged]:
        """What the rationales of one example fail.

        Args:
            place: of the example in `judge_all`.
            rationales: what was written about it.
        """
        if self._found is None:
            assert not self.settings.is_corpus_wide
            return [Judged(rationale, self._alone(rationale)) for rationale in rationales]
        start, active = self._found.starts[place], self.settings.active
        bits = self._found.bits[start : start + len(rationales)]
        return [
            Judged(rationale, tuple(name for n, name in enumerate(active) if bit >> n & 1))
            for rationale, bit in zip(rationales, bits, strict=True)
        ]

    def _alone(self, rationale: Rationale) -> tuple[str, ...]:
        checks = self._checks
        return tuple(name for name in self.settings.active if name in checks and checks[name](rationale))

    @cached_property
    def _checks(self) -> dict[str, Callable[[Rationale], bool]]:
        """What is asked about one rationale by itself."""
        s = self.settings
        languages = [s.language] if isinstance(s.language, str) else list(s.language or ())
        return {
            "broken": lambda r: filters.is_broken(r.written.text, is_cut=r.written.finish_reason == "length"),
            "degenerate": lambda r: filters.is_degenerate(r.taken.text, r.about.reference),
            "language": lambda r: filters.is_in_other_language(r.taken.text, languages),
            "retranslation": lambda r: filters.likeness(r.taken.text, r.about.reference) >= (s.retranslation or 0),
            "refusal": lambda r: filters.refuses(r.taken.text, r.said_before),
            "leaked_template": lambda r: filters.leaks_template(r.taken.text, _lines(r.about), r.said_before),
            "new_turn": lambda r: filters.opens_turn(r.taken.text, r.said_before),
            "min_tokens": lambda r: r.taken.n_tokens < (s.min_tokens or 0),
            "max_tokens": lambda r: r.taken.n_tokens > (s.max_tokens or 0),
            "min_perplexity": lambda r: r.perplexity is not None and r.perplexity < (s.min_perplexity or 0),
            "max_perplexity": lambda r: r.perplexity is not None and r.perplexity > (s.max_perplexity or 0),
            "custom": self._is_not_kept,
        }

    def _is_not_kept(self, rationale: Rationale) -> bool:
        assert self._custom is not None
        if is_empty(rationale.taken.text):
            return False
        try:
            kept = self._custom(rationale.about, rationale.taken.text)
        except Exception as error:
            # A user's function is a program of its own: it can raise anything.
            raise ConfigError(
                f"generate.filters.custom: {self.settings.custom} fails on the rationale of the example "
                f"{rationale.about.id}: {type(error).__name__}: {error}. Repair it, or leave custom out.\n"
                f"  rationale: {rationale.taken.text!r}"
            ) from error
        if not isinstance(kept, bool | np.bool_):
            raise ConfigError(
                f"generate.filters.custom: {self.settings.custom} must return True (keep) or False, not {kept!r}, as "
                f"for the example {rationale.about.id}."
            )
        return not kept


def refuse_unusable(settings: FilterSettings) -> None:
    """Find before anything is generated what would fail afterwards.

    Raises:
        ConfigError: the user's own function cannot be imported.
        MissingPackageError: near-duplicates are asked for without the package that finds them.
    """
    if settings.near_duplicates is not None:
        near_duplicates.require()
    if settings.custom is not None:
        custom_of(settings.custom)


def files_of(settings: FilterSettings) -> list[Path]:
    """The file of the user's own function, so that a change of it is noticed.

    Raises:
        ConfigError: it cannot be imported.
    """
    if settings.custom is None:
        return []
    file = getattr(sys.modules[_module_of(settings.custom)], "__file__", None)
    return [Path(file)] if file else []


def custom_of(name: str) -> Custom:
    """The function of that name, `package.module:function`; the working directory is searched too.

    Raises:
        ConfigError: there is none, or its file does not run.
    """
    function = getattr(sys.modules[_module_of(name)], name.partition(":")[2], None)
    if not callable(function):
        raise ConfigError(f"generate.filters.custom: there is no function {name}; it is {function!r}.")
    found: Custom = function
    return found


def _module_of(name: str) -> str:
    module = name.partition(":")[0]
    try:
        with _working_directory_on_the_path():
            importlib.import_module(module)
    except Exception as error:
        # So is its file.
        raise ConfigError(
            f"generate.filters.custom: {module} cannot be imported: {type(error).__name__}: {error}. Write "
            "package.module:function, for a module that is installed or lies in the working directory."
        ) from error
    return module


@contextmanager
def _working_directory_on_the_path() -> Any:
    before = list(sys.path)
    sys.path.insert(0, os.getcwd())
    try:
        yield
    finally:
        sys.path[:] = before


def _lines(example: Example) -> frozenset[str]:
    from radistill.tasks.translation import source_of

    said = [message for message in example.messages if message.role != "assistant"]
    asked = [message.content for message in (*(m for m in said if m.role == "system"), *said[-1:])]
    return filters.instruction_lines(asked, source_of(example))
