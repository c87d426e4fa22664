"""The training loop: equal whatever the batch is cut into, wherever it is interrupted."""

import json
import math
import os
import signal
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainingArguments

from radistill import files, models, pipeline, tables
from radistill.config import RunConfig, config_from
from radistill.errors import ConfigError, ModelError, RadistillError
from radistill.packing import Collator, Row
from radistill.pipeline import Interrupted
from radistill.records import Segment, TrainingRecord
from radistill.runs import RunFolder
from radistill.train import last_checkpoint
from radistill.trainer import Rows, SegmentTrainer
from radistill.training_arguments import arguments


def some_rows(count: int) -> list[Row]:
    """Rows with prompt, reference, separator, rationale and end, of differing lengths and weights."""
    rng = torch.Generator().manual_seed(5)
    rows = []
    for i in range(count):
        r, w = 2 + i % 5, 1 + (3 * i) % 7
        size = 3 + r + 1 + w + 1
        ids = torch.randint(5, 300, (size,), generator=rng).tolist()
        cuts = [0, 3, 3 + r, 4 + r, 4 + r + w, size]
        origins = ("prompt", "reference", "separator", "rationale", "end")
        weights = (0.0, 1.0, 0.5, 0.5, 0.5)
        segments = tuple(
            Segment(o, a, b, x)  # type: ignore[arg-type]
            for o, a, b, x in zip(origins, cuts, cuts[1:], weights, strict=False)
        )
        record = TrainingRecord(
            id=str(i), example_id=None, token_ids=tuple(ids), segments=segments, texts=("",) * len(segments)
        )
        rows.append(Row.of(record))
    return rows


def weights_after(
    folder: Path,
    out: Path,
    *,
    batch: int,
    accumulation: int,
    optim: str,
    double: bool,
    weighting: Any = "tokens",
    rows: Sequence[Row] = (),
    packing: bool = True,
) -> torch.Tensor:
    model = models.load(models.resolve(str(folder)), dtype="float32", attention="sdpa")
    if double:
        model = model.double()
    settings = TrainingArguments(
        output_dir=str(out),
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        max_steps=10,
        learning_rate=0.05 if optim == "sgd" else 1e-3,
        optim=optim,
        lr_scheduler_type="constant",
        seed=3,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
        remove_unused_columns=False,
        label_names=[],
    )
    trainer = SegmentTrainer(
        weighting=weighting,
        model=model,
        args=settings,
        train_dataset=Rows(list(rows) or some_rows(40)),
        data_collator=Collator(pad_id=0, packing=packing),
    )
    trainer.train()
    return torch.cat([p.detach().double().flatten() for p in model.parameters()])


@pytest.mark.parametrize("weighting", ["tokens", "segments"])
@pytest.mark.parametrize(("optim", "double", "tolerance"), [("sgd", False, 1e-6), ("adamw_torch", True, 1e-9)])
def test_a_batch_of_four_equals_four_accumulated_batches_of_one(
    tiny_model: Path, tmp_path: Path, weighting: str, optim: str, double: bool, tolerance: float
) -> None:
    run: dict[str, Any] = {"optim": optim, "double": double, "weighting": weighting}
    whole = weights_after(tiny_model, tmp_path, batch=4, accumulation=1, **run)
    parts = weights_after(tiny_model, tmp_path, batch=1, accumulation=4, **run)
    start = weights_after(tiny_model, tmp_path, batch=4, accumulation=1, **{**run, "optim": "sgd"}, rows=some_rows(4))
    assert (whole - parts).abs().max().item() < tolerance
    assert (whole - start).abs().max().item() > 1e-4, "the weights hardly moved, so the test would say nothing"


def test_a_packed_training_equals_a_padded_one(tiny_model: Path, tmp_path: Path) -> None:
    run: dict[str, Any] = {"batch": 4, "accumulation": 2, "optim": "adamw_torch", "double": True}
    packed = weights_after(tiny_model, tmp_path, **run, packing=True)
    padded = weights_after(tiny_model, tmp_path, **run, packing=False)
    assert (packed - padded).abs().max().item() < 1e-9


