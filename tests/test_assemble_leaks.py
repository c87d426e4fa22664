"""Stage 2 keeps the tests out of what was generated, and knows when other tests make other records."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from radistill import data, pipeline
from radistill.backends.echo import EchoGenerator
from radistill.config import config_from
from radistill.errors import DataError, RunFolderError
from radistill.records import Generation, Request
from test_assemble import EMPTY_SHARE, assembled, planned, rejects_of, summary_of

usual = EchoGenerator._one


@pytest.fixture
def raw(raw_config: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """A run on twelve sentences whose rationales are made without a model."""
    raw_config["generate"]["backend"] = {"name": "echo", "empty_share": EMPTY_SHARE}
    raw_config["generate"]["sampling"]["max_new_tokens"] = 12
    (tmp_path / "own").mkdir()
    raw_config["data"]["train"] = {"path": str(tmp_path / "own"), "pairs": ["en-de"]}
    return raw_config


@pytest.fixture
def sentences() -> list[tuple[str, str]]:
    """What is trained on; tests change it before they assemble."""
    return [(f"The old man sees {i} dogs.", f"Der alte Mann sieht {i} Hunde.") for i in range(12)]


def leaking(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Every third rationale says that."""

    def say(self: EchoGenerator, request: Request, index: int) -> Generation:
        answer = usual(self, request, index)
        ids = self.chat.tokenizer(text, add_special_tokens=False).input_ids
        return answer if int(request.key, 16) % 3 else replace(answer, token_ids=tuple(ids), text=text)

    monkeypatch.setattr(EchoGenerator, "_one", say)


@pytest.fixture
def tested(raw: dict[str, Any], tmp_path: Path) -> Path:
    """A file of two tests, which are tested on beside what is trained on."""
    file = tmp_path / "tests" / "test.en-de.json"
    file.parent.mkdir()
    put_tests(file, "The young farmer sings a song in the garden.")
    raw["data"]["test"] = {"path": str(file.parent), "pairs": ["en-de"]}
    return file


def put_tests(file: Path, sentence: str) -> None:
    rows = [
        ("The blue horse comes from the old town.", "Das blaue Pferd kommt aus der alten Stadt."),
        (sentence, "So."),
    ]
    file.write_text(json.dumps([{"translation": {"en": en, "de": de}} for en, de in rows]), encoding="utf-8")


