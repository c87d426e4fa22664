"""Training: real tokens per second, peak memory and loss of radistill against the trainers that people use.

The same model, records and trained tokens for all, one pass, each in a process of its own, in turn; medians:
  radistill     the stage `train` of a run at its defaults
  trl_default   TRL's SFTTrainer as it comes
  trl_packing   with packing=True
  trl_best      with the best settings that were found by hand (--try-trl measures what was tried)
  bare_padded   a PyTorch loop as in research code
  bare          a PyTorch loop packed and optimised by hand: the limit
  llamafactory, axolotl    where --llamafactory or --axolotl names the Python of an environment that has it
  hard, live, stored       radistill's LoRA with hard labels, and with soft ones from the live reference or stored

Steady rates leave out the first steps; whole processes are reported too, and tokens per second that the process has
computed, which says more where others use the same cores. Memory is what training takes above the
loaded model. All must come to the same loss, or the script fails. What is not measured is null in the JSON.

    python benchmarks/train.py [--size SIZE] [--lora] [--corpus DIR] [--quick] [--only NAME] [--json FILE]
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from _train_records import SHAPES, prepare
from _train_rivals import BEST, OTHER_ORDER, TRL

from radistill import models
from radistill.runs import versions
from radistill.stage_settings import LoraSettings, TrainSettings

Found = Mapping[str, Any]
BATCH = TrainSettings().per_device_train_batch_size
"""Records of an optimizer step: radistill's default, and TRL's."""
RATE, PER_CPU = "tokens_per_second", "tokens_per_cpu_second"
ELSEWHERE = ("llamafactory", "axolotl")
"""Run by the Python of an environment of their own, where one is named."""
OURS, SOFT = "radistill", ("hard", "live", "stored")
RIVALS = (
    "radistill",
    "trl_default",
    "trl_packing",
    "trl_best",
    "bare_padded",
    "bare",
    *ELSEWHERE,
    *SOFT,
)
RATIOS: dict[str, tuple[str, str, str]] = {
    "vs_trl_default": (RATE, OURS, "trl_default"),
    "vs_trl_best": (RATE, OURS, "trl_best"),
    "vs_bare": (RATE, OURS, "bare"),
    "memory_vs_trl": ("memory", OURS, "trl_default"),
    "soft_live": (RATE, "hard", "live"),
    "soft_stored": (RATE, "hard", "stored"),
}
"""Ratio → of what, whose is divided by whose. The rate of hard labels by that of soft ones is what soft ones cost."""
BESIDE: dict[str, tuple[str, str, str]] = {
    "vs_trl_packing": (RATE, OURS, "trl_packing"),
    "vs_bare_padded": (RATE, OURS, "bare_padded"),
    "vs_llamafactory": (RATE, OURS, "llamafactory"),
    "vs_axolotl": (RATE, OURS, "axolotl"),
    "memory_vs_trl_best": ("memory", OURS, "trl_best"),
    "memory_vs_bare": ("memory", OURS, "bare"),
}
SAME_BATCHES, OTHER_BATCHES = 0.01, 0.05
"""How far a rival's loss may be from ours: as a share of it where the steps are of the same records, and where not."""
PEAK_FLOPS = {
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "4090": 165e12,
    "A10": 125e12,
    "L4": 121e12,
}
"""Dense bfloat16 operations per second by the makers' sheets."""


@dataclass(frozen=True)
class Amount:
    """How much is measured."""

    steps: int
    warm_up: int
    repeats: int


AMOUNTS = {"pocket": Amount(60, 10, 3), "125m": Amount(8, 2, 3), "1.1b": Amount(40, 10, 3), "7b": Amount(24, 6, 3)}
QUICK = {"pocket": Amount(16, 4, 1), "125m": Amount(3, 1, 1), "1.1b": Amount(12, 4, 1), "7b": Amount(8, 2, 1)}


