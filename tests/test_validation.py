"""A training that is judged while it goes on: by which items, what is kept, where it stops, and after a kill."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from radistill import data, files, held_out, judging, models, pipeline, tables, validation
from radistill.check import check
from radistill.choosing import Point
from radistill.config import RunConfig, config_from
from radistill.errors import ConfigError, RunFolderError
from radistill.judging import Judge
from radistill.pipeline import Interrupted
from radistill.runs import RunFolder
from radistill.speaker import untouched
from radistill.train import last_checkpoint
from radistill.trainer import SegmentTrainer
from test_train import interrupt_at, weights_of
from tiny import sentences


@pytest.fixture
def judged(raw_config: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """A run that is evaluated every second of 12 steps, by skill alone."""
    folder = tmp_path / "validation"
    folder.mkdir()
    rows = [{"translation": {"en": en, "de": de}} for en, de in dict.fromkeys(sentences(60, "validation"))]
    (folder / "valid.en-de.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    raw_config["data"]["validation"] = {"path": str(folder), "pairs": ["en-de"], "limit": 12}
    raw_config["train"] |= {
        "eval_steps": 2,
        "metric_for_best_model": "skill",
        "num_train_epochs": 2,
        "learning_rate": 1e-2,
    }
    return raw_config


def run(raw: dict[str, Any], out: Path, **train: Any) -> RunConfig:
    generate = {**raw["generate"], "ledger": str(out / "ledger")}
    config = config_from(
        {**raw, "output_dir": str(out / "run"), "generate": generate, "train": {**raw["train"], **train}}
    )
    pipeline.run(config, stages=("generate", "assemble", "train"))
    return config


def folder_of(config: RunConfig) -> RunFolder:
    return RunFolder(Path(config.output_dir))


def log_of(config: RunConfig) -> list[dict[str, Any]]:
    timed = ("tokens_per_second", "eval_runtime")
    return [{k: v for k, v in row.items() if k not in timed} for row in tables.read_jsonl(folder_of(config).train_log)]


def facts_of(config: RunConfig) -> dict[str, Any]:
    return dict(folder_of(config).stages()["train"].facts)


class Scripted:
    """Stands for what the model's answers come to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, skills: Mapping[int, float]) -> None:
        measure = Judge._measure

        def told(judge: Judge, answers: Any) -> Any:
            from dataclasses import replace

            measured = measure(judge, answers)
            step = judge.generator.step
            return replace(measured, point=Point(step=step, skill=skills.get(step, 0.0), retention=None))

        monkeypatch.setattr(Judge, "_measure", told)


# --------------------------------------------------------------------------------------------- items


def test_items_are_neither_trained_nor_tested_on_and_what_is_is_counted(judged: dict[str, Any], tmp_path: Path) -> None:
    config = config_from(judged)
    taught = data.load(config.data, "train", seed=0).examples
    tests = [e for _, of in held_out.by_task(config, held_out.given(config)) for e in of or ()]
    pairs = [e.tags["source"] for e in [*taught[:2], *tests[:3]] if e.tags["pair"] == "en-de"]
    both = {**dict(sentences(300, "train")), **dict(sentences(400, "test"))}
    fresh = [p for p in dict.fromkeys(sentences(60, "validation")) if p[0] not in both][:5]
    rows = [{"translation": {"en": en, "de": both[en]}} for en in pairs]
    rows += [{"translation": {"en": en, "de": de}} for en, de in fresh]
    (tmp_path / "validation" / "valid.en-de.json").write_text(json.dumps(rows), encoding="utf-8")
    judged["data"]["validation"]["limit"] = None
    items = validation.items_of(config_from(judged))
    assert items.skill is not None
    kept = {e.tags["source"] for e in items.skill[1]}
    assert pairs
    assert not kept & set(pairs)
    assert kept == {en for en, _ in fresh}
    assert items.left_out == len(pairs)


def test_the_split_is_valid_unless_it_is_named(judged: dict[str, Any]) -> None:
    config = config_from(judged)
    assert config.data.validation is not None
    assert config.data.validation.split == "valid"
    judged["data"]["validation"]["split"] = "dev"
    named = config_from(judged).data.validation
    assert named is not None
    assert named.split == "dev"


