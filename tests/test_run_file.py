"""Reading a run file: what is no YAML or no run file is one message, and problems say where they are."""

import typing
from pathlib import Path
from typing import Any

import pytest
from pydantic import Field

from radistill.config import load_config
from radistill.errors import ConfigError
from radistill.run_file import MAX_VALUES, Problem, RunFile, problems_of, read, shown, tidied
from radistill.settings import Settings

SMALL = "model: m\ndata: {train: {path: d}}\n"


def refused(tmp_path: Path, text: str | bytes, *overrides: str, name: str = "run.yaml") -> str:
    """The message for a run file of this text."""
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    with pytest.raises(ConfigError) as error:
        load_config(path, overrides)
    return str(error.value)


def raw(tmp_path: Path, text: str, *overrides: str) -> dict[str, Any]:
    """The plain values of a run file after the overrides."""
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return read(path, overrides, shorthand=dict).raw


NO_RUN_FILES: dict[str, tuple[str | bytes, str]] = {
    "empty": ("", "must hold keys and values"),
    "comments": ("# nothing\n", "must hold keys and values"),
    "a list": ("- model: m\n", "must hold keys and values"),
    "a word": ("model\n", "must hold keys and values"),
    "two documents": (SMALL + "---\n" + SMALL, "line 3, column 1: but found another document"),
    "an open bracket": ("model: {a\n", "line 2, column 1"),
    "a tab": ("data:\n\ttrain: 1\n", "line 2, column 1"),
    "NUL": ("model: a\0b\n", "special characters are not allowed"),
    "binary": (bytes(range(256)), "is not a YAML file"),
    "UTF-16": (SMALL.encode("utf-16"), "is not a YAML file"),
    "half a surrogate pair": ("model: \ud83d\n", "is not a YAML file"),
    "a python object": (SMALL + "name: !!python/object/apply:os.system [touch hacked]\n", "line 3, column 7.*object"),
    "another tag": (SMALL + "name: !secret x\n", "line 3, column 7.*!secret"),
    "a key that is a list": (SMALL + "? [a, b]\n: 1\n", "line 3, column 3: found unhashable key"),
    "a date that is none": (SMALL + "name: 2024-13-45\n", "month must be in 1..12"),
    "brackets without end": ("[" * 20_000, "nested too deeply"),
    "an alias of nothing": (SMALL + "train: *nothing\n", "line 3, column 8.*undefined alias"),
    "an alias of itself": (SMALL + "train: &x {lora: *x}\n", "refers to itself"),
    "an alias of itself in a list": (SMALL + "evaluate: &x [*x]\n", "refers to itself"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "told"), NO_RUN_FILES.values(), ids=NO_RUN_FILES.keys())
def test_what_is_no_run_file_is_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | bytes, told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    message = refused(tmp_path, text)
    assert pytest.raises(ConfigError, match=told).matches(ConfigError(message)), message
    assert "run.yaml" in message.splitlines()[0]
    assert not (tmp_path / "hacked").exists()


