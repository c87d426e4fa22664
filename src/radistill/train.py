"""Stage 3: records → a tuned model or adapter, in Hugging Face / PEFT layout."""

import json
import math
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from radistill import cards, lengths, models, seeds
from radistill.config import RunConfig, plugin_settings
from radistill.errors import DataError, ModelError, RadistillError, RunFolderError, writing_into
from radistill.files import write_text
from radistill.finished import finished_run
from radistill.lab import POCKET_NAME
from radistill.methods._composed import has, parts_of
from radistill.progress import progress, say
from radistill.records import StageRecord, digest
from radistill.runs import RunFolder, Stage, before_work, begin, require, working
from radistill.speaker import Speaker, untouched
from radistill.tables import read_jsonl, read_records, write_jsonl
from radistill.training_arguments import arguments, refuse_unusable_writing

if TYPE_CHECKING:
    from radistill.last_step import LastStep
    from radistill.trainer import Recorder, Rows, SegmentTrainer


HOOKS = ("token_weights", "penalty", "trains", "rollout", "share_of_end", "finished_run")
"""What a method may do in this stage."""
NOT_LEARNED = (
    "report_to", "save_steps", "save_total_limit", "gradient_checkpointing", "auto_find_batch_size", "watchdogs"
)  # fmt: skip
"""Settings that change nothing of what is learned."""


def train(config: RunConfig, run: RunFolder, *, redo: bool = False) -> StageRecord | None:
    """Fine-tune and save; continues from the last checkpoint. None if it was done before and nothing has changed.

    Raises:
        RunFolderError: there are no records yet.
        KeyboardInterrupt: after a checkpoint was saved, when Ctrl-C was pressed.
    """
    require(run, "assemble")
    refuse_unusable_writing(config)
    speaker = untouched(config)
    settings = {"model": speaker.weights.identity, "seed": config.seed, **config.train.model_dump(mode="json")}
    if own := [plugin_settings(part) for part in parts_of(config.method) if any(has(part, hook) for hook in HOOKS)]:
        settings["method"] = own  # what the other methods do stands in the records
    for name in NOT_LEARNED:
        del settings[name]
    del settings["on_long"]  # the records, which are an input, are what came of it
    if config.generate.refresh_every is not None:
        settings["refresh"] = _refreshing(config, speaker)
    source = config.method.finished_run()
    taken = finished_run(source, speaker) if source is not None else None
    stage = begin(run, "train", settings, [run.records, *(taken.files if taken else ())], redo=redo)
    if stage is None:
        return None
    with working(stage), writing_into(run.model):
        _claim(run, stage)
        if taken is not None:
            tuned, facts = taken.load(), taken.facts
            write_jsonl(run.train_log, ())
        else:
            trainer, recorder = _fit(config, run, speaker, stage)
            tuned, facts = trainer.accelerator.unwrap_model(trainer.model), _facts(trainer, recorder)
        is_adapter = taken.weights.adapter is not None if taken else config.train.lora is not None
        share = config.method.share_of_end()
        if share != 1.0:
            models.move_back(tuned, speaker.weights, share, is_adapter=is_adapter)
        if not is_adapter:
            # Checkpoints keep float32 to go on from; the result has the precision its users know the model in.
            tuned = tuned.to(models.stored_dtype(speaker.weights.folder))
        models.save(
            tuned,
            speaker.chat.tokenizer,
            run.model,
            generation_config=speaker.weights.folder / "generation_config.json",
        )
        write_text(run.model / "README.md", cards.of_run(config))
        stage.facts |= facts
        weights = sorted(run.model.glob("*.safetensors"))
        return stage.finish([*weights, run.train_log], device=models.device_name())


