"""Scale: a million rows through the stage `generate` with the backend `echo`, which needs no model.

Measured, each in a process of its own: rows per second of the ledger alone and of the whole stage (reading, template,
tokenizing, hashing, writing), peak memory at few and at many rows, bytes per row, and how long it takes to see that
everything is done.

    python benchmarks/ledger.py [--quick] [--rows N] [--json FILE]
"""

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from radistill import pipeline
from radistill.config import config_from
from radistill.ledger import open_ledger
from radistill.records import Generation, digest
from radistill.runs import versions

FEW = 10_000
COMMIT = 1024
TEXT = (
    "the old king sees a small house near the river and the bridge under which two boats wait for morning while "
    "children sing of winter bread water books letters trains mountains birds cats dogs trees summer evening"
)
WORDS = TEXT.split()


def sentence(n: int) -> tuple[str, str]:
    """The n-th pair; made of its number, so that no pair comes twice."""
    words = [WORDS[(n * (i + 3) + n // 7 + i * i) % len(WORDS)] for i in range(4 + n % 11)]
    return f"{' '.join(words)} {n}", f"{' '.join(f'{word}o' for word in reversed(words))} {n}"


def write_corpus(path: Path, rows: int) -> None:
    """Tab-separated pairs."""
    with path.open("w", encoding="utf-8") as file:
        for n in range(rows):
            file.write("\t".join(sentence(n)) + "\n")


def peak_mb() -> float:
    """Highest resident memory of this process so far."""
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def ledger_alone(folder: Path, rows: int) -> dict[str, float]:
    """Commits of ready rows."""
    seconds = 0.0
    with open_ledger(folder / "alone") as ledger:
        for start in range(0, rows, COMMIT):
            block = [answer(n) for n in range(start, min(rows, start + COMMIT))]
            started = time.perf_counter()
            ledger.append(block)
            seconds += time.perf_counter() - started
    return {"rows_per_second": rows / seconds, "peak_mb": peak_mb()}


def answer(n: int) -> Generation:
    """As a model might have written it."""
    text = sentence(n)[1]
    return Generation(
        key=digest("benchmark", n),
        index=0,
        token_ids=tuple(range(n % 40, n % 40 + 30)),
        text=text,
        finish_reason="stop",
    )


def stage(folder: Path, rows: int) -> dict[str, float]:
    """`generate` as a user runs it, but for what starting the program takes."""
    write_corpus(folder / "train.en-eo.tsv", rows)
    config = config_from(
        {
            "name": "benchmark",
            "model": "pocket",
            "output_dir": str(folder / "run"),
            "data": {"train": {"path": str(folder), "pairs": ["en-eo"]}},
            "generate": {"backend": {"name": "echo"}, "ledger": str(folder / "ledger")},
        }
    )
    started = time.perf_counter()
    (outcome,) = pipeline.run(config, stages=("generate",))
    seconds = time.perf_counter() - started
    assert outcome.record.facts["written"] == rows, "every row is another"
    size = sum(file.stat().st_size for file in (folder / "ledger").rglob("*") if file.is_file())
    return {"rows_per_second": rows / seconds, "peak_mb": peak_mb(), "bytes_per_row": size / rows, "seconds": seconds}


def again(folder: Path, rows: int) -> dict[str, float]:
    """The same command once more: everything is done."""
    started = time.perf_counter()
    (outcome,) = pipeline.run(config_from_folder(folder), stages=("generate",))
    seconds = time.perf_counter() - started
    assert outcome.reused
    return {"seconds": seconds, "peak_mb": peak_mb(), "rows": float(rows)}


def resumed(folder: Path, rows: int) -> dict[str, float]:
    """The run folder is lost, the ledger is not: every row is planned again and found."""
    config = config_from_folder(folder).model_copy(update={"output_dir": str(folder / "run again")})
    started = time.perf_counter()
    (outcome,) = pipeline.run(config, stages=("generate",))
    assert outcome.record.facts["from_ledger"] == rows
    return {"seconds": time.perf_counter() - started, "peak_mb": peak_mb()}


def config_from_folder(folder: Path) -> Any:
    """The run's own."""
    from radistill.config import load_config

    return load_config(folder / "run" / "config.yaml")


PARTS = {"alone": ledger_alone, "stage": stage, "again": again, "resumed": resumed}


def in_a_process(part: str, folder: Path, rows: int) -> dict[str, float]:
    """One measurement, with a memory of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, __file__, "--part", part, "--folder", str(folder), "--rows", str(rows)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def measured(place: Path, rows: int) -> dict[str, Any]:
    """All of it."""
    found: dict[str, Any] = {"rows": rows}
    found["ledger_rows_per_second"] = in_a_process("alone", place / "alone", rows)["rows_per_second"]
    few, many = (in_a_process("stage", place / str(n), n) for n in (FEW, rows))
    found |= {f"stage_{name}": value for name, value in many.items()}
    found["peak_mb_at_10k"] = few["peak_mb"]
    found["memory_ratio"] = many["peak_mb"] / few["peak_mb"]
    found["seconds_to_see_that_all_is_done"] = in_a_process("again", place / str(rows), rows)["seconds"]
    resume = in_a_process("resumed", place / str(rows), rows)
    return found | {"resume_seconds": resume["seconds"], "resume_peak_mb": resume["peak_mb"]}


def main() -> None:
    """Measure, print a table, write the numbers."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="20,000 rows")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--json", type=Path, help="where the numbers are written")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part:
        print(json.dumps(PARTS[given.part](given.folder, given.rows)))
        return
    with tempfile.TemporaryDirectory() as place:
        found = measured(Path(place), 2 * FEW if given.quick else given.rows)
    for name, value in found.items():
        print(f"{name:34} {value:14,.2f}")
    machine = {"machine": platform.machine(), **versions()}
    print(", ".join(f"{k} {v}" for k, v in machine.items()))
    if given.json:
        given.json.write_text(json.dumps({**found, "on": machine}, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
