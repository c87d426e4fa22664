"""The rivals of `train.py`, of which one is run in a process: `python _train_rivals.py JOB.json`.

The last line that is printed holds the numbers as JSON. LLaMA-Factory and axolotl are run by the Python of their own
environment, which needs no radistill. What TRL is set to stands in TRL, and the way it was found in `train.py`.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from _train_meter import IGNORED, Meter, rows_of, watched

TRL: dict[str, dict[str, Any]] = {
    "default": {},
    "packing": {"packing": True},
    "padded": {"gradient_checkpointing": False},
    "grouped": {"gradient_checkpointing": False, "train_sampling_strategy": "group_by_length"},
    "flat": {"gradient_checkpointing": False, "padding_free": True, "max_length": None},
    "flat_1x8": {
        "gradient_checkpointing": False,
        "padding_free": True,
        "max_length": None,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 8,
    },
    "flat_2x4": {
        "gradient_checkpointing": False,
        "padding_free": True,
        "max_length": None,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 4,
    },
    "packed_1xN": {"gradient_checkpointing": False, "packing": True},
}
"""What is set beside what decides over the result, which is the same for all: `default` as it comes; `packing` with
that switched on; the others are what was tried to make it fast."""
OTHER_ORDER = ("packing", "grouped", "packed_1xN")
"""Those whose steps are of other records than radistill's."""
BEST = {"pocket": "flat_2x4", "125m": "flat_1x8", "1.1b": "flat", "7b": "flat"}
"""The fastest for each size. Pocket's was found with `train.py --try-trl` (by seconds that the process had computed, on
shared cores); the others have still to be found in this way."""


def radistill(job: Mapping[str, Any], meter: Meter) -> None:
    """The stage `train` of a run whose records are there, at its defaults."""
    from radistill import micro_batches, packing_probe, recorder, sharding, trainer, training_setup, watchdogs
    from radistill.config import config_from
    from radistill.records import StageRecord
    from radistill.runs import RunFolder
    from radistill.train import train

    # Opened now, so that they are not counted as training's memory.
    del micro_batches, packing_probe, recorder, sharding, trainer, training_setup, watchdogs
    run = RunFolder(Path(job["output_dir"]))
    run.path.mkdir(parents=True)
    os.link(Path(job["records"]) / f"records.{job['labels']}.parquet", run.records)
    run.put_stage(StageRecord(stage="assemble", status="finished", settings={}))
    settings = {
        "learning_rate": job["learning_rate"],
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "logging_steps": job["logging_steps"],
        "labels": job["labels"],
    }
    config = config_from(
        {
            "name": "benchmark",
            "model": job["model"],
            "output_dir": str(run.path),
            "data": {"train": {"path": job["records"]}},  # which the records are made of already
            "train": {**settings, **({} if job["lora"] else {"lora": None})},
        }
    )
    assert config.train.per_device_train_batch_size == job["batch"], "the default is what is measured"
    meter.imported()
    train(config, run)


