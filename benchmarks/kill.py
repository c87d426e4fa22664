"""Kill test: `radistill generate` is killed at random moments and ends as if nothing had happened.

2,000 sentences of the lab, one run that nobody disturbs, and N that are killed by SIGKILL one to three times each: at
any time, while rows are written, and inside writes (with half of a record written, before an fsync, after a rename;
`tests/die.c`). Some are written by two processes with --shard, of which one is killed. Then it is left to finish.
What `radistill ledger export` gives is compared with the quiet run's to the byte, and every complete row in the shards
is counted: nothing lost, nothing doubled.

    python benchmarks/kill.py [--backend NAME] [--runs N] [--jobs N] [--output-dir DIR] [--json FILE]

NAME: `echo`, `pocket` (the model as it is stored, in bf16), `pocket-float32`, or `server`: an OpenAI-compatible server
(`tests/fakes_server.py`) that answers one in five requests wrongly (429, 500, 503, what is no JSON, a truncated body,
no choices) or not at all, and is itself killed and started again all the time. With --output-dir a test that was
interrupted goes on where it was, and the JSON has all backends that were tested there.
"""

import argparse
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml
from _killing import FILES, NOT_KILLED, ROOT, Kept, Quiet, Runs, calls, kept, shim

from radistill import seeds
from radistill.errors import RadistillError
from radistill.files import sha256, write_json
from radistill.lab.pairs import sentences
from radistill.lab.world import WorldSettings, world_of
from radistill.ledger_care import looked_through
from radistill.ledger_export import export
from radistill.runs import versions

ECHO_SECONDS = 5.0
"""So long `echo` writes at least, so that kills fall into it."""
BACKENDS: dict[str, dict[str, Any]] = {
    "echo": {"name": "echo", "batch_size": 20},
    "pocket": {"name": "transformers", "batch_size": 32},
    "pocket-float32": {"name": "transformers", "batch_size": 32, "dtype": "float32"},
    "server": {"name": "openai", "timeout": 1.0, "tries": 2, "concurrency": 32, "patience": 60.0},
}
SHARED = {"echo": 5, "server": 5, "pocket-float32": 1}
"""Every so-manieth run is written by two processes. Their batches are others than a whole run's, and the pocket model
is stored in bf16, in which a row depends on its batch; what is promised then is the same keys, not the same bytes."""
STARTS = 40
"""A run is started so often at most; with the server it stops with a message when that is not there at the start."""
FAULTS = 0.2
"""Share of the requests that the server answers wrongly."""
EXPORTING = threading.Lock()


def write_run_file(folder: Path, backend: str, rows: int) -> Path:
    """The rows and what is done with them."""
    data = folder / f"data-{rows}"
    data.mkdir(parents=True, exist_ok=True)
    pairs = sentences(world_of(WorldSettings()), "kill", rows)
    (data / "train.en-eo.tsv").write_text("".join(f"{en}\t{eo}\n" for en, eo in pairs), encoding="utf-8")
    settings = dict(BACKENDS[backend])
    if backend == "echo":
        settings["rows_per_second"] = rows / ECHO_SECONDS
    config = {
        "name": "kill",
        "model": "pocket",
        "output_dir": "run",
        "data": {"train": {"path": str(data), "pairs": ["en-eo"]}},
        "generate": {"backend": settings, "sampling": {"max_new_tokens": 48}, "max_attempts": 1000},
    }
    path = folder / f"{backend}.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


@dataclass
class Server:
    """The fake server, in a process of its own."""

    place: Path
    faults: float = 0.0
    seed: int = 0
    deaths: int = 0
    over: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.log = self.place.with_name(f"{self.place.name}.faults")
        self.log.unlink(missing_ok=True)

    @property
    def settings(self) -> list[str]:
        """For the command line."""
        return [f"generate.backend.base_url=http://127.0.0.1:{self.port}/v1"]

    @property
    def told(self) -> dict[str, int]:
        """How often it answered wrongly, by kind."""
        return dict(sorted(Counter(self.log.read_text(encoding="utf-8").split()).items()))

    def start(self) -> "subprocess.Popen[bytes]":
        """Ready when it says so."""
        given = {"--port": self.port, "--faults": self.faults, "--seed": self.seed + self.deaths, "--log": self.log}
        words = [str(word) for pair in given.items() for word in pair]
        command = [sys.executable, str(ROOT / "tests" / "fakes_server.py"), *words]
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        return process

    @contextmanager
    def serving(self, *, dies: bool) -> Iterator["Server"]:
        """Meanwhile it runs, and is killed and started again if it `dies`."""
        thread = threading.Thread(target=self._live, args=(seeds.generator(self.seed, "server"), dies))
        first = self.process = self.start()
        thread.start()
        try:
            yield self
        finally:
            self.over.set()
            thread.join()
            for process in (first, self.process):
                process.kill()
                process.wait()

    def _live(self, rng: Any, dies: bool) -> None:
        while dies and not self.over.wait(float(rng.uniform(3, 10))):
            self.process.kill()
            self.process.wait()
            self.deaths += 1
            self.over.wait(float(rng.uniform(0, 1)))
            self.process = self.start()