@dataclass(frozen=True)
class Bench:
    """One model, its records, and what all rivals are told."""

    place: Path
    told: dict[str, Any]
    pythons: Mapping[str, Path]
    """Rival → Python of its environment."""
    threads: int

    def job(self, name: str) -> dict[str, Any]:
        """What the process of that rival reads."""
        lora = self.told["lora"]
        if name in SOFT:
            return {**self.told, "rival": OURS, "lora": adapter(), "labels": name}
        if name.startswith("trl_"):
            setting = name.removeprefix("trl_")
            best = BEST[self.told["size"]]
            return {**self.told, "rival": "trl", "lora": lora, "setting": best if setting == "best" else setting}
        return {**self.told, "rival": name, "lora": lora, "labels": "hard"}

    def run(self, name: str) -> Found:
        """One process of that rival from its start to its end.

        Raises:
            RuntimeError: it failed; with what it said.
        """
        work = self.place / "work"
        shutil.rmtree(work, ignore_errors=True)
        job = {**self.job(name), "output_dir": str(work / "run")}
        file = self.place / "job.json"
        file.write_text(json.dumps(job), encoding="utf-8")
        quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "HF_DATASETS_CACHE": str(work / "datasets")}
        script = Path(__file__).with_name("_train_rivals.py")
        command = [str(self.pythons.get(name, sys.executable)), str(script), str(file)]
        started = time.time()
        done = subprocess.run(
            command,
            env={**os.environ, **quiet, "OMP_NUM_THREADS": str(self.threads)},
            capture_output=True,
            text=True,
            check=False,
        )
        shutil.rmtree(work, ignore_errors=True)
        if done.returncode != 0:
            raise RuntimeError(f"{name} failed:\n{done.stderr[-4000:]}")
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        found["seconds"] = found.pop("ended_at") - started - found.pop("probe_seconds")
        return found


def adapter() -> dict[str, Any]:
    """Radistill's default LoRA, as PEFT calls it."""
    lora = LoraSettings()
    names = {"r": lora.r, "lora_alpha": lora.alpha, "lora_dropout": lora.dropout}
    return {**names, "target_modules": lora.target_modules, "task_type": "CAUSAL_LM"}


def measured(
    bench: Bench, names: Sequence[str], repeats: int, reasons: dict[str, str], say: Callable[[str], None]
) -> dict[str, dict[str, Any]]:
    """Medians of every rival, run in turn; one that cannot be run here gets a reason."""
    runs: dict[str, list[Found]] = {name: [] for name in names}
    for _ in range(repeats):
        for name in list(runs):
            try:
                found = bench.run(name)
            except RuntimeError as error:
                if name not in ELSEWHERE and not models.is_out_of_memory(error):
                    raise
                del runs[name]
                reasons[name] = str(error).strip().splitlines()[-1]
                say(f"{name}: {error}")
                continue
            runs[name].append(found)
            say(f"{name}: {found[RATE]:,.0f} tokens/s, loss {found['loss']:.4f}")
    return {name: _median(found) for name, found in runs.items()}


def _median(found: Sequence[Found]) -> dict[str, Any]:
    keys = [key for key, value in found[0].items() if value is not None]
    return {key: statistics.median(one[key] for one in found) for key in keys}


def ratios_of(found: Mapping[str, Found], wanted: Mapping[str, tuple[str, str, str]]) -> dict[str, float | None]:
    """Every ratio whose two sides were measured; the others are null."""
    there = {name: all(side in found for side in sides) for name, (_, *sides) in wanted.items()}
    return {
        name: found[ours][of] / found[theirs][of] if there[name] else None
        for name, (of, ours, theirs) in wanted.items()
    }


def beside_of(found: Mapping[str, Found]) -> dict[str, float | None]:
    """Further ratios, and the wanted ones of rates once more by the seconds that the processes have computed."""
    per_cpu = {f"{name}_per_cpu": (PER_CPU, a, b) for name, (of, a, b) in RATIOS.items() if of == RATE}
    return ratios_of(found, BESIDE) | ratios_of(found, per_cpu)


