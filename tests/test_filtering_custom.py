"""A filter of one's own, what is found before a run begins, and runs from before there were filters."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from fakes_filtering import BROKEN, LOOPS, OFF, WRITTEN, Assembly, bare, counts, only, prepared, without
from radistill import pipeline
from radistill.check import check
from radistill.compare import is_finished
from radistill.compare_config import Cell
from radistill.config import RunConfig, as_yaml, config_from, stored_config
from radistill.errors import ConfigError, MissingPackageError, RunFolderError
from radistill.filters import FilterSettings
from radistill.records import StageRecord
from radistill.runs import RunFolder

RULES = """
from radistill.records import Example

def keeps(example: Example, rationale: str) -> bool:
    assert example.reference.startswith("Der Mann")
    return "dogs" in rationale

def is_vague(example, rationale):
    return None
"""


@pytest.fixture
def raw(raw_config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    return prepared(raw_config, tmp_path, monkeypatch)


@pytest.fixture
def assembled(raw: dict[str, Any], tmp_path: Path) -> Assembly:
    return Assembly(raw, tmp_path)


@pytest.fixture
def rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file of functions in the working directory."""
    file = tmp_path / "my_rules.py"
    file.write_text(RULES, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    yield file
    sys.modules.pop("my_rules", None)


def test_a_function_of_ones_own_says_what_is_kept(assembled: Assembly, rules: Path) -> None:
    before = list(sys.path)
    run, records = assembled(only(custom="my_rules:keeps"))
    assert without(run) == {2, 4, 5, 6, 7, 8, 9, 10}
    assert bare(records) == without(run) | {1}, "it is not asked about an empty rationale"
    assert counts(run)["custom"]["filtered"] == 8
    assert sys.path == before


def test_a_function_that_says_neither_is_one_message_with_the_row(assembled: Assembly, rules: Path) -> None:
    with pytest.raises(ConfigError, match=r"must return True \(keep\) or False, not None, .* example [0-9a-f]{32}"):
        assembled(only(custom="my_rules:is_vague"))


def test_an_error_in_the_function_keeps_its_words(assembled: Assembly, rules: Path) -> None:
    rules.write_text("def keeps(example, rationale):\n    raise KeyError('lemma')\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"(?s)fails on .* example [0-9a-f]{32}: KeyError: 'lemma'.*rationale: ") as e:
        assembled(only(custom="my_rules:keeps"))
    assert "\n" not in str(e.value).split("rationale: ")[1]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("my_rules:nothing", "there is no function my_rules:nothing"),
        ("no_such_module:keeps", "no_such_module cannot be imported: ModuleNotFoundError"),
    ],
)
def test_a_function_that_is_not_there_is_found_before_anything_is_asked(
    raw: dict[str, Any], rules: Path, name: str, said: str
) -> None:
    raw["generate"]["filters"] = only(custom=name)
    config = config_from(raw)
    assert any(said in problem for problem in check(config).problems)
    with pytest.raises(ConfigError, match=said):
        pipeline.run(config, stages=("generate",))
    assert RunFolder(Path(config.output_dir)).stages() == {}
    raw["method"] = {"name": "vanilla"}
    assert not any(said in problem for problem in check(config_from(raw)).problems), "it would never be asked"


def test_a_file_that_does_not_run_is_one_message(raw: dict[str, Any], rules: Path) -> None:
    rules.write_text("import\n", encoding="utf-8")
    raw["generate"]["filters"] = only(custom="my_rules:keeps")
    assert any("my_rules cannot be imported: SyntaxError" in p for p in check(config_from(raw)).problems)


def test_a_changed_file_is_noticed(raw: dict[str, Any], rules: Path) -> None:
    raw["generate"]["filters"] = only(custom="my_rules:keeps")
    config = config_from(raw)
    pipeline.run(config, stages=("generate", "assemble"))
    rules.write_text(RULES.replace('"dogs"', '"dog"'), encoding="utf-8")
    with pytest.raises(RunFolderError, match=r"stage `assemble`(.|\n)*my_rules.py: the file has changed since"):
        pipeline.run(config, stages=("generate", "assemble"))


def test_a_package_that_is_missing_is_found_before_anything_is_asked(
    raw: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasketch", None)
    raw["generate"]["filters"] = only(near_duplicates=0.8)
    config = config_from(raw)
    assert any("radistill[filters]" in problem for problem in check(config).problems)
    with pytest.raises(MissingPackageError, match=r"radistill\[filters\]"):
        pipeline.run(config, stages=("generate",))
    assert RunFolder(Path(config.output_dir)).stages() == {}


def test_check_says_where_there_is_nothing_to_filter(raw: dict[str, Any]) -> None:
    raw["method"] = {"name": "vanilla"}
    told = "generate.filters: the method lets no rationales be written"
    assert not any(told in note for note in check(config_from(raw)).notes)
    raw["generate"]["filters"] = {"refusal": True}
    assert any(told in note for note in check(config_from(raw)).notes)


def finished(config: RunConfig, text: str) -> Cell:
    run = RunFolder(Path(config.output_dir))
    run.path.mkdir(parents=True)
    run.config.write_text(text, encoding="utf-8")
    run.put_stage(StageRecord(stage="evaluate", status="finished", settings={}))
    return Cell(0, "radis", 0, 0, {}, config, ())


def test_a_cell_from_before_there_were_filters_counts_as_one_without(raw: dict[str, Any]) -> None:
    raw["generate"]["filters"] = OFF
    off = config_from(raw)
    old = yaml.safe_load(as_yaml(off))
    del old["generate"]["filters"]
    cell = finished(off, yaml.safe_dump(old))
    assert stored_config(RunFolder(cell.folder).config) == off
    assert is_finished(cell)
    del raw["generate"]["filters"]
    on = config_from(raw)
    with pytest.raises(RunFolderError, match=r"was run with another generate\.filters\.broken"):
        is_finished(Cell(0, "radis", 0, 0, {}, on, ()))


def test_a_cell_with_filters_counts_as_it_was_run(raw: dict[str, Any]) -> None:
    on = config_from(raw)
    cell = finished(on, as_yaml(on))
    assert stored_config(RunFolder(cell.folder).config) == on
    assert is_finished(cell)


def test_both_defaults_are_on_in_a_new_run(assembled: Assembly) -> None:
    run, records = assembled()
    assert run.stages()["assemble"].settings["filters"] == {"broken": True, "degenerate": True}
    assert bare(records) == BROKEN | LOOPS


PAGE = Path(__file__).resolve().parents[1] / "docs" / "how-to" / "filter.md"


def block(kind: str) -> str:
    (found,) = re.findall(rf"^```{kind}\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return str(found)


def test_the_page_shows_every_filter_and_its_settings_are_valid(raw: dict[str, Any]) -> None:
    shown = yaml.safe_load(block("yaml"))["generate"]["filters"]
    assert list(shown) == list(FilterSettings.model_fields)
    raw["generate"]["filters"] = shown
    assert config_from(raw).generate.filters.active == tuple(shown)
    page = PAGE.read_text(encoding="utf-8")
    assert all(f"`{name}`" in page for name in shown)


def test_the_function_on_the_page_works(assembled: Assembly, rules: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rules.write_text(block("python"), encoding="utf-8")
    monkeypatch.setitem(WRITTEN, 10, ("Der Mann sieht 10 Hunde.", "stop"))
    run, _ = assembled(only(custom="my_rules:keeps"))
    assert without(run) == {10}
