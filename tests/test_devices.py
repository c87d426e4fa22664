"""How many processes train, on what, and what of that is a setting of what is learned."""

import importlib.util
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from radistill import devices, ranks, sharding
from radistill.check import check
from radistill.config import config_from
from radistill.errors import ConfigError, MissingPackageError, RadistillError, RunFolderError
from radistill.global_batch import real_rows
from radistill.stage_settings import TrainSettings

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS")


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No launcher; what a test says of one is forgotten after it."""
    for name in NAMES:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def settings(**train: Any) -> TrainSettings:
    return TrainSettings.model_validate(train)


@pytest.mark.parametrize("processes", [1, 2, 3, 4])
@pytest.mark.parametrize("rows", range(1, 26))
def test_of_the_last_batch_every_row_is_counted_once(rows: int, processes: int) -> None:
    """Accelerate deals rows out in turns; what is real of its last turn must be what is left of the epoch."""
    from accelerate.data_loader import BatchSamplerShard
    from torch.utils.data import BatchSampler, SequentialSampler

    seen = []
    for rank in range(processes):
        shard = BatchSamplerShard(BatchSampler(SequentialSampler(range(rows)), 2, False), processes, rank)
        *full, last = list(shard)
        seen += [row for batch in full for row in batch]
        seen += last[: real_rows(rows, per_device=2, rank=rank, processes=processes)]
    assert sorted(seen) == list(range(rows))


def test_equal_global_batches_are_equal_settings() -> None:
    one = devices.learned(settings(per_device_train_batch_size=8))
    assert one == devices.learned(settings(per_device_train_batch_size=4, devices=2))
    assert one == devices.learned(settings(per_device_train_batch_size=2, devices=4, parallel="fsdp2"))
    assert one != devices.learned(settings(per_device_train_batch_size=8, devices=2))


def test_a_launcher_decides_how_many_train(monkeypatch: pytest.MonkeyPatch) -> None:
    assert devices.launches(settings(devices=2))
    assert not devices.launches(settings())
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert devices.count(settings()) == 4
    assert not devices.launches(settings(devices=4))
    with pytest.raises(ConfigError, match=r"asks for 2, but a launcher started 4 .*train.devices=null"):
        devices.count(settings(devices=2))


def test_check_counts_the_rows_of_all_devices(raw_config: dict[str, Any]) -> None:
    raw_config["train"] |= {"max_steps": 5, "devices": 3}
    assert check(config_from(raw_config)).facts["cost"]["training_rows"] == 5 * 4 * 3


def test_tasks_of_slurm_are_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "123456"}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert devices.count(settings()) == 4
    assert (ranks.rank(), os.environ["LOCAL_RANK"], os.environ["MASTER_ADDR"]) == (3, "1", "127.0.0.1")
    assert os.environ["MASTER_PORT"] == "23456"


def test_a_batch_script_of_slurm_is_no_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setenv("SLURM_NTASKS", "4")
    assert devices.count(settings()) == 1


def test_tasks_on_several_machines_must_know_where_to_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_NUM_NODES": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="export MASTER_ADDR="):
        devices.count(settings())


@pytest.mark.parametrize("parallel", ["fsdp2", "zero2", "zero3"])
def test_there_is_nothing_to_divide_among_one_device(raw_config: dict[str, Any], parallel: str) -> None:
    raw_config["train"] |= {"parallel": parallel}
    with pytest.raises(ConfigError, match=f"train.parallel: {parallel} divides .* here is one"):
        devices.refuse_unusable_devices(config_from(raw_config))


def test_zero_without_deepspeed_says_how_to_get_it(raw_config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    raw_config["train"] |= {"parallel": "zero3", "devices": 2}
    with pytest.raises(MissingPackageError, match=r"pip install 'radistill\[deepspeed\]'.*fsdp2"):
        devices.refuse_unusable_devices(config_from(raw_config))


def test_a_method_that_writes_needs_whole_weights(raw_config: dict[str, Any]) -> None:
    raw_config["method"] = {"name": "sdft_onpolicy"}
    raw_config["train"] |= {"parallel": "fsdp2", "devices": 2}
    with pytest.raises(ConfigError, match="lets the model in training write, which fsdp2"):
        devices.refuse_unusable_devices(config_from(raw_config))
    raw_config["train"] |= {"parallel": "ddp"}
    devices.refuse_unusable_devices(config_from(raw_config))


def test_a_penalty_on_weights_needs_whole_weights() -> None:
    devices.refuse_unusable_penalty(settings(parallel="fsdp2"), reads_weights=False)
    devices.refuse_unusable_penalty(settings(parallel="zero2"), reads_weights=True)
    with pytest.raises(ConfigError, match="with zero3 no process has"):
        devices.refuse_unusable_penalty(settings(parallel="zero3"), reads_weights=True)


@pytest.mark.parametrize(
    ("files", "parallel", "processes", "said"),
    [
        (("pytorch_model_fsdp_0/a",), "ddp", 2, "was written by fsdp2, and ddp cannot"),
        (("optimizer.pt",), "fsdp2", 2, "was written by ddp, and fsdp2 cannot"),
        (("global_step3/mp_rank_00_model_states.pt",), "zero3", 0, "was written by zero2"),
        (
            ("global_step3/zero_pp_rank_0_mp_rank_00_model_states.pt", "global_step3/a_optim_states.pt"),
            "zero3",
            2,
            "was written by 1 processes, and DeepSpeed",
        ),
        (("pytorch_model_fsdp_0/a",), "fsdp2", 3, None),
        (("optimizer.pt",), "ddp", 3, None),
    ],
)
def test_an_engine_says_which_checkpoints_it_cannot_read(
    tmp_path: Path, files: tuple[str, ...], parallel: Any, processes: int, said: str | None
) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    sharding.refuse_foreign_checkpoint(None, settings(parallel=parallel), processes)
    if said is None:
        sharding.refuse_foreign_checkpoint(tmp_path, settings(parallel=parallel), processes)
        return
    with pytest.raises(RunFolderError, match=said):
        sharding.refuse_foreign_checkpoint(tmp_path, settings(parallel=parallel), processes)


@pytest.mark.parametrize(("world", "said"), [(1, "every process would hold all weights"), (2, "transformers counts 2")])
def test_sharding_that_is_not_there_stops_the_training(world: int, said: str) -> None:
    """What accelerate does on a CPU, without a word: FSDP is DDP there."""
    trainer = SimpleNamespace(
        model=torch.nn.Linear(4, 4),
        model_wrapped=torch.nn.Linear(4, 4),
        is_deepspeed_enabled=False,
        args=SimpleNamespace(world_size=world),
    )
    with pytest.raises(RadistillError, match=said):
        sharding.Engine(trainer, settings(parallel="fsdp2")).on_train_begin()


def test_what_is_divided_cannot_be_judged(raw_config: dict[str, Any]) -> None:
    raw_config["train"] |= {"devices": 2, "eval_steps": 2, "metric_for_best_model": "skill", "parallel": "fsdp2"}
    with pytest.raises(ConfigError, match=r"train.eval_steps: with fsdp2 .* Set train.parallel=ddp"):
        devices.refuse_unusable_devices(config_from(raw_config))
    raw_config["train"]["parallel"] = "ddp"
    devices.refuse_unusable_devices(config_from(raw_config))
