"""The method of this project: it is the mixture it says it is, and prefers the labels and weighting it was made for."""

from pathlib import Path
from typing import Any

import pytest

from radistill.config import as_dict, as_yaml, config_from, load_config
from radistill.errors import ConfigError
from radistill.methods._composed import Composed, flag, parts_of, title_of
from radistill.methods.context_free import ContextFree
from radistill.methods.ewc import EWC
from radistill.methods.pseudorehearsal import Pseudorehearsal
from radistill.methods.radis import RaDis
from radistill.methods.self_rehearsal import SelfRehearsal


def raw(method: Any, **train: Any) -> dict[str, Any]:
    data = {"train": {"path": "pocket"}, "test": {"path": "pocket"}}
    return {"name": "a", "model": "pocket", "output_dir": "runs/a", "data": data, "method": method, "train": train}


def test_its_dials_arrive_at_its_parts() -> None:
    method = SelfRehearsal(pull=0.01, texts=0.25, messages=2.0, start="both", max_new_tokens=7, samples=9)
    assert parts_of(method) == (
        RaDis(),
        ContextFree(ratio=0.25, start="both", max_new_tokens=7),
        Pseudorehearsal(ratio=2.0, max_new_tokens=7),
        EWC(weight=0.01, samples_of="records", samples=9),
    )
    assert (title_of(method), flag(method, "ours"), flag(method, "brings_data")) == ("self_rehearsal", True, False)
    # What a run file may list together is what this is.
    Composed(listed=method.parts)


def test_a_run_gets_its_labels_and_weighting_unless_the_run_file_says_otherwise(tmp_path: Path) -> None:
    plain = config_from(raw("self_rehearsal"))
    assert (plain.train.labels, plain.train.weighting) == ("stored", "segments")
    assert plain.method == SelfRehearsal()
    told = config_from(raw({"name": "self_rehearsal", "pull": 0.1}, labels="live"))
    assert (told.train.labels, told.train.weighting) == ("live", "segments")
    other = config_from(raw("radis"))
    assert (other.train.labels, other.train.weighting) == ("hard", "tokens")
    file = tmp_path / "config.yaml"
    file.write_text(as_yaml(told), encoding="utf-8")
    assert load_config(file) == told
    assert as_dict(told)["method"]["name"] == "self_rehearsal"


def test_it_is_not_listed_with_others() -> None:
    with pytest.raises(
        ConfigError, match="self_rehearsal is several methods itself and cannot be listed with eaft"
    ) as e:
        config_from(raw([{"name": "self_rehearsal"}, {"name": "eaft"}]))
    assert "radis, context_free, pseudorehearsal, ewc" in str(e.value)
