"""What is trained on of what was written: a share of the examples, the first tokens, another model's words."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from radistill import models, pipeline
from radistill.backends.echo import EchoGenerator
from radistill.config import RunConfig, config_from
from radistill.records import Generation, Request, TrainingRecord
from radistill.runs import RunFolder
from radistill.speaker import teacher, untouched
from radistill.tables import read_jsonl, read_records


@pytest.fixture
def raw(raw_config: dict[str, Any]) -> dict[str, Any]:
    """A run whose rationales are made without a model."""
    raw_config["generate"]["backend"] = {"name": "echo", "empty_share": 0.0}
    raw_config["generate"]["sampling"]["max_new_tokens"] = 30
    raw_config["data"]["train"]["limit"] = 40
    return raw_config


def assembled(
    raw: dict[str, Any], name: str, *, data: Any = None, generate: Any = None, **changes: Any
) -> tuple[RunConfig, list[TrainingRecord]]:
    changed = {
        "data": {**raw["data"], **(data or {})},
        "generate": {**raw["generate"], **(generate or {})},
        "output_dir": f"{raw['output_dir']}-{name}",
    }
    config = config_from({**raw, **changed, **changes})
    pipeline.run(config, stages=("generate", "assemble"))
    return config, list(read_records(RunFolder(Path(config.output_dir)).records))


def with_rationale(records: list[TrainingRecord]) -> dict[str | None, TrainingRecord]:
    return {r.example_id: r for r in records if any(s.origin == "rationale" for s in r.segments)}


def test_a_smaller_share_of_examples_with_a_rationale_is_a_part_of_a_larger_one(raw: dict[str, Any]) -> None:
    by_share = {}
    for share in (0.1, 0.2, 0.5, 1.0):
        config, records = assembled(raw, f"f{share}", data={"fraction": share})
        by_share[share] = with_rationale(records)
        assert len(records) == 40
        assert len(by_share[share]) == share * 40
        stage = RunFolder(Path(config.output_dir)).stages()["generate"]
        # Two examples are equal, and what is equal is asked for once.
        assert share * 40 - 1 <= stage.facts["requests"] <= share * 40
    for small, large in ((0.1, 0.2), (0.2, 0.5), (0.5, 1.0)):
        assert by_share[small].items() <= by_share[large].items()
    other = assembled({**raw, "seed": 1}, "seed", data={"fraction": 0.5})[1]
    assert with_rationale(other).keys() != by_share[0.5].keys()


def test_examples_without_a_rationale_are_trained_on_as_in_vanilla(raw: dict[str, Any]) -> None:
    _, vanilla = assembled(raw, "vanilla", method={"name": "vanilla"})
    by_id = {r.example_id: r for r in vanilla}
    _, half = assembled(raw, "half", data={"fraction": 0.5})
    written = with_rationale(half)
    assert [r.example_id for r in half] == [r.example_id for r in vanilla]
    assert all((r == by_id[r.example_id]) == (r.example_id not in written) for r in half)
    for labels in ("hard", "stored"):
        train = {**raw["train"], "labels": labels}
        assert assembled(raw, f"none-{labels}", data={"fraction": 0.0}, train=train)[1] == vanilla


def test_only_records_that_have_soft_labels_are_scored(raw: dict[str, Any]) -> None:
    train = {**raw["train"], "labels": "stored", "label_top_k": 3}
    config, records = assembled(raw, "stored", data={"fraction": 0.25}, train=train)
    soft = with_rationale(records)
    assert {r.example_id for r in records if r.soft is not None} == soft.keys()
    summary = json.loads(RunFolder(Path(config.output_dir)).summary.read_text())
    assert summary["asked"]["scored_tokens"] == sum(len(r.token_ids) for r in soft.values())
    weighed, everything = assembled(raw, "weighed", data={"fraction": 0.25}, method=["radis", "flow"])
    summary = json.loads(RunFolder(Path(weighed.output_dir)).summary.read_text())
    assert summary["asked"]["scored_tokens"] == sum(len(r.token_ids) for r in everything)


@pytest.mark.parametrize("keep", [1, 4])
def test_only_the_first_tokens_of_a_rationale_are_kept_and_a_cut_one_has_no_end(raw: dict[str, Any], keep: int) -> None:
    config, whole = assembled(raw, "whole")
    _, cut = assembled(raw, "cut", generate={"keep_tokens": keep})
    chat = untouched(config).chat
    shortened = 0
    for long, short in zip(whole, cut, strict=True):
        (was,) = [s for s in long.segments if s.origin == "rationale"]
        (now,) = [s for s in short.segments if s.origin == "rationale"]
        assert now.start == was.start
        if was.stop - was.start <= keep:
            assert short == long
            continue
        shortened += 1
        assert now.stop - now.start == keep
        assert short.token_ids == long.token_ids[: now.stop]
        assert short.segments[-1] == now
        assert short.texts[-1] == chat.spell((), short.token_ids[now.start : now.stop])
    assert 0 < shortened < len(whole) or keep == 1


@pytest.fixture(scope="module")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with another, smaller vocabulary."""
    from tiny import make_model, sentences

    folder = tmp_path_factory.mktemp("models") / "other"
    make_model(folder, corpus=[pair[0] for pair in sentences(50, "other")], hidden=32, vocabulary=300)
    return folder