def differences(found: Mapping[str, Found], told: Mapping[str, Any]) -> list[str]:
    """What makes the comparison void: other tokens, or another loss."""
    said = []
    for name, one in found.items():
        if not one["loss"] < told["loss_before"]:
            said.append(
                f"{name} learned nothing: its loss is {one['loss']:.4f}, before it was {told['loss_before']:.4f}"
            )
        for of in ("tokens", "tokens_trained"):
            if one.get(of) not in (None, told[of]):
                said.append(f"{name} has {one[of]:,.0f} {of}, the records {told[of]:,}")
        if name in ("live", "stored"):
            continue  # another loss by intention; these two are compared with each other
        with_whom = "hard" if name in SOFT else OURS
        if with_whom in found:
            setting = BEST[told["size"]] if name == "trl_best" else name.removeprefix("trl_")
            same = setting not in (*OTHER_ORDER, *ELSEWHERE)
            allowed = SAME_BATCHES if same else OTHER_BATCHES
            said += _unequal(name, one["loss"], with_whom, found[with_whom]["loss"], allowed)
    if "live" in found and "stored" in found:
        said += _unequal("stored", found["stored"]["loss"], "live", found["live"]["loss"], SAME_BATCHES)
    return said


def _unequal(name: str, loss: float, other: str, expected: float, allowed: float) -> list[str]:
    if abs(loss - expected) <= allowed * expected:
        return []
    return [f"{name} has the loss {loss:.4f}, {other} {expected:.4f}: more than {allowed:.0%} apart"]


def utilisation(tokens_per_second: float, *, parameters: int, lora: bool, device: str) -> float | None:
    """Share of the GPU's operations that the model needs: 6 a parameter and token, 4 where the weights are frozen."""
    peak = next((flops for name, flops in PEAK_FLOPS.items() if name in device), None)
    return tokens_per_second * (4 if lora else 6) * parameters / peak if peak else None