@pytest.mark.parametrize("ability", ["arithmetic", "refusal", "known-language", "vocabulary"])
def test_an_ability_gives_held_out_questions_that_are_no_tests(ability: str) -> None:
    from radistill.tasks.lab import Lab

    task = Lab(ability=ability, items=40)
    more, tests = task.validation_examples(30), task.examples()
    assert 20 <= len(more) <= 30
    assert not {e.messages for e in more} & {e.messages for e in tests}
    assert {e.tags["group"] for e in more} == {e.tags["group"] for e in tests}
    assert more == task.validation_examples(30)
    said = {s for e in tests for s in e.tags.get("sentences", "").splitlines()}
    assert not {s for e in more for s in e.tags.get("sentences", "").splitlines()} & said


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"metric_for_best_model": "both"}, "retention cannot be measured"),
        ({"metric_for_best_model": "retention"}, "retention cannot be measured"),
        (
            {"metric_for_best_model": "skill", "validation": None},
            "the new skill cannot be measured: data.validation is not set",
        ),
    ],
)
def test_what_the_score_needs_and_is_not_there_is_said_before_anything_is_generated(
    judged: dict[str, Any], changed: dict[str, Any], message: str
) -> None:
    if "validation" in changed:
        judged["data"]["validation"] = changed.pop("validation")
    config = config_from({**judged, "train": {**judged["train"], **changed}})
    with pytest.raises(ConfigError, match=message):
        pipeline.run(config)
    assert not folder_of(config).stages()


def test_check_says_what_a_training_would_be_judged_by(judged: dict[str, Any]) -> None:
    config = config_from(judged)
    items = validation.items_of(config)
    found = check(config)
    assert found.facts["validation"] == {"translation": len(items.all[0][1])}
    assert f"{items.left_out} validation items are left out: they are trained or tested on" in found.notes
    del judged["train"]["eval_steps"]
    assert "data.validation is not used, because train.eval_steps is not set" in check(config_from(judged)).notes


@pytest.mark.parametrize("needs", [{"load_best_model_at_end": True}, {"early_stopping_patience": 2}])
def test_choosing_without_evaluations_is_refused(raw_config: dict[str, Any], needs: dict[str, Any]) -> None:
    raw_config["train"] |= needs
    with pytest.raises(ConfigError, match=rf"train.*{next(iter(needs))} need eval_steps"):
        config_from(raw_config)


# ---------------------------------------------------------------------------------------- evaluation


@pytest.mark.parametrize("lora", [None, {"r": 4, "dropout": 0.5}])
def test_evaluating_changes_neither_losses_nor_weights(judged: dict[str, Any], tmp_path: Path, lora: Any) -> None:
    watched = run(judged, tmp_path / "watched", lora=lora)
    quiet = run(judged, tmp_path / "quiet", lora=lora, eval_steps=None, metric_for_best_model="both")
    assert weights_of(watched) == weights_of(quiet)
    losses = [[(r["step"], r["loss"]) for r in log_of(c) if "loss" in r] for c in (watched, quiet)]
    assert losses[0] == losses[1]
    assert [r["step"] for r in log_of(watched) if "eval_score" in r] == [2, 4, 6, 8, 10, 12]
    assert not any("eval_score" in r or "tokens_validated" in r for r in log_of(quiet))


def test_a_point_is_what_the_saved_model_answers(judged: dict[str, Any], tmp_path: Path) -> None:
    """The last evaluation against one that is made of the finished folder, through the stage's own way."""
    judged |= {"method": "vanilla", "evaluate": [{"task": "translation", "max_new_tokens": 24, "metrics": ["chrf"]}]}
    config = run(judged, tmp_path, max_steps=60, eval_steps=20)
    model = models.load(models.resolve(str(folder_of(config).model)), dtype="float32")
    judge = Judge.of(config, untouched(config), models.load(models.resolve(config.model)), training="by hand")
    before = judge.untouched
    line = judge(model, 99)
    logged = [row for row in log_of(config) if "eval_score" in row]
    assert line["eval_skill"] == logged[-1]["eval_skill"]
    assert len({row["eval_skill"] for row in logged}) > 1, "nothing is learned, so the test says nothing"
    told = facts_of(config)["validation"]
    assert told["untouched"]["skill"] == before.skill != line["eval_skill"]
    assert told["evaluations"][-1] == {
        "step": 60,
        "skill": line["eval_skill"],
        "retention": None,
        "score": line["eval_skill"],
    }
    assert line["eval_skill_low"] <= line["eval_skill"] <= line["eval_skill_high"]
    assert logged[-1]["eval_n"] == len(judge.requests["translation"]) > 5


