"""A comparison's cells: done once, gone on with, chosen on validation items and shown on test items."""

import json
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from fakes_cells import RUN, finish
from fakes_report import fewer_draws
from radistill import compare as module
from radistill import pipeline, scoring
from radistill.compare import _in_processes as in_processes
from radistill.compare import compare, is_finished
from radistill.compare_config import Cell, CompareConfig, cells_of, load_compare_config
from radistill.compare_results import _Rows, comparison
from radistill.config import RunConfig
from radistill.errors import RadistillError, RunFolderError
from radistill.runs import RunFolder

BASE = {"translation": 0.1, "arithmetic": 0.95, "comparison": 0.9}
STRENGTH: dict[str, tuple[float, float]] = {
    # method.index: share of right translations, share of the abilities kept
    "vanilla.0": (0.5, 0.9), "vanilla.1": (0.7, 0.6), "vanilla.2": (0.75, 0.2),
    "radis.0": (0.5, 0.95), "radis.1": (0.7, 0.8), "radis.2": (0.6, 0.6),
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    with fewer_draws():
        yield


def config_at(tmp_path: Path, **changes: Any) -> CompareConfig:
    plain: dict[str, Any] = {
        "output_dir": str(tmp_path / "out"),
        "run": RUN,
        "methods": grid("vanilla", "radis"),
        "seeds": [0, 1],
        "axis_end": 100,
        "points": 2,
        **changes,
    }
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(plain, sort_keys=False), encoding="utf-8")
    return load_compare_config(path)


def grid(*methods: str, rates: Sequence[float] = (1e-4, 2e-4, 3e-4)) -> dict[str, Any]:
    return {name: {"dials": {"train.learning_rate": list(rates)}} for name in methods}


def right(cell: Cell) -> Mapping[str, float]:
    skill, kept = STRENGTH[f"{cell.method}.{cell.index}"]
    return {"translation": skill, "arithmetic": 0.95 * kept, "comparison": 0.9 * kept}


