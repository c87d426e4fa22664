"""A model of the lab is tested in the world it was brought up in; another is refused before anything is done."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from radistill import cli_lab, pipeline
from radistill.check import check
from radistill.config import RunConfig, config_from
from radistill.errors import ConfigError, ModelError
from radistill.lab import POCKET, exam
from radistill.lab.home_world import SETTINGS, as_written, home_world, refuse_other_world
from radistill.lab.world import WorldSettings
from radistill.records import StageRecord
from radistill.runs import STAGES, RunFolder

SEVEN: dict[str, Any] = {"number": 7, "rationale_overlap": 0.4, "word_order": "sov"}
MakeModel = Callable[[dict[str, Any] | None], Path]


@pytest.fixture
def brought_up(tiny_model: Path, tmp_path: Path) -> MakeModel:
    """Makes a folder with a model that says it was brought up in the world, or says nothing."""

    def make(world: dict[str, Any] | None) -> Path:
        folder = shutil.copytree(tiny_model, tmp_path / "brought-up")
        if world is not None:
            (folder / SETTINGS).write_text(json.dumps({"world": world, "seed": 0}), encoding="utf-8")
        return folder

    return make


def config_of(raw_config: dict[str, Any], model: Path, first: Any, second: Any) -> RunConfig:
    """A run that tests translation, an ability in the first world, and another and rationales in the second."""
    tasks = [
        "translation",
        {"task": "lab", "ability": "lists", "world": first, "items": 4},
        {"task": "lab", "ability": "refusal", "world": second, "items": 4},
        {"task": "lab_rationales", "world": second, "items": 4},
    ]
    return config_from({**raw_config, "model": str(model), "evaluate": tasks})


def test_a_test_in_another_world_is_refused_with_key_worlds_and_what_to_write(
    raw_config: dict[str, Any], brought_up: MakeModel
) -> None:
    model = brought_up(SEVEN)
    config = config_of(raw_config, model, 0, 0)
    with pytest.raises(ConfigError) as caught:
        refuse_other_world(config)
    message = str(caught.value)
    assert "`evaluate.1.world`, `evaluate.2.world`, `evaluate.3.world` are 0, but" in message
    assert (
        f"the model {model} was brought up in world {{number: 7, rationale_overlap: 0.4, word_order: sov}}" in message
    )
    assert "Write `world: {number: 7, rationale_overlap: 0.4, word_order: sov}` there" in message
    refuse_other_world(config_of(raw_config, model, SEVEN, SEVEN))


def test_options_of_the_world_count_too_and_one_test_is_named_alone(
    raw_config: dict[str, Any], brought_up: MakeModel
) -> None:
    config = config_of(raw_config, brought_up(SEVEN), {"number": 7}, SEVEN)
    with pytest.raises(ConfigError, match=r"^`evaluate\.1\.world` is 7, but .* in world \{number: 7, rat"):
        refuse_other_world(config)


def test_many_tests_are_not_all_named(raw_config: dict[str, Any], brought_up: MakeModel) -> None:
    names = ("lists", "refusal", "strings", "formats", "counting")
    config = config_from(
        {**raw_config, "model": str(brought_up(SEVEN)), "evaluate": [{"task": "lab", "ability": n} for n in names]}
    )
    with pytest.raises(ConfigError, match=r"`evaluate\.2\.world` and 2 more are 0, but"):
        refuse_other_world(config)


def test_check_finds_it_and_says_it_once(raw_config: dict[str, Any], brought_up: MakeModel) -> None:
    model = brought_up({"number": 7})
    found = check(config_of(raw_config, model, 0, 7))
    told = [problem for problem in found.problems if "was brought up in" in problem]
    assert len(told) == 1
    assert told[0].startswith("`evaluate.1.world` is 0, but")
    assert "`world: 7`" in told[0]
    assert not [p for p in check(config_of(raw_config, model, 7, 7)).problems if "brought up" in p]


@pytest.mark.parametrize("stages", [("generate",), ("evaluate",), STAGES])
def test_a_run_is_refused_before_its_first_stage(
    raw_config: dict[str, Any], brought_up: MakeModel, monkeypatch: pytest.MonkeyPatch, stages: tuple[str, ...]
) -> None:
    config = config_of(raw_config, brought_up(SEVEN), 0, 0)

    def never(*_: Any, **__: Any) -> StageRecord:
        raise AssertionError("a stage was begun")

    monkeypatch.setattr(pipeline, "FUNCTIONS", dict.fromkeys(pipeline.FUNCTIONS, never))
    with pytest.raises(ConfigError, match="was brought up in world"):
        pipeline.run(config, stages=stages)
    assert RunFolder(Path(config.output_dir)).stages() == {}
    with pytest.raises(AssertionError, match="a stage was begun"):
        pipeline.run(config_of(raw_config, Path(config.model), SEVEN, SEVEN), stages=stages)


def test_an_evaluation_is_refused_when_it_is_done_again_and_a_finished_one_stays(
    raw_config: dict[str, Any], brought_up: MakeModel
) -> None:
    model = brought_up(None)
    config = config_of(raw_config, model, 0, 0)
    pipeline.run(config)
    scores = RunFolder(Path(config.output_dir)).scores.read_bytes()
    (model / SETTINGS).write_text(json.dumps({"world": SEVEN}), encoding="utf-8")
    assert all(outcome.reused for outcome in pipeline.run(config))
    with pytest.raises(ConfigError, match="was brought up in world"):
        pipeline.run(config, redo="evaluate")
    assert RunFolder(Path(config.output_dir)).scores.read_bytes() == scores


def test_a_model_that_does_not_say_where_it_was_brought_up_is_not_concerned(
    raw_config: dict[str, Any], brought_up: MakeModel
) -> None:
    model = brought_up(None)
    assert home_world(model) is None
    refuse_other_world(config_of(raw_config, model, 0, 7))


def test_a_run_without_tests_of_the_lab_looks_for_no_model(raw_config: dict[str, Any]) -> None:
    refuse_other_world(config_from({**raw_config, "model": "nobody/nothing"}))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"world": {"numbr": 7}}', '{"world": null}'])
def test_what_says_of_no_world_is_refused_by_name(tmp_path: Path, text: str) -> None:
    (tmp_path / SETTINGS).write_text(text, encoding="utf-8")
    with pytest.raises(ModelError, match=SETTINGS):
        home_world(tmp_path)


def test_the_shipped_model_says_world_zero() -> None:
    assert home_world(POCKET) == WorldSettings()


@pytest.mark.parametrize(("settings", "text"), [({}, "0"), ({"number": 7}, "7")])
def test_a_world_is_written_as_a_run_file_may_have_it(settings: dict[str, Any], text: str) -> None:
    assert as_written(WorldSettings.model_validate(settings)) == text
    assert as_written(WorldSettings(rationale_overlap=0.0)) == "{number: 0, rationale_overlap: 0.0}"


@pytest.mark.parametrize(
    ("own", "asked", "tested"),
    [
        (SEVEN, [], SEVEN),
        (SEVEN, ["--world", "7"], SEVEN),
        (SEVEN, ["--world", "3"], SEVEN | {"number": 3}),
        (None, ["--world", "3"], {"number": 3}),
        (None, [], {}),
    ],
)
def test_an_exam_in_a_world_of_another_number_keeps_the_options_of_the_models_own(
    brought_up: MakeModel,
    monkeypatch: pytest.MonkeyPatch,
    own: dict[str, Any] | None,
    asked: list[str],
    tested: dict[str, Any],
) -> None:
    seen: list[WorldSettings] = []

    def examined(_: str, settings: WorldSettings, **__: Any) -> None:
        seen.append(settings)
        raise ConfigError("that is all")

    monkeypatch.setattr(exam, "exam", examined)
    CliRunner().invoke(cli_lab.lab, ["exam", str(brought_up(own)), *asked])
    assert seen == [WorldSettings.model_validate(tested)]
