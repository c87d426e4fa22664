"""Answers side by side: a sample of them for the report, and every one for a page of its own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from radistill.columns import key_of
from radistill.records import BASE, Prediction
from radistill.report_data import sampled_items
from radistill.report_parts import Answer, Item, Piece, Titled
from radistill.report_scores import Result, of_kind
from radistill.report_text import SHOWN_CHARACTERS, count, listed, shorten, tokens

PAGE_BYTES = 8 << 20
"""A page that is larger than this is slow to open and to search."""
MARKUP_BYTES = 200
"""About so much stands around each answer."""
LIMITS = (SHOWN_CHARACTERS, 2000, 1000, 400)
"""Characters of each text that are shown, until the page is small enough."""
Marks = Mapping[tuple[str, str], bool]
"""Whether an answer is right, by system and example id."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """All items of one group of a task."""

    task: str
    title: str
    items: tuple[Item, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Everything:
    """The page that holds every prediction."""

    title: str
    groups: tuple[Group, ...]
    is_marked: bool
    """Some answers are known to be right or wrong."""
    limit: int
    """Longer texts are shortened to so many characters."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks, in order."""
        return tuple(dict.fromkeys(group.task for group in self.groups))

    @property
    def size(self) -> str:
        """How much there is."""
        items = sum(len(group.items) for group in self.groups)
        answers = sum(len(item.answers) for group in self.groups for item in group.items)
        return f"{count(answers)} answers to {count(items)} test items"

    @property
    def is_shortened(self) -> bool:
        """Texts had to be cut further than elsewhere for the page to stay usable."""
        return self.limit < SHOWN_CHARACTERS


def every(found: Sequence[Result], *, title: str) -> Everything:
    """Every system's answer to every test item."""
    limit = next((limit for limit in LIMITS if _size(found, limit) <= PAGE_BYTES), LIMITS[-1])
    groups, is_marked = [], False
    for result in found:
        marks = right_or_wrong(result)
        is_marked |= bool(marks)
        grouped: dict[str, list[Item]] = {}
        for predictions in _by_item(result).values():
            grouped.setdefault(_group(result, predictions), []).append(_item(result, predictions, marks, limit))
        name = result.evaluation.name
        groups += [
            Group(task=name, title=_title(name, group, len(grouped)), items=tuple(items))
            for group, items in sorted(grouped.items())
        ]
    return Everything(title=title, groups=tuple(groups), is_marked=is_marked, limit=limit)