def test_aliases_of_aliases_cannot_fill_the_memory(tmp_path: Path) -> None:
    lines = [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    message = refused(tmp_path, SMALL + "a0: &a0 [x]\n" + "\n".join(lines))
    assert f"more than {MAX_VALUES:,} values" in message


def test_a_missing_file_is_told_with_the_one_that_was_meant(tmp_path: Path) -> None:
    (tmp_path / "alma-de-en.yaml").write_text(SMALL)
    with pytest.raises(ConfigError, match=r"does not exist\. Did you mean '.*alma-de-en\.yaml'\?"):
        load_config(tmp_path / "alma-deen.yaml")
    with pytest.raises(ConfigError, match=r"alma: it does not exist\.$"):
        load_config(tmp_path / "no" / "such" / "folder" / "alma")
    with pytest.raises(ConfigError, match="it is a folder"):
        load_config(tmp_path)


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_bytes(b"\xef\xbb\xbf" + SMALL.encode())
    assert load_config(tmp_path / "run.yaml").model == "m"


def test_a_key_that_stands_twice_is_refused_with_both_lines(tmp_path: Path) -> None:
    text = 'model: m\ndata:\n  train: {path: d}\n  train: {path: e}\n"model": n\ntrain: {bf16: true, bf16: true}\n'
    assert refused(tmp_path, text).splitlines()[1:] == [
        "  run.yaml:4: `data.train` stands twice, first on line 3",
        "  run.yaml:5: `model` stands twice, first on line 1",
        "  run.yaml:6: `train.bf16` stands twice, first on line 6",
    ]


def test_an_alias_may_stand_for_a_section_and_an_override_changes_one_place_alone(tmp_path: Path) -> None:
    text = "data:\n  train: &there {path: d, limit: 5}\n  test: *there\n  more: {<<: *there, limit: 6}\n"
    found = raw(tmp_path, text, "data.test.limit=7", "data.test.pairs=[de-en]")["data"]
    assert found["train"] == {"path": "d", "limit": 5}
    assert found["test"] == {"path": "d", "limit": 7, "pairs": ["de-en"]}
    assert found["more"] == {"path": "d", "limit": 6}


def test_a_problem_under_an_alias_is_told_for_each_place_it_stands(tmp_path: Path) -> None:
    text = "model: m\ndata:\n  train: &there {path: d, limti: 5}\n  test:\n    <<: *there\n    format: alma\n"
    first, second = refused(tmp_path, text).splitlines()[1:]
    assert first.startswith("  run.yaml:3: `data.train.limti` is no key of this section. Did you mean 'limit'?")
    assert second.startswith("  run.yaml:4: `data.test.limti` is no key")


VALUES = {
    "train.learning_rate=1e-5": ("train", "learning_rate", "1e-5"),
    "train.lora=null": ("train", "lora", None),
    "train.bf16=false": ("train", "bf16", False),
    "train.max_steps=-1": ("train", "max_steps", -1),
    "data.pairs=[de-en, en-de]": ("data", "pairs", ["de-en", "en-de"]),
    "data.train={path: x, limit: 3}": ("data", "train", {"path": "x", "limit": 3}),
    "data.path=a=b": ("data", "path", "a=b"),
    "data.path=": ("data", "path", ""),
    'method.separator="\\n\\n"': ("method", "separator", "\n\n"),
    " new.section =1": ("new", "section", 1),
    "empty.key=1": ("empty", "key", 1),
}


@pytest.mark.parametrize(("override", "expected"), VALUES.items())
def test_an_override_is_read_as_yaml_and_makes_the_sections_it_needs(
    tmp_path: Path, override: str, expected: tuple[str, str, object]
) -> None:
    section, key, value = expected
    found = raw(tmp_path, "train: {bf16: true, weight_decay: 0}\nempty:\n", override)
    assert found[section][key] == value
    assert section != "train" or found["train"]["weight_decay"] == 0


def test_overrides_reach_into_lists_and_the_last_one_wins(tmp_path: Path) -> None:
    found = raw(tmp_path, "tasks: [{n: 1}, {n: 2}]\n", "tasks.1.n=5", "tasks.0={m: 1}", "tasks.1.n=6", "a.b.c=1")
    assert found == {"tasks": [{"m": 1}, {"n": 6}], "a": {"b": {"c": 1}}}


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("train", "'train' is not an override; write key.sub=value"),
        ("=1", "is not an override"),
        ("..=1", "is not an override"),
        ("train..lora=1", "is not an override"),
        ("train.=1", "is not an override"),
        ("name=[a", "the value of the override 'name=[a' is not YAML"),
        ("name=!!python/object:os.x", "is not YAML: line 1, column 1"),
        ("name=2024-13-45", "is not YAML: month must be"),
        ("name=" + "[" * 20_000, "is not YAML"),
        ("model.x=1", "names a key of `model`, which is 'm'"),
        ("model.x.y=1", "names 'x' in what is no section"),
        ("evaluate.2=x", "names entry 2 of a list of 1; count from 0"),
        ("evaluate.-1=x", "names entry '-1' of a list of 1"),
        ("evaluate.x=y", "names entry 'x' of a list of 1"),
        ("evaluate.²=y", "names entry '²' of a list of 1"),
        ("evaluate.3.task=x", "names 3 in what is no section and has no such entry"),
    ],
)
def test_an_override_that_fits_nowhere_is_refused(tmp_path: Path, override: str, told: str) -> None:
    assert told in refused(tmp_path, SMALL + "evaluate: [translation]\n", override)


def test_problems_stand_in_the_order_of_the_file_and_those_of_the_command_line_say_so(tmp_path: Path) -> None:
    text = "seed: -1\nmodel: m\ndata:\n  train: {path: d}\ntrain:\n  bf16: maybe\n  learning_rate: 0\nTrain: 1\n"
    lines = refused(tmp_path, text, "train.max_steps=-7", "train.learning_rate=-1", "trian.x=1").splitlines()
    assert lines[0] == f"{tmp_path / 'run.yaml'} has 6 problems:"
    assert sorted(line.partition("` ")[0].strip() for line in lines[1:]) == [
        "command line: `train.learning_rate",
        "command line: `train.max_steps",
        "command line: `trian",
        "run.yaml:1: `seed",
        "run.yaml:6: `train.bf16",
        "run.yaml:8: `Train",
    ]
    in_file = [line for line in lines if "run.yaml:" in line]
    assert in_file == sorted(in_file)


