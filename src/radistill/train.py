"""Stage 3: records → a tuned model or adapter, in Hugging Face / PEFT layout."""

import json
import math
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from radistill import cards, devices, lengths, models, ranks, seeds, trackers, validation
from radistill.config import RunConfig, plugin_settings
from radistill.errors import DataError, ModelError, RadistillError, RunFolderError, writing_into
from radistill.files import write_text
from radistill.finished import finished_run
from radistill.methods._composed import has, parts_of
from radistill.progress import Silence, progress, say
from radistill.records import StageRecord, digest
from radistill.runs import RunFolder, Stage, before_work, begin, require, working
from radistill.speaker import Speaker, untouched
from radistill.tables import read_jsonl, read_records, write_jsonl
from radistill.training_arguments import arguments, refuse_unusable_writing
from radistill.training_model import trained_model

if TYPE_CHECKING:
    from radistill.last_step import LastStep
    from radistill.recorder import Recorder
    from radistill.trainer import Extras, Rows, SegmentTrainer


HOOKS = ("token_weights", "penalty", "trains", "rollout", "share_of_end", "finished_run")
"""What a method may do in this stage."""
NOT_LEARNED = (
    "report_to", "save_steps", "save_total_limit", "gradient_checkpointing", "activation_offload",
    "auto_find_batch_size", "watchdogs", *validation.SETTINGS,
)  # fmt: skip
"""Settings that change nothing of what is learned."""
OFF_AT_FIRST = ("quantization", "torch_compile", "use_liger_kernel")
OFF_AT_FIRST_OF_LORA = ("use_dora", "use_rslora", "loraplus_lr_ratio")
"""Settings that came into being later: a run without them is one of before."""


def train(config: RunConfig, run: RunFolder, *, redo: bool = False) -> StageRecord | None:
    """Fine-tune and save; continues from the last checkpoint. None if it was done before and nothing has changed.

    Raises:
        RunFolderError: there are no records yet.
        KeyboardInterrupt: after a checkpoint was saved, when Ctrl-C was pressed.
    """
    require(run, "assemble")
    refuse_unusable_writing(config)
    speaker = untouched(config)
    settings = {"model": speaker.weights.identity, "seed": config.seed, **devices.learned(config.train)}
    if own := [plugin_settings(part) for part in parts_of(config.method) if any(has(part, hook) for hook in HOOKS)]:
        settings["method"] = own  # what the other methods do stands in the records
    for name in NOT_LEARNED:
        del settings[name]
    del settings["on_long"]  # the records, which are an input, are what came of it
    for section, names in ((settings, OFF_AT_FIRST), (settings["lora"] or {}, OFF_AT_FIRST_OF_LORA)):
        for name in names:
            if not section.get(name):
                section.pop(name, None)
    if judged := validation.settings(config):
        settings["validation"] = judged
    if config.generate.refresh_every is not None:
        settings["refresh"] = _refreshing(config, speaker)
    source = config.method.finished_run()
    taken = finished_run(source, speaker) if source is not None else None
    inputs = [run.records, *(taken.files if taken else ())]
    stage = ranks.on_first(lambda: begin(run, "train", settings, inputs, redo=redo))
    if stage is None:
        return None
    with working(stage) if ranks.is_first() else nullcontext(), writing_into(run.model):
        with before_work(stage) if ranks.is_first() else nullcontext():
            devices.refuse_unusable_devices(config)
        ranks.on_first(lambda: _claim(run, stage))
        if taken is not None:
            ranks.on_first(lambda: _keep(config, run, speaker, taken.load(), taken.weights.adapter is not None))
            ranks.on_first(lambda: write_jsonl(run.train_log, ()))
            stage.facts |= taken.facts
        elif devices.launches(config.train):
            from radistill.launch import train_together

            stage.facts |= train_together(config, stage, devices.count(config.train))
        else:
            stage.facts |= fit_and_save(config, run, speaker, stage)
        weights = sorted(run.model.glob("*.safetensors"))
        device = models.device_name()
        return ranks.on_first(lambda: stage.finish([*weights, run.train_log], device=device))


def fit_and_save(config: RunConfig, run: RunFolder, speaker: Speaker, stage: Stage) -> dict[str, Any]:
    """Train a model and write it, as the one process that does, or as one of several; returns what is to be known."""
    from radistill import sharding

    with trackers.at_home(run):
        trainer, recorder = _fit(config, run, speaker, stage)
    facts = _facts(trainer, recorder)
    settings, code = config.train, config.trust_remote_code
    tuned = sharding.whole(
        trainer, settings, lambda: sharding.skeleton_of(speaker.weights.folder, settings, trust_remote_code=code)
    )
    if settings.lora is not None and tuned is not None:
        tuned.peft_config = trainer.accelerator.unwrap_model(trainer.model).peft_config  # the base by its name
    ranks.on_first(lambda: _keep(config, run, speaker, tuned, settings.lora is not None))
    return facts


def _keep(config: RunConfig, run: RunFolder, speaker: Speaker, tuned: Any, is_adapter: bool) -> None:
    """Write what was trained in Hugging Face / PEFT layout."""
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


def _facts(trainer: "SegmentTrainer", recorder: "Recorder") -> dict[str, Any]:
    from radistill.sharding import sizes

    judge: Any = trainer.extras.judge
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
        **({"tokens_validated": judge.tokens, "validation": judge.facts} if judge is not None else {}),
        **sizes(trainer.model),
        "devices": trainer.engine.facts,
    }


