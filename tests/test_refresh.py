"""Rationales that the model in training writes anew: what changes, what stays, and what a resumed training finds."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from radistill import pipeline, tables
from radistill.config import RunConfig, config_from
from radistill.errors import ConfigError, RunFolderError
from radistill.losses import ORIGINS
from radistill.models import load, resolve
from radistill.packing import Collator, Row
from radistill.pipeline import Interrupted
from radistill.records import Generation, Request, TrainingRecord
from radistill.refresh import InTraining, Refresh
from radistill.runs import RunFolder
from radistill.speaker import untouched
from radistill.trainer import Rows, SegmentTrainer
from radistill.training_setup import extras_of
from test_train import interrupt_at

REFERENCE, RATIONALE = ORIGINS.index("reference"), ORIGINS.index("rationale")


def prepared(raw: dict[str, Any], out: Path, *, every: int | None = 2, **train: Any) -> RunConfig:
    generate = {**raw["generate"], "refresh_every": every, "ledger": str(out / "ledger")}
    settings = {**raw["train"], "per_device_train_batch_size": 8, "learning_rate": 0.01, "num_train_epochs": 2, **train}
    config = config_from({**raw, "output_dir": str(out / "run"), "generate": generate, "train": settings})
    pipeline.run(config, stages=("generate", "assemble"))
    return config


def run_of(config: RunConfig) -> RunFolder:
    return RunFolder(Path(config.output_dir))


def refresh_of(config: RunConfig, *, training: str = "t", shaken: bool = True) -> Refresh:
    """Of a model that has moved from its start; no training goes on."""
    model = load(resolve(config.model), dtype="float32")
    if shaken:
        noise = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=noise), alpha=0.1)
    rows = Rows([Row.of(record) for record in tables.read_records(run_of(config).records)])
    return Refresh.of(config, untouched(config), model, rows, training=training)


def ids(row: Row, origin: int) -> list[int]:
    found: list[int] = row.ids_T[row.origins_T == origin].tolist()
    return found


def log_of(config: RunConfig) -> list[dict[str, Any]]:
    rows = tables.read_jsonl(run_of(config).train_log)
    return [{k: v for k, v in row.items() if k != "tokens_per_second"} for row in rows]


def weights_of(config: RunConfig) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(run_of(config).model.glob("*.safetensors"))}


def answers_in_ledger(config: RunConfig) -> int:
    shards = Path(config.generate.ledger).glob("shards/*.jsonl")
    return sum("commit" not in row for shard in shards for row in tables.read_jsonl(shard))


# ---------------------------------------------------------------------------------------------- rows


def test_rationales_change_and_references_places_and_prompts_do_not(raw_config: dict[str, Any], tmp_path: Path) -> None:
    refresh = refresh_of(prepared(raw_config, tmp_path))
    before = list(refresh.rows.rows)
    assert refresh(0) == refresh(1) == 0
    assert refresh.rows.rows == before
    tokens = refresh(2)
    after = refresh.rows.rows
    for old, new in zip(before, after, strict=True):
        assert (new.example_id, new.index) == (old.example_id, old.index)
        start = np.flatnonzero(old.origins_T == RATIONALE)[0]
        assert new.ids_T[:start].tolist() == old.ids_T[:start].tolist()
        assert new.weights_T[:start].tolist() == old.weights_T[:start].tolist()
        assert ids(new, REFERENCE) == ids(old, REFERENCE)
    changed = sum(ids(old, RATIONALE) != ids(new, RATIONALE) for old, new in zip(before, after, strict=True))
    assert changed > 0.8 * len(before)
    assert refresh.counts == {"replaced": len(before)}
    end = ORIGINS.index("end")
    asked = {tuple(row.ids_T[row.origins_T != end].tolist()) for row in after}
    assert len(asked) < len(after), "no two examples are the same"
    assert tokens == sum(map(len, asked)), "what is asked once counts once"
    assert refresh.facts == {"refreshed": {"after_step": 2, "replaced": len(before)}}
    assert refresh(3) == 0
    assert refresh.rows.rows == after


def test_an_untouched_model_writes_as_its_name_says_and_dropout_takes_no_part(
    raw_config: dict[str, Any], tmp_path: Path
) -> None:
    """Equal weights, step and training give equal text, whatever mode the model was in; another step gives another."""
    config = prepared(raw_config, tmp_path)
    texts: list[list[list[int]]] = []
    for training, step in (("t", 2), ("t", 2), ("t", 4), ("u", 2)):
        refresh = refresh_of(config, training=training)
        (tmp_path / f"ledger{len(texts)}").mkdir()
        refresh.ledger = tmp_path / f"ledger{len(texts)}"
        refresh.generator.model.train(len(texts) % 2 == 0)
        for module in refresh.generator.model.modules():
            if hasattr(module, "attention_dropout"):
                module.attention_dropout = 0.5
        refresh(step)
        assert refresh.generator.model.training is (len(texts) % 2 == 0)
        texts.append([ids(row, RATIONALE) for row in refresh.rows.rows])
    assert texts[0] == texts[1]
    assert texts[0] != texts[2]
    assert texts[0] != texts[3]


def test_what_is_not_fit_to_be_trained_on_gives_way_to_the_row_of_the_untouched_model(
    raw_config: dict[str, Any], tmp_path: Path
) -> None:
    refresh = refresh_of(prepared(raw_config, tmp_path))
    before = list(refresh.rows.rows)
    refresh.max_length = max(map(len, before)) - 4
    refresh(2)
    long = [row for row in before if len(row) > refresh.max_length - 8]
    assert 0 < refresh.counts["too long"] <= len(long)
    for old, new in zip(before, refresh.rows.rows, strict=True):
        assert len(new) <= refresh.max_length or new is old
    kept = sum(new is old for old, new in zip(before, refresh.rows.rows, strict=True))
    assert kept == refresh.counts["too long"] == len(before) - refresh.counts["replaced"]

    refresh.max_length = None
    at = next(row.index for row in refresh.rows.rows if row is not before[row.index])
    refresh.tests = _Leaks(before[at].example_id)  # type: ignore[assignment]
    refresh(4)
    assert refresh.counts == {"contains a test prompt": 1, "replaced": len(before) - 1}
    assert refresh.rows.rows[at] is before[at]


class _Leaks:
    """Holds that the records of one example contain a test."""

    def __init__(self, example_id: str | None) -> None:
        self.example_id = example_id

    def in_record(self, record: TrainingRecord) -> object:
        return object() if record.example_id == self.example_id else None


def test_an_answer_that_could_not_be_written_leaves_the_row(raw_config: dict[str, Any], tmp_path: Path) -> None:
    refresh = refresh_of(prepared(raw_config, tmp_path))
    before = list(refresh.rows.rows)
    answer = refresh.generator.answer

    def failing(unit: Sequence[Request]) -> list[Generation]:
        return [
            g
            if i % 8
            else Generation(key=g.key, index=0, token_ids=(), text="", finish_reason="error", error="no room")
            for i, g in enumerate(answer(unit))
        ]

    refresh.generator.answer = failing  # type: ignore[method-assign]
    refresh(2)
    failed = refresh.counts["generation failed"]
    assert failed == sum(new is old for old, new in zip(before, refresh.rows.rows, strict=True)) == len(before) // 8


def test_with_a_fraction_only_what_was_written_about_is_written_anew(
    raw_config: dict[str, Any], tmp_path: Path
) -> None:
    raw = {**raw_config, "data": {**raw_config["data"], "fraction": 0.5}}
    refresh = refresh_of(prepared(raw, tmp_path))
    before = list(refresh.rows.rows)
    refresh(2)
    for old, new in zip(before, refresh.rows.rows, strict=True):
        assert (new is old) is (not ids(old, RATIONALE))
    assert refresh.counts == {"replaced": len(before) // 2}


def test_rows_of_another_method_beside_the_examples_stay(raw_config: dict[str, Any], tmp_path: Path) -> None:
    config = prepared(raw_config, tmp_path)
    plain = refresh_of(config)
    free = Row.of(next(tables.read_records(run_of(config).records)))
    rows = Rows([*plain.rows.rows[:3], *(Row(*(getattr(free, n) for n in Row.__slots__[:5])),), *plain.rows.rows[3:]])
    refresh = Refresh.of(config, untouched(config), plain.generator.model, rows, training="t")
    stays = rows.rows[3]
    refresh(2)
    assert refresh.rows.rows[3] is stays
    assert [row.index for row in refresh.rows.rows] == list(range(len(rows)))
    assert refresh.counts["replaced"] == len(rows) - 1


def test_what_was_written_in_an_earlier_process_is_read_and_what_is_lost_is_told(
    raw_config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = prepared(raw_config, tmp_path)
    first = refresh_of(config)
    tokens = first(2)
    written = [row.ids_T.tolist() for row in first.rows.rows]

    def refusing(*_: Any, **__: Any) -> Any:
        raise AssertionError("the model was asked")

    monkeypatch.setattr(InTraining, "answer", refusing)
    same, later = refresh_of(config), refresh_of(config)
    assert same(2) == tokens, "a log line that has not counted them yet must get the same number"
    assert later(3) == 0, "the log has counted them"
    for refresh in (same, later):
        assert [row.ids_T.tolist() for row in refresh.rows.rows] == written
    with pytest.raises(RunFolderError, match="no longer holds"):
        refresh_of(config, training="another")(3)


# ---------------------------------------------------------------------------------------------- runs


@pytest.mark.parametrize(("step", "lora"), [(2, None), (3, None), (3, {"r": 4, "dropout": 0.1})])
def test_a_resumed_training_equals_an_uninterrupted_one(
    raw_config: dict[str, Any],
    tmp_path: Path,
    step: int,
    lora: dict[str, Any] | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Interrupted before a refresh is done, and between two of them."""
    quiet, torn = (prepared(raw_config, tmp_path / name, lora=lora) for name in ("quiet", "torn"))
    pipeline.run(quiet, stages=("train",))
    interrupt_at(monkeypatch, step=step)
    with pytest.raises(Interrupted):
        pipeline.run(torn, stages=("train",))
    monkeypatch.undo()
    assert [row["step"] for row in log_of(torn)] == list(range(1, step + 1))
    pipeline.run(torn, stages=("train",))
    assert len(log_of(quiet)) == 6
    assert log_of(torn) == log_of(quiet)
    assert weights_of(torn) == weights_of(quiet)
    facts = [run_of(config).stages()["train"].facts for config in (quiet, torn)]
    assert facts[0] == facts[1]
    assert facts[0]["refreshed"] == {"after_step": 4, "replaced": 24}
    assert facts[0]["tokens_rolled_out"] == log_of(quiet)[-1]["tokens_rolled_out"] > 0