def quiet_run(folder: Path, backend: str, config: Path, library: Path) -> Quiet:
    """The run that nobody disturbs; done once for all of a folder."""
    stored, answers = folder / f"{backend}.quiet.json", folder / f"{backend}.quiet.jsonl"
    if not stored.exists():
        place = folder / f"{backend}-quiet"
        shutil.rmtree(place, ignore_errors=True)
        with server_of(backend, place) as server:
            runs = Runs(place, config, library, server.settings if server else ())
            began = time.monotonic()
            process, log = runs.start()
            assert process.wait() == 0, f"the quiet run failed: {place}.said"
            seconds = time.monotonic() - began
        export(place / "run", answers)
        done = calls(log)
        rows = [call.seconds for call in done if call.file == "a shard"]
        of = Counter(f"{call.name} {call.file}" for call in done)
        found = {"seconds": seconds, "seconds_of_rows": rows[-1] - rows[0], "calls": dict(sorted(of.items()))}
        write_json(stored, found)
    lines = (json.loads(line) for line in answers.read_text(encoding="utf-8").splitlines())
    keys = frozenset(f"{row['key']} {row['index']}" for row in lines)
    return Quiet(**json.loads(stored.read_text(encoding="utf-8")), sha256=sha256(answers), keys=keys)


@contextmanager
def server_of(backend: str, place: Path, *, seed: int | None = None) -> Iterator[Server | None]:
    """A server, if there is to be one: well, or with a seed killed and faulty."""
    if backend != "server":
        yield None
        return
    server = Server(place) if seed is None else Server(place, FAULTS, seed)
    with server.serving(dies=seed is not None):
        yield server


def disturbed_run(number: int, backend: str, quiet: Quiet, folder: Path, config: Path, library: Path) -> dict[str, Any]:
    """Killed, finished, compared."""
    rng = seeds.generator(number, "kill", backend)
    place = folder / f"{backend}-{number}"
    began = time.monotonic()
    shares = backend in SHARED and number % SHARED[backend] == SHARED[backend] - 1
    with server_of(backend, place, seed=number) as server:
        while True:
            shutil.rmtree(place, ignore_errors=True)
            runs = Runs(place, config, library, server.settings if server else ())
            found = killed(runs, quiet, rng, shares=shares)
            if any(kill["fell"] != NOT_KILLED for kill in found):
                break  # a run that every kill has missed is not counted
        finished = finish(runs, server)
        of_server = {"deaths": server.deaths, "faults": server.told} if server else {}
    result = {"run": number, "shares": shares, "kills": found, "starts": runs.started, "server": of_server}
    result |= {"seconds": round(time.monotonic() - began, 1), "finished": finished}
    result |= compared(place, quiet) if finished else {"whole": False}
    if result["whole"]:
        shutil.rmtree(place)
        for left in folder.glob(f"{place.name}.*"):
            left.unlink()
    return result


def killed(runs: Runs, quiet: Quiet, rng: Any, *, shares: bool) -> list[dict[str, Any]]:
    """One process after the other; beside them another, if they are to do a share."""
    many = int(rng.integers(1, 4))
    plan = [quiet.kill(rng, kills=many, share=shares) for _ in range(many)]
    other, log = runs.start("--shard", "1/2") if shares else (None, None)
    found = [runs.kill(kill, *(("--shard", "0/2") if shares else ())) for kill in plan]
    if other and log:
        other.wait()
        log.unlink(missing_ok=True)
    return found


def finish(runs: Runs, server: Server | None) -> bool:
    """Start it once more; again where the server was not there, or has answered some rows wrongly every time."""
    while runs.started < STARTS:
        if runs.finish() == 0 and runs.failed() == 0:
            return True
        if server is None:
            break
    return False


def compared(place: Path, quiet: Quiet) -> dict[str, Any]:
    """With the quiet run."""
    try:
        with EXPORTING:
            export(place / "run", place / "answers.jsonl")
            verified = looked_through(place / "ledger")
    except RadistillError as error:
        return {"problems": [str(error)], "whole": False}
    is_equal = sha256(place / "answers.jsonl") == quiet.sha256
    shards: Kept = kept(place / "ledger")
    numbers = {
        "lost": len(quiet.keys - shards.good.keys()),
        "doubled": sum(count - 1 for count in shards.good.values()),
        "foreign": len(shards.good.keys() - quiet.keys),
        "problems": verified.problems,
    }
    left = sum(1 for path in place.rglob("*.part"))
    facts = {"failed_rows": shards.failed, "parts_left": left, **asdict(shards)}
    del facts["good"], facts["failed"]
    whole = is_equal and not any(numbers.values())
    return {"equal": is_equal, **numbers, **facts, "whole": whole}