def _fit(config: RunConfig, run: RunFolder, speaker: Speaker, stage: Stage) -> "tuple[SegmentTrainer, Recorder]":
    import torch

    from radistill.micro_batches import train_to_the_end
    from radistill.packing import Row
    from radistill.recorder import Recorder, stopping_on_signals
    from radistill.sharding import refuse_foreign_checkpoint
    from radistill.trainer import Rows

    rows = Rows([Row.of(record) for record in read_records(run.records)])
    if not len(rows):
        raise DataError(f"{run.records} holds no rows.")
    spread = lengths.Spread.of(
        [len(row) for row in rows.rows],
        batch_size=config.train.per_device_train_batch_size,
        packing=config.train.packing,
        seed=seeds.number(config.seed, "spread"),
    )
    if ranks.is_first():
        say(f"train: {spread}")
    stage.facts |= spread.facts()
    checkpoint = last_checkpoint(run.model)
    refuse_foreign_checkpoint(checkpoint, config.train, ranks.size())
    steps = _steps(config, len(rows))
    torch.manual_seed(seeds.number(config.seed, "train") % (1 << 32))
    with progress("train", steps, unit="steps") if ranks.is_first() else nullcontext(Silence()) as shown:
        done = ranks.on_first(lambda: _continue_log(run, checkpoint))
        recorder = Recorder(run.train_log, shown, start_step=done["step"])
        trainer, last = _trainer(config, speaker, stage, rows, steps, recorder)
        trainer.continue_counts(done)
        recorder.count_tokens = lambda: trainer.tokens_processed
        shown.advance(done["step"], before=True)
        judge: Any = trainer.extras.judge
        if judge is not None:
            judge.go_on(read_jsonl(run.train_log) if checkpoint else ())
        with stopping_on_signals(recorder), models.without_bars(), _memory_is_a_message():
            if checkpoint and judge is not None and judge.should_stop:
                trainer.restore(checkpoint)
            else:
                train_to_the_end(trainer, last, checkpoint, find=config.train.auto_find_batch_size, said=say)
    has_stopped = judge is not None and judge.should_stop
    if recorder.stop_requested and recorder.step < steps and not has_stopped:
        ranks.barrier()  # so that who ends first does not take the others along while they save
        raise KeyboardInterrupt
    if config.train.load_best_model_at_end:
        from radistill.judging import take_best

        take_best(trainer, judge)
    return trainer, recorder


def _trainer(
    config: RunConfig, speaker: Speaker, stage: Stage, rows: "Rows", steps: int, recorder: "Recorder"
) -> "tuple[SegmentTrainer, LastStep]":
    """The loop, with a fresh model and all that the run adds; and what can save its last whole step."""
    from transformers import PrinterCallback

    from radistill.last_step import LastStep
    from radistill.micro_batches import Trial, refuse_sharded
    from radistill.packing import Collator, is_flash
    from radistill.packing_probe import refuse_contaminated_packing
    from radistill.sharding import Engine, engine_arguments
    from radistill.trainer import SegmentTrainer
    from radistill.training_setup import extras_of
    from radistill.watchdogs import Watchdog

    collate = Collator(
        pad_id=speaker.chat.end_id, packing=config.train.packing, one_row=is_flash(config.train.attn_implementation)
    )
    with before_work(stage) if ranks.is_first() else nullcontext(), _memory_is_a_message():
        model = trained_model(config, speaker)
        if config.train.packing:
            halves = config.train.bf16 and config.train.lora is None and models.device() != "cpu"
            refuse_contaminated_packing(
                model, rows.rows, pad_id=collate.pad_id, one_row=collate.one_row, autocast=halves
            )
        extras = extras_of(config, speaker, model, rows.rows, collate)
        reads_weights = extras.penalty is not None and not extras.penalises_tokens
        devices.refuse_unusable_penalty(config.train, reads_weights=reads_weights)
        # No paths: equal trainings in two folders write the same.
        name = digest(stage.settings, sorted(stage.inputs.values()))
        if config.generate.refresh_every is not None:
            from radistill.refresh import Refresh

            extras.refresh = Refresh.of(config, speaker, model, rows, training=name)
        callbacks = [recorder, *_judging(config, speaker, model, extras, name)]
    last = LastStep()
    watchers: list[Any] = [Watchdog(last, is_strict=config.train.watchdogs), last]
    trainer = SegmentTrainer(
        weighting=config.train.weighting,
        extras=extras,
        loraplus_lr_ratio=config.train.lora.loraplus_lr_ratio if config.train.lora is not None else None,
        offloads=config.train.activation_offload,
        model=model,
        args=arguments(config, stage.run, steps, engine_arguments(config.train)),
        train_dataset=rows,
        data_collator=collate,
        callbacks=[*watchers, *callbacks],
    )
    trainer.remove_callback(PrinterCallback)  # what it prints stands in train_log.jsonl
    trainer.engine = Engine(trainer, config.train)
    trainer.add_callback(trainer.engine)
    if config.train.auto_find_batch_size:
        refuse_sharded(trainer)
        watchers.append(Trial(last))
        trainer.add_callback(watchers[-1])
    for watcher in watchers:
        watcher.trainer = trainer
    return trainer, last


def _judging(config: RunConfig, speaker: Speaker, model: Any, extras: "Extras", training: str) -> list[Any]:
    """What judges the training of that name while it goes on, if it is to be; the untouched model is judged at once."""
    if config.train.eval_steps is None:
        return []
    from radistill.judging import Choosing, Judge

    extras.judge = judge = Judge.of(config, speaker, model, training=training)
    return [Choosing(judge, every=config.train.eval_steps, keeps_best=config.train.load_best_model_at_end)]


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


def _steps(config: RunConfig, rows: int) -> int:
    """Optimizer steps of the whole training; a last, smaller batch counts as one."""
    if config.train.max_steps > 0:
        return config.train.max_steps
    batches = math.ceil(rows / (config.train.per_device_train_batch_size * devices.count(config.train)))
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