def _facts(trainer: "SegmentTrainer", recorder: "Recorder") -> dict[str, Any]:
    parameters = list(trainer.model.parameters())
    return {
        "steps": recorder.step,
        "per_device_train_batch_size": trainer.args.per_device_train_batch_size,
        "gradient_accumulation_steps": trainer.args.gradient_accumulation_steps,
        "tokens_processed": trainer.tokens_processed,
        "tokens_trained": trainer.tokens_trained,
        "tokens_reference": trainer.tokens_reference,
        "tokens_rolled_out": trainer.tokens_rolled_out,
        "tokens_prepared": getattr(trainer.extras.penalty, "tokens", 0),
        **(trainer.extras.refresh.facts if trainer.extras.refresh is not None else {}),
        "parameters": sum(p.numel() for p in parameters),
        "trainable": sum(p.numel() for p in parameters if p.requires_grad),
    }


def _fit(config: RunConfig, run: RunFolder, speaker: Speaker, stage: Stage) -> "tuple[SegmentTrainer, Recorder]":
    import torch

    from radistill.micro_batches import train_to_the_end
    from radistill.packing import Row
    from radistill.trainer import Recorder, Rows, stopping_on_signals

    rows = Rows([Row.of(record) for record in read_records(run.records)])
    if not len(rows):
        raise DataError(f"{run.records} holds no rows.")
    spread = lengths.Spread.of(
        [len(row) for row in rows.rows],
        batch_size=config.train.per_device_train_batch_size,
        packing=config.train.packing,
        seed=seeds.number(config.seed, "spread"),
    )
    say(f"train: {spread}")
    stage.facts |= spread.facts()
    checkpoint = last_checkpoint(run.model)
    steps = _steps(config, len(rows))
    torch.manual_seed(seeds.number(config.seed, "train") % (1 << 32))
    with progress("train", steps, unit="steps") as shown:
        done = _continue_log(run, checkpoint)
        recorder = Recorder(run.train_log, shown, start_step=done["step"])
        trainer, last = _trainer(config, speaker, stage, rows, steps, recorder)
        trainer.continue_counts(done)
        recorder.count_tokens = lambda: trainer.tokens_processed
        shown.advance(done["step"], before=True)
        with stopping_on_signals(recorder), models.without_bars(), _memory_is_a_message():
            train_to_the_end(trainer, last, checkpoint, find=config.train.auto_find_batch_size, said=say)
    if recorder.stop_requested and recorder.step < steps:
        raise KeyboardInterrupt
    return trainer, recorder


def _trainer(
    config: RunConfig, speaker: Speaker, stage: Stage, rows: "Rows", steps: int, recorder: "Recorder"
) -> "tuple[SegmentTrainer, LastStep]":
    """The loop, with a fresh model and all that the run adds; and what can save its last whole step."""
    from transformers import PrinterCallback

    from radistill.last_step import LastStep
    from radistill.micro_batches import Trial, refuse_sharded
    from radistill.packing import Collator
    from radistill.trainer import SegmentTrainer, refuse_contaminated_packing
    from radistill.training_setup import extras_of
    from radistill.watchdogs import Watchdog

    collate = Collator(pad_id=speaker.chat.end_id, packing=config.train.packing)
    with before_work(stage), _memory_is_a_message():
        model = _model(config, speaker)
        if config.train.packing:
            refuse_contaminated_packing(model, rows.rows, pad_id=speaker.chat.end_id)
        extras = extras_of(config, speaker, model, rows.rows, collate)
        if config.generate.refresh_every is not None:
            from radistill.refresh import Refresh

            # No paths: equal trainings in two folders write the same.
            name = digest(stage.settings, sorted(stage.inputs.values()))
            extras.refresh = Refresh.of(config, speaker, model, rows, training=name)
    last = LastStep()
    watchers: list[Any] = [Watchdog(last, is_strict=config.train.watchdogs), last]
    trainer = SegmentTrainer(
        weighting=config.train.weighting,
        extras=extras,
        model=model,
        args=arguments(config, stage.run, steps),
        train_dataset=rows,
        data_collator=collate,
        callbacks=[*watchers, recorder],
    )
    trainer.remove_callback(PrinterCallback)  # what it prints stands in train_log.jsonl
    if config.train.auto_find_batch_size:
        refuse_sharded(trainer)
        watchers.append(Trial(last))
        trainer.add_callback(watchers[-1])
    for watcher in watchers:
        watcher.trainer = trainer
    return trainer, last