def test_its_cost_is_counted_in_tokens_that_were_read_and_written(judged: dict[str, Any], tmp_path: Path) -> None:
    config = run(judged, tmp_path, eval_steps=6)
    judge = Judge.of(config, untouched(config), models.load(models.resolve(config.model)), training="by hand")
    prompts = sum(len(r.prompt_ids) for of in judge.requests.values() for _, r in of)
    n = len(judge.requests["translation"])
    assert prompts > 5 * n
    spent = facts_of(config)["tokens_validated"]
    assert 3 * prompts < spent <= 3 * (prompts + 8 * n), "the untouched model, and steps 6 and 12"
    assert log_of(config)[-1]["tokens_validated"] == spent
    written = judge.tokens - prompts
    assert written == sum(p.n_tokens for of in judge.base.values() for p in of)


def test_retention_is_measured_on_abilities_of_the_lab(tmp_path: Path) -> None:
    """The pocket model, untouched, keeps all; with its weights gone it keeps nothing."""
    raw: dict[str, Any] = {
        "name": "p",
        "model": "pocket",
        "output_dir": str(tmp_path / "run"),
        "data": {"train": {"path": "pocket", "limit": 8}},
        "generate": {"ledger": str(tmp_path / "ledger"), "backend": {"name": "transformers", "batch_size": 16}},
        "train": {"eval_steps": 1, "metric_for_best_model": "retention", "eval_items": 8, "bf16": False, "lora": None},
        "evaluate": [
            {"task": "lab", "ability": a, "items": 10, "max_new_tokens": 12} for a in ("arithmetic", "vocabulary")
        ],
    }
    config = config_from(raw)
    speaker = untouched(config)
    model = models.load(speaker.weights, dtype="float32")
    judge = Judge.of(config, speaker, model, training="t")
    assert judge.untouched.retention == 1.0
    assert judge.untouched.skill is None
    same = judge(model, 1)
    assert same["eval_retention"] == 1.0
    assert same["eval_score"] == 100.0
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0)
    gone = judge(model, 2)
    assert gone["eval_retention"] < 0.5
    assert gone["eval_retention/arithmetic"] <= 0.0
    best = judge.best
    assert best is not None
    assert best.step == 1


# ------------------------------------------------------------------------------- choosing and stopping


def test_the_report_says_what_was_chosen(judged: dict[str, Any], tmp_path: Path) -> None:
    config = run(judged, tmp_path, load_best_model_at_end=True, early_stopping_patience=1, eval_steps=3)
    pipeline.run(config)
    told = facts_of(config)["validation"]
    text = (folder_of(config).path / "report.md").read_text(encoding="utf-8")
    n = sum(told["items"].values())
    times = len(told["evaluations"])
    assert f"was evaluated {times} time{'s' * (times > 1)} on {n} validation items" in text
    assert f"the best by skill is that after step {told['best']['step']}" in text
    assert "It is the result." in text
    assert ("It was stopped early" in text) is told["stopped_early"]


@pytest.mark.parametrize("lora", [None, {"r": 4}])
@pytest.mark.parametrize("limit", [1, 2])
def test_the_result_is_the_best_evaluation_and_its_checkpoint_outlives_the_limit(
    judged: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lora: Any, limit: int
) -> None:
    Scripted(monkeypatch, {2: 5.0, 4: 9.0, 6: 3.0, 8: 9.0, 10: 1.0, 12: 2.0})
    settings = {"lora": lora, "save_steps": 3, "save_total_limit": limit}
    best = run(judged, tmp_path / "best", load_best_model_at_end=True, **settings)
    monkeypatch.undo()
    left = {p.name for p in folder_of(best).model.glob("checkpoint-*")}
    assert "checkpoint-4" in left
    assert len(left) <= 2
    told = facts_of(best)["validation"]
    assert told["best"]["step"] == 4
    assert not told["stopped_early"]
    assert facts_of(best)["steps"] == 12
    stored = weights_of(best)
    name = next(iter(stored))
    saved = files.sha256(folder_of(best).model / "checkpoint-4" / name)
    assert stored[name] == saved
    last = run(judged, tmp_path / "last", **settings)
    assert weights_of(last) != stored


