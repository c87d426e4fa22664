"""The run config: plugins and their settings, mistakes a newcomer makes, what comes back, and where it arrives."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from fakes_config import random_config
from radistill import plugins, seeds
from radistill.backends.echo import Echo
from radistill.config import RunConfig, as_dict, as_yaml, config_from, load_config
from radistill.errors import ConfigError
from radistill.methods.radis import RaDis
from radistill.methods.vanilla import Vanilla
from radistill.metrics.chrf import ChrF
from radistill.schema import schema_of
from radistill.stage_settings import LoraSettings
from radistill.tasks.translation import Translation

SMALL = "model: m\ndata: {train: {path: d}}\n"


def load(tmp_path: Path, text: str, *overrides: str, name: str = "run.yaml") -> RunConfig:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return load_config(path, overrides)


def told(tmp_path: Path, text: str, *overrides: str, name: str = "run.yaml") -> list[str]:
    """The problems of a run file, one per line, without the heading."""
    with pytest.raises(ConfigError) as error:
        load(tmp_path, text, *overrides, name=name)
    return [line.strip() for line in str(error.value).splitlines()[1:]]


def test_the_smallest_run_file_has_every_default(tmp_path: Path) -> None:
    config = load(tmp_path, SMALL)
    assert (config.name, config.output_dir, config.method) == ("run", "runs/run", RaDis())
    assert config == config_from(
        {"name": "run", "output_dir": "runs/run", "model": "m", "data": {"train": {"path": "d"}}}
    )
    assert config.evaluate == (Translation(),)
    assert plugins.name_of(config.generate.backend) == "transformers"


def test_a_run_is_named_after_its_file_or_the_folder_of_its_config_yaml(tmp_path: Path) -> None:
    assert load(tmp_path, SMALL, name="alma.v2.yaml").name == "alma.v2"
    assert load(tmp_path, SMALL, name="my-run/config.yaml").name == "my-run"
    assert load(tmp_path, SMALL, "name=b", name="a.yaml").output_dir == "runs/b"
    (problem,) = told(tmp_path, SMALL, name="my run.yaml")
    assert problem.startswith("my run.yaml: `name` is missing, and that of the file, 'my run', is not of the form")


@pytest.mark.parametrize("section", ["train", "generate", "chat", "report", "evaluate", "method", "generate: {backend"])
def test_a_section_left_empty_means_its_defaults(tmp_path: Path, section: str) -> None:
    end = ": }" if "{" in section else ":"
    assert load(tmp_path, f"{SMALL}{section}{end}\n") == load(tmp_path, SMALL)


def test_a_plugin_may_be_named_in_short_or_with_its_settings(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        SMALL + "method: {name: radis, rationale_weight: 0.5}\ngenerate: {backend: echo}\n"
        "evaluate: [{task: translation, metrics: [bleu, {name: chrf, word_order: 2}]}]\n",
    )
    assert config.method == RaDis(rationale_weight=0.5)
    assert config.generate.backend == Echo()
    assert isinstance(config.evaluate[0], Translation)
    assert config.evaluate[0].metrics[1] == ChrF(word_order=2)


def test_overrides_reach_plugins_that_the_run_file_does_not_name(tmp_path: Path) -> None:
    wanted = ["generate.backend.batch_size=3", "evaluate.0.max_new_tokens=9", "method.rationale_weight=0"]
    config = load(tmp_path, SMALL, *wanted, "train.lora.r=2", "chat.template_kwargs.enable_thinking=false")
    assert config.generate.backend.model_dump()["batch_size"] == 3
    assert config.evaluate == (Translation(max_new_tokens=9),)
    assert config.method == RaDis(rationale_weight=0)
    assert config.train.lora == LoraSettings(r=2)
    assert config.chat.template_kwargs == {"enable_thinking": False}


def test_another_method_on_the_command_line_drops_the_settings_of_the_first(tmp_path: Path) -> None:
    text = SMALL + "method: {name: radis, rationale_weight: 2, separator: x}\n"
    assert load(tmp_path, text, "method=vanilla").method == Vanilla()
    assert load(tmp_path, text, "method=radis").method == RaDis()
    assert load(tmp_path, text, "method={name: radis, separator: y}").method == RaDis(separator="y")
    assert load(tmp_path, text, "method.name=radis").method == RaDis(rationale_weight=2, separator="x")
    weight, separator = told(tmp_path, text, "method.name=vanilla")
    assert weight == "run.yaml:3: `method.rationale_weight` is no key of this section. It has none."
    assert "`method.separator` is no key" in separator


def test_a_null_adapter_means_full_fine_tuning_and_can_be_taken_back(tmp_path: Path) -> None:
    assert load(tmp_path, SMALL + "train: {lora: null}\n").train.lora is None
    assert load(tmp_path, SMALL + "train: {lora: null}\n", "train.lora.r=4").train.lora == LoraSettings(r=4)
    assert load(tmp_path, SMALL, "train.lora=null").train.lora is None


NEEDS = "needs a name, or `name:` with settings"
LIST_OF_TASKS = "`evaluate` must be a list of tasks: write [translation], or `- task: translation`"
MISTAKES = {
    "lerning_rate": ("train: {lerning_rate: 1}", "`train.lerning_rate` is no key of this section. Did you mean 'l"),
    "capital": ("Train: {}", "`Train` is no key of this section. Did you mean 'train'?"),
    "lora.rank": ("train: {lora: {rank: 8}}", "`train.lora.rank` is no key of this section. Known: alpha, dropout, l"),
    "raddis": ("method: raddis", "`method.name` unknown method 'raddis'; known: "),
    "a method's key": ("method: {name: radis, seperator: x}", "`method.seperator` is no key of this section. Did you "),
    "no name": ("method: {rationale_weight: 1}", f"`method` {NEEDS}; known: "),
    "a number": ("method: 3", f"`method` {NEEDS}, not 3; known: "),
    "a list": ("generate: {backend: [echo]}", f"`generate.backend` {NEEDS}, not ['echo']; known: "),
    "a task number": ("evaluate: [3]", "`evaluate.0` needs a name, or `task:` with settings, not 3; known: "),
    "a null task": ("evaluate: [null]", "`evaluate.0` needs a name, or `task:` with settings, not None; known: "),
    "name for task": ("evaluate: [{name: translation}]", "`evaluate.0` needs a name, or `task:` with settings; known"),
    "a mapping": ("evaluate: {task: translation}", LIST_OF_TASKS),
    "a word": ("evaluate: translation", LIST_OF_TASKS),
    "no task": ("evaluate: []", "`evaluate` needs 1 or more, not []"),
    "twice": ("evaluate: [translation, translation]", "`evaluate.1` is the task translation once more"),
    "one metric": ("evaluate: [{task: translation, metrics: bleu}]", "`evaluate.0.metrics` must be a list, not 'bleu'"),
    "metric number": ("evaluate: [{task: translation, metrics: [3]}]", f"`evaluate.0.metrics.0` {NEEDS}, not 3; known"),
    "metric key": (
        "evaluate: [{task: translation, metrics: [{name: chrf, order: 2}]}]",
        "`evaluate.0.metrics.0.order` is no key of this section. Did you mean 'word_order'?",
    ),
    "same metric": (
        "evaluate: [{task: translation, metrics: [bleu, bleu]}]",
        "`evaluate.0.metrics` a metric is listed twice",
    ),
    "a bool": ("train: {max_steps: true}", "`train.max_steps` must be a number, not True"),
    "a plugin's bool": (
        "generate: {backend: {name: echo, batch_size: true}}",
        "`generate.backend.batch_size` must be a number, not True",
    ),
    "nan": ("train: {learning_rate: .nan}", "`train.learning_rate` input should be a finite number, not nan"),
    "inf": ("method: {name: radis, rationale_weight: .inf}", "`method.rationale_weight` input should be a finite"),
    "half a step": ("train: {max_steps: 1.5}", "`train.max_steps` input should be a valid integer"),
    "a fast rate": ("train: {learning_rate: fast}", "`train.learning_rate` input should be a valid number"),
    "no rate": ("train: {learning_rate: }", "`train.learning_rate` has no value: write one, or leave the key out"),
    "lora off": ("train: {lora: false}", "`train.lora` must be a section or null, not False; its keys: alpha, dropout"),
    "a choice": ("train: {weighting: token}", "`train.weighting` input should be 'tokens' or 'segments', not 'token'"),
    "a number for a name": ("name: 2024", "`name` must be text, not 2024: put it into quotes"),
    "a commit of digits": ("revision: 1234567", "`revision` must be text, not 1234567: put it into quotes"),
    "a path as name": ("name: runs/a", "`name` must have the form ^[A-Za-z0-9]"),
    "the untouched": ("name: base", "`name` `base` is the name of the untouched model; choose another"),
    "nowhere": ("output_dir: ''", "`output_dir` string should have at least 1 character"),
    "a blank at the end": ("method: {name: radis, separator: 'a '}", "`method.separator` may not end in a blank"),
}  # fmt: skip


@pytest.mark.parametrize(("line", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_one_problem_with_file_line_and_key(tmp_path: Path, line: str, message: str) -> None:
    (problem,) = told(tmp_path, f"{SMALL}{line}\n")
    assert problem.startswith(f"run.yaml:3: {message}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (SMALL + "on: 1\n", "run.yaml: has the key True, which YAML does not read as text: put it into quotes"),
        ("model: m\n", "run.yaml: `data` is missing"),
        ("model: m\ndata:\n", "run.yaml:2: `data` has no value"),
        ("model: m\ndata: {train: }\n", "run.yaml:2: `data.train` has no value"),
        ("model: m\ndata: {train: d}\n", "run.yaml:2: `data.train` must be a section, not 'd'; its keys: format"),
        ("model: m\ndata: [d]\n", "run.yaml:2: `data` must be a section, not ['d']; its keys: allow_contamination, "),
        ("model: m\ndata:\n  train: {path: d, pairs: de-en}\n", "run.yaml:3: `data.train.pairs` must be a list"),
        ("model: m\ndata:\n  train: {path: d, pairs: [deen]}\n", "run.yaml:3: `data.train.pairs` 'deen' is not a pair"),
        ("model:\ndata: {train: {path: d}}\n", "run.yaml:1: `model` has no value"),
        ("data: {train: {path: d}}\n", "run.yaml: `model` is missing"),
    ],
)  # fmt: skip
def test_what_a_run_needs_is_asked_for(tmp_path: Path, text: str, message: str) -> None:
    (problem,) = told(tmp_path, text)
    assert problem.startswith(message)


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    lines = [line for line, _ in MISTAKES.values() if line.startswith(("train:", "method:"))]
    text = "modle: m\ndata: {train: {pth: d}}\n" + f"{lines[0]}\n" + "method: raddis\nevaluate: [3]\nseed: x\n"
    assert [problem.partition("` ")[0] for problem in told(tmp_path, text, "report.margin=2")] == [
        "run.yaml: `model",
        "command line: `report.margin",
        "run.yaml:1: `modle",
        "run.yaml:2: `data.train.path",
        "run.yaml:2: `data.train.pth",
        "run.yaml:3: `train.lerning_rate",
        "run.yaml:4: `method.name",
        "run.yaml:5: `evaluate.0",
        "run.yaml:6: `seed",
    ]


def test_a_number_may_be_written_as_yaml_1_1_does_not_know_it(tmp_path: Path) -> None:
    assert load(tmp_path, SMALL + "train: {learning_rate: 1e-5}\n").train.learning_rate == 1e-5
    assert load(tmp_path, SMALL, "train.learning_rate=5e-6").train.learning_rate == 5e-6


def start(backend: str = "transformers") -> RunConfig:
    raw: dict[str, Any] = {"name": "a", "output_dir": "runs/a", "model": "m", "data": {"train": {"path": "d"}}}
    raw["data"]["test"] = {"path": "d"}
    raw["generate"] = {"backend": {"name": backend}}
    return config_from(raw)


@pytest.mark.parametrize("seed", range(25))
def test_a_config_comes_back_from_its_own_yaml(tmp_path: Path, seed: int) -> None:
    rng = seeds.generator(seed, "random configs")
    config = random_config(rng, start("echo" if seed % 2 else "transformers"))
    assert config != start()
    assert load(tmp_path, as_yaml(config)) == config
    assert config_from(as_dict(config)) == config
    assert as_dict(load(tmp_path, as_yaml(config))) == as_dict(config)
    jsonschema.validate(yaml.safe_load(as_yaml(config)), schema_of("config"))


def test_a_config_made_in_python_may_hold_the_plugins_themselves() -> None:
    config = config_from(
        {
            **as_dict(start()),
            "method": RaDis(separator="x"),
            "generate": {"backend": Echo()},
            "evaluate": (Translation(),),
        }
    )
    assert as_dict(config)["method"]["name"] == "radis"
    assert config_from(as_dict(config)) == config


SCHEMA = schema_of("config")
REFUSED_BY_SCHEMA = [
    *("lerning_rate", "capital", "lora.rank", "raddis", "a method's key", "no name", "a number", "a list", "a mapping"),
    *("a word", "no task", "one metric", "metric number", "metric key", "a task number", "name for task", "a choice"),
    *("a number for a name", "a path as name", "a bool", "half a step", "lora off", "nowhere"),
]


@pytest.mark.parametrize("mistake", REFUSED_BY_SCHEMA)
def test_the_schema_refuses_what_an_editor_can_know(mistake: str) -> None:
    jsonschema.validate(yaml.safe_load(SMALL), SCHEMA)
    for needed in ("model: m\n", "data: {train: {path: d}}\n", "model: m\ndata: {test: {path: d}}\n"):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(yaml.safe_load(needed), SCHEMA)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(yaml.safe_load(SMALL + MISTAKES[mistake][0]), SCHEMA)


def test_an_unknown_schema_is_told_with_the_one_that_was_meant() -> None:
    assert json.loads(json.dumps(SCHEMA)) == SCHEMA
    assert schema_of("report")["$schema"] == SCHEMA["$schema"]
    with pytest.raises(
        ConfigError, match=r"no schema 'konfig'; known: config, report, compare\. Did you mean 'config'\?"
    ):
        schema_of("konfig")


def test_a_seed_of_its_own_for_the_sampling_is_refused_because_the_runs_is_used() -> None:
    raw = {"name": "x", "model": "m", "output_dir": "o", "data": {"train": {"path": "d"}}}
    with pytest.raises(ConfigError, match=r"generate\.sampling` takes its seed from the run"):
        config_from({**raw, "generate": {"sampling": {"seed": 3}}})