def test_a_row_whose_rationale_holds_a_test_is_dropped_counted_and_kept_with_the_test(
    raw: dict[str, Any], sentences: list[tuple[str, str]], tested: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leaking(monkeypatch, "Also: the YOUNG farmer sings a song in the garden, today.")
    config, run, records = assembled(raw, sentences)
    examples, requests, _ = planned(config)
    lost = {e.id for e in examples if int(requests[e.id].key, 16) % 3 == 0}
    assert 0 < len(lost) < 12
    assert {r.example_id for r in records} == {e.id for e in examples} - lost
    summary = summary_of(run)
    assert summary["dropped"] == run.stages()["assemble"].facts["dropped"] == {"contains a test prompt": len(lost)}
    assert summary["records"] == summary["rationales"]["written"] == 12 - len(lost)
    test = next(e for e in data.load(config.data, "test", seed=config.seed).examples if e.reference == "So.")
    assert tested.exists()
    for row in rejects_of(run):
        assert row["example_id"] in lost
        assert row["test"] == {"id": test.id, "side": "source", "text": test.tags["source"]}
        assert row["reason"].startswith("contains a test prompt: its rationale holds the source of the test ")
        assert row["written"] == "Also: the YOUNG farmer sings a song in the garden, today."


@pytest.mark.usefixtures("tested")
def test_a_test_in_the_users_own_rows_is_left_to_data_contamination(
    raw: dict[str, Any], sentences: list[tuple[str, str]]
) -> None:
    sentences[3] = ("The young farmer sings a song in the garden.", "So.")
    raw["data"]["allow_contamination"] = True
    raw["method"] = {"name": "vanilla"}
    _, run, records = assembled(raw, sentences)
    assert len(records) == 12
    assert summary_of(run)["dropped"] == {}


def test_tests_that_would_drop_more_are_another_assembly(
    raw: dict[str, Any], sentences: list[tuple[str, str]], tested: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leaking(monkeypatch, "She reads many books in the evening at home.")
    config, run, records = assembled(raw, sentences)
    assert len(records) == 12
    put_tests(tested, "She reads many books in the evening.")
    with pytest.raises(RunFolderError, match=r"stage `assemble` of another config:\n  held_out: "):
        pipeline.run(config, stages=("assemble",))
    pipeline.run(config, stages=("assemble",), redo="assemble")
    assert summary_of(run)["dropped"]["contains a test prompt"] > 0


def test_tests_that_would_drop_less_are_another_assembly(
    raw: dict[str, Any], sentences: list[tuple[str, str]], tested: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leaking(monkeypatch, "The young farmer sings a song in the garden.")
    config, run, records = assembled(raw, sentences)
    assert len(records) < 12
    put_tests(tested, "She reads many books in the evening.")
    with pytest.raises(RunFolderError, match="held_out: "):
        pipeline.run(config, stages=("assemble",))
    pipeline.run(config, stages=("assemble",), redo="assemble")
    assert summary_of(run)["dropped"] == {}


def test_tests_that_would_drop_the_same_rows_cost_no_training(
    raw: dict[str, Any], sentences: list[tuple[str, str]], tested: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leaking(monkeypatch, "The young farmer sings a song in the garden.")
    config, run, records = assembled(raw, sentences)
    assert len(records) < 12
    before = run.stages()["assemble"]
    put_tests(tested, "The farmer sings. The young farmer sings a song.")
    (rows := json.loads(tested.read_text())).append({"translation": {"en": "sings a song in the garden", "de": "So."}})
    tested.write_text(json.dumps(rows))
    assert pipeline.run(config, stages=("assemble",))[0].reused
    after = run.stages()["assemble"]
    assert after.settings["held_out"] != before.settings["held_out"]
    assert replace(after, settings=before.settings) == before


@pytest.mark.parametrize("lost", ["rejects.jsonl", "records.parquet"])
def test_rows_that_can_no_longer_be_compared_with_other_tests_are_not_taken_for_the_same(
    raw: dict[str, Any],
    sentences: list[tuple[str, str]],
    tested: Path,
    monkeypatch: pytest.MonkeyPatch,
    lost: str,
) -> None:
    leaking(monkeypatch, "The young farmer sings a song in the garden.")
    config, run, _ = assembled(raw, sentences)
    put_tests(tested, "She reads many books in the evening.")
    (run.path / lost).unlink()
    with pytest.raises(RunFolderError, match="held_out: "):
        pipeline.run(config, stages=("assemble",))


def test_how_the_tests_are_asked_and_scored_does_not_change_the_records(
    raw: dict[str, Any], sentences: list[tuple[str, str]], tested: Path
) -> None:
    assembled(raw, sentences)
    rows = json.loads(tested.read_text())
    tested.write_text(json.dumps(rows[::-1]))
    raw["evaluate"] = [{"task": "translation", "max_new_tokens": 9, "metrics": ["chrf"]}]
    outcomes = pipeline.run(config_from(raw), stages=("generate", "assemble"))
    assert [outcome.reused for outcome in outcomes] == [True, True]


def test_tests_that_cannot_be_read_are_not_taken_for_none(
    raw: dict[str, Any], sentences: list[tuple[str, str]], tested: Path
) -> None:
    tested.unlink()
    with pytest.raises(DataError, match=r"data\.test"):
        assembled(raw, sentences)


def test_damaged_records_are_not_compared_with_other_tests(
    raw: dict[str, Any], sentences: list[tuple[str, str]], tested: Path
) -> None:
    config, run, _ = assembled(raw, sentences)
    put_tests(tested, "She reads many books in the evening.")
    run.records.write_bytes(b"PAR1")
    with pytest.raises(RunFolderError, match="held_out: "):
        pipeline.run(config, stages=("assemble",))
