"""What becomes of records that are too long, and what is said about the lengths of the others."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from radistill import lengths, pipeline
from radistill.check import check
from radistill.config import RunConfig, config_from
from radistill.errors import DataError
from radistill.ledger import open_ledger
from radistill.records import TrainingRecord
from radistill.runs import RunFolder
from radistill.tables import read_jsonl, read_records


@pytest.fixture
def raw(raw_config: dict[str, Any]) -> dict[str, Any]:
    """A run whose rationales are made without a model and have some dozen tokens each."""
    raw_config["generate"]["backend"] = {"name": "echo", "empty_share": 0.0}
    raw_config["generate"]["sampling"]["max_new_tokens"] = 40
    return raw_config


def assembled(
    raw: dict[str, Any], name: str = "run", **train: Any
) -> tuple[RunConfig, RunFolder, list[TrainingRecord]]:
    folder = str(Path(raw["output_dir"]).with_name(name))
    config = config_from({**raw, "output_dir": folder, "train": {**raw["train"], **train}})
    pipeline.run(config, stages=("generate", "assemble"))
    run = RunFolder(Path(folder))
    return config, run, list(read_records(run.records))


def ids_of(record: TrainingRecord, *origins: str) -> tuple[int, ...]:
    return tuple(i for s in record.segments if s.origin in origins for i in record.token_ids[s.start : s.stop])


def length_of_openings(records: Sequence[TrainingRecord]) -> list[int]:
    return [len(ids_of(r, "prompt", "reference")) for r in records]


def test_cut_rationale_cuts_the_rationale_alone_at_its_end_and_just_so_far_as_needed(raw: dict[str, Any]) -> None:
    _, _, whole = assembled(raw, "whole")
    limit = max(length_of_openings(whole)) + 6
    _, run, cut = assembled(raw, "cut", max_length=limit, on_long="cut_rationale")
    assert [r.example_id for r in cut] == [r.example_id for r in whole], "no record is lost"
    n_cut = 0
    for before, after in zip(whole, cut, strict=True):
        assert ids_of(after, "prompt", "reference") == ids_of(before, "prompt", "reference")
        if len(before.token_ids) <= limit:
            assert after == before
            continue
        n_cut += 1
        assert len(after.token_ids) == limit
        assert after.token_ids == before.token_ids[:limit], "cut at the end, without an end-of-turn"
        assert [s.origin for s in after.segments] == ["prompt", "reference", "separator", "rationale"]
        assert after.text == "".join(after.texts)
    assert n_cut > 2
    assert json.loads(run.summary.read_text())["shortened"] == n_cut == run.stages()["assemble"].facts["shortened"]
    assert json.loads(run.summary.read_text())["dropped"] == {}


def test_a_record_that_is_only_its_end_too_long_loses_no_token_of_its_rationale(raw: dict[str, Any]) -> None:
    _, _, whole = assembled(raw, "whole")
    longest = max((r for r in whole if ids_of(r, "end")), key=lambda r: len(r.token_ids))
    limit = len(longest.token_ids) - 1
    _, _, cut = assembled(raw, "cut", max_length=limit, on_long="cut_rationale")
    (after,) = (r for r in cut if r.example_id == longest.example_id)
    assert after.token_ids == longest.token_ids[:-1]
    assert ids_of(after, "rationale") == ids_of(longest, "rationale")


def test_where_no_token_of_a_rationale_fits_the_reference_is_trained_on_with_its_end(raw: dict[str, Any]) -> None:
    _, _, whole = assembled(raw, "whole")
    longest = max(whole, key=lambda r: len(ids_of(r, "prompt", "reference")))
    limit = len(ids_of(longest, "prompt", "reference")) + 1
    _, run, cut = assembled(raw, "cut", max_length=limit, on_long="cut_rationale")
    (after,) = (r for r in cut if r.example_id == longest.example_id)
    assert [s.origin for s in after.segments] == ["prompt", "reference", "end"]
    assert len(after.token_ids) == limit
    assert len(cut) == len(whole)
    # One less, and what is too long is prompt and reference: never cut, but dropped and counted.
    _, run, fewer = assembled(raw, "fewer", max_length=limit - 1, on_long="cut_rationale")
    assert longest.example_id not in {r.example_id for r in fewer}
    rejects = [row for row in read_jsonl(run.rejects) if row["stage"] == "assemble"]
    assert json.loads(run.summary.read_text())["dropped"] == {"too long": len(rejects)}
    assert longest.example_id in {row["example_id"] for row in rejects}


def test_error_names_the_setting_before_anything_is_generated(raw: dict[str, Any]) -> None:
    _, _, whole = assembled(raw, "whole")
    limit = max(length_of_openings(whole))
    many = sum(length + 1 > limit for length in length_of_openings(whole))
    config = config_from(
        {
            **raw,
            "output_dir": str(Path(raw["output_dir"]).with_name("strict")),
            "generate": {**raw["generate"], "ledger": str(Path(raw["output_dir"]).with_name("empty"))},
            "train": {**raw["train"], "max_length": limit, "on_long": "error"},
        }
    )
    with pytest.raises(
        DataError, match=rf"^{many} records are longer than {limit} tokens .*train\.on_long is error\. "
    ):
        pipeline.run(config, stages=("generate",))
    with open_ledger(Path(config.generate.ledger)) as ledger:
        assert not list(ledger.keys())
    assert not RunFolder(Path(config.output_dir)).stages()


def test_error_stops_where_rationales_make_records_too_long_and_keeps_the_list(raw: dict[str, Any]) -> None:
    _, _, whole = assembled(raw, "whole")
    limit = max(len(r.token_ids) for r in whole) - 1
    many = sum(len(r.token_ids) > limit for r in whole)
    with pytest.raises(DataError, match=rf"^{many} records are longer.*cut_rationale"):
        assembled(raw, "strict", max_length=limit, on_long="error")
    run = RunFolder(Path(raw["output_dir"]).with_name("strict"))
    assert sum(row["stage"] == "assemble" for row in read_jsonl(run.rejects)) == many
    assert "assemble" not in run.stages(), "a corrected run file may follow"
    assert assembled(raw, "strict", max_length=limit + 1, on_long="error")[2] == whole


def test_check_calls_rows_that_would_stop_the_run_a_problem(raw: dict[str, Any]) -> None:
    _, _, whole = assembled(raw, "whole")
    limit = max(length_of_openings(whole))
    for policy, is_problem in (("drop", False), ("error", True)):
        config = config_from({**raw, "train": {**raw["train"], "max_length": limit, "on_long": policy}})
        assert any("would stop the run" in problem for problem in check(config).problems) is is_problem


def test_soft_labels_are_those_of_the_record_that_was_cut(raw: dict[str, Any]) -> None:
    raw["generate"]["backend"] = {"name": "transformers", "dtype": "float32"}
    raw["train"]["labels"] = "stored"
    _, _, whole = assembled(raw, "whole")
    limit = max(length_of_openings(whole)) + 6
    _, _, cut = assembled(raw, "cut", max_length=limit, on_long="cut_rationale")
    assert any(len(r.token_ids) < len(w.token_ids) for r, w in zip(cut, whole, strict=True))
    for record in cut:
        assert record.soft is not None
        assert len(record.soft.given_T) == len(record.token_ids) <= limit


def test_an_answer_that_is_no_rationale_is_never_cut(raw: dict[str, Any]) -> None:
    """What the model writes in the reference's place is the reference: too long, it is dropped."""
    raw["method"] = {"name": "seqkd"}
    raw["generate"]["filters"] = {}
    _, _, whole = assembled(raw, "whole")
    limit = max(len(r.token_ids) for r in whole) - 1
    _, run, kept = assembled(raw, "cut", max_length=limit, on_long="cut_rationale")
    assert kept == [r for r in whole if len(r.token_ids) <= limit] != whole
    assert json.loads(run.summary.read_text())["shortened"] == 0


