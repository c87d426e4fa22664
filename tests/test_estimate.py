"""What `check` says of memory and time is what the code that trains takes."""

import dataclasses
import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from radistill import check_training, estimate, models
from radistill.check import check
from radistill.check_training import Lengths
from radistill.config import config_from
from radistill.estimate import Shape, Training
from radistill.records import Request, Sampling, Span
from radistill.stage_settings import LoraSettings, TrainSettings

SHAPE = Shape(rows=4, width=64, trained=128)
BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


def training(folder: Path | str, **settings: Any) -> Training:
    return Training(models.resolve(str(folder)), TrainSettings(**{"lora": None, "bf16": False, **settings}))


def test_weights_gradients_and_what_the_optimizer_keeps_are_those_of_the_model(tiny_model: Path) -> None:
    model = models.load(models.resolve(str(tiny_model)), dtype="float32")
    count = sum(p.numel() for p in model.parameters())
    buffers = sum(b.numel() * b.element_size() for b in model.buffers())
    full = training(tiny_model).memory(SHAPE)
    assert full.parameters == 4 * count + buffers
    assert (full.gradients, full.optimizer, full.untouched) == (4 * count, 8 * count, 0)
    assert training(tiny_model, optim="sgd").memory(SHAPE).optimizer == 0
    adapter = training(tiny_model, lora=LoraSettings(r=4), bf16=True).memory(SHAPE)
    adapted = models.adapt(model, LoraSettings(r=4), base_name="x", seed=0)
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert (adapter.gradients, adapter.optimizer) == (4 * trained, 8 * trained)
    assert adapter.parameters == 2 * count + 4 * trained + buffers


def test_a_copy_of_the_untouched_model_is_counted_where_all_weights_are_trained(tiny_model: Path) -> None:
    beside = dataclasses.replace(training(tiny_model), has_untouched=True).memory(SHAPE)
    assert beside.untouched == beside.gradients
    assert (
        dataclasses.replace(training(tiny_model, lora=LoraSettings()), has_untouched=True).memory(SHAPE).untouched == 0
    )


def test_activations_grow_with_the_tokens_and_shrink_with_checkpointing(tiny_model: Path) -> None:
    short, long = (training(tiny_model).memory(Shape(8, width, 8)).activations for width in (64, 128))
    fixed = estimate.LIBRARIES["cpu"]
    assert 1.8 < (long - fixed) / (short - fixed) < 2.5
    again = training(tiny_model, gradient_checkpointing=True).memory(Shape(8, 128, 8)).activations
    assert again - fixed < 0.7 * (long - fixed)


def test_with_accumulation_the_gradients_stay_while_the_next_pass_is_made(tiny_model: Path) -> None:
    once = training(tiny_model).memory(SHAPE)
    more = training(tiny_model, gradient_accumulation_steps=2).memory(SHAPE)
    assert once.total < more.total <= once.total + 1.1 * estimate.ALLOCATOR["cpu"] * once.gradients


def test_what_is_held_is_what_torch_holds(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Played through with shapes alone, and done with numbers."""
    monkeypatch.setattr(estimate, "ALLOCATOR", {})
    monkeypatch.setattr(estimate, "LIBRARIES", {})
    told = training(tiny_model).memory(SHAPE)
    real = training(tiny_model)
    with estimate._Held() as held:
        model = real._model(2)
        start = held.now
        held.peak = start
        real._loss(model, SHAPE).backward()  # type: ignore[no-untyped-call]
    assert told.activations + told.gradients == pytest.approx(held.peak - start, rel=0.15)


def test_two_depths_tell_what_all_layers_take(monkeypatch: pytest.MonkeyPatch) -> None:
    deep = training("pocket")
    assert deep.layers > max(estimate.DEPTHS)
    carried = deep.memory(SHAPE)
    monkeypatch.setattr(estimate, "DEPTHS", (2, 99))
    played = deep.memory(SHAPE)
    for name in ("parameters", "gradients", "optimizer", "activations"):
        assert getattr(carried, name) == pytest.approx(getattr(played, name), rel=0.02), name


def test_time_grows_with_the_batch_and_leaves_no_trace(tiny_model: Path) -> None:
    before = torch.get_rng_state()
    few, step = training(tiny_model).seconds(Shape(8, 64, 64))
    many, _ = training(tiny_model).seconds(Shape(80, 64, 640))
    assert step > 0
    assert 4 * few < many < 25 * few
    assert torch.equal(torch.get_rng_state(), before)


def test_records_are_as_long_as_they_may_become_but_never_longer_than_the_context() -> None:
    request = Request(
        purpose="rationale",
        prompt_ids=tuple(range(20)),
        sampling=Sampling(),
        spans=(Span("prompt", 0, 12), Span("reference", 12, 20)),
    )
    assert Lengths.of([request], [], None, 30) == Lengths([51], [39])
    assert Lengths.of([request], [], 40, 30) == Lengths([40], [28])


def test_a_shape_is_that_of_the_packed_rows() -> None:
    assert Shape.of([50, 30, 20], [10, 10, 10], packing=True) == Shape(2, 50, 30)
    assert Shape.of([50, 30, 20], [10, 10, 10], packing=False) == Shape(3, 50, 30)


def test_check_tells_memory_and_time_and_how_it_came_to_them(raw_config: dict[str, Any]) -> None:
    config = config_from(raw_config)
    found = check(config)
    told = found.facts["training"]
    assert told["memory_bytes"]["total"] == sum(
        told["memory_bytes"][n] for n in ("parameters", "gradients", "optimizer", "activations", "untouched")
    )
    assert told["steps"] == 6
    assert told["seconds"] == pytest.approx(6 * told["seconds_each"], abs=0.1)
    said = check_training.lines(told)
    assert any("6 steps" in line for line in said)
    assert "random weights" in said[-1]
    assert not found.problems


def test_a_training_that_does_not_fit_is_a_problem(raw_config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    need = check(config_from(raw_config)).facts["training"]["memory_bytes"]["total"]
    for there, is_problem, is_note in ((need * 2, False, False), (need, False, True), (need // 2, True, False)):
        monkeypatch.setattr(check_training, "available", lambda _, there=there: there)
        found = check(config_from(raw_config))
        assert any("training takes about" in p for p in found.problems) is is_problem
        assert any("training takes about" in n for n in found.notes) is is_note


def test_an_architecture_that_cannot_be_played_through_is_a_note(
    raw_config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> Any:
        raise NotImplementedError("no such operator")

    monkeypatch.setattr(Training, "memory", fails)
    found = check(config_from(raw_config))
    assert not found.problems
    assert any("no such operator" in note for note in found.notes)


@pytest.mark.slow
@pytest.mark.parametrize("lora", [False, True])
def test_real_trainings_take_what_was_told_within_a_quarter(lora: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    script = importlib.import_module("memory")
    job = {"name": "pocket", "size": "pocket", "model": "pocket", "lora": lora, "length": 256}
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "memory.py"), "--job", json.dumps({**job, "do": "measured"})],
        capture_output=True,
        text=True,
        check=True,
    )
    measured = json.loads(done.stdout.splitlines()[-1])
    assert script.estimated(job)["bytes"] == pytest.approx(measured["bytes"], rel=0.25)
