"""What records.summary.json says: counts over the records of a run."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from radistill.records import Generation, TrainingRecord

SCORED = frozenset({"min_perplexity", "max_perplexity"})
"""Filters that hang on the untouched model's scores."""


@dataclass
class FilterCounts:
    """How many rationales each filter has taken away."""

    active: Sequence[str]
    """Names of the filters that are on."""
    failed: Counter[str] = field(default_factory=Counter)
    """A rationale that fails several is counted for each …"""
    filtered: int = 0
    """… and here once."""
    judged: int = 0
    unscored: int = 0
    """Rationales whose score failed, so that no filter of perplexity could judge them."""
    kept_tokens: int = 0

    def count(self, failed: Sequence[str], n_tokens: int, *, is_unscored: bool = False) -> None:
        """Count one rationale with the filters that it fails."""
        self.judged += 1
        self.unscored += is_unscored
        self.filtered += bool(failed)
        self.failed.update(failed)
        self.kept_tokens += 0 if failed else n_tokens

    @property
    def share(self) -> float:
        """Of the rationales that are filtered."""
        return self.filtered / max(1, self.judged)

    def as_dict(self) -> dict[str, Any]:
        """Filter → how many rationales it has taken away, and the share of all; `total` counts each once.

        Those of perplexity also say how many they could not judge, because a score failed.
        """
        counts: dict[str, Any] = {
            name: {"filtered": self.failed[name], "rate": self.failed[name] / max(1, self.judged)}
            for name in self.active
        }
        for name in set(self.active) & SCORED:
            counts[name]["not_judged"] = self.unscored
        kept = {"kept": self.judged - self.filtered, "kept_tokens": self.kept_tokens}
        return {**counts, "total": {"filtered": self.filtered, "rate": self.share, **kept}}


@dataclass
class Summary:
    """Counts over the records that were written."""

    records: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    tokens: Counter[str] = field(default_factory=Counter)
    trained: Counter[str] = field(default_factory=Counter)
    weight: dict[str, float] = field(default_factory=dict)
    lengths: list[int] = field(default_factory=list)
    rationales: Counter[str] = field(default_factory=Counter)
    asked: Counter[str] = field(default_factory=Counter)
    unused: Counter[str | None] = field(default_factory=Counter)
    """What was written and is not trained on, by reason; the reference stands in its place."""
    shortened: int = 0
    """Rationales that were cut because their records were too long (`train.on_long`)."""
    filters: FilterCounts | None = None
    """Of the rationales whose examples are trained on; None = there are no filters."""
    notes: list[str] = field(default_factory=list)

    def add(self, record: TrainingRecord) -> None:
        """Count one record."""
        self.records += 1
        self.lengths.append(len(record.token_ids))
        for segment in record.segments:
            at = slice(segment.start, segment.stop)
            self.tokens[segment.origin] += segment.stop - segment.start
            if segment.weight > 0:
                weights = record.token_weights[at] or (1.0,) * (segment.stop - segment.start)
                self.trained[segment.origin] += sum(w > 0 for w in weights)
                self.weight[segment.origin] = self.weight.get(segment.origin, 0.0) + segment.weight * sum(weights)

    def count_asked(self, prompt_tokens: int, generations: Sequence[Generation], scored_tokens: int) -> None:
        """Count what the untouched model read, wrote and scored for the run, whoever else has used it."""
        self.asked["prompt_tokens"] += prompt_tokens
        self.asked["written_tokens"] += sum(g.n_tokens for g in generations)
        self.asked["scored_tokens"] += scored_tokens

    def count_rationale(self, generation: Generation) -> None:
        """Count one generation that a record was made with."""
        self.rationales["written"] += 1
        self.rationales["tokens"] += generation.n_tokens
        self.rationales["empty"] += not generation.token_ids
        self.rationales["stopped" if generation.finish_reason == "stop" else "cut"] += 1

    def as_dict(self, examples: int) -> dict[str, Any]:
        """The content of records.summary.json."""
        total = sum(self.weight.values())
        quantile = np.quantile(self.lengths, [0.5, 0.95]) if self.lengths else [0, 0]
        written = self.rationales["written"]
        return {
            "records": self.records,
            "examples": examples,
            "dropped": dict(self.dropped),
            "tokens": dict(self.tokens),
            "trained_tokens": dict(self.trained),
            "weight_share": {origin: weight / total for origin, weight in self.weight.items()},
            "lengths": {
                "min": min(self.lengths, default=0),
                "median": float(quantile[0]),
                "mean": sum(self.lengths) / max(1, len(self.lengths)),
                "p95": float(quantile[1]),
                "max": max(self.lengths, default=0),
            },
            "rationales": {
                **{name: self.rationales[name] for name in ("written", "empty", "stopped", "cut")},
                "mean_tokens": self.rationales["tokens"] / written,
            }
            if written
            else {},
            "shortened": self.shortened,
            "asked": dict(self.asked),
            "unused": {reason: n for reason, n in self.unused.items() if reason is not None},
            "filters": self.filters.as_dict() if self.filters is not None else {},
            "notes": self.notes,
        }
