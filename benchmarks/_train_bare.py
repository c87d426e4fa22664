"""Training without a trainer: as in research code, and as fast as it goes when written by hand for this one case.

`packed` is the limit that `vs_bare` measures against: whole records packed into rows as long as the longest of them,
kept apart by their position ids (no mask, no cache), the output head only where something is trained, AdamW fused.
Both compute in bfloat16 (autocast) on float32 weights; with LoRA the frozen weights are bfloat16, as radistill's.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from _train_meter import IGNORED, Meter, rows_of

Row = Mapping[str, list[int]]


def load(job: Mapping[str, Any]) -> Any:
    """The model on its device, in training mode."""
    from transformers import AutoModelForCausalLM

    dtype = torch.bfloat16 if job["lora"] else torch.float32
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=dtype)
    if job["lora"]:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(**job["lora"]))
    return model.to("cuda" if torch.cuda.is_available() else "cpu").train()


def batches(job: Mapping[str, Any]) -> Iterator[list[Row]]:
    """The records in the order in which transformers' Trainer takes them with that data_seed."""
    rows = rows_of(Path(job["rows"]))
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(job["data_seed"])).tolist()
    for start in range(0, len(rows), job["batch"]):
        yield [rows[i] for i in order[start : start + job["batch"]]]


def train(job: Mapping[str, Any], meter: Meter, loss_of: Callable[..., torch.Tensor], *, fused: bool) -> None:
    """One pass."""
    torch.manual_seed(0)
    meter.imported()
    model = load(job)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=job["learning_rate"], weight_decay=0.0, fused=fused)
    device = next(model.parameters()).device
    meter.begin(model)
    tokens = 0
    for step, rows in enumerate(batches(job), 1):
        with torch.autocast(device.type, dtype=torch.bfloat16):
            loss = loss_of(model, rows, job["pad_id"], device)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        meter.step()
        tokens += sum(len(row["input_ids"]) for row in rows)
        if step % job["logging_steps"] == 0 or step == job["steps"]:
            loss.item()
            meter.mark(step, tokens)
    meter.trained = sum(label != IGNORED for rows in batches(job) for row in rows for label in row["labels"][1:])
    model.save_pretrained(job["output_dir"])
    meter.end(model)


def padded_loss(model: Any, rows: Sequence[Row], pad_id: int, device: torch.device) -> torch.Tensor:
    """The model's own loss on a padded batch."""
    longest = max(len(row["input_ids"]) for row in rows)
    lacking = [longest - len(row["input_ids"]) for row in rows]
    ids = [row["input_ids"] + [pad_id] * n for row, n in zip(rows, lacking, strict=True)]
    labels = [row["labels"] + [IGNORED] * n for row, n in zip(rows, lacking, strict=True)]
    mask = [[1] * len(row["input_ids"]) + [0] * n for row, n in zip(rows, lacking, strict=True)]
    batch = (torch.tensor(values, device=device) for values in (ids, mask, labels))
    loss: torch.Tensor = model(**dict(zip(("input_ids", "attention_mask", "labels"), batch, strict=True))).loss
    return loss


def packed_loss(model: Any, rows: Sequence[Row], pad_id: int, device: torch.device) -> torch.Tensor:
    """The same from several short rows of whole records, first fit, longest first."""
    width = max(len(row["input_ids"]) for row in rows)
    lines: list[list[Row]] = []
    for row in sorted(rows, key=lambda row: -len(row["input_ids"])):
        fitting = (at for at in lines if sum(len(r["input_ids"]) for r in at) + len(row["input_ids"]) <= width)
        line = next(fitting, None)
        if line is None:
            lines.append([row])
        else:
            line.append(row)
    ids = torch.full((len(lines), width), pad_id)
    positions, targets = torch.zeros_like(ids), torch.full_like(ids, IGNORED)
    for n, line in enumerate(lines):
        at = 0
        for row in line:
            to = at + len(row["input_ids"])
            ids[n, at:to], positions[n, at:to] = torch.tensor(row["input_ids"]), torch.arange(to - at)
            targets[n, at : to - 1] = torch.tensor(row["labels"][1:])
            at = to
    places = (targets.flatten() != IGNORED).nonzero().flatten().to(device)
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    out = causal.base_model(input_ids=ids.to(device), position_ids=positions.to(device), use_cache=False)
    hidden = out.last_hidden_state.flatten(0, 1)[places]
    return F.cross_entropy(causal.lm_head(hidden).float(), targets.flatten().to(device)[places])


def padded(job: Mapping[str, Any], meter: Meter) -> None:
    """As in research code."""
    train(job, meter, padded_loss, fused=False)


def packed(job: Mapping[str, Any], meter: Meter) -> None:
    """By hand."""
    train(job, meter, packed_loss, fused=True)