def test_a_long_value_is_shown_short() -> None:
    assert len(shown(list(range(10_000)))) < 80
    assert len(shown("x" * 10_000)) < 80
    assert shown("short") == "'short'"


class Inner(Settings):
    depth: int = 1
    names: str | tuple[str, ...] = "all"


class Outer(Settings):
    number: float = 1.0
    flag: bool = True
    count: int | None = None
    word: str = Field("a", min_length=1)
    inner: Inner = Inner()
    maybe: Inner | None = Inner()
    needed: Inner
    many: tuple[Inner, ...] = ()


def problems(values: dict[str, Any]) -> dict[str, str]:
    """Problems of `Outer` by key, as a run file would tell them."""
    found: list[Problem] = []
    kept = tidied(values, Outer, (), found)
    try:
        Outer.model_validate(kept)
    except ValueError as error:
        found += problems_of(typing.cast("Any", error), Outer, ())
    lines = RunFile(path=None, raw={}, lines={}, overridden=frozenset()).describe(found).splitlines()[1:]
    told = [line.removeprefix("  config: ").partition(" ") for line in lines]
    return {key.strip("`"): message for key, _, message in told}


@pytest.mark.parametrize("section", ["inner", "many"])
def test_a_section_that_was_left_empty_means_its_defaults(section: str) -> None:
    values: dict[str, Any] = {"needed": {}, section: None}
    assert problems(values) == {}
    assert Outer.model_validate(tidied(values, Outer, (), [])) == Outer(needed=Inner())


def test_null_keeps_its_meaning_where_it_has_one() -> None:
    kept = tidied({"needed": {}, "maybe": None, "count": None}, Outer, (), [])
    assert Outer.model_validate(kept) == Outer(needed=Inner(), maybe=None, count=None)


@pytest.mark.parametrize(
    ("values", "key", "told"),
    [
        ({"needed": None}, "needed", "has no value"),
        ({}, "needed", "is missing"),
        ({"needed": {}, "word": None}, "word", "has no value: write one, or leave the key out"),
        ({"needed": {}, "number": True}, "number", "must be a number, not True"),
        ({"needed": {}, "count": False}, "count", "must be a number, not False"),
        ({"needed": {"depth": True}}, "needed.depth", "must be a number, not True"),
        ({"needed": {}, "number": float("nan")}, "number", "input should be a finite number, not nan"),
        ({"needed": {}, "number": "fast"}, "number", "input should be a valid number"),
        ({"needed": {}, "word": 7}, "word", "must be text, not 7: put it into quotes"),
        ({"needed": {}, "inner": 3}, "inner", "must be a section, not 3; its keys: depth, names"),
        ({"needed": {}, "maybe": False}, "maybe", "must be a section or null, not False; its keys: depth, names"),
        ({"needed": {}, "many": {"depth": 1}}, "many", "must be a list, not {'depth': 1}"),
        ({"needed": {}, "many": "x"}, "many", "must be a list, not 'x': write [x]"),
        ({"needed": {}, "many": [{"dpth": 1}]}, "many.0.dpth", "is no key of this section. Did you mean 'depth'?"),
        ({"needed": {"names": 3}}, "needed.names", "must be text, not 3: put it into quotes"),
        ({"needed": {"str": 3}}, "needed.str", "is no key of this section"),
        ({"needed": {}, "Inner": 3}, "Inner", "is no key of this section. Did you mean 'inner'?"),
        ({"needed": {}, "inner": {"Depth": 3}}, "inner.Depth", "Did you mean 'depth'? Known: depth, names."),
    ],
)  # fmt: skip
def test_a_problem_says_what_is_wrong_and_where(values: dict[str, Any], key: str, told: str) -> None:
    found = problems(values)
    assert list(found) == [key]
    assert found[key].startswith(told) or told in found[key]


@pytest.mark.parametrize("key", [True, 1, None, 1.5])
def test_a_key_that_yaml_does_not_read_as_text_is_told(key: object) -> None:
    (message,) = problems(typing.cast("dict[str, Any]", {"needed": {}, key: 1})).values()
    assert f"the key {key}, which YAML does not read as text: put it into quotes" in message


@pytest.mark.parametrize("value", [1, 1.0, "1", "1e0"])
def test_numbers_may_be_written_in_any_way(value: object) -> None:
    assert problems({"needed": {}, "number": value, "count": 1}) == {}
