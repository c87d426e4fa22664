"""A run whose rationales are written by these tests: fine, broken, looping, refusing and so on."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from radistill import data, pipeline
from radistill.backends.echo import EchoGenerator
from radistill.config import config_from
from radistill.records import FinishReason, Generation, Request, TrainingRecord
from radistill.runs import RunFolder
from radistill.tables import read_jsonl, read_records

FINE = 'Note: "sees" is in the present, and there are {n} dogs; that is all that is to say.'
LOOP = "The old man. " * 12
WRITTEN: dict[int, tuple[str, FinishReason]] = {
    1: ("", "stop"),
    2: ("The old man sees the", "length"),
    3: ("The old man sees the dogs.", "length"),
    4: (LOOP, "stop"),
    5: (LOOP, "length"),
    6: ("Der alte Mann sieht sechs Hunde und sagt nichts dazu, denn er ist sehr alt.", "stop"),
    7: ("I cannot help with that.", "stop"),
    8: ("That is all.\nUser: What else?", "stop"),
    9: ("Good. [INST] Go on. [/INST]", "stop"),
    10: ("Der alte Mann sieht 10 Hunde.", "stop"),
    11: (FINE.format(n=0), "stop"),
}
"""Number in the sentence → what is written after its reference; after all others it is `FINE`."""
BROKEN, LOOPS = {1, 2}, {4, 5}
ROWS = 14
LONG = 59
"""Tokens that only the loops have more of."""


def number_in(text: str) -> int:
    return int(re.findall(r"\d+", text)[-1])


def as_told(self: EchoGenerator, request: Request, index: int) -> Generation:
    if request.purpose != "rationale":
        return usual(self, request, index)
    n = number_in(self.chat.spell((), request.prompt_ids))
    text, reason = WRITTEN.get(n, (FINE.format(n=n), "stop"))
    ids = self.chat.ids_of(text)
    return Generation(key=request.key, index=index, token_ids=ids, text=text, finish_reason=reason)


usual = EchoGenerator._one


def prepared(raw: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The run file with these rationales, and with the filters of a new run file."""
    own = folder / "own"
    own.mkdir()
    rows = [{"translation": {"en": f"The man sees {n} dogs.", "de": f"Der Mann sieht {n} Hunde."}} for n in range(ROWS)]
    (own / "train.en-de.json").write_text(json.dumps(rows), encoding="utf-8")
    raw["data"] = {"train": {"path": str(own), "pairs": ["en-de"]}, "template": "{source}"}
    raw["generate"]["backend"] = {"name": "echo", "empty_share": 0.0}
    del raw["generate"]["filters"]
    monkeypatch.setattr(EchoGenerator, "_one", as_told)
    return raw


@dataclass
class Assembly:
    """Generates and assembles with some filters, into a folder of its own."""

    raw: dict[str, Any]
    folder: Path
    count: int = 0

    def __call__(
        self, filters: dict[str, Any] | None = None, **changed: Any
    ) -> tuple[RunFolder, dict[int, TrainingRecord]]:
        """The run, and number → record."""
        self.count += 1
        more = {"filters": filters} if filters is not None else {}
        generate = {**self.raw["generate"], **more, **changed.pop("generate", {})}
        output = {"output_dir": str(self.folder / f"run{self.count}")}
        config = config_from({**self.raw, **output, "generate": generate, **changed})
        pipeline.run(config, stages=("generate", "assemble"))
        run = RunFolder(Path(config.output_dir))
        of = {e.id: number_in(e.reference) for e in data.load(config.data, "train", seed=config.seed).examples}
        return run, {of[str(r.example_id)]: r for r in read_records(run.records) if r.example_id is not None}


OFF = {"broken": False, "degenerate": False}


def only(**filters: Any) -> dict[str, Any]:
    return {**OFF, **filters}


def counts(run: RunFolder) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run.summary.read_text(encoding="utf-8"))["filters"]
    return found


def without(run: RunFolder) -> set[int]:
    """Numbers of the examples whose rationale was taken away."""
    return {number_in(row["reference"]) for row in read_jsonl(run.filtered)}


def bare(records: dict[int, TrainingRecord]) -> set[int]:
    """Numbers of the examples that are trained on without a rationale."""
    return {n for n, r in records.items() if not any(s.origin == "rationale" for s in r.segments)}
