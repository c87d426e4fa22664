"""No setting is read and then forgotten: whatever is changed in a run file changes what some stage records."""

import importlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fakes_config import changes, leaves
from radistill import data, pipeline, speaker, validation
from radistill.config import RunConfig, as_dict, config_from
from radistill.data import DataSettings, Loaded, Part
from radistill.errors import DataError
from radistill.records import StageRecord
from radistill.runs import RunFolder
from tiny import sentences

ARRIVE_ELSEWHERE = {
    "output_dir": "where the manifest itself lies",
    "revision": "of a hub id: it is part of the identity of the weights",
    "trust_remote_code": "whether code is run, not what comes out",
    "generate.ledger": "where generations lie; they are found by key",
    "generate.max_attempts": "how often what has failed is tried",
    "generate.sampling.seed": "the run's seed is put in its place",
    "train.report_to": "who is told about the training",
    "train.save_steps": "how often it is saved",
    "train.save_total_limit": "how many checkpoints are kept",
    "train.gradient_checkpointing": "memory against time",
    "train.activation_offload": "memory against time",
    "train.auto_find_batch_size": "how a step's records are cut into forward passes",
    "train.watchdogs": "whether it is watched",
    "train.devices": "arrives as a larger batch, but for the number that null means here; see tests/test_devices.py",
    "train.parallel": "what devices share, not what is learned",
}


@pytest.fixture
def settings_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[RunConfig], dict[str, Any]]:
    """What each stage would record as its settings; nothing is run."""
    told: dict[str, Any] = {}
    loaded: dict[tuple[DataSettings, str], Loaded] = {}
    chats: dict[str, speaker.Speaker] = {}

    def untouched(config: RunConfig) -> speaker.Speaker:
        key = json.dumps([config.model, config.chat.model_dump()])
        return chats.setdefault(key, chats[key] if key in chats else speaker.untouched(config))

    def load(settings: DataSettings, part: Part, *, seed: int, really: Callable[..., Loaded] = data.load) -> Loaded:
        if (settings, part) not in loaded:
            loaded[settings, part] = really(settings, part, seed=seed)
        return loaded[settings, part]

    def require(run: RunFolder, stage: str) -> StageRecord:
        return StageRecord(
            stage=stage, status="finished", settings=told.get(stage, {}), facts={"identity": "i", "own": "o"}
        )

    def begin(
        run: RunFolder, name: str, settings: dict[str, Any], inputs: object, *, redo: bool, late: bool = False
    ) -> None:
        told[name] = json.loads(json.dumps(settings, default=str))

    monkeypatch.setattr(data, "load", load)
    for name in ("generate", "assemble", "train", "evaluate", "pipeline"):
        module = importlib.import_module(f"radistill.{name}")
        for fake in (untouched, require, begin):
            if hasattr(module, fake.__name__):
                monkeypatch.setattr(module, fake.__name__, fake)

    def settings_of(config: RunConfig) -> dict[str, Any]:
        told.clear()
        for stage in pipeline.FUNCTIONS.values():
            assert stage(config, RunFolder(Path(config.output_dir))) is None
        assert told.keys() == pipeline.FUNCTIONS.keys()
        return dict(told)

    return settings_of


@pytest.fixture
def full(raw_config: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """A run in which no optional section is left out."""
    raw_config["train"]["lora"] = {"r": 2, "target_modules": ["q_proj"]}
    raw_config["train"] |= {"eval_steps": 5, "metric_for_best_model": "skill"}
    folder = tmp_path / "validation"
    folder.mkdir()
    rows = [{"translation": {"en": en, "de": de}} for en, de in dict.fromkeys(sentences(90, "validation"))]
    for split in ("valid", "test"):
        (folder / f"{split}.en-de.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    raw_config["data"]["validation"] = {"path": str(folder), "pairs": ["en-de"]}
    return raw_config


@pytest.mark.parametrize("backend", ["transformers", "echo", "openai", "vllm"])
def test_every_setting_arrives_in_a_stage(
    full: dict[str, Any], settings_of: Callable[[RunConfig], dict[str, Any]], tmp_path: Path, backend: str
) -> None:
    full["generate"]["backend"] = {"name": backend}
    config = config_from(full)
    before = settings_of(config)
    shutil.copytree(full["data"]["train"]["path"], tmp_path / "elsewhere")
    shutil.copytree(full["data"]["validation"]["path"], tmp_path / "others")
    shutil.copytree(full["model"], tmp_path / "finer")
    (tmp_path / "finer" / "config.json").open("a").write("\n")
    moved = {
        "model": tmp_path / "finer",
        "data.train.path": tmp_path / "elsewhere",
        "data.test.path": tmp_path / "elsewhere",
        "data.validation.path": tmp_path / "others",
        "generate.teacher": tmp_path / "finer",
    }
    lost: list[str] = []
    found: list[str] = []
    for path, info in leaves(config):
        name = ".".join(map(str, path))
        raw = as_dict(config)
        others = [config_from(with_path(raw, name, str(moved[name])))] if name in moved else changes(config, path, info)
        arrived = [settings_of(other) != before for other in others if can_be_read(other)]
        (found if arrived and all(arrived) else lost).append(name)
    speed_only = {f"generate.backend.{name}" for name in config.generate.backend.speed_only}
    assert sorted(lost) == sorted(ARRIVE_ELSEWHERE.keys() | speed_only)
    assert len(found) > 40


def with_path(raw: dict[str, Any], name: str, value: str) -> dict[str, Any]:
    *sections, last = name.split(".")
    at = raw
    for section in sections:
        at = at[section]
    at[last] = value
    return raw


def can_be_read(config: RunConfig) -> bool:
    """Whether the data are there as the changed config says."""
    try:
        loaded = data.load(config.data, "train", seed=0) and data.load(config.data, "test", seed=0)
        return bool(loaded) and (config.train.eval_steps is None or bool(validation.items_of(config).all))
    except DataError:
        return False


def test_a_changed_setting_arrives_in_the_stages_it_matters_to(
    full: dict[str, Any], settings_of: Callable[[RunConfig], dict[str, Any]]
) -> None:
    """What is needlessly done again costs hours; what is wrongly reused is a wrong result."""

    def stages(**changed: dict[str, Any]) -> set[str]:
        raw = as_dict(config_from(full))
        for section, values in changed.items():
            raw[section] = {**raw[section], **values} if isinstance(values, dict) else values
        after = settings_of(config_from(raw))
        return {stage for stage, settings in after.items() if settings != before[stage]}

    before = settings_of(config_from(full))
    assert stages() == set()
    assert stages(train={"learning_rate": 0.5}) == {"train"}
    assert stages(train={"max_length": 100}) == {"assemble", "train"}
    assert stages(train={"on_long": "error"}) == {"assemble"}
    assert stages(train={"on_long": "cut_rationale"}) == {"assemble"}
    assert stages(method={"rationale_weight": 0.5}) == {"generate", "assemble"}
    assert stages(generate={"sampling": {"n": 2}}) == {"generate", "assemble"}
    assert stages(report={"margin": 0.5}) == {"report"}
    assert stages(chat={"template_kwargs": {"a": 1}}) >= {"generate", "assemble", "evaluate"}
