"""A small training by on-policy SDFT before its first step, for tests."""

from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from fixtures_chat import example
from radistill import models
from radistill.chat import Chat, ChatSettings, load_chat
from radistill.methods.sdft_onpolicy import OnPolicySDFT
from radistill.packing import Collator, Row
from radistill.records import Example
from radistill.rollouts import OnPolicy
from radistill.stage_settings import LoraSettings
from radistill.trainer import Extras, Rows, SegmentTrainer
from radistill.training_parts import Reference, Start

BLIND = "{prompt}"
"""A teacher's template that shows nothing more than the student sees; no run may have it."""


@dataclass
class Setting:
    """A training before its first step, with the extras of the method."""

    model: Any
    rows: Rows
    start: Start
    extras: Extras
    chat: Chat
    examples: list[Example]

    @property
    def rollout(self) -> OnPolicy:
        """What writes."""
        assert isinstance(self.extras.rollout, OnPolicy)
        return self.extras.rollout

    def trainer(self, out: Path, **arguments: Any) -> SegmentTrainer:
        """The loop over it."""
        settings: dict[str, Any] = {"report_to": "none", "use_cpu": True, "disable_tqdm": True, "label_names": []}
        settings |= {"save_strategy": "no", "remove_unused_columns": False, "seed": 3, **arguments}
        return SegmentTrainer(
            weighting="tokens",
            extras=self.extras,
            model=self.model,
            args=TrainingArguments(output_dir=str(out), **settings),
            train_dataset=self.rows,
            data_collator=self.start.collate,
        )


def setting(
    folder: Path, *, lora: bool = False, double: bool = False, packing: bool = True, seed: int = 0, **fields: Any
) -> Setting:
    """Six examples of differing lengths on the tiny model."""
    weights = models.resolve(str(folder))
    chat = load_chat(folder, ChatSettings())
    words = [
        "Das Haus ist alt.",
        "Der Hund sieht den alten Baum.",
        "Ja.",
        "Die Frau liebt das kleine Buch.",
        "Gut.",
        "a",
    ]
    examples = [example(f"It is {word}", f"Translate: {word}") for word in words]
    method = OnPolicySDFT.model_construct(**{**OnPolicySDFT().model_dump(), "max_new_tokens": 6, **fields})
    rows = Rows([Row.of(record) for e in examples for record in method.assemble(e, chat, ())])
    model = models.load(weights, dtype="float32", attention="sdpa")
    if lora:
        model = models.adapt(model, LoraSettings(r=4, dropout=0.0), base_name=str(folder), seed=0)
        reference = Reference(model, is_adapter=True)
    else:
        model = model.double() if double else model
        reference = Reference(deepcopy(model).requires_grad_(False), is_adapter=False)
    collate = Collator(chat.end_id, packing)
    start = Start(model, rows.rows, reference, collate, chat, seed, lambda: {e.id: e for e in examples}, weights)
    extras = Extras(reference=reference, rollout=method.rollout(start))
    return Setting(model, rows, start, extras, chat, examples)


def shaken(model: torch.nn.Module) -> None:
    """Move what is trained, so that model and untouched model differ."""
    noise = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=noise, dtype=parameter.dtype), alpha=0.1)


def answers_in(batch: dict[str, torch.Tensor]) -> list[int]:
    return batch["targets_N"].tolist()