def finished(config: CompareConfig) -> list[Cell]:
    cells = cells_of(config)
    for cell in cells:
        finish(cell, right=right(cell), base=BASE, tokens=1000 * (cell.index + 1))
    return cells


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the runs that were trained, instead of training them."""
    names: list[str] = []

    def instead(config: RunConfig, *, stages: tuple[str, ...]) -> None:
        if "train" in stages:
            names.append(config.name)
            cell = next(c for c in cells_of(CURRENT[0]) if c.name == config.name)
            finish(cell, right=right(cell), base=BASE)

    monkeypatch.setattr(pipeline, "run", instead)
    return names


@pytest.fixture
def reported(monkeypatch: pytest.MonkeyPatch) -> list[CompareConfig]:
    """Comparisons that were to be reported, instead of a page of them."""
    found: list[CompareConfig] = []

    def instead(config: CompareConfig, **_: Any) -> list[Path]:
        found.append(config)
        return []

    monkeypatch.setattr(module, "write_report", instead)
    return found


CURRENT: list[CompareConfig] = []


def test_finished_cells_are_never_run_again_and_the_others_are(
    tmp_path: Path, ran: list[str], reported: list[CompareConfig]
) -> None:
    config = config_at(tmp_path, methods=grid("radis"))
    CURRENT[:] = [config]
    cells = cells_of(config)
    finish(cells[2], right=right(cells[2]), base=BASE)
    assert [c.name for c in cells if is_finished(c)] == [cells[2].name]
    compare(config)
    assert ran == [cell.name for cell in cells if cell is not cells[2]]
    compare(config)
    assert len(ran) == len(cells) - 1
    assert reported == [config, config]


@pytest.mark.usefixtures("reported")
def test_rows_alone_are_enough_to_be_finished_and_lost_rows_are_not(tmp_path: Path, ran: list[str]) -> None:
    config = config_at(tmp_path, seeds=[0])
    CURRENT[:] = [config]
    cells = finished(config)
    for cell in cells:
        shutil.rmtree(cell.folder / "model")
    assert all(map(is_finished, cells))
    (cells[0].folder / "rows" / "arithmetic.lab_accuracy.npz").unlink()
    assert not is_finished(cells[0])
    compare(config)
    assert ran == [cells[0].name]


def test_a_cell_that_was_run_with_other_settings_is_refused_by_the_name_of_the_setting(tmp_path: Path) -> None:
    config = config_at(tmp_path, methods=grid("vanilla"), seeds=[0])
    finished(config)
    other = config_at(tmp_path, methods=grid("vanilla", rates=(1e-4, 2e-4, 9e-4)), seeds=[0])
    with pytest.raises(RunFolderError, match=r"another train\.learning_rate"):
        [is_finished(cell) for cell in cells_of(other)]


def test_a_comparison_that_was_moved_goes_on(tmp_path: Path) -> None:
    config = config_at(tmp_path, seeds=[0])
    finished(config)
    shutil.move(tmp_path / "out", tmp_path / "elsewhere")
    moved = config.model_copy(update={"output_dir": str(tmp_path / "elsewhere")})
    assert all(map(is_finished, cells_of(moved)))


@pytest.mark.usefixtures("ran", "reported")
def test_models_are_forgotten_only_where_nobody_needs_them(tmp_path: Path) -> None:
    config = config_at(tmp_path, methods=grid("radis"), seeds=[0])
    CURRENT[:] = [config]
    compare(config)
    assert not [cell.name for cell in cells_of(config) if (cell.folder / "model").exists()]
    kept = config_at(tmp_path, methods=grid("radis"), seeds=[0], output_dir=str(tmp_path / "kept"), keep_models=True)
    CURRENT[:] = [kept]
    compare(kept)
    assert all((cell.folder / "model").exists() for cell in cells_of(kept))


def test_what_is_shown_was_measured_on_items_that_did_not_choose(tmp_path: Path) -> None:
    config = config_at(tmp_path, seeds=[0])
    cells = finished(config)
    found = comparison(config, cells)
    assert found.n_items["translation"] == (24, 76)  # a quarter of 50 in each direction, rounded
    assert found.n_items["arithmetic"] == (10, 30)
    spot = found.standings[0].spots[0]
    arrays, _ = scoring.load_rows(RunFolder(cells[0].folder).rows("arithmetic", "lab_accuracy"))
    everything = {k: float(v[:, 0].sum()) for k, v in arrays.items() if k.startswith(cells[0].name)}
    assert sum(everything.values()) == pytest.approx(0.95 * 0.9 * 40, abs=1)
    assert spot.validation_skill != spot.skill.value


def test_a_lie_on_the_test_items_changes_no_choice(tmp_path: Path) -> None:
    config = config_at(tmp_path, seeds=[0])
    cells = finished(config)
    before = comparison(config, cells)
    worst = next(c for c in cells if (c.method, c.index) == ("radis", 2))
    path = RunFolder(worst.folder).rows("translation", "bleu")
    arrays, ids = scoring.load_rows(path)
    side = _Rows(config.validation, 0.02)
    for key in [k for k in arrays if k.startswith(worst.name)]:
        base_key = "base/" + key.rpartition("/")[2]
        at = side._side(ids[key], "test")
        assert ids[key] == ids[base_key]
        best = next(c for c in cells if (c.method, c.index) == ("vanilla", 2))
        others, _ = scoring.load_rows(RunFolder(best.folder).rows("translation", "bleu"))
        arrays[key][at] = others[f"{best.name}/{key.rpartition('/')[2]}"][at]
    stored = {**arrays, **{f"ids:{k}": np.array(v, dtype=np.str_) for k, v in ids.items()}}
    np.savez_compressed(path, **stored)  # type: ignore[arg-type]
    after = comparison(config, cells)
    chosen = [[s.name for s in standing.chosen] for standing in before.standings]
    assert [[s.name for s in standing.chosen] for standing in after.standings] == chosen
    changed = {s.name: s.skill.value for standing in after.standings for s in standing.spots}
    assert changed["radis.2"] != {s.name: s.skill.value for st in before.standings for s in st.spots}["radis.2"]


def test_the_method_that_keeps_more_at_equal_skill_stands_higher(tmp_path: Path) -> None:
    config = config_at(tmp_path)
    found = {s.name: s for s in comparison(config, finished(config)).standings}
    assert found["radis"].hypervolume.value > found["vanilla"].hypervolume.value
    assert [s.index for s in found["radis"].chosen] == [0, 1], "the dominated one is not chosen"
    at = {name: standing.retention_at[0.5] for name, standing in found.items()}
    assert at["radis"].value > at["vanilla"].value  # type: ignore[union-attr]
    test = next(t for t in found["radis"].tests if (t.rival, t.what) == ("vanilla", "hypervolume"))
    assert test.paired.difference > 0
    assert found["radis"].ours
    assert not found["vanilla"].ours
    assert len(found["radis"].spots[0].seeds) == 2


def test_what_costs_more_than_the_budget_is_shown_and_not_counted(tmp_path: Path) -> None:
    config = config_at(tmp_path, budget={"limit": 2500}, seeds=[0])
    found = comparison(config, finished(config))
    for standing in found.standings:
        assert [s.within_budget for s in standing.spots] == [True, True, False]
        assert [s.cost.processed_tokens for s in standing.spots] == [1015, 2015, 3015]
        assert not standing.spots[2].chosen
    assert found.best_skill == max(s.skill.value for st in found.standings for s in st.spots if s.within_budget)
    assert found.budget == "at most 2,500 processed tokens"


def test_configurations_that_lack_a_seed_are_left_out_and_named(tmp_path: Path) -> None:
    config = config_at(tmp_path, methods=grid("vanilla"))
    cells = finished(config)
    shutil.rmtree(cells[0].folder)
    found = comparison(config, cells)
    assert found.unfinished == (cells[0].name,)
    vanilla = next(s for s in found.standings if s.name == "vanilla")
    assert [s.index for s in vanilla.spots] == [1, 2]
    for cell in cells[1:]:
        shutil.rmtree(cell.folder)
    with pytest.raises(RunFolderError, match="no cell of the comparison c is finished"):
        comparison(config, cells)


WORKER = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_compare import BASE, right
from fakes_cells import finish
from fakes_report import fewer_draws
from radistill.compare_config import cells_of, load_compare_config
cell = cells_of(load_compare_config(Path({config!r})))[int(sys.argv[sys.argv.index("--cell") + 1])]
if cell.name == {fails!r}:
    sys.exit("error: no memory")
with fewer_draws():
    finish(cell, right=right(cell), base=BASE)
"""