def test_a_training_that_was_killed_while_writing_goes_on_there(
    raw_config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("radistill.backends.transformers.BATCHES", 1)
    quiet, torn = (prepared(raw_config, tmp_path / name, save_steps=1) for name in ("quiet", "torn"))
    pipeline.run(quiet, stages=("train",))
    answer = InTraining.answer
    asked: list[int] = []

    def dying(self: InTraining, unit: Sequence[Request]) -> list[Generation]:
        asked.append(len(unit))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return answer(self, unit)

    monkeypatch.setattr(InTraining, "answer", dying)
    with pytest.raises(Interrupted):
        pipeline.run(torn, stages=("train",))
    pipeline.run(torn, stages=("train",))
    assert weights_of(torn) == weights_of(quiet)
    assert log_of(torn) == log_of(quiet)
    # Three batches at each of the two refreshes; the third of the first was torn, and it alone is done again.
    assert asked == [8, 8, 7, 7, 8, 8, 7]
    assert answers_in_ledger(torn) == answers_in_ledger(quiet) == 3 * 23, "two examples are the same"


def test_the_model_is_trained_on_what_it_wrote(
    raw_config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every batch is made of the rows as they are, also those that the data loader had made ahead."""
    seen: list[tuple[int, bool]] = []
    compute = SegmentTrainer.compute_loss

    def looking(self: SegmentTrainer, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        of_rows = {
            token for i in inputs["indices_R"].tolist() for token in [tuple(self.train_dataset[i].ids_T.tolist())]
        }
        in_batch = {
            tuple(ids_L[start : start + len(row)])
            for row in of_rows
            for ids_L in inputs["input_ids"].tolist()
            for start in range(len(ids_L))
            if tuple(ids_L[start : start + len(row)]) == row
        }
        seen.append((self.state.global_step, of_rows == in_batch))
        return compute(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(SegmentTrainer, "compute_loss", looking)
    config = prepared(raw_config, tmp_path, every=1)
    pipeline.run(config, stages=("train",))
    assert seen == [(step, True) for step in range(6)]
    quiet = prepared(raw_config, tmp_path / "never", every=None)
    pipeline.run(quiet, stages=("train",))
    assert log_of(quiet)[0]["loss"] == log_of(config)[0]["loss"]
    assert all(a["loss"] != b["loss"] for a, b in zip(log_of(quiet)[1:], log_of(config)[1:], strict=True))
    counted = [row["tokens_rolled_out"] for row in log_of(config)]
    assert counted[0] == 0
    assert all(a < b for a, b in pairwise(counted))
    assert run_of(config).stages()["train"].facts["refreshed"] == {"after_step": 5, "replaced": 24}
    assert "refreshed" not in run_of(quiet).stages()["train"].facts
    assert "refresh" not in run_of(quiet).stages()["train"].settings


def test_soft_labels_from_the_live_model_go_with_it(raw_config: dict[str, Any], tmp_path: Path) -> None:
    config = prepared(raw_config, tmp_path, labels="live")
    pipeline.run(config, stages=("train",))
    rows = log_of(config)
    assert rows[0]["loss/rationale"] == pytest.approx(0, abs=1e-6)
    assert rows[-1]["loss/rationale"] > 0
    assert rows[-1]["tokens_reference"] > 0


def test_the_untouched_model_is_kept_for_soft_labels_that_only_later_rows_have(
    raw_config: dict[str, Any], tmp_path: Path
) -> None:
    for every, is_kept in ((None, False), (2, True)):
        config = prepared(raw_config, tmp_path / str(every), every=every)
        live = config.model_copy(update={"train": config.train.model_copy(update={"labels": "live"})})
        speaker = untouched(live)
        rows = [Row.of(record) for record in tables.read_records(run_of(config).records)]
        extras = extras_of(live, speaker, load(speaker.weights), rows, Collator(0))
        assert (extras.reference is not None) is is_kept


def test_another_refresh_is_another_training(raw_config: dict[str, Any], tmp_path: Path) -> None:
    config = prepared(raw_config, tmp_path, max_steps=2)
    pipeline.run(config, stages=("train",))
    other = config.model_copy(update={"generate": config.generate.model_copy(update={"refresh_every": 1})})
    with pytest.raises(RunFolderError, match=r"refresh"):
        pipeline.run(other, stages=("train",))
    assert pipeline.run(config, stages=("train",))[0].reused


# ---------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"method": {"name": "vanilla"}}, "vanilla plans nothing to be written"),
        ({"method": {"name": "sdft_onpolicy"}}, "sdft_onpolicy plans nothing to be written"),
        ({"train": {"labels": "stored"}}, "train.labels: stored are of the first text; set train.labels=live"),
        ({"generate": {"teacher": "some/model"}}, r"generate.teacher \(some/model\) writes"),
    ],
)
def test_what_does_not_go_with_it_is_refused_before_anything_is_generated(
    raw_config: dict[str, Any], changed: dict[str, Any], message: str
) -> None:
    raw = {**raw_config, "generate": {**raw_config["generate"], "refresh_every": 2}}
    raw |= {key: {**raw.get(key, {}), **value} for key, value in changed.items()}
    with pytest.raises(ConfigError, match=rf"generate.refresh_every cannot be used here: .*{message}"):
        pipeline.run(config_from(raw))
    assert not RunFolder(Path(raw["output_dir"])).stages()


def test_several_processes_are_refused(raw_config: dict[str, Any], tmp_path: Path) -> None:
    config = prepared(raw_config, tmp_path)
    config = config.model_copy(update={"train": config.train.model_copy(update={"devices": 2})})
    with pytest.raises(ConfigError, match=r"2 processes train.*set train.devices=1"):
        pipeline.run(config, stages=("train",))