def test_padding_is_the_share_of_places_that_hold_no_token() -> None:
    assert lengths.padding([[4, 2, 2], [3, 3]], packing=False) == pytest.approx(1 - 14 / 18)
    assert lengths.padding([[4, 2, 2], [3, 3]], packing=True) == pytest.approx(1 - 14 / 14)
    assert lengths.padding([[4, 1], [5]], packing=True) == pytest.approx(1 - 10 / 13)


def test_the_histogram_counts_every_record_once() -> None:
    found = lengths.histogram([1, 31, 32, 63, 64, 20000])
    assert found == {"0-31": 2, "32-63": 2, "64-127": 1, "16384+": 1}


def test_lengths_and_padding_are_said_before_the_first_step_and_kept(
    raw: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    config, run, records = assembled(raw, max_steps=1, packing=False, per_device_train_batch_size=3)
    capsys.readouterr()
    pipeline.run(config, stages=("train",))
    said = capsys.readouterr().err
    facts = run.stages()["train"].facts
    sizes = sorted(len(r.token_ids) for r in records)
    assert (facts["lengths"]["min"], facts["lengths"]["max"]) == (sizes[0], sizes[-1])
    assert sum(facts["lengths"]["histogram"].values()) == len(records)
    assert 0 < facts["padding"] == facts["padding_unpacked"] < 1
    line = next(line for line in said.splitlines() if "padding" in line)
    assert line.startswith(f"train: {len(records)} records of {sizes[0]} to {sizes[-1]} tokens")
    assert f"{facts['padding']:.1%} of what is computed is padding" in line
    assert said.index("padding") < said.index("steps")


def test_packing_is_told_beside_what_it_saves() -> None:
    spread = lengths.Spread.of([10, 20, 30, 40] * 10, batch_size=4, packing=True, seed=0)
    assert spread.padding < spread.padding_unpacked
    assert "without packing" in str(spread)
    other = dataclasses.replace(spread, padding=spread.padding_unpacked)
    assert "without packing" not in str(other)