def test_the_loss_with_all_weights_one_is_that_of_a_plain_causal_lm(tiny_model: Path, tmp_path: Path) -> None:
    """The same number as transformers' own Trainer on input_ids and labels."""
    rows = some_rows(8)
    for row in rows:
        row.weights_T[3:] = 1.0
    model = models.load(models.resolve(str(tiny_model)), dtype="float32", attention="sdpa")
    batch = Collator(pad_id=0, packing=False)(rows)
    ours = SegmentTrainer(
        weighting="tokens",
        model=model,
        args=TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none", label_names=[]),
        data_collator=Collator(pad_id=0),
    ).compute_loss(model, batch)
    width = max(len(r) for r in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    labels = torch.full((len(rows), width), -100)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.from_numpy(row.ids_T.astype("int64"))
        labels[i, 3 : len(row)] = ids[i, 3 : len(row)]
        mask[i, : len(row)] = 1
    theirs = Trainer(
        model=model, args=TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    ).compute_loss(model, {"input_ids": ids, "labels": labels, "attention_mask": mask})
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)


def prepared(raw: dict[str, Any], **train: Any) -> RunConfig:
    config = config_from({**raw, "train": {**raw["train"], **train}})
    pipeline.run(config, stages=("generate", "assemble"))
    return config


def log_of(config: RunConfig) -> list[dict[str, Any]]:
    return list(tables.read_jsonl(RunFolder(Path(config.output_dir)).train_log))


def without_speed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k != "tokens_per_second"} for row in rows]


@pytest.mark.parametrize("lora", [None, {"r": 4, "dropout": 0.1}])
def test_a_resumed_training_has_the_losses_and_weights_of_an_uninterrupted_one(
    raw_config: dict[str, Any], tmp_path: Path, lora: dict[str, Any] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"lora": lora, "num_train_epochs": 2, "gradient_accumulation_steps": 2}
    quiet = prepared({**raw_config, "output_dir": str(tmp_path / "quiet")}, **settings)
    pipeline.run(quiet, stages=("train",))
    torn = prepared({**raw_config, "output_dir": str(tmp_path / "torn")}, **settings)
    interrupt_at(monkeypatch, step=4)
    with pytest.raises(Interrupted, match="interrupted in the stage `train`"):
        pipeline.run(torn, stages=("train",))
    monkeypatch.undo()
    saved = last_checkpoint(RunFolder(Path(torn.output_dir)).model)
    assert saved is not None
    assert saved.name == "checkpoint-4"
    assert [row["step"] for row in log_of(torn)] == [1, 2, 3, 4]
    pipeline.run(torn, stages=("train",))
    assert len(log_of(quiet)) == 6
    assert without_speed(log_of(torn)) == without_speed(log_of(quiet))
    assert weights_of(quiet) == weights_of(torn)


def interrupt_at(monkeypatch: pytest.MonkeyPatch, *, step: int) -> None:
    """Press Ctrl-C while that step is being worked on."""
    compute = SegmentTrainer.compute_loss
    pressed: list[int] = []

    def pressing(self: SegmentTrainer, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == step - 1 and not pressed:
            pressed.append(1)
            os.kill(os.getpid(), signal.SIGINT)
        return compute(self, *args, **kwargs)

    monkeypatch.setattr(SegmentTrainer, "compute_loss", pressing)


def weights_of(config: RunConfig) -> dict[str, str]:
    folder = RunFolder(Path(config.output_dir)).model
    return {p.name: files.sha256(p) for p in sorted(folder.glob("*.safetensors"))}


def test_signals_are_handled_only_while_training(raw_config: dict[str, Any]) -> None:
    before = signal.getsignal(signal.SIGINT)
    pipeline.run(prepared(raw_config, max_steps=1), stages=("train",))
    assert signal.getsignal(signal.SIGINT) is before
    assert threading.current_thread() is threading.main_thread()


def test_a_checkpoint_that_was_torn_while_saving_is_passed_over(tmp_path: Path) -> None:
    for step, state in ((5, '{"global_step": 5}'), (10, '{"global_st')):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "trainer_state.json").write_text(state, encoding="utf-8")
    (tmp_path / "checkpoint-15").mkdir()
    found = last_checkpoint(tmp_path)
    assert found is not None
    assert found.name == "checkpoint-5"