def results(file: Path) -> dict[int, dict[str, Any]]:
    """Of the runs that were finished; a line that was torn is one that was not."""
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True) if file.exists() else []
    return {found["run"]: found for found in (json.loads(line) for line in lines if line.endswith("\n"))}


def test(folder: Path, backend: str, *, runs: int, rows: int, jobs: int) -> None:
    """Do the runs that are not done yet."""
    library = shim(folder)
    assert library is not None
    config = write_run_file(folder, backend, rows)
    quiet = quiet_run(folder, backend, config, library)
    file = folder / f"{backend}.jsonl"
    done = results(file)
    with ThreadPoolExecutor(jobs) as pool, file.open("ab") as stored:
        todo = [n for n in range(runs) if n not in done]
        for found in pool.map(lambda n: disturbed_run(n, backend, quiet, folder, config, library), todo):
            stored.write(json.dumps(found).encode() + b"\n")
            stored.flush()
            os.fsync(stored.fileno())
            fell = ", ".join(kill["fell"] for kill in found["kills"])
            print(f"{backend} {found['run']}: {'whole' if found['whole'] else 'NOT WHOLE'} ({fell})", flush=True)


def summary(found: list[dict[str, Any]], quiet: dict[str, Any]) -> dict[str, Any]:
    """Counts over the runs of a backend."""
    kills = [kill for run in found for kill in run["kills"]]
    hit = [kill for kill in kills if not kill["fell"].startswith("not")]
    inside = Counter(_written(kill["at"]) for kill in hit if kill["at"])
    faults: Counter[str] = Counter()
    for run in found:
        faults.update(run["server"].get("faults", {}))
    sums = ("lost", "doubled", "foreign", "failed_rows", "unfinished_rows", "unfinished_bytes", "parts_left")
    return {
        "runs": len(found),
        "runs_by_two_processes": sum(run["shares"] for run in found),
        "whole": sum(run["whole"] for run in found),
        "equal_to_the_byte": sum(run.get("equal", False) for run in found),
        **{name: sum(run.get(name, 0) for run in found) for name in sums},
        "kills": len(hit),
        "kills_that_came_too_late": len(kills) - len(hit),
        "fell": dict(sorted(Counter(kill["fell"] for kill in hit).items())),
        "inside": dict(sorted(inside.items())),
        "half_written": sum(kill["at"].endswith("half") for kill in hit),
        "journals_left": sum(kill["journal_left"] for kill in hit),
        "server_deaths": sum(run["server"].get("deaths", 0) for run in found),
        "faults": dict(sorted(faults.items())),
        "quiet_seconds": quiet["seconds"],
        "median_seconds": sorted(run["seconds"] for run in found)[len(found) // 2],
    }


def main() -> int:
    """Kill, count, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", choices=BACKENDS, default="echo")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--jobs", type=int, default=1, help="so many runs side by side")
    parser.add_argument("--quick", action="store_true", help="one run of 200 rows")
    parser.add_argument("--output-dir", type=Path, help="where it is done; by default a temporary folder")
    parser.add_argument("--json", type=Path, help="where the counts are written")
    given = parser.parse_args()
    if given.quick:
        given.runs, given.rows = 1, 200
    with nullcontext(given.output_dir) if given.output_dir else tempfile.TemporaryDirectory() as place:
        folder = Path(place).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        if shim(folder) is None:
            print("not tested: it needs Linux and a C compiler (cc)")
            return 0
        test(folder, given.backend, runs=given.runs, rows=given.rows, jobs=given.jobs)
        found = {
            backend: summary(list(results(file).values()), json.loads((folder / f"{backend}.quiet.json").read_text()))
            for backend in BACKENDS
            if (file := folder / f"{backend}.jsonl").exists()
        }
    for name, value in found[given.backend].items():
        print(f"{name:26} {value}")
    machine = {"machine": platform.machine(), **versions()}
    if given.json:
        write_json(given.json, {"rows": given.rows, "backends": found, "on": machine})
    return 0 if all(of["whole"] == of["runs"] for of in found.values()) else 1


def _written(at: str) -> str:
    """`CALL FILE` of what `die.c` was told."""
    name, part, *_ = at.split(" ")
    return f"{name} {next(file for file, known in FILES.items() if known == part)}"


if __name__ == "__main__":
    sys.exit(main())