def test_it_stops_when_patience_has_run_out_and_says_so(
    judged: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Scripted(monkeypatch, {2: 5.0, 4: 9.0, 6: 3.0, 8: 4.0, 10: 100.0})
    config = run(judged, tmp_path, early_stopping_patience=2)
    facts = facts_of(config)
    assert facts["steps"] == 8
    assert facts["validation"]["stopped_early"]
    assert [p["step"] for p in facts["validation"]["evaluations"]] == [2, 4, 6, 8]
    assert log_of(config)[-1]["step"] == 8


def test_a_best_checkpoint_that_was_taken_away_is_said(
    judged: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    Scripted(monkeypatch, {2: 9.0})
    take = judging.take_best

    def without(trainer: SegmentTrainer, judge: Judge) -> None:
        shutil.rmtree(Path(trainer.args.output_dir) / "checkpoint-2")
        take(trainer, judge)

    monkeypatch.setattr(judging, "take_best", without)
    with pytest.raises(RunFolderError, match=r"checkpoint-2, the best of the training, was taken away"):
        run(judged, tmp_path, load_best_model_at_end=True)


@pytest.mark.parametrize("at", [3, 4, 5, 7, 8])
def test_a_training_interrupted_anywhere_chooses_and_stops_as_an_undisturbed_one(
    judged: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    script = {2: 5.0, 4: 9.0, 6: 3.0, 8: 4.0}
    settings = {"early_stopping_patience": 2, "load_best_model_at_end": True, "save_steps": 3}
    Scripted(monkeypatch, script)
    quiet = run(judged, tmp_path / "quiet", **settings)
    interrupt_at(monkeypatch, step=at)
    with pytest.raises(Interrupted) if at < 8 else _nothing():
        run(judged, tmp_path / "torn", **settings)
    monkeypatch.undo()
    Scripted(monkeypatch, script)
    torn = run(judged, tmp_path / "torn", **settings)
    assert log_of(torn) == log_of(quiet)
    assert weights_of(torn) == weights_of(quiet)
    assert facts_of(torn) == facts_of(quiet)


def _nothing() -> Any:
    from contextlib import nullcontext

    return nullcontext()


def test_killed_after_it_decided_to_stop_it_makes_no_further_step(
    judged: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = {2: 5.0, 4: 3.0, 6: 3.0}
    settings = {"early_stopping_patience": 1, "load_best_model_at_end": True}
    Scripted(monkeypatch, script)
    quiet = run(judged, tmp_path / "quiet", **settings)
    monkeypatch.setattr(judging, "take_best", _killed)
    with pytest.raises(ZeroDivisionError):
        run(judged, tmp_path / "torn", **settings)
    monkeypatch.undo()
    Scripted(monkeypatch, script)
    saved = last_checkpoint(RunFolder(tmp_path / "torn" / "run").model)
    assert saved is not None
    assert saved.name == "checkpoint-4"
    torn = run(judged, tmp_path / "torn", **settings)
    assert facts_of(torn) == facts_of(quiet)
    assert facts_of(torn)["steps"] == 4
    assert weights_of(torn) == weights_of(quiet)
    assert log_of(torn) == log_of(quiet)


def _killed(*_: Any) -> None:
    raise ZeroDivisionError


def test_a_checkpoint_of_an_adapter_holds_no_weights_of_the_base_and_the_state_of_the_optimizer(
    judged: dict[str, Any], tmp_path: Path
) -> None:
    from safetensors import safe_open

    config = run(judged, tmp_path, lora={"r": 2}, save_steps=5)
    checkpoint = last_checkpoint(folder_of(config).model)
    assert checkpoint is not None
    weights = sorted(checkpoint.glob("*.safetensors"))
    assert [p.name for p in weights] == ["adapter_model.safetensors"]
    with safe_open(str(weights[0]), framework="pt") as stored:
        names = list(stored.keys())
        size = sum(stored.get_tensor(name).numel() for name in names)
    assert names
    assert all("lora_" in name for name in names)
    facts = facts_of(config)
    assert size == facts["trainable"] < facts["parameters"] / 4
    optimizer = torch.load(checkpoint / "optimizer.pt", weights_only=True)
    moments = sum(s["exp_avg"].numel() for s in optimizer["state"].values())
    assert moments == facts["trainable"]
    whole = sum(p.stat().st_size for p in Path(config.model).glob("*.safetensors"))
    assert sum(p.stat().st_size for p in checkpoint.iterdir() if p.suffix == ".safetensors") < whole / 4
