"""A refusal binds nothing: what its message says to do can be done in the same folder, and nothing is lost by it."""

from pathlib import Path
from typing import Any

import pytest

from radistill import files, pipeline
from radistill.config import config_from
from radistill.errors import ChatTemplateError, DataError, ModelError, RunFolderError
from radistill.report import write_report
from radistill.runs import RunFolder


def files_of(folder: Path) -> dict[str, str]:
    kept = (p for p in folder.rglob("*") if p.is_file() and p.name != ".lock")
    return {p.relative_to(folder).as_posix(): files.sha256(p) for p in kept}


def test_a_config_that_is_refused_before_any_work_does_not_bind_the_folder(
    raw_config: dict[str, Any], tiny_model: Path, tmp_path: Path
) -> None:
    import shutil

    model = shutil.copytree(tiny_model, tmp_path / "dropping")
    template = "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}<|im_end|>{% endif %}{% endfor %}"
    (model / "chat_template.jinja").write_text(template, encoding="utf-8")
    with pytest.raises(ChatTemplateError):
        pipeline.run(config_from({**raw_config, "model": str(model)}))
    source = {**raw_config["data"]["train"], "split": "train", "limit": 10}
    with pytest.raises(DataError, match="occur in the training data"):
        pipeline.run(config_from({**raw_config, "data": {**raw_config["data"], "test": source}}))
    assert pipeline.run(config_from(raw_config))[0].reused is False


def test_a_report_written_again_by_another_path_has_the_same_bytes(
    raw_config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_from(raw_config)
    pipeline.run(config)
    folder = Path(config.output_dir)
    before = files_of(folder)
    monkeypatch.chdir(folder.parent)
    write_report([RunFolder(Path(folder.name))], Path(folder.name), margin=0.02, seed=0, examples=5)
    assert files_of(folder) == before


def test_what_a_message_says_to_set_can_be_set_in_the_same_folder(
    raw_config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    short = {**raw_config, "train": {**raw_config["train"], "max_length": 8}}
    with pytest.raises(DataError, match="no training record is left"):
        pipeline.run(config_from(short))

    def leaking(*_: object, **__: object) -> None:
        raise ModelError("Set train.packing=false.")

    monkeypatch.setattr("radistill.packing_probe.refuse_contaminated_packing", leaking)
    with pytest.raises(ModelError, match=r"train\.packing=false"):
        pipeline.run(config_from(raw_config))
    source = {**raw_config["data"]["train"], "split": "train", "limit": 10}
    tested = {**raw_config["data"], "test": source, "allow_contamination": True}
    packed = {**raw_config, "train": {**raw_config["train"], "packing": False}}
    pipeline.run(config_from(packed), stages=("generate", "assemble", "train"))
    refused = {**packed, "data": {**tested, "allow_contamination": False}}
    with pytest.raises(DataError, match=r"allow_contamination=true"):
        pipeline.run(config_from(refused), stages=("evaluate",))
    assert pipeline.run(config_from({**packed, "data": tested}))[-1].name == "report"


def test_settings_of_the_disk_and_of_memory_may_change_while_a_training_is_continued(
    raw_config: dict[str, Any],
) -> None:
    pipeline.run(config_from(raw_config))
    train = {**raw_config["train"], "save_total_limit": 1, "save_steps": 7, "gradient_checkpointing": True}
    assert all(o.reused for o in pipeline.run(config_from({**raw_config, "train": train})))


def test_weights_of_another_config_are_never_continued(
    raw_config: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A redo that is interrupted before it has cleared the folder."""
    pipeline.run(config_from(raw_config))
    changed = {**raw_config, "train": {**raw_config["train"], "learning_rate": 5e-4}}

    def pressed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("radistill.train._claim", pressed)
    with pytest.raises(pipeline.Interrupted, match="without --redo"):
        pipeline.run(config_from(changed), redo="train")
    monkeypatch.undo()
    pipeline.run(config_from(changed))
    quiet = {**changed, "output_dir": str(tmp_path / "quiet")}
    pipeline.run(config_from(quiet))
    found = [files.sha256(Path(raw["output_dir"]) / "model" / "model.safetensors") for raw in (changed, quiet)]
    assert found[0] == found[1]


def test_a_log_that_was_taken_away_throws_no_model_away(raw_config: dict[str, Any]) -> None:
    config = config_from(raw_config)
    pipeline.run(config)
    folder = RunFolder(Path(config.output_dir))
    weights = files.sha256(folder.model / "model.safetensors")
    folder.train_log.unlink()
    with pytest.raises(RunFolderError, match=r"train_log\.jsonl was changed or taken away"):
        pipeline.run(config)
    assert files.sha256(folder.model / "model.safetensors") == weights