def _refreshing(config: RunConfig, speaker: Speaker) -> dict[str, Any]:
    from radistill import refresh

    return refresh.settings(config, speaker)


@contextmanager
def _memory_is_a_message() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, RadistillError) or not models.is_out_of_memory(error):
            raise
        raise ModelError(
            "training does not fit into memory. Set train.auto_find_batch_size=true (smaller batches, more "
            "accumulation, the same loss) or train.gradient_checkpointing=true, and run the same command again."
        ) from error


def _model(config: RunConfig, speaker: Speaker) -> Any:
    """Frozen weights may be bf16; what is trained is float32, or small updates would be rounded away."""
    settings = config.train
    models.refuse_adapter(speaker.weights)
    half = settings.bf16 and settings.lora is not None
    model = models.load(
        speaker.weights,
        dtype="bfloat16" if half else "float32",
        attention=settings.attn_implementation or "sdpa",
        trust_remote_code=config.trust_remote_code,
    )
    if settings.lora is not None:
        if settings.gradient_checkpointing:
            model.enable_input_require_grads()
        # PEFT must find the base by this name: a hub id, or the folder.
        is_here = config.model == POCKET_NAME or Path(config.model).exists()
        base_name = str(speaker.weights.folder.resolve()) if is_here else config.model
        seed = seeds.number(config.seed, "lora") % (1 << 32)
        model = models.adapt(model, settings.lora, base_name=base_name, revision=config.revision, seed=seed)
    return model


def _steps(config: RunConfig, rows: int) -> int:
    """Optimizer steps of the whole training; a last, smaller batch counts as one."""
    import os

    if config.train.max_steps > 0:
        return config.train.max_steps
    world = int(os.environ.get("WORLD_SIZE", "1"))
    batches = math.ceil(rows / (config.train.per_device_train_batch_size * world))
    per_epoch = max(1, math.ceil(batches / config.train.gradient_accumulation_steps))
    return max(1, math.ceil(per_epoch * config.train.num_train_epochs))


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was saved whole; its trainer_state.json is written last."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda p: int(p.name.rpartition("-")[2]), reverse=True)
    return next((p for p in found if _is_whole(p)), None)


def _is_whole(checkpoint: Path) -> bool:
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


def _continue_log(run: RunFolder, checkpoint: Path | None) -> dict[str, int]:
    """Drop the lines after the checkpoint; returns step and tokens so far."""
    step = int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0
    stored = read_jsonl(run.train_log) if run.train_log.exists() else iter(())
    kept: Sequence[dict[str, Any]] = [row for row in stored if row["step"] <= step]
    write_jsonl(run.train_log, kept)
    last = kept[-1] if kept else {}
    if last.get("step", 0) != step:
        raise RunFolderError(
            f"{run.train_log} has no line of step {step}, where the last checkpoint is: it was changed or taken away. "
            "Begin the stage anew with --redo train."
        )
    return {"step": step, **{name: int(value) for name, value in last.items() if name.startswith("tokens")}}


def _claim(run: RunFolder, stage: Stage) -> None:
    """Make sure that the checkpoints in the folder, if any, were made with these settings and records."""
    owner = run.model / ".made_with"
    name = digest(stage.settings, stage.inputs)
    if not stage.fresh and owner.exists() and owner.read_text(encoding="utf-8") == name:
        return
    if run.model.exists():
        # In one step, so that an interruption leaves either all of it or nothing that could be continued.
        gone = run.path / f".model.{time.time_ns()}.part"
        run.model.rename(gone)
        shutil.rmtree(gone)
    run.train_log.unlink(missing_ok=True)
    write_text(owner, name)
