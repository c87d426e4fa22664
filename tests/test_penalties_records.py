"""EWC with the Fisher information of what the untouched model wrote in a run's records."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from radistill import penalties
from radistill.errors import ConfigError
from radistill.losses import ORIGINS
from radistill.methods.ewc import EWC
from radistill.packing import Row
from radistill.penalties import Pull, Sample
from test_penalties import a_start, tiny


def a_row(ids: list[int], origins: str) -> Row:
    """A row; p is a prompt, r a reference, a a rationale, f free text. Prompts weigh nothing."""
    names = {"p": "prompt", "r": "reference", "a": "rationale", "f": "free"}
    at_T = np.array([ORIGINS.index(names[o]) for o in origins], dtype=np.int8)
    weights_T = np.array([float(o != "p") for o in origins], dtype=np.float32)
    weights_T[0] = 0.0
    return Row(np.array(ids, dtype=np.int32), weights_T, at_T, at_T, np.zeros(len(ids), dtype=np.int8))


ROWS = (a_row([5, 6, 7, 8, 9], "pprra"), a_row([5, 3, 4], "prr"), a_row([7, 11, 12], "fff"))


def test_samples_of_the_records_are_what_the_untouched_model_wrote_in_them() -> None:
    found = penalties.written_in(ROWS, count=9, seed=0)
    assert sorted((sample.ids, sample.written) for sample in found) == [([5, 6, 7, 8, 9], [4]), ([7, 11, 12], [1, 2])]
    assert penalties.written_in(ROWS, count=1, seed=0) == found[:1]
    orders = {tuple(tuple(s.ids) for s in penalties.written_in(ROWS, count=2, seed=seed)) for seed in range(9)}
    assert len(orders) == 2


def test_ewc_weighs_the_changes_with_the_fisher_of_the_records(tiny_model: Path) -> None:
    model = tiny(tiny_model).train()
    start = replace(a_start(model, seed=4), rows=ROWS)
    found = EWC(samples_of="records", normalise=False).penalty(start)
    assert isinstance(found, Pull)
    assert model.training
    assert found.tokens == 8
    samples = [Sample([5, 6, 7, 8, 9], [4]), Sample([7, 11, 12], [1, 2])]
    expected = penalties.fisher(model.eval(), [c.weight for c in found.changes], samples)
    for one, same in zip(found.importances, expected, strict=True):
        assert torch.allclose(one, same, rtol=1e-5, atol=1e-12)
    with pytest.raises(ConfigError, match="wrote nothing beside the references"):
        EWC(samples_of="records").penalty(replace(start, rows=ROWS[1:2]))