def test_workers_do_one_cell_each_and_a_failure_is_told_while_the_others_are_kept(
    tmp_path: Path, ran: list[str]
) -> None:
    config = config_at(tmp_path, methods=grid("vanilla", "radis", rates=(1e-4, 2e-4)), seeds=[0])
    CURRENT[:] = [config]
    told: list[str] = []
    # The last cell fails, so that all others have been begun by then.
    for fails in ("radis.1-seed0", ""):
        text = WORKER.format(tests=str(Path(__file__).parent), config=str(tmp_path / "c.yaml"), fails=fails)
        (tmp_path / "worker.py").write_text(text, encoding="utf-8")
        command = [sys.executable, str(tmp_path / "worker.py")]
        if fails:
            with pytest.raises(RadistillError, match=r"radis\.1-seed0 failed:\nerror: no memory"):
                compare(config, workers=2, command=command, say=told.append)
        else:
            written = compare(config, workers=2, command=command, say=told.append)
    assert ran == [], "every cell was done by a worker"
    assert told[0] == "0 of 4 cells are finished"
    assert "3 of 4 cells are finished" in told
    numbers = json.loads(next(p for p in written if p.suffix == ".json").read_text(encoding="utf-8"))
    assert set(numbers["frontier"]) == {"vanilla", "radis"}


def test_a_cell_that_needs_another_waits_for_it_and_no_longer(tmp_path: Path) -> None:
    mixed = {"interpolate": {"method": {"name": "interpolate", "run": "@vanilla.0"}, "dials": {"method.share": [0.5]}}}
    config = config_at(tmp_path, methods=grid("vanilla", rates=(1e-4,)) | mixed, points=1)
    cells = cells_of(config)
    # Each notes when it begins and ends. What is needed sleeps, so that a cell that did not wait would begin before its
    # end; nothing is asserted about how long anything takes.
    script = "import sys, time; n = int(sys.argv[-1]); log = open(sys.argv[1], 'a', buffering=1);"
    script += "log.write(f'begin {n}\\n'); time.sleep(0.4 if n in (0, 2) else 0); log.write(f'end {n}\\n')"
    in_processes(cells, cells, 2, [sys.executable, "-c", script, str(tmp_path / "log")], lambda _: None)
    told = (tmp_path / "log").read_text(encoding="utf-8").splitlines()
    assert [cell.needs for cell in cells] == [(), ("vanilla.0-seed0",), (), ("vanilla.0-seed1",)]
    assert told.index("end 0") < told.index("begin 1")
    assert told.index("end 2") < told.index("begin 3")
    assert told.index("end 1") < told.index("end 3"), "a seed is brought to its end before the next"


def test_a_cell_of_a_version_that_lacked_a_setting_is_still_finished(tmp_path: Path) -> None:
    cells = finished(config_at(tmp_path))
    for cell in cells:
        path = RunFolder(cell.folder).config
        stored = yaml.safe_load(path.read_text(encoding="utf-8"))
        del stored["generate"]["keep_tokens"], stored["train"]["label_top_k"]
        path.write_text(yaml.safe_dump(stored), encoding="utf-8")
    assert all(map(is_finished, cells))