def sample(found: Sequence[Result], *, seed: int, examples: int) -> tuple[tuple[Titled, ...], str]:
    """Some items of every task, and how they were chosen: so many of each skill, as many of all others together."""
    skills = of_kind(found, "skill")
    others = of_kind(found, "ability", "probe")
    shown: list[Titled] = []
    sizes = []
    for result in (*skills, *others):
        is_skill = result in skills
        by_item, marks = _by_item(result), right_or_wrong(result)
        n = examples if is_skill else max(1, examples // len(others))
        chosen = sampled_items(result.evaluation, seed=seed, count=n)
        groups: dict[str, list[Item]] = {}
        for example_id in chosen:
            group = _group(result, by_item[example_id]) if is_skill else ""
            groups.setdefault(group, []).append(_item(result, by_item[example_id], marks))
        name = result.evaluation.name
        shown += [
            Titled(title=f"{name}, {group}: {len(items)} items" if group else f"{name}: {len(items)} items",
                   items=tuple(items))
            for group, items in groups.items()
        ]  # fmt: skip
        if is_skill or len(others) == 1:
            sizes.append(f"{count(len(chosen))} of {count(len(by_item))} items of {name}")
    if len(others) > 1:
        sizes.append(f"{max(1, examples // len(others))} items of each of {len(others)} other tests")
    note = f"Drawn at random with seed {seed}, the same number from each group: {listed(sizes)}."
    return tuple(shown), note + " Of each reply, what counted as the answer is set apart from what the rule cut off."


def right_or_wrong(result: Result) -> Marks:
    """Whether each answer is right; nothing is said unless the task's first metric is a share of right answers."""
    rows = result.scored.rows[result.metrics[0]]
    if not all(_is_share(of_cell) for of_cell in rows.values()):
        return {}
    keys = [(s, key_of(s, g)) for s in result.evaluation.systems for g in result.groups if key_of(s, g) in rows]
    return {
        (system, example_id): bool(row[0])
        for system, key in keys
        for example_id, row in zip(result.scored.ids[key], rows[key], strict=True)
    }


def pieces(prediction: Prediction, language: str, limit: int = SHOWN_CHARACTERS) -> tuple[Piece, ...]:
    """The reply in coloured pieces: what counted as the answer, and what was cut off around it."""
    raw, answer = prediction.raw, prediction.answer
    if prediction.finish_reason == "error":
        return (Piece(look="off", label="could not be had", text=""),)
    if not raw.strip():
        return (Piece(look="off", label="only white space was written" if raw else "nothing was written", text=""),)
    at = raw.find(answer) if answer else -1
    if at < 0:
        # An answer that a task has rewritten stands for itself.
        found = [("answer", "answer", answer)] if answer else []
        found.append(("cut", "whole reply", raw.strip()))
    else:
        before, after = raw[:at].strip(), raw[at + len(answer) :].strip()
        found = [("cut", "cut off before", before), ("answer", "answer", answer), ("cut", "cut off after", after)]
    return tuple(
        Piece(look=look, label=label, text=shorten(text, limit), language=language if look == "answer" else "")
        for look, label, text in found
        if text
    )


def _item(result: Result, predictions: Sequence[Prediction], marks: Marks, limit: int = SHOWN_CHARACTERS) -> Item:
    first = predictions[0]
    language = result.evaluation.task.language(_group(result, predictions))
    # One that could not be had is scored as an empty answer, but nobody has seen it be wrong.
    right = {
        p.system: marks[p.system, p.example_id]
        for p in predictions
        if (p.system, p.example_id) in marks and p.finish_reason != "error"
    }
    answers = [
        Answer(
            system=p.system,
            size=tokens(p.n_tokens) + (", cut at the limit" if p.finish_reason == "length" else ""),
            mark={True: "right", False: "wrong", None: ""}[right.get(p.system)],
            labels=tuple(label.replace("_", " ") for label in p.labels),
            pieces=pieces(p, language, limit),
        )
        for p in predictions
    ]
    return Item(
        title=f"item {first.example_id[:8]}",
        source=shorten(first.source, limit),
        reference=shorten(first.reference, limit),
        language=language,
        looks=_looks(predictions, right),
        answers=tuple(answers),
    )


def _looks(predictions: Sequence[Prediction], right: Mapping[str, bool]) -> tuple[str, ...]:
    runs = [is_right for system, is_right in right.items() if system != BASE]
    tests = {
        "differs": len({p.answer for p in predictions}) > 1,
        "lost": right.get(BASE) is True and not all(runs),
        "gained": right.get(BASE) is False and any(runs),
    }
    return tuple(look for look, holds in tests.items() if holds)


def _by_item(result: Result) -> dict[str, list[Prediction]]:
    by_item: dict[str, list[Prediction]] = {}
    for p in result.evaluation.predictions:
        by_item.setdefault(p.example_id, []).append(p)
    return by_item


def _group(result: Result, predictions: Sequence[Prediction]) -> str:
    return result.evaluation.task.group(predictions[0].tags)


def _title(task: str, group: str, n_groups: int) -> str:
    return task if n_groups == 1 and group == task else f"{task}, {group}"


def _is_share(rows_NK: NDArray[np.float64]) -> bool:
    is_counted = rows_NK.shape[1:] == (2,) and bool((rows_NK[:, 1] == 1).all())
    return is_counted and bool(np.isin(rows_NK[:, 0], (0, 1)).all())


def _size(found: Sequence[Result], limit: int) -> int:
    """About how many bytes the page has with texts of at most so many characters."""
    total = 0
    for result in found:
        seen: set[str] = set()
        for p in result.evaluation.predictions:
            texts = [p.raw] if p.example_id in seen else [p.raw, p.source, p.reference]
            seen.add(p.example_id)
            total += sum(MARKUP_BYTES + len(text[:limit].encode(errors="replace")) for text in texts)
    return total
