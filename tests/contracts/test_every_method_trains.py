"""Every method as a run: assembled the same way twice, trained in full and by LoRA, gone on with, put together."""

import itertools
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from radistill import pipeline, plugins
from radistill.config import config_from
from radistill.errors import ConfigError
from radistill.methods._composed import ONLY_ONE, has
from radistill.methods.base import Method
from radistill.pipeline import Interrupted
from radistill.runs import RunFolder
from radistill.tables import read_records
from radistill.trainer import SegmentTrainer

NAMES = plugins.available("methods")
TO_TRAIN = ("generate", "assemble", "train")


@pytest.fixture
def raw(raw_config: dict[str, Any], tiny_data: Path) -> dict[str, Any]:
    raw_config["data"]["train"]["limit"] = 8
    raw_config["train"] = {"max_steps": 3, "per_device_train_batch_size": 4, "learning_rate": 0.01, "logging_steps": 1}
    raw_config["generate"]["sampling"] = {"max_new_tokens": 6}
    return raw_config


def settings_of(name: str, data: Path) -> dict[str, Any]:
    """What a method needs to be set at all, or to be quick."""
    needed: dict[str, dict[str, Any]] = {
        "replay": {"path": str(data), "format": "lines"},
        "context_free": {"max_new_tokens": 6, "ratio": 0.5},
        "ewc": {"samples": 4, "max_new_tokens": 6},
        "sdft_onpolicy": {"max_new_tokens": 6},
        "stm": {"threshold": 1e6},
    }
    return {"name": name, **needed.get(name, {})}


def run_of(raw: dict[str, Any], out: Path, *, lora: bool) -> RunFolder:
    raw = {**raw, "output_dir": str(out), "train": {**raw["train"], "lora": {"r": 2} if lora else None}}
    config = config_from(raw)
    pipeline.run(config, stages=TO_TRAIN)
    return RunFolder(out)


def weights(run: RunFolder) -> dict[str, Any]:
    return {name: t for file in sorted(run.model.glob("*.safetensors")) for name, t in load_file(file).items()}


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("name", NAMES)
def test_it_trains_and_does_the_same_a_second_time(
    raw: dict[str, Any], tiny_data: Path, tmp_path: Path, name: str, lora: bool
) -> None:
    raw["method"] = settings_of(name, tiny_data)
    first = run_of(raw, tmp_path / "a", lora=lora)
    second = run_of(raw, tmp_path / "b", lora=lora)
    one, two = weights(first), weights(second)
    assert one.keys() == two.keys()
    assert all(one[key].equal(two[key]) for key in one)
    assert list(read_records(first.records)) == list(read_records(second.records))
    assert all(t.isfinite().all() for t in one.values())


@pytest.mark.slow
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("name", NAMES)
def test_an_interrupted_training_goes_on_and_comes_out_the_same(
    raw: dict[str, Any], tiny_data: Path, tmp_path: Path, name: str, lora: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw["method"] = settings_of(name, tiny_data)
    raw["train"] |= {"max_steps": 4, "save_steps": 2}
    quiet = weights(run_of(raw, tmp_path / "a", lora=lora))
    steps = []
    before = SegmentTrainer.training_step

    def killed(self: SegmentTrainer, *args: Any, **kwargs: Any) -> Any:
        steps.append(1)
        if len(steps) == 4:
            raise KeyboardInterrupt
        return before(self, *args, **kwargs)

    monkeypatch.setattr(SegmentTrainer, "training_step", killed)
    with pytest.raises(Interrupted):
        run_of(raw, tmp_path / "b", lora=lora)
    resumed = weights(run_of(raw, tmp_path / "b", lora=lora))
    assert len(steps) == 6, "it went on from the checkpoint at step 2"
    assert all(quiet[key].equal(resumed[key]) for key in quiet)


@pytest.mark.parametrize(("one", "other"), list(itertools.combinations(NAMES, 2)))
def test_two_methods_go_together_or_the_message_names_both(
    raw: dict[str, Any], tiny_data: Path, one: str, other: str
) -> None:
    raw["method"] = [settings_of(one, tiny_data), settings_of(other, tiny_data)]
    made = [plugins.load("methods", name) for name in (one, other)]
    clash = [hook for hook in ONLY_ONE if all(getattr(cls, hook) is not getattr(Method, hook) for cls in made)]
    refusal = ""
    try:
        config = config_from(raw)
    except ConfigError as error:
        refusal = str(error)
    if refusal:
        assert "\n  config: `method`" in refusal
        assert one in refusal.partition("`method`")[2]
        assert other in refusal.partition("`method`")[2]
        return
    assert not clash
    parts = config.method.parts  # type: ignore[attr-defined]
    assert [plugins.name_of(part) for part in parts] == [one, other]
    assert all(has(config.method, hook) for hook in ("assemble", "plan_more"))


def test_a_mixture_trains_on_what_each_of_its_methods_brings(
    raw: dict[str, Any], tiny_data: Path, tmp_path: Path
) -> None:
    names = ("radis", "context_free", "kl", "eaft", "layers", "interpolate")
    raw["method"] = [settings_of(name, tiny_data) for name in names]
    raw["method"][4] |= {"bottom": 1, "top": 0}
    raw["train"]["labels"] = "live"
    run = run_of(raw, tmp_path / "mixed", lora=False)
    origins = {segment.origin for record in read_records(run.records) for segment in record.segments}
    assert {"reference", "rationale", "free"} <= origins
    trained = run.stages()["train"]
    assert trained.facts["trainable"] < trained.facts["parameters"]
    assert trained.facts["tokens_reference"] > 0
    assert [part["name"] for part in run.stages()["assemble"].settings["method"]] == list(names)
    assert [part["name"] for part in trained.settings["method"]] == list(names[2:]), "the others are in the records"
