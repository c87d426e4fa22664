"""Every run file under configs/ is valid, complete, and finds the real data it names."""

from pathlib import Path

import jsonschema
import pytest
import yaml

from radistill import data
from radistill.compare_config import cells_of, load_compare_config
from radistill.config import RunConfig, as_yaml, load_config
from radistill.filters import OFF
from radistill.methods._composed import title_of
from radistill.metrics.bleu import BLEU
from radistill.metrics.chrf import ChrF
from radistill.plugins import available
from radistill.schema import schema_of

REPOSITORY = Path(__file__).resolve().parents[1]
ALL = sorted((REPOSITORY / "configs").rglob("*.yaml"))
FILES = [path for path in ALL if not path.stem.startswith("compare-")]
ALMA = {
    "alma-cs-en": {"cs-en": (12_076, 1_448), "en-cs": (12_076, 2_037)},
    "alma-de-en": {"de-en": (14_211, 1_984), "en-de": (14_211, 2_037)},
    "alma-ru-en": {"ru-en": (15_000, 2_016), "en-ru": (15_000, 2_037)},
    "alma-zh-en": {"zh-en": (15_406, 1_875), "en-zh": (15_406, 2_037)},
}
ALMA["alma-all"] = {pair: sizes for name in sorted(ALMA) for pair, sizes in ALMA[name].items()}


def config(name: str) -> RunConfig:
    return load_config(REPOSITORY / "configs" / f"{name}.yaml")


def test_no_run_file_is_forgotten_or_called_otherwise() -> None:
    assert len(FILES) == 6
    assert {path.stem for path in FILES} == {*ALMA, "lab-esperanto"}
    assert {path.stem for path in ALL} - {path.stem for path in FILES} == {"compare-lab"}
    assert sorted((REPOSITORY / "configs").rglob("*.y*ml")) == ALL


def test_the_comparison_of_the_lab_has_every_method_and_a_quick_form() -> None:
    loaded = load_compare_config(REPOSITORY / "configs" / "compare-lab.yaml")
    cells = cells_of(loaded)
    assert all(cell.config.generate.filters == OFF for cell in cells), "the finished cells were run without"
    assert {name for cell in cells for name in title_of(cell.config.method).split("+")} == set(available("methods"))
    assert loaded.seeds == [0, 1, 2, 3, 4]
    assert len(cells_of(loaded.quickly())) == 5
    tested = data.load(cells[0].config.data, "test", seed=0).pairs
    assert all(round(count * (1 - loaded.validation)) >= 1000 for count in tested.values())


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_a_run_file_is_valid_fits_the_schema_and_comes_back_from_its_yaml(path: Path, tmp_path: Path) -> None:
    loaded = load_config(path)
    jsonschema.validate(yaml.safe_load(path.read_text(encoding="utf-8")), schema_of("config"))
    assert (loaded.name, loaded.output_dir) == (path.stem, f"runs/{path.stem}")
    (tmp_path / "config.yaml").write_text(as_yaml(loaded), encoding="utf-8")
    assert load_config(tmp_path / "config.yaml") == loaded


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_the_commands_in_its_comments_are_about_itself(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    told = [line.removeprefix("#   ").split() for line in text.splitlines() if line.startswith("#   radistill ")]
    assert [words[1] for words in told] == ["check", "run", "run", "run"]
    for words in told:
        assert words[2] == f"configs/{path.name}"
        load_config(REPOSITORY / words[2], words[3:])


@pytest.mark.parametrize("name", ALMA)
def test_the_papers_setting_is_the_one_described(name: str) -> None:
    loaded = config(name)
    assert loaded.method.model_dump() == {
        "rationale_weight": 1.0, "separator": "\n\n", "pairing": "own", "train_end": True,
    }  # fmt: skip
    assert loaded.train.weighting == "tokens"
    assert loaded.train.per_device_train_batch_size * loaded.train.gradient_accumulation_steps == 128
    assert loaded.train.lora is not None
    assert (loaded.train.lora.r, loaded.train.lora.alpha, loaded.train.num_train_epochs) == (16, 32, 1)
    (task,) = loaded.evaluate
    assert task.metrics == (BLEU(), ChrF())
    assert loaded.data.test is not None
    assert loaded.data.train.pairs == loaded.data.test.pairs == tuple(ALMA[name])
    assert not loaded.data.allow_contamination
    assert loaded.generate.filters == OFF


@pytest.mark.parametrize("name", ALMA)
def test_it_finds_all_of_almas_training_text_and_the_wmt22_tests(
    name: str, shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPOSITORY)
    loaded = config(name)
    assert Path(loaded.data.train.path).resolve().is_relative_to(shared_data.resolve())
    train, test = (data.load(loaded.data, part, seed=loaded.seed) for part in ("train", "test"))
    assert {pair: (train.pairs[pair], test.pairs[pair]) for pair in train.pairs} == ALMA[name]
    assert train.pairs.keys() == test.pairs.keys()
    assert not train.rejects
    assert not test.rejects
    assert {path.name.partition(".")[0] for path in train.files} == {"train"}
    assert {path.name.partition(".")[0] for path in test.files} == {"test"}
    assert len(test.files) == len(ALMA[name]), "each direction is tested on its own sentences"