def test_the_log_holds_the_loss_of_every_origin_and_the_tokens_so_far(raw_config: dict[str, Any]) -> None:
    config = prepared(raw_config)
    pipeline.run(config, stages=("train",))
    rows = log_of(config)
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    assert {"loss/reference", "loss/rationale", "loss/separator", "learning_rate", "grad_norm"} <= rows[0].keys()
    record = RunFolder(Path(config.output_dir)).stages()["train"]
    assert rows[-1]["tokens"] == record.facts["tokens_processed"]
    summary = json.loads(RunFolder(Path(config.output_dir)).summary.read_text(encoding="utf-8"))
    assert record.facts["tokens_trained"] == sum(summary["trained_tokens"].values())
    assert record.facts["tokens_processed"] == sum(summary["tokens"].values())


def test_a_random_model_starts_at_the_loss_of_guessing(raw_config: dict[str, Any]) -> None:
    config = prepared(raw_config, max_steps=1)
    pipeline.run(config, stages=("train",))
    size = json.loads((Path(config.model) / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    assert log_of(config)[0]["loss"] == pytest.approx(math.log(size), abs=0.25)


def test_rationale_weight_zero_trains_the_references_alone(raw_config: dict[str, Any]) -> None:
    config = prepared({**raw_config, "method": {"name": "radis", "rationale_weight": 0.0}}, max_steps=1)
    pipeline.run(config, stages=("train",))
    row = log_of(config)[0]
    assert "loss/reference" in row
    assert "loss/rationale" not in row


def test_lora_saves_an_adapter_that_peft_loads_and_that_names_its_base(raw_config: dict[str, Any]) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    config = prepared(raw_config, lora={"r": 4}, max_steps=2)
    pipeline.run(config, stages=("train",))
    folder = RunFolder(Path(config.output_dir)).model
    stored = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    assert Path(stored["base_model_name_or_path"]) == Path(config.model).resolve()
    assert not any("lm_head" in name for name in stored["target_modules"])
    base = AutoModelForCausalLM.from_pretrained(config.model)
    ids = torch.arange(5, 25).reshape(1, -1)
    before = base(input_ids=ids).logits
    tuned = PeftModel.from_pretrained(base, str(folder))
    assert (tuned(input_ids=ids).logits - before).abs().max() > 0
    assert AutoTokenizer.from_pretrained(str(folder)).chat_template
    assert not list(folder.glob("*.bin"))


def test_full_fine_tuning_saves_a_folder_that_transformers_loads(raw_config: dict[str, Any]) -> None:
    from transformers import AutoModelForCausalLM

    config = prepared(raw_config, max_steps=2)
    pipeline.run(config, stages=("train",))
    folder = RunFolder(Path(config.output_dir)).model
    assert AutoModelForCausalLM.from_pretrained(str(folder)).generation_config.eos_token_id is not None
    assert weights_of(config) != {p.name: files.sha256(p) for p in Path(config.model).glob("*.safetensors")}


def test_bf16_keeps_trained_weights_in_float32(raw_config: dict[str, Any]) -> None:
    from safetensors import safe_open

    for name, lora in (("full", None), ("lora", {"r": 4})):
        config = prepared({**raw_config, "output_dir": f"{raw_config['output_dir']}-{name}"}, bf16=True, lora=lora)
        pipeline.run(config, stages=("train",))
        assert math.isfinite(log_of(config)[-1]["loss"])
        file = next(RunFolder(Path(config.output_dir)).model.glob("*.safetensors"))
        with safe_open(str(file), framework="pt") as stored:
            assert {stored.get_tensor(key).dtype for key in stored.keys()} == {torch.float32}  # noqa: SIM118


def test_gradient_checkpointing_changes_nothing_but_memory(raw_config: dict[str, Any], tmp_path: Path) -> None:
    for lora in (None, {"r": 4, "dropout": 0.0}):
        logs = []
        for on in (False, True):
            raw = {**raw_config, "output_dir": str(tmp_path / f"{on}-{lora is None}")}
            config = prepared(raw, gradient_checkpointing=on, lora=lora, max_steps=3)
            pipeline.run(config, stages=("train",))
            logs.append([row["loss"] for row in log_of(config)])
        assert logs[0] == pytest.approx(logs[1], rel=1e-5)


def test_a_loss_that_is_no_number_stops_with_a_message(raw_config: dict[str, Any]) -> None:
    config = prepared(raw_config, learning_rate=1e30, max_grad_norm=1e30, num_train_epochs=2)
    with pytest.raises(RadistillError, match=r"is no number at step \d+.*Lower train.learning_rate.*spoilt"):
        pipeline.run(config, stages=("train",))


def test_unknown_names_for_transformers_are_one_message(raw_config: dict[str, Any]) -> None:
    schedule = prepared(raw_config, lr_scheduler_type="cosin")
    with pytest.raises(ConfigError, match=r"train: .*cosin"):
        pipeline.run(schedule, stages=("train",))
    raw = {**raw_config, "output_dir": raw_config["output_dir"] + "2"}
    modules = prepared(raw, lora={"target_modules": "q_prj"})
    with pytest.raises(ModelError, match=r"target_modules: .*'q_prj'.* is not in this model.*Did you mean 'q_proj'"):
        pipeline.run(modules, stages=("train",))


def test_the_same_config_trains_the_same_weights_and_another_seed_others(
    raw_config: dict[str, Any], tmp_path: Path
) -> None:
    found = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        config = prepared({**raw_config, "output_dir": str(tmp_path / name), "seed": seed}, max_steps=2)
        pipeline.run(config, stages=("train",))
        found.append(weights_of(config))
    assert found[0] == found[1] != found[2]


def test_names_that_transformers_refuses_are_found_before_anything_is_generated(raw_config: dict[str, Any]) -> None:
    for train, message in (
        ({"optim": "adamx"}, r"train: .*adamx"),
        ({"report_to": "wandbb"}, r"train.report_to: the tracker 'wandbb'"),
        ({"lora": {"target_modules": ["nothing"]}}, r"target_modules: \('nothing',\) is not in this model"),
    ):
        config = config_from({**raw_config, "train": {**raw_config["train"], **train}})
        with pytest.raises(RadistillError, match=message):
            pipeline.run(config)
        assert not RunFolder(Path(config.output_dir)).stages()


def test_a_run_without_tests_is_refused_before_anything_is_generated(raw_config: dict[str, Any]) -> None:
    del raw_config["data"]["test"]
    with pytest.raises(ConfigError, match=r"data\.test is missing"):
        pipeline.run(config_from(raw_config))


def test_a_full_fine_tune_is_saved_in_the_precision_of_its_base(
    raw_config: dict[str, Any], tiny_model: Path, tmp_path: Path
) -> None:
    from safetensors import safe_open
    from transformers import AutoModelForCausalLM, AutoTokenizer

    half = tmp_path / "half"
    AutoModelForCausalLM.from_pretrained(str(tiny_model), dtype="bfloat16").save_pretrained(str(half))
    AutoTokenizer.from_pretrained(str(tiny_model)).save_pretrained(str(half))
    config = prepared({**raw_config, "model": str(half)}, bf16=True, max_steps=2)
    pipeline.run(config, stages=("train",))
    folder = RunFolder(Path(config.output_dir)).model
    for file, dtype in (
        (folder / "model.safetensors", torch.bfloat16),
        (folder / "checkpoint-2" / "model.safetensors", torch.float32),
    ):
        with safe_open(str(file), framework="pt") as stored:
            assert {stored.get_tensor(key).dtype for key in stored.keys()} == {dtype}  # noqa: SIM118


def test_trackers_are_passed_on(raw_config: dict[str, Any], tmp_path: Path) -> None:
    for wanted, expected in (
        ("none", []),
        ("tensorboard", ["tensorboard"]),
        (["wandb", "mlflow"], ["wandb", "mlflow"]),
    ):
        config = config_from({**raw_config, "train": {**raw_config["train"], "report_to": wanted}})
        assert arguments(config, RunFolder(tmp_path), 1).report_to == expected
