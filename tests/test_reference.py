"""The untouched model beside the one in training."""

from pathlib import Path

import pytest
import torch

from fakes_on_policy import shaken
from radistill import models
from radistill.stage_settings import LoraSettings
from radistill.training_parts import Reference, logits_at


@pytest.mark.parametrize("kind", [{}, {"use_dora": True}, {"use_rslora": True}], ids=["lora", "dora", "rslora"])
def test_with_its_adapter_off_the_model_in_training_is_the_untouched_one_to_the_last_bit(
    tiny_model: Path, kind: dict[str, bool]
) -> None:
    untouched, base = (models.load(models.resolve(str(tiny_model)), dtype="float32", attention="sdpa") for _ in "ab")
    settings = LoraSettings.model_validate({"r": 4, "dropout": 0.1, **kind})
    tuned = models.adapt(base, settings, base_name=str(tiny_model), seed=0)
    shaken(tuned)
    tuned.train()
    ids = torch.randint(5, 40, (2, 24), generator=torch.Generator().manual_seed(1))
    positions, places = torch.arange(24).repeat(2, 1), torch.arange(3, 45)
    batch = {"input_ids": ids, "position_ids": positions, "n_tokens": torch.tensor(48)}
    said = Reference(tuned, is_adapter=True).beside(batch, places, torch.arange(len(places))).logits()
    with torch.no_grad():
        expected, own = (logits_at(model.eval(), ids, positions, places) for model in (untouched, tuned))
    assert torch.equal(said, expected)
    assert not torch.equal(own, expected), "the adapter changes nothing, so nothing was shown"