def multiplied(model: str) -> int:
    """Parameters of the model that take part in products: all but the embeddings, which are looked up."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        built = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model))
    looked_up = 0 if built.config.tie_word_embeddings else built.get_input_embeddings().weight.numel()
    return int(sum(p.numel() for p in built.parameters()) - looked_up)


def table(found: Mapping[str, Found], told: Mapping[str, Any]) -> None:
    """For people."""
    device = models.device_name()
    print(f"{'':14}{'tokens/s':>10}{'per CPU s':>11}{'whole':>10}{'seconds':>9}{'memory MB':>11}{'loss':>9}{'MFU':>7}")
    parameters = multiplied(told["model"]) if models.device() == "cuda" else 0
    for name, one in found.items():
        lora = bool(told["lora"]) or name in SOFT
        share = utilisation(one["tokens_per_second"], parameters=parameters, lora=lora, device=device)
        whole, used = told["tokens"] / one["seconds"], "-" if share is None else f"{share:.1%}"
        print(
            f"{name:14}{one['tokens_per_second']:10,.0f}{one['tokens_per_cpu_second']:11,.0f}{whole:10,.0f}"
            f"{one['seconds']:9,.1f}{one['memory'] / 1e6:11,.0f}{one['loss']:9.4f}{used:>7}"
        )


def machine_of(bench: Bench, corpus: Path | None) -> dict[str, Any]:
    """Where and with what it was measured."""
    told, found = bench.told, {"machine": platform.machine(), **versions()}
    for package in ("trl", "datasets"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    load = round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None
    return found | {
        "device": models.device_name(),
        "threads": bench.threads,
        "load": load,
        "size": told["size"],
        "lora": bool(told["lora"]),
        "text": "corpus" if corpus else "lab",
        "records": told["steps"] * BATCH,
        "lengths": told["lengths"],
        "trl_best": BEST[told["size"]],
    }


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--size", choices=("pocket", *SHAPES), default="pocket")
    parser.add_argument("--lora", action="store_true", help="train adapters; otherwise all weights")
    parser.add_argument(
        "--corpus", type=Path, metavar="DIR", help="ALMA's human-written data; otherwise the lab's text"
    )
    parser.add_argument("--quick", action="store_true", help="few steps, one repeat")
    parser.add_argument("--steps", type=int, help="optimizer steps")
    parser.add_argument("--repeats", type=int, help="processes of each rival")
    parser.add_argument("--threads", type=int, help="of each process (default: OMP_NUM_THREADS, else all cores)")
    parser.add_argument("--llamafactory", type=Path, metavar="PYTHON", help="of an environment that has it")
    parser.add_argument("--axolotl", type=Path, metavar="PYTHON", help="of an environment that has it")
    parser.add_argument("--only", choices=RATIOS, help="measure this ratio alone; the file keeps the others")
    parser.add_argument("--try-trl", action="store_true", help="measure what was tried to make TRL fast, and end")
    parser.add_argument("--json", type=Path, help="where the ratios are written")
    return parser.parse_args()


def chosen(given: argparse.Namespace, reasons: Mapping[str, str]) -> list[str]:
    """Who is run."""
    if given.try_trl:
        return [OURS, *(f"trl_{name}" for name in TRL)]
    if given.only:
        return list(RATIOS[given.only][1:])
    return [name for name in RIVALS if name not in reasons]


def write(file: Path, given: argparse.Namespace, found: Mapping[str, Found], on: Found, reasons: Found) -> None:
    """The ratios and all that they come from; with --only, beside those that the file has already."""
    ratios, beside = ratios_of(found, RATIOS), beside_of(found)
    where = {name: dict(on) for name, ratio in ratios.items() if ratio is not None}
    rates = {name: one["tokens_per_second"] for name, one in found.items()}
    written: dict[str, Any] = {"ratios": ratios, "beside": beside, "rates": rates, "found": found, "on": where}
    if given.only and file.exists():
        before = json.loads(file.read_text(encoding="utf-8"))
        written = {name: before[name] | value for name, value in written.items()}
        written["ratios"] = {**before["ratios"], given.only: ratios[given.only]}
        written["beside"] = before["beside"] | {name: ratio for name, ratio in beside.items() if ratio is not None}
    written["not_measured"] = dict(reasons)
    file.write_text(json.dumps(written, indent=2), encoding="utf-8")


def main() -> None:
    """Measure, print a table, write the ratios, and fail if the losses differ."""
    given = parsed()
    amount = (QUICK if given.quick else AMOUNTS)[given.size]
    steps, repeats = given.steps or amount.steps, given.repeats or amount.repeats
    threads = given.threads or int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
    pythons = {name: path for name in ELSEWHERE if (path := getattr(given, name)) is not None}
    reasons = {name: f"--{name} names no environment" for name in ELSEWHERE if name not in pythons}
    names = chosen(given, reasons)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        soft = any(name in SOFT for name in names)
        told = prepare(place, size=given.size, corpus=given.corpus, count=steps * BATCH, with_soft=soft)
        told |= {"size": given.size, "lora": adapter() if given.lora else None, "steps": steps, "batch": BATCH}
        told |= {"logging_steps": min(amount.warm_up, max(1, steps // 2)), "learning_rate": 1e-4}
        bench = Bench(place, told, pythons, threads)
        on = machine_of(bench, given.corpus)
        print(", ".join(f"{k} {v}" for k, v in on.items()), flush=True)
        found = measured(bench, names, repeats, reasons, lambda line: print(line, file=sys.stderr, flush=True))
        print(f"{told['tokens']:,} tokens, {told['tokens_trained']:,} trained; loss before {told['loss_before']:.4f}")
        table(found, told)
    for name, ratio in (ratios_of(found, RATIOS) | beside_of(found)).items():
        print(f"{name:24}{'-' if ratio is None else f'{ratio:.2f}':>8}")
    for name, reason in reasons.items():
        print(f"{name} was not measured: {reason}")
    if given.json:
        write(given.json, given, found, on, reasons)
    if said := differences(found, told):
        sys.exit("The comparison is void:\n" + "\n".join(said))


if __name__ == "__main__":
    main()
