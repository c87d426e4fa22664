"""Whole runs on a tiny model: what is in the folder, what is reused, what survives an interruption."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from radistill import files, pipeline, tables
from radistill.config import RunConfig, as_dict, config_from, load_config
from radistill.errors import DataError, RunFolderError
from radistill.ledger import open_ledger
from radistill.runs import STAGES, RunFolder
from radistill.schema import report_schema

Write = Callable[..., Path]


def full_run(config: RunConfig, **options: Any) -> list[pipeline.StageOutcome]:
    return pipeline.run(config, **options)


def files_of(folder: Path) -> dict[str, str]:
    kept = (p for p in folder.rglob("*") if p.is_file() and p.name != ".lock")
    return {p.relative_to(folder).as_posix(): files.sha256(p) for p in kept}


@pytest.mark.parametrize("method", ["vanilla", "radis"])
def test_a_run_leaves_the_folder_the_design_draws(raw_config: dict[str, Any], method: str) -> None:
    config = config_from({**raw_config, "method": method})
    outcomes = full_run(config)
    assert [o.name for o in outcomes] == list(STAGES)
    folder = RunFolder(Path(config.output_dir))
    for path in (
        folder.config, folder.manifest, folder.records, folder.summary, folder.rejects, folder.train_log, folder.scores,
        folder.model / "model.safetensors", folder.model / "README.md", folder.predictions("translation"),
        folder.rows("translation", "bleu"), folder.path / "report.html", folder.path / "report.md",
        folder.path / "report.json",
    ):  # fmt: skip
        assert path.exists(), path
    assert list(folder.figures.glob("*.svg"))
    assert as_dict(load_config(folder.config)) == as_dict(config)
    systems = {p.system for p in tables.read_predictions(folder.predictions("translation"))}
    assert systems == {"base", "small"}


def test_report_json_follows_its_schema(raw_config: dict[str, Any]) -> None:
    config = config_from(raw_config)
    full_run(config)
    found = json.loads((Path(config.output_dir) / "report.json").read_text(encoding="utf-8"))
    jsonschema.validate(found, report_schema())
    by_name = {run["name"]: run for run in found["runs"]}
    assert found["baseline"] == "base"
    assert by_name["small"]["ours"] is True
    assert by_name["small"]["tokens_trained"] > 0
    assert set(STAGES) - {"report"} <= set(by_name["small"]["seconds"])


def test_a_second_run_reuses_every_stage_and_touches_no_file(raw_config: dict[str, Any]) -> None:
    config = config_from(raw_config)
    full_run(config)
    before = files_of(Path(config.output_dir))
    assert all(outcome.reused for outcome in full_run(config))
    assert files_of(Path(config.output_dir)) == before


def test_equal_configs_give_equal_records_predictions_and_weights(raw_config: dict[str, Any], tmp_path: Path) -> None:
    found = []
    for name in ("one", "two"):
        raw = {**raw_config, "output_dir": str(tmp_path / name)}
        raw["generate"] = {**raw["generate"], "ledger": str(tmp_path / f"ledger-{name}")}
        full_run(config_from(raw))
        files = files_of(tmp_path / name)
        found.append({k: v for k, v in files.items() if k.endswith((".parquet", "model.safetensors", "scores.json"))})
    assert len(found[0]) >= 4
    assert found[0] == found[1]


def test_a_changed_setting_stops_and_redo_does_that_stage_and_all_after_it(raw_config: dict[str, Any]) -> None:
    full_run(config_from(raw_config))
    changed = config_from({**raw_config, "train": {**raw_config["train"], "learning_rate": 5e-4}})
    with pytest.raises(RunFolderError, match=r"learning_rate: 0.001 there, 0.0005 now"):
        full_run(changed)
    outcomes = full_run(changed, redo="train")
    assert [o.reused for o in outcomes] == [True, True, False, False, False]
    assert load_config(Path(changed.output_dir) / "config.yaml").train.learning_rate == 5e-4


def test_changed_data_are_noticed_by_name(raw_config: dict[str, Any], tmp_path: Path, tiny_data: Path) -> None:
    import shutil

    folder = shutil.copytree(tiny_data, tmp_path / "copied")
    raw_config["data"]["train"]["path"] = str(folder)
    config = config_from(raw_config)
    full_run(config, stages=("generate",))
    with (folder / "train.en-de.en").open("a", encoding="utf-8") as file:
        file.write("One more.\n")
    with (folder / "train.en-de.de").open("a", encoding="utf-8") as file:
        file.write("Noch einer.\n")
    with pytest.raises(RunFolderError, match=r"train\.en-de\.de: the file has changed since"):
        full_run(config, stages=("generate",))


def test_two_runs_share_generations_through_the_ledger(raw_config: dict[str, Any], tmp_path: Path) -> None:
    full_run(config_from(raw_config), stages=("generate",))
    again = config_from({**raw_config, "output_dir": str(tmp_path / "other")})
    outcome = full_run(again, stages=("generate",))[0]
    assert outcome.record.facts["written"] == 0
    assert outcome.record.facts["from_ledger"] == outcome.record.facts["requests"] > 0


def test_what_is_trained_on_is_what_was_generated_id_by_id(raw_config: dict[str, Any]) -> None:
    from radistill.generate import plan
    from radistill.making import Making
    from radistill.speaker import untouched

    config = config_from(raw_config)
    full_run(config, stages=("generate", "assemble"))
    folder = RunFolder(Path(config.output_dir))
    identity = str(folder.stages()["generate"].facts["identity"])
    from radistill import data

    examples = data.load(config.data, "train", seed=config.seed).examples
    chat = untouched(config).chat
    requests, _ = plan(Making(config, chat, examples))
    with open_ledger(Path(config.generate.ledger)) as ledger:
        stored = ledger.read(r.addressed_to(identity).key for r in requests)
    records = {r.example_id: r for r in tables.read_records(folder.records)}
    checked = 0
    for request in requests:
        generation = stored[request.addressed_to(identity).key][0]
        if not generation.token_ids:
            continue
        ids = (*request.prompt_ids, *generation.token_ids)
        end = (chat.end_id,) if generation.finish_reason == "stop" else ()
        assert records[request.example_id].token_ids == ids + end
        checked += 1
    assert checked > 10


def test_rows_that_cannot_be_put_into_ids_are_kept_with_their_reason(
    raw_config: dict[str, Any], tmp_path: Path
) -> None:
    folder = tmp_path / "marked"
    folder.mkdir()
    (folder / "train.en-de.en").write_text("The old man sees the dog.\nA <|im_end|> in the text.\n\n", encoding="utf-8")
    (folder / "train.en-de.de").write_text("Der alte Mann sieht den Hund.\nEin Zeichen.\n\n", encoding="utf-8")
    raw_config["data"]["train"] = {"path": str(folder), "pairs": ["en-de"]}
    config = config_from(raw_config)
    full_run(config, stages=("generate", "assemble"))
    rejects = list(tables.read_jsonl(RunFolder(Path(config.output_dir)).rejects))
    reasons = " | ".join(row["reason"] for row in rejects)
    assert "special token '<|im_end|>'" in reasons
    assert {row["stage"] for row in rejects} == {"generate", "assemble"}
    assert any(row.get("line") == 3 for row in rejects), "the empty line is not named"
    assert sum(1 for _ in tables.read_records(RunFolder(Path(config.output_dir)).records)) == 1


@pytest.mark.parametrize("stage", ["generate", "evaluate"])
def test_ctrl_c_while_a_model_writes_keeps_every_finished_batch(
    raw_config: dict[str, Any], write_config: Write, stage: str
) -> None:
    """A real process gets a real SIGINT while it works."""
    raw_config["data"]["train"]["limit"] = 80
    raw_config["data"]["test"]["limit"] = 60
    raw_config["generate"]["backend"] = {"name": "echo", "rows_per_second": 40, "batch_size": 4}
    path = write_config(raw_config)
    for earlier in STAGES[: STAGES.index(stage)]:
        assert run_verb(earlier, path) == 0
    rows_before = rows_in_ledger(raw_config)
    errors = interrupt(stage, path, working=lambda: rows_in_ledger(raw_config) > rows_before + 4)
    kept = rows_in_ledger(raw_config)
    record = RunFolder(Path(raw_config["output_dir"])).stages()[stage]
    assert record.status == "started"
    assert record.seconds > 0
    assert run_verb(stage, path) == 0
    finished = RunFolder(Path(raw_config["output_dir"])).stages()[stage]
    assert finished.status == "finished", errors
    keys = [row["key"] for p in shards(raw_config) for row in tables.read_jsonl(p) if "key" in row]
    assert len(keys) == len(set(keys)), "rows were written twice"
    assert rows_before < kept < len(keys), "the interruption came too early or too late to say anything"


def test_ctrl_c_while_training_saves_a_checkpoint_and_goes_on_from_it(
    raw_config: dict[str, Any], write_config: Write
) -> None:
    raw_config["train"] |= {"max_steps": 400, "num_train_epochs": 1000}
    path = write_config(raw_config)
    for earlier in ("generate", "assemble"):
        assert run_verb(earlier, path) == 0
    log = Path(raw_config["output_dir"]) / "train_log.jsonl"
    interrupt("train", path, working=lambda: log.exists() and log.read_text(encoding="utf-8").count("\n") > 3)
    steps = [row["step"] for row in tables.read_jsonl(log)]
    assert (Path(raw_config["output_dir"]) / "model" / f"checkpoint-{steps[-1]}" / "trainer_state.json").exists()
    assert run_verb("train", path) == 0
    assert [row["step"] for row in tables.read_jsonl(log)] == list(range(1, 401))


@pytest.mark.parametrize(("stage", "function"), [("assemble", "write_records"), ("report", "write_report")])
def test_ctrl_c_in_a_stage_that_only_writes_files_leaves_the_old_ones_whole(
    raw_config: dict[str, Any], monkeypatch: pytest.MonkeyPatch, stage: str, function: str
) -> None:
    config = config_from(raw_config)
    full_run(config)
    folder = Path(config.output_dir)
    before = files_of(folder)

    def pressed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    module = "radistill.assemble" if stage == "assemble" else "radistill.pipeline"
    monkeypatch.setattr(sys.modules[module], function, pressed)
    with pytest.raises(pipeline.Interrupted, match=f"interrupted in the stage `{stage}`"):
        full_run(config, redo=stage)
    after = files_of(folder)
    assert {k: v for k, v in after.items() if k != "manifest.json"} == {
        k: v for k, v in before.items() if k != "manifest.json"
    }
    monkeypatch.undo()
    outcomes = {o.name: o.reused for o in full_run(config)}
    assert outcomes[stage] is False


def interrupt(stage: str, path: Path, *, working: Callable[[], bool]) -> str:
    """Start a stage, press Ctrl-C once it is working, and check how it ends; returns what it said."""
    process = subprocess.Popen(
        [sys.executable, "-m", "radistill.cli", stage, str(path)], stderr=subprocess.PIPE, text=True
    )
    for _ in range(2400):
        if working():
            break
        assert process.poll() is None, f"{stage} ended before it could be interrupted"
        time.sleep(0.025)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2, errors
    assert f"interrupted in the stage `{stage}`" in errors
    assert "Traceback" not in errors
    return errors


def run_verb(verb: str, path: Path, *overrides: str) -> int:
    return subprocess.run(
        [sys.executable, "-m", "radistill.cli", verb, str(path), *overrides], capture_output=True, check=False
    ).returncode


def shards(raw: dict[str, Any]) -> list[Path]:
    return sorted((Path(raw["generate"]["ledger"]) / "shards").glob("*.jsonl"))


def rows_in_ledger(raw: dict[str, Any]) -> int:
    return sum(p.read_bytes().count(b'"key"') for p in shards(raw))


def test_a_refused_later_stage_leaves_the_config_that_the_results_were_made_with(raw_config: dict[str, Any]) -> None:
    config = config_from(raw_config)
    full_run(config)
    stored = (Path(config.output_dir) / "config.yaml").read_bytes()
    changed = config_from({**raw_config, "train": {**raw_config["train"], "learning_rate": 5e-4}})
    with pytest.raises(RunFolderError, match="learning_rate"):
        full_run(changed)
    assert (Path(config.output_dir) / "config.yaml").read_bytes() == stored


def test_tests_that_occur_in_the_training_data_are_refused_when_they_are_put_in_later(
    raw_config: dict[str, Any],
) -> None:
    full_run(config_from(raw_config))
    source = {**raw_config["data"]["train"], "split": "train", "limit": 10}
    changed = {**raw_config, "data": {**raw_config["data"], "test": source}}
    with pytest.raises(RunFolderError, match=r"data\.test"):
        full_run(config_from(changed))
    with pytest.raises(DataError, match=r"occur in the training data"):
        full_run(config_from(changed), redo="evaluate")
    forced = {**changed, "data": {**changed["data"], "allow_contamination": True}}
    full_run(config_from(forced), redo="evaluate")
    report = json.loads((Path(raw_config["output_dir"]) / "report.json").read_text(encoding="utf-8"))
    assert any("occur in the training data" in note for note in report["notes"])


def test_a_changed_chat_template_is_noticed(raw_config: dict[str, Any], tiny_model: Path, tmp_path: Path) -> None:
    import shutil

    model = shutil.copytree(tiny_model, tmp_path / "changing")
    config = config_from({**raw_config, "model": str(model), "method": "vanilla"})
    full_run(config)
    template = model / "chat_template.jinja"
    template.write_text("Talk:\n" + template.read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(RunFolderError, match=r"chat\.identity"):
        full_run(config)


def test_examples_without_a_language_pair_are_refused_before_anything_is_generated(
    raw_config: dict[str, Any], tmp_path: Path
) -> None:
    rows = [
        {"messages": [{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": "Yes."}]} for i in "ab"
    ]
    file = tmp_path / "talk.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    raw_config["data"] = {"task": "talk", "train": {"path": str(file)}, "test": {"path": str(file)}}
    raw_config["data"]["allow_contamination"] = True
    config = config_from(raw_config)
    with pytest.raises(DataError, match=r"needs the language pair"):
        full_run(config)
    assert not RunFolder(Path(config.output_dir)).stages()
    outcomes = full_run(config, stages=("generate", "assemble", "train"))
    assert outcomes[-1].name == "train"


def test_a_record_may_not_be_longer_than_the_context_whatever_the_user_allows(raw_config: dict[str, Any]) -> None:
    from radistill import models

    assert models.length_limit(Path(raw_config["model"]), 100_000) == 256
    assert models.length_limit(Path(raw_config["model"]), 100) == 100
    assert models.length_limit(Path(raw_config["model"]), None) == 256


def test_a_damaged_output_is_made_again(raw_config: dict[str, Any]) -> None:
    config = config_from(raw_config)
    full_run(config)
    report = Path(config.output_dir) / "report.json"
    whole = report.read_bytes()
    report.write_text("{}", encoding="utf-8")
    outcomes = {o.name: o.reused for o in full_run(config)}
    assert outcomes["report"] is False
    assert outcomes["train"] is True
    assert report.read_bytes() == whole


@pytest.mark.parametrize("lora", [None, {"r": 64}])
def test_a_disk_that_fills_while_training_is_one_message(
    raw_config: dict[str, Any], write_config: Write, lora: Any
) -> None:
    """The system refuses files of more than 40 kB, as a full disk would refuse the model's."""
    raw_config["train"] |= {"lora": lora, "max_steps": 2}
    path = write_config(raw_config)
    for earlier in ("generate", "assemble"):
        assert run_verb(earlier, path) == 0
    command = f"ulimit -f 40; exec {sys.executable} -m radistill.cli train {path}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "no space left" in done.stderr
    assert "Traceback" not in done.stderr
    assert run_verb("train", path) == 0