def test_another_models_rationale_is_spelled_in_the_ids_of_the_one_that_is_trained(
    raw: dict[str, Any], other_model: Path
) -> None:
    config, records = assembled(raw, "taught", generate={"teacher": str(other_model)})
    writer, own = teacher(config), untouched(config)
    assert writer is not None
    assert writer.chat.identity != own.chat.identity
    said = {row["text"]: row["token_ids"] for row in in_ledger(config)}
    assert len(with_rationale(records)) == len(records)
    respelled = 0
    for record in records:
        opening, (rationale,) = record.segments[0], [s for s in record.segments if s.origin == "rationale"]
        ids, text = record.token_ids[rationale.start : rationale.stop], record.texts[record.segments.index(rationale)]
        assert writer.chat.spell((), said[text]) == own.chat.spell((), ids) == text
        respelled += list(ids) != said[text]
        assert own.chat.spell((), record.token_ids[opening.start :]) == record.text
    assert respelled > len(records) / 2


def test_a_character_that_another_model_did_not_finish_is_not_trained_on(
    raw: dict[str, Any], other_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EchoGenerator, "_one", cut_inside_a_character)
    _, records = assembled(raw, "torn", generate={"teacher": str(other_model)})
    for record in records:
        assert record.texts[-1].endswith("weiß")
        assert record.segments[-1].origin == "rationale"


def cut_inside_a_character(self: EchoGenerator, request: Request, index: int) -> Generation:
    answer = usual(self, request, index)
    return replace(answer, text=answer.text + "weiß\ufffd", finish_reason="length")


def test_soft_labels_of_another_models_rationale_are_those_of_the_one_that_is_trained(
    raw_config: dict[str, Any], other_model: Path
) -> None:
    raw_config["data"]["train"]["limit"] = 6
    train = {**raw_config["train"], "labels": "stored", "label_top_k": 4}
    config, records = assembled(raw_config, "scored", generate={"teacher": str(other_model)}, train=train)
    model = models.load(untouched(config).weights, dtype="float32")
    assert records
    for record in records:
        assert record.soft is not None
        with torch.no_grad():
            log = torch.log_softmax(model(torch.tensor([record.token_ids])).logits[0, :-1], -1)
        given = log.gather(1, torch.tensor(record.token_ids)[1:, None])[:, 0]
        assert np.allclose(record.soft.given_T[1:], given.numpy(), atol=1e-4)


def in_ledger(config: RunConfig) -> list[dict[str, Any]]:
    """All generations in the run's ledger."""
    shards = sorted(Path(config.generate.ledger).glob("shards/*"))
    return [row for shard in shards for row in read_jsonl(shard) if "token_ids" in row]


def writing_markup(self: EchoGenerator, request: Request, index: int) -> Generation:
    """As before, but every third answer quotes a token of the trained model's markup."""
    answer = usual(self, request, index)
    return answer if int(request.key, 16) % 3 else replace(answer, text=answer.text + " <|im_start|>")


usual = EchoGenerator._one


def test_another_models_text_that_holds_a_special_token_is_refused_with_its_name(
    raw: dict[str, Any], other_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EchoGenerator, "_one", writing_markup)
    config, records = assembled(raw, "markup", generate={"teacher": str(other_model)})
    run = RunFolder(Path(config.output_dir))
    refused = [row for row in read_jsonl(run.rejects) if row["stage"] == "assemble"]
    assert refused
    assert records
    assert all("special token '<|im_start|>'" in row["reason"] for row in refused)
    assert run.stages()["assemble"].facts["dropped"] == {"cannot be put into ids": len(refused)}
    markup = untouched(config).chat.tokenizer.convert_tokens_to_ids("<|im_start|>")
    for record in records:
        assert markup not in record.token_ids[record.segments[0].stop :]
