"""What docs/evidence says follows from what is kept beside it."""

import json
import tarfile
from pathlib import Path

import pytest

from radistill.compare import write_report
from radistill.compare_config import load_compare_config

ROOT = Path(__file__).resolve().parents[1]
EVIDENCE = ROOT / "docs" / "evidence"


def test_the_numbers_of_the_larger_model_follow_from_its_rows(tmp_path: Path) -> None:
    with tarfile.open(EVIDENCE / "cells" / "compare-lab-33m-seed0.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    file = ROOT / "benchmarks" / "compare-lab-33m.yaml"
    write_report(load_compare_config(file, ["seeds=[0]", f"output_dir={tmp_path}"]))
    found, kept = (
        json.loads(path.read_text(encoding="utf-8"))["frontier"]
        for path in (tmp_path / "compare.json", EVIDENCE / "compare-lab-33m.json")
    )
    assert found.keys() == kept.keys() >= {"ours", "vanilla", "radis", "ewc", "pseudorehearsal"}
    page = (EVIDENCE / "larger-pocket-model.md").read_text(encoding="utf-8")
    for name, numbers in found.items():
        volume = numbers["hypervolume"]
        assert volume == pytest.approx(kept[name]["hypervolume"], rel=1e-9)
        assert f"{volume['value']:.3f} [{volume['low']:.3f}, {volume['high']:.3f}]" in page
        assert numbers["ours"] == (name == "ours")


def test_what_is_said_of_killed_runs_is_what_was_counted() -> None:
    kept = json.loads((EVIDENCE / "kill.json").read_text(encoding="utf-8"))
    page = (EVIDENCE / "generation.md").read_text(encoding="utf-8")
    assert (kept["rows"], set(kept["backends"])) == (2000, {"echo", "pocket", "pocket-float32", "server"})
    assert (kept["backends"]["echo"]["runs"], kept["backends"]["pocket"]["runs"]) == (100, 10)
    for name, of in kept["backends"].items():
        assert of["whole"] == of["equal_to_the_byte"] == of["runs"]
        assert (of["lost"], of["doubled"], of["foreign"]) == (0, 0, 0)
        assert sum(of["fell"].values()) == of["kills"]
        assert sum(of["inside"].values()) == of["fell"]["inside a write"]
        fell = [of["fell"].get(where, 0) for where in ("start-up", "generation", "inside a write", "after the end")]
        counts = (of["runs"], of["equal_to_the_byte"], of["lost"], of["doubled"], of["kills"], *fell)
        assert f"| `{name}` | {' | '.join(map(str, counts))} |" in page


def test_what_is_said_of_scale_is_what_was_measured() -> None:
    kept = json.loads((EVIDENCE / "ledger.json").read_text(encoding="utf-8"))
    page = (EVIDENCE / "generation.md").read_text(encoding="utf-8")
    assert kept["rows"] == 1_000_000
    assert kept["ledger_rows_per_second"] >= 20_000
    assert kept["stage_rows_per_second"] >= 3_000
    assert kept["stage_peak_mb"] < 800
    assert kept["memory_ratio"] <= 1.5
    assert kept["seconds_to_see_that_all_is_done"] < 60
    assert f"| {kept['stage_rows_per_second']:,.0f} rows/s |" in page
    assert f"{kept['peak_mb_at_10k']:.0f} → {kept['stage_peak_mb']:.0f} MB ({kept['memory_ratio']:.2f})" in page


def test_what_is_said_of_speed_is_what_was_measured() -> None:
    kept = json.loads((EVIDENCE / "generate.json").read_text(encoding="utf-8"))
    page = (EVIDENCE / "generation.md").read_text(encoding="utf-8")
    least = {"vs_plain": 3.0, "vs_vllm": 0.95, "vs_client": 0.95}
    assert kept["ratios"].keys() == least.keys() == kept["on"].keys()
    rivals = {
        "vs_plain": ("radistill", "plain"),
        "vs_vllm": ("radistill_vllm", "vllm"),
        "vs_client": ("radistill_server", "client"),
    }
    for name, ratio in kept["ratios"].items():
        ours, theirs = (kept["rates"][system] for system in rivals[name])
        assert ratio == pytest.approx(ours / theirs)
        assert ratio >= least[name]
        assert f"| {ours:,.0f} | {ratio:.2f} |" in page
        assert f"| {theirs:,.0f} | |" in page