def trl(job: Mapping[str, Any], meter: Meter) -> None:
    """TRL's SFTTrainer on the same ids and labels."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    rows = rows_of(Path(job["rows"]))
    setting = dict(TRL[job["setting"]])
    if setting.get("packing"):
        # So many rows of 1,024 ids as hold about the tokens of the others' step, one by one where speed is the aim.
        in_a_step = max(1, round(job["tokens"] / 1024 / job["steps"]))
        one_by_one = job["setting"] == "packed_1xN"
        setting["per_device_train_batch_size"] = 1 if one_by_one else in_a_step
        setting["gradient_accumulation_steps"] = in_a_step if one_by_one else 1
    if job["lora"] and job["setting"] not in ("default", "packing"):
        setting["model_init_kwargs"] = {"dtype": "bfloat16"}
    args = SFTConfig(
        output_dir=job["output_dir"],
        **{"per_device_train_batch_size": job["batch"], **setting},
        num_train_epochs=1,
        learning_rate=job["learning_rate"],
        lr_scheduler_type="constant",
        logging_steps=job["logging_steps"],
        data_seed=job["data_seed"],
        report_to="none",
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
    )
    meter.imported()
    trainer = SFTTrainer(
        model=job["model"],
        args=args,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(job["model"]),
        peft_config=LoraConfig(**job["lora"]) if job["lora"] else None,
    )
    trainer.train()
    trainer.save_model()
    meter.trained = sum(label != IGNORED for row in trainer.train_dataset for label in row["labels"][1:])


def bare_padded(job: Mapping[str, Any], meter: Meter) -> None:
    """See `_train_bare.padded`."""
    from _train_bare import padded

    padded(job, meter)


def bare(job: Mapping[str, Any], meter: Meter) -> None:
    """See `_train_bare.packed`."""
    from _train_bare import packed

    packed(job, meter)


def llamafactory(job: Mapping[str, Any], meter: Meter) -> None:
    """LLaMA-Factory on ready ids, with its own packing that keeps records apart."""
    from datasets import Dataset, DatasetDict
    from llamafactory.train.tuner import run_exp

    ready = Path(job["output_dir"]) / "ready"
    rows = [{**row, "attention_mask": [1] * len(row["input_ids"])} for row in rows_of(Path(job["rows"]))]
    DatasetDict({"train": Dataset.from_list(rows)}).save_to_disk(str(ready))
    lora = job["lora"] or {}
    meter.imported()
    run_exp(
        {
            "model_name_or_path": job["model"],
            "stage": "sft",
            "do_train": True,
            "finetuning_type": "lora" if lora else "full",
            **(
                {"lora_rank": lora["r"], "lora_alpha": lora["lora_alpha"], "lora_dropout": lora["lora_dropout"]}
                if lora
                else {}
            ),
            "dataset": "ready",
            "tokenized_path": str(ready),
            "template": "empty",
            "cutoff_len": 1024,
            "output_dir": f"{job['output_dir']}/model",
            "per_device_train_batch_size": job["batch"],
            "num_train_epochs": 1,
            "learning_rate": job["learning_rate"],
            "lr_scheduler_type": "constant",
            "bf16": True,
            "logging_steps": job["logging_steps"],
            "data_seed": job["data_seed"],
            "report_to": "none",
        }
    )
    meter.trained = sum(label != IGNORED for row in rows for label in row["labels"][1:])


def axolotl(job: Mapping[str, Any], meter: Meter) -> None:
    """Axolotl on ready ids, with sample packing."""
    import yaml
    from axolotl.cli.train import do_cli

    lora = job["lora"] or {}
    rows = [{**row, "attention_mask": [1] * len(row["input_ids"])} for row in rows_of(Path(job["rows"]))]
    place = Path(job["output_dir"])
    place.mkdir(parents=True, exist_ok=True)
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    settings = {
        "base_model": job["model"],
        "datasets": [{"path": str(place / "rows.jsonl"), "ds_type": "json", "type": None}],
        "dataset_prepared_path": str(place / "prepared"),
        "sequence_len": 1024,
        "sample_packing": True,
        "micro_batch_size": max(1, round(job["tokens"] / 1024 / job["steps"])),
        "gradient_accumulation_steps": 1,
        "num_epochs": 1,
        "optimizer": "adamw_torch_fused",
        "learning_rate": job["learning_rate"],
        "lr_scheduler": "constant",
        "bf16": "auto",
        "logging_steps": job["logging_steps"],
        "output_dir": f"{job['output_dir']}/model",
    }
    if lora:
        settings |= {
            "adapter": "lora",
            "lora_r": lora["r"],
            "lora_alpha": lora["lora_alpha"],
            "lora_dropout": lora["lora_dropout"],
            "lora_target_linear": True,
        }
    (place / "config.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    meter.imported()
    do_cli(config=str(place / "config.yaml"))
    meter.trained = sum(label != IGNORED for row in rows for label in row["labels"][1:])


RUN: dict[str, Callable[[Mapping[str, Any], Meter], None]] = {
    "radistill": radistill,
    "trl": trl,
    "bare_padded": bare_padded,
    "bare": bare,
    "llamafactory": llamafactory,
    "axolotl": axolotl,
}


def main() -> None:
    """Run one and print what was found."""
    import torch

    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    meter = Meter(job)
    with redirect_stdout(sys.stderr), watched(meter):
        RUN[job["rival"]](job, meter)
    found = {**meter.found(), "threads": torch.get_num_threads(), "ended_at": time.time()}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
