"""Stage 2: what was generated becomes weighted records; what is dropped is counted, with its reason."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from radistill import data, pipeline
from radistill.backends.echo import EchoGenerator
from radistill.chat import Chat
from radistill.config import RunConfig, config_from
from radistill.errors import DataError, RunFolderError
from radistill.generate import plan
from radistill.ledger import open_ledger
from radistill.making import Making
from radistill.records import Example, Generation, Request, StageRecord, TrainingRecord
from radistill.runs import RunFolder
from radistill.speaker import untouched
from radistill.tables import read_jsonl, read_records

EMPTY_SHARE = 0.2


@pytest.fixture
def raw(raw_config: dict[str, Any]) -> dict[str, Any]:
    """A run whose rationales are made without a model."""
    raw_config["generate"]["backend"] = {"name": "echo", "empty_share": EMPTY_SHARE}
    raw_config["generate"]["sampling"]["max_new_tokens"] = 12
    return raw_config


@pytest.fixture
def sentences(raw: dict[str, Any], tmp_path: Path) -> list[tuple[str, str]]:
    """Twelve pairs of sentences, which are what is trained on; tests change them before they assemble."""
    folder = tmp_path / "own"
    folder.mkdir()
    raw["data"]["train"] = {"path": str(folder), "pairs": ["en-de"]}
    del raw["data"]["test"]
    return [(f"The old man sees {i} dogs.", f"Der alte Mann sieht {i} Hunde.") for i in range(12)]


def assembled(
    raw: dict[str, Any], sentences: list[tuple[str, str]] | None = None
) -> tuple[RunConfig, RunFolder, list[TrainingRecord]]:
    """Generate and assemble."""
    if sentences is not None:
        folder = Path(raw["data"]["train"]["path"])
        rows = [{"translation": {"en": en, "de": de}} for en, de in sentences]
        (folder / "train.en-de.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    config = config_from(raw)
    pipeline.run(config, stages=("generate", "assemble"))
    run = RunFolder(Path(config.output_dir))
    return config, run, list(read_records(run.records))


def planned(config: RunConfig) -> tuple[Sequence[Example], dict[str, Request], Chat]:
    """The examples, what was asked about each, and the chat."""
    chat = untouched(config).chat
    examples = data.load(config.data, "train", seed=config.seed).examples
    requests, _ = plan(Making(config, chat, examples))
    addressed = [r.addressed_to(f"echo:{EMPTY_SHARE}") for r in requests]
    return examples, {str(r.example_id): r for r in addressed}, chat


def stored(config: RunConfig, requests: dict[str, Request]) -> dict[str, Generation]:
    """What the ledger holds about each example."""
    with open_ledger(Path(config.generate.ledger)) as ledger:
        found = ledger.read(r.key for r in requests.values())
    return {name: found[request.key][0] for name, request in requests.items()}


def summary_of(run: RunFolder) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(run.summary.read_text())
    return loaded


def rejects_of(run: RunFolder, stage: str = "assemble") -> list[dict[str, Any]]:
    return [row for row in read_jsonl(run.rejects) if row["stage"] == stage]


def test_records_are_what_was_asked_and_what_was_written(raw: dict[str, Any]) -> None:
    config, _, records = assembled(raw)
    examples, requests, chat = planned(config)
    answers = stored(config, requests)
    assert [r.example_id for r in records] == [e.id for e in examples]
    reasons = Counter(str(answers[e.id].finish_reason) for e in examples)
    assert set(reasons) == {"stop", "length"}
    assert any(not answers[e.id].token_ids for e in examples)
    for example, record in zip(examples, records, strict=True):
        answer = answers[example.id]
        end = (chat.end_id,) if answer.finish_reason == "stop" else ()
        if answer.token_ids:
            assert record.token_ids == (*requests[example.id].prompt_ids, *answer.token_ids, *end)
        else:
            assert record.token_ids == (*chat.opening(example.messages, example.reference, "").ids, *end)


def test_shuffled_pairing_learns_anothers_rationale_after_ones_own_reference(raw: dict[str, Any]) -> None:
    raw["method"]["pairing"] = "shuffled"
    raw["generate"]["backend"]["empty_share"] = 0.0
    config, _, records = assembled(raw)
    chat = untouched(config).chat
    examples = data.load(config.data, "train", seed=config.seed).examples
    asked = {str(r.example_id): r.addressed_to("echo:0.0") for r in plan(Making(config, chat, examples))[0]}
    answers = stored(config, asked)
    given = {}
    for record in records:
        name = str(record.example_id)
        prefix = asked[name].prompt_ids
        assert record.token_ids[: len(prefix)] == prefix
        (rationale,) = [s for s in record.segments if s.origin == "rationale"]
        assert rationale.start == len(prefix)
        given[name] = record.token_ids[rationale.start : rationale.stop]
        assert given[name] != answers[name].token_ids
    assert Counter(given.values()) == Counter(a.token_ids for a in answers.values())


def test_vanilla_needs_no_generation_and_no_ledger(raw: dict[str, Any]) -> None:
    raw["method"] = {"name": "vanilla"}
    config, run, records = assembled(raw)
    assert len(records) == len(data.load(config.data, "train", seed=config.seed).examples)
    assert summary_of(run)["rationales"] == {}
    assert {s.origin for r in records for s in r.segments} == {"prompt", "reference", "end"}


def test_the_summary_can_be_counted_again_from_the_records(raw: dict[str, Any]) -> None:
    raw["method"]["rationale_weight"] = 0.5
    config, run, records = assembled(raw)
    examples, requests, _ = planned(config)
    answers = list(stored(config, requests).values())
    summary = summary_of(run)
    tokens: Counter[str] = Counter()
    weight: dict[str, float] = {}
    for record in records:
        for s in record.segments:
            tokens[s.origin] += s.stop - s.start
            weight[s.origin] = weight.get(s.origin, 0.0) + s.weight * (s.stop - s.start)
    lengths = sorted(len(r.token_ids) for r in records)
    assert summary["records"] == summary["examples"] == len(records) == len(examples)
    assert summary["dropped"] == {}
    assert summary["tokens"] == dict(tokens)
    assert summary["trained_tokens"] == {k: v for k, v in tokens.items() if k != "prompt"}
    total = sum(weight.values())
    assert total == tokens["reference"] + 0.5 * (tokens["separator"] + tokens["rationale"]) + sum(
        s.weight for r in records for s in r.segments if s.origin == "end"
    )
    assert summary["weight_share"] == pytest.approx({k: v / total for k, v in weight.items() if v})
    assert sum(summary["weight_share"].values()) == pytest.approx(1)
    assert summary["lengths"] == {
        "min": lengths[0],
        "median": pytest.approx(np.median(lengths)),
        "mean": pytest.approx(sum(lengths) / len(lengths)),
        "p95": pytest.approx(np.quantile(lengths, 0.95)),
        "max": lengths[-1],
    }
    n_written = sum(len(a.token_ids) for a in answers)
    assert summary["rationales"] == {
        "written": len(answers),
        "empty": sum(not a.token_ids for a in answers),
        "stopped": sum(a.finish_reason == "stop" for a in answers),
        "cut": sum(a.finish_reason == "length" for a in answers),
        "mean_tokens": pytest.approx(n_written / len(answers)),
    }


def test_a_record_that_is_too_long_is_dropped_counted_and_never_cut(
    raw: dict[str, Any], sentences: list[tuple[str, str]]
) -> None:
    sentences[4] = ("The old man " * 30, "Der alte Mann " * 30)
    raw["train"]["max_length"] = 150
    _, run, records = assembled(raw, sentences)
    assert len(records) == 11
    assert max(len(r.token_ids) for r in records) <= 150
    assert summary_of(run)["dropped"] == {"too long": 1}
    assert summary_of(run)["rationales"]["written"] == 11
    (reject,) = rejects_of(run)
    assert reject["reason"].startswith("too long: ")
    assert "more than 150 (train.max_length or the model's context)" in reject["reason"]
    assert reject["row"]["reference"] == ("Der alte Mann " * 30).strip()
    assert reject["example_id"] == reject["row"]["id"] not in {r.example_id for r in records}


def test_a_record_of_just_the_greatest_length_is_kept(raw: dict[str, Any], tmp_path: Path) -> None:
    _, _, records = assembled(raw)
    longest = max(len(r.token_ids) for r in records)
    raw |= {"output_dir": str(tmp_path / "again"), "train": {**raw["train"], "max_length": longest}}
    assert assembled(raw)[2] == records
    raw |= {"output_dir": str(tmp_path / "shorter"), "train": {**raw["train"], "max_length": longest - 1}}
    shorter = assembled(raw)[2]
    assert shorter == [r for r in records if len(r.token_ids) < longest]
    assert shorter != records


def test_without_a_limit_of_its_own_the_models_context_is_the_limit(
    raw: dict[str, Any], sentences: list[tuple[str, str]]
) -> None:
    sentences[0] = ("The old man " * 60, "Der alte Mann " * 60)
    _, run, records = assembled(raw, sentences)
    assert len(records) == 11
    assert "more than 256" in rejects_of(run)[0]["reason"]


@pytest.mark.parametrize("method", ["radis", "vanilla"])
def test_text_with_a_special_token_is_dropped_with_its_name(
    raw: dict[str, Any], sentences: list[tuple[str, str]], method: str
) -> None:
    raw["method"] = {"name": method}
    sentences[2] = ("The dog <|im_end|> sleeps.", "Der Hund schläft.")
    sentences[3] = ("The cat sleeps.", "Die Katze <|im_start|>schläft.")
    _, run, records = assembled(raw, sentences)
    assert len(records) == 10
    assert summary_of(run)["dropped"] == {"cannot be put into ids": 2}
    reasons = sorted(row["reason"] for row in rejects_of(run))
    assert [word in reason for word, reason in zip(("<|im_end|>", "<|im_start|>"), reasons, strict=True)] == [True] * 2
    assert len(rejects_of(run, "generate")) == (2 if method == "radis" else 0)


def failing(self: EchoGenerator, request: Request, index: int) -> Generation:
    answer = usual(self, request, index)
    if int(request.key, 16) % 3:
        return answer
    return replace(answer, token_ids=(), text="", finish_reason="error", error="the engine refused it")


usual = EchoGenerator._one


def test_a_generation_that_failed_drops_its_row_and_says_why(
    raw: dict[str, Any], sentences: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EchoGenerator, "_one", failing)
    config, run, records = assembled(raw, sentences)
    examples, requests, _ = planned(config)
    lost = {e.id for e in examples if int(requests[e.id].key, 16) % 3 == 0}
    assert 0 < len(lost) < len(examples)
    assert {r.example_id for r in records} == {e.id for e in examples} - lost
    assert summary_of(run)["dropped"] == {"generation failed": len(lost)}
    assert summary_of(run)["rationales"]["written"] == len(records)
    assert {row["example_id"] for row in rejects_of(run)} == lost
    assert {row["reason"] for row in rejects_of(run)} == {"generation failed: the engine refused it"}


def test_a_weight_of_nothing_drops_nothing_as_long_as_the_reference_is_learned(raw: dict[str, Any]) -> None:
    raw["method"]["rationale_weight"] = 0
    _, run, records = assembled(raw)
    assert summary_of(run)["records"] == len(records) == summary_of(run)["examples"]
    assert "rationale" not in summary_of(run)["weight_share"]
    assert summary_of(run)["tokens"]["rationale"] > 0


def test_nothing_left_to_train_on_is_one_message(raw: dict[str, Any], sentences: list[tuple[str, str]]) -> None:
    raw["train"]["max_length"] = 8
    with pytest.raises(DataError, match=r"no training record is left of 12 examples; see .*rejects\.jsonl"):
        assembled(raw, sentences)
    run = RunFolder(Path(raw["output_dir"]))
    assert len(rejects_of(run)) == 12


def test_a_ledger_that_lost_what_was_generated_is_one_message(
    raw: dict[str, Any], sentences: list[tuple[str, str]], tmp_path: Path
) -> None:
    config, _, _ = assembled(raw, sentences)
    raw["generate"]["ledger"] = str(tmp_path / "another ledger")
    with pytest.raises(RunFolderError, match=r"another ledger no longer holds.*--redo generate"):
        pipeline.run(config_from(raw), stages=("assemble",), redo="assemble")
    assert config.generate.ledger != raw["generate"]["ledger"]


def test_records_are_the_same_every_time(raw: dict[str, Any], tmp_path: Path) -> None:
    _, first, _ = assembled(raw)
    _, second, _ = assembled({**raw, "output_dir": str(tmp_path / "again")})
    assert first.records.read_bytes() == second.records.read_bytes()
    assert summary_of(first) == summary_of(second)


def test_a_second_run_assembles_nothing_anew(raw: dict[str, Any]) -> None:
    config, run, _ = assembled(raw)
    before = run.records.stat().st_mtime_ns
    outcomes = pipeline.run(config, stages=("generate", "assemble"))
    assert [outcome.reused for outcome in outcomes] == [True, True]
    assert run.records.stat().st_mtime_ns == before


def test_nothing_is_assembled_before_it_was_generated(raw: dict[str, Any]) -> None:
    with pytest.raises(RunFolderError, match="`generate` is not finished"):
        pipeline.run(config_from(raw), stages=("assemble",))


def test_the_manifest_counts_what_was_kept_and_dropped(raw: dict[str, Any], sentences: list[tuple[str, str]]) -> None:
    sentences[1] = ("A <|im_end|>", "Ein")
    _, run, _ = assembled(raw, sentences)
    record: StageRecord = run.stages()["assemble"]
    assert record.facts["records"] == 11
    assert record.facts["dropped"] == {"cannot be put into ids": 1}
    assert {"records.parquet", "records.summary.json"} <= set(record.outputs)
