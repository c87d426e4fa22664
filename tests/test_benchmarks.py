"""Every script in benchmarks/ runs in its quick form and writes its ratios."""

import importlib
import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from radistill import losses
from radistill.chat import ChatSettings, load_chat
from radistill.lab import POCKET
from radistill.packing import Row

SCRIPTS = sorted((Path(__file__).resolve().parents[1] / "benchmarks").glob("[a-z]*.py"))


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPTS[0].parent))
    return importlib.import_module("train")


@pytest.fixture
def train_records(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPTS[0].parent))
    return importlib.import_module("_train_records")


def test_there_is_something_to_run() -> None:
    stems = [script.stem for script in SCRIPTS]
    assert stems == ["agreement", "compare_worlds", "generate", "kill", "lab_radis", "ledger", "memory", "train"]


@pytest.mark.slow
def test_the_lab_is_measured_and_goes_on_where_it_was(tmp_path: Path) -> None:
    script = next(script for script in SCRIPTS if script.stem == "lab_radis")
    command = [sys.executable, str(script), "--quick", "--seeds", "1", "--only", "vanilla-0.001"]
    for _ in range(2):
        done = subprocess.run(
            [*command, "--output-dir", str(tmp_path / "runs"), "--json", str(tmp_path / "numbers.json")],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        numbers = json.loads((tmp_path / "numbers.json").read_text(encoding="utf-8"))
        assert numbers["vanilla-0.001-seed0"]["skill"]["value"] > numbers["base"]["skill"]["value"]
        assert "| vanilla-0.001 |" in done.stdout


@pytest.mark.slow
def test_the_quick_form_measures_and_writes_its_ratios(tmp_path: Path) -> None:
    script = next(script for script in SCRIPTS if script.stem == "generate")
    file = tmp_path / "ratios.json"
    done = subprocess.run(
        [sys.executable, str(script), "--quick", "--json", str(file)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    ratios = json.loads(file.read_text(encoding="utf-8"))["ratios"]
    assert ratios["vs_plain"] > 0
    assert set(ratios) == {"vs_plain", "vs_vllm", "vs_client"}


@pytest.mark.slow
def test_the_worlds_are_brought_up_and_compared_and_summed_up(tmp_path: Path) -> None:
    script = next(script for script in SCRIPTS if script.stem == "compare_worlds")
    command = [sys.executable, str(script), "--tiny", "--worlds", "101", "--output-dir", str(tmp_path / "worlds")]
    for _ in range(2):
        done = subprocess.run(
            [*command, "--json", str(tmp_path / "numbers.json")], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        numbers = json.loads((tmp_path / "numbers.json").read_text(encoding="utf-8"))
        means = numbers["means"]
        assert set(means) == {"vanilla", "replay"}
        assert means["vanilla"]["hypervolume"] == numbers["worlds"]["101"]["vanilla"]["hypervolume"]["value"]
    assert "2 of 2 cells are finished" in done.stdout
    told = json.loads((tmp_path / "worlds" / "101" / "upbringing" / "upbringing.json").read_text(encoding="utf-8"))
    assert told["world"] == {"number": 101, "rationale_overlap": 1.0, "word_order": "sov", "morphology": "prefixes"}
    assert (tmp_path / "worlds" / "101" / "exam.json").exists()


@pytest.mark.slow
def test_the_scale_of_the_ledger_is_measured(tmp_path: Path) -> None:
    script = next(script for script in SCRIPTS if script.stem == "ledger")
    file = tmp_path / "scale.json"
    done = subprocess.run(
        [sys.executable, str(script), "--quick", "--json", str(file)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(file.read_text(encoding="utf-8"))
    assert found["rows"] == 20_000
    assert found["memory_ratio"] < 1.5
    assert found["stage_bytes_per_row"] < 1000


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["echo", "server"])
def test_runs_are_killed_and_compared_and_not_killed_again_when_that_was_done(tmp_path: Path, backend: str) -> None:
    script = next(script for script in SCRIPTS if script.stem == "kill")
    file = tmp_path / "kill.json"
    command = [sys.executable, str(script), "--quick", "--backend", backend, "--output-dir", str(tmp_path / "kill")]
    said = []
    for _ in range(2):
        done = subprocess.run([*command, "--json", str(file)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        if "not tested" in done.stdout:
            pytest.skip(done.stdout)
        said.append(done.stdout.count("whole ("))
        found = json.loads(file.read_text(encoding="utf-8"))["backends"][backend]
        assert (found["runs"], found["whole"], found["lost"], found["doubled"]) == (1, 1, 0, 0)
        assert found["kills"] + found["kills_that_came_too_late"] > 0
    assert said == [1, 0]


def test_records_to_train_on_have_the_same_trained_ids_for_ours_and_for_the_rivals(train_records: ModuleType) -> None:
    chat = load_chat(POCKET, ChatSettings())
    records = train_records.records_of(chat, train_records.lab_pairs(400), 60)
    lengths = [len(record.token_ids) for record in records]
    assert min(lengths) < 60
    assert max(lengths) > 300
    for record in records:
        labels = train_records.trained_ids(record)
        trained = [n for n, label in enumerate(labels) if label != train_records.IGNORED]
        assert trained == np.flatnonzero(Row.of(record).weights_T).tolist()
        assert all(labels[n] == record.token_ids[n] for n in trained)
        live = Row.of(train_records.labelled(record, "live"))
        assert (live.labels_T == losses.LIVE).any() == any(s.origin == "rationale" for s in record.segments)
    assert records == train_records.records_of(chat, train_records.lab_pairs(400), 60)


def test_pairs_of_a_corpus_are_found_in_both_directions(tmp_path: Path, train_records: ModuleType) -> None:
    (tmp_path / "deen").mkdir()
    (tmp_path / "deen" / "train.de-en.de").write_text("eins\nzwei\n\n", encoding="utf-8")
    (tmp_path / "deen" / "train.de-en.en").write_text("one\ntwo\n\n", encoding="utf-8")
    first, second = train_records.corpus_pairs(tmp_path)
    assert (first.source_language, first.source, first.target) == ("German", "eins", "one")
    assert (second.target_language, second.source, second.target) == ("German", "two", "zwei")
    with pytest.raises(FileNotFoundError, match=r"train\.XX-en\.en"):
        train_records.corpus_pairs(tmp_path / "deen" / "nothing")


def test_other_tokens_or_another_loss_make_a_comparison_of_trainings_void(train: ModuleType) -> None:
    told = {"size": "pocket", "tokens": 100, "tokens_trained": 60, "loss_before": 5.0}
    ours = {"loss": 3.0, "tokens": 100, "tokens_trained": 60}
    said = partial(train.differences, told=told)
    assert said({"radistill": ours, "bare": {**ours, "loss": 3.01}}) == []
    assert "bare has the loss" in said({"radistill": ours, "bare": {**ours, "loss": 3.2}})[0]
    assert said({"radistill": ours, "trl_packing": {**ours, "loss": 3.1, "tokens": None}}) == []
    assert "bare has 59 tokens_trained" in said({"radistill": ours, "bare": {**ours, "tokens_trained": 59}})[0]
    assert "learned nothing" in said({"radistill": {**ours, "loss": 5.0}})[0]
    assert "stored has the loss" in said({"live": ours, "stored": {**ours, "loss": 3.2}})[0]


@pytest.mark.slow
def test_trainings_are_measured_in_turn_and_a_single_ratio_keeps_the_others(tmp_path: Path) -> None:
    script = next(script for script in SCRIPTS if script.stem == "train")
    file = tmp_path / "ratios.json"
    for only in ("vs_bare", "soft_stored"):
        command = [sys.executable, str(script), "--steps", "4", "--repeats", "1", "--only", only, "--json", str(file)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    written = json.loads(file.read_text(encoding="utf-8"))
    assert (
        {name for name, ratio in written["ratios"].items() if ratio} == {"vs_bare", "soft_stored"} == set(written["on"])
    )
    assert set(written["ratios"]) == {
        "vs_trl_default", "vs_trl_best", "vs_bare", "memory_vs_trl", "soft_live", "soft_stored",
    }  # fmt: skip
    assert written["found"]["radistill"]["loss"] == pytest.approx(written["found"]["bare"]["loss"], rel=0.01)
    assert "--axolotl" in written["not_measured"]["axolotl"]
