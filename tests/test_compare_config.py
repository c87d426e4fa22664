"""The config of a comparison: what is refused, and which cells it comes to."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from radistill.compare_config import Cell, by_method, cells_of, load_compare_config, put
from radistill.errors import ConfigError

PLAIN: dict[str, Any] = {
    "run": {
        "model": "pocket",
        "data": {"train": {"path": "pocket", "pairs": ["en-eo"], "limit": 8}},
        "train": {"lora": None},
    },
    "methods": {
        "vanilla": {"dials": {"train.learning_rate": [1e-3, 2e-3]}},
        "soft": {
            "method": ["radis", {"name": "context_free", "ratio": 0.5}],
            "set": {"train.labels": "live"},
            "configurations": [{"method.0.rationale_weight": 0.5}, {"method.1.ratio": 2.0, "train.max_steps": 3}],
        },
    },
    "seeds": [0, 3],
    "axis_end": 60,
}


def written(tmp_path: Path, **changes: Any) -> Path:
    path = tmp_path / "pair.yaml"
    path.write_text(yaml.safe_dump({**PLAIN, **changes}, sort_keys=False), encoding="utf-8")
    return path


def cells(path: Path, *overrides: str) -> list[Cell]:
    return cells_of(load_compare_config(path, overrides))


def test_every_method_configuration_and_seed_is_a_cell(tmp_path: Path) -> None:
    found = cells(written(tmp_path))
    assert [cell.number for cell in found] == list(range(8))
    assert [cell.name for cell in found][:4] == ["vanilla.0-seed0", "vanilla.1-seed0", "soft.0-seed0", "soft.1-seed0"]
    assert {cell.config.seed for cell in found} == {0, 3}
    assert len({cell.folder for cell in found}) == len(found)
    assert [m for m, _ in by_method(found)] == ["vanilla", "soft"]
    assert all([cell.seed for cell in of] == [0, 3] for _, configurations in by_method(found) for of in configurations)


def test_a_cell_is_what_its_settings_say(tmp_path: Path) -> None:
    vanilla, soft = (
        next(c for c in cells(written(tmp_path)) if c.name == n) for n in ("vanilla.1-seed3", "soft.1-seed0")
    )
    assert vanilla.config.train.learning_rate == 2e-3
    assert soft.config.train.labels == "live"
    assert soft.config.train.max_steps == 3
    assert [type(part).__name__ for part in soft.config.method.parts] == ["RaDis", "ContextFree"]  # type: ignore[attr-defined]
    assert soft.config.method.parts[1].ratio == 2.0  # type: ignore[attr-defined]
    assert vanilla.config.generate.ledger == soft.config.generate.ledger


def test_unequal_numbers_of_configurations_are_unfair(tmp_path: Path) -> None:
    methods = {**PLAIN["methods"], "radis": {"dials": {"train.learning_rate": [1e-3]}}}
    with pytest.raises(ConfigError, match=r"equally many configurations.*vanilla 2.*radis 1"):
        load_compare_config(written(tmp_path, methods=methods))


@pytest.mark.parametrize("key", ["name", "seed", "method", "output_dir"])
def test_what_the_cells_set_themselves_may_not_stand_in_run(tmp_path: Path, key: str) -> None:
    with pytest.raises(ConfigError, match=f"run.{key} is set by the comparison"):
        load_compare_config(written(tmp_path, run={**PLAIN["run"], key: 1}))


def test_what_a_run_file_would_refuse_is_told_for_every_configuration(tmp_path: Path) -> None:
    methods = {"vanilla": {"dials": {"train.learning_rat": [1e-3, 2e-3]}}}
    with pytest.raises(ConfigError) as refused:
        cells(written(tmp_path, methods=methods))
    assert str(refused.value).count("learning_rat`") == 2
    assert "vanilla.0" in str(refused.value)
    assert "Did you mean 'learning_rate'?" in str(refused.value)


def test_neither_both_nor_none_of_dials_and_configurations(tmp_path: Path) -> None:
    for grid in ({}, {"dials": {"seed": [1]}, "configurations": [{}]}):
        with pytest.raises(ConfigError, match="either `dials` or `configurations`"):
            load_compare_config(written(tmp_path, methods={"vanilla": grid}))


def test_dials_are_all_combined(tmp_path: Path) -> None:
    methods = {"radis": {"dials": {"train.learning_rate": [1e-3, 2e-3], "method.rationale_weight": [0.5, 1, 2]}}}
    found = [cell.settings for cell in cells(written(tmp_path, methods=methods, seeds=[0]))]
    assert len(found) == 6
    assert {tuple(settings.values()) for settings in found} == {(r, w) for r in (1e-3, 2e-3) for w in (0.5, 1, 2)}


def test_a_cell_that_reads_another_comes_after_it_and_names_its_folder(tmp_path: Path) -> None:
    methods = {
        "mixed": {
            "method": {"name": "interpolate", "run": "@vanilla.1"},
            "dials": {"method.share": [0.5, 0.8]},
        },
        "vanilla": PLAIN["methods"]["vanilla"],
    }
    found = cells(written(tmp_path, methods=methods))
    assert [cell.method for cell in found[:4]] == ["vanilla", "vanilla", "mixed", "mixed"]
    assert found[2].needs == ("vanilla.1-seed0",)
    assert found[2].config.method.run == str(found[1].folder)  # type: ignore[attr-defined]
    methods["mixed"]["method"]["run"] = "@vanila.1"
    with pytest.raises(ConfigError, match=r"@vanila\.1, which is not compared"):
        cells(written(tmp_path, methods=methods))


def test_quick_keeps_what_it_names_and_goes_elsewhere(tmp_path: Path) -> None:
    quick = {"methods": ["vanilla"], "set": {"data.train.limit": 4, "train.learning_rate": 9.0}}
    config = load_compare_config(written(tmp_path, quick=quick))
    found = cells_of(config.quickly())
    assert [cell.name for cell in found] == ["vanilla.0-seed0"]
    assert found[0].config.data.train.limit == 4
    assert found[0].config.train.learning_rate == 1e-3, "a configuration's own settings stand"
    assert not {cell.folder for cell in found} & {cell.folder for cell in cells_of(config)}


def test_overrides_win_over_the_file(tmp_path: Path) -> None:
    found = cells(written(tmp_path), "seeds=[7]", "run.train.max_steps=5")
    assert {cell.seed for cell in found} == {7}
    assert found[0].config.train.max_steps == 5


def test_a_dotted_key_makes_the_sections_it_needs() -> None:
    raw: dict[str, Any] = {"method": ["radis", "kl"], "train": {}}
    put(raw, "method.1.weight", 2)
    put(raw, "train.lora.r", 4)
    assert raw == {"method": ["radis", {"name": "kl", "weight": 2}], "train": {"lora": {"r": 4}}}
    raw = {"evaluate": [{"task": "translation"}, {"task": "lab", "items": 9}, {"task": "lab", "items": 8}]}
    put(raw, "evaluate.*.items", 2)
    assert raw["evaluate"] == [{"task": "translation"}, *[{"task": "lab", "items": 2}] * 2]
    raw = {"method": ["radis"]}
    with pytest.raises(ConfigError, match=r"method.7.weight cannot be set"):
        put(raw, "method.7.weight", 2)
