"""The command line as a user meets it: exit codes, messages, no tracebacks."""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import radistill
from radistill.config import load_config

Write = Callable[..., Path]


def radistill_command(
    *arguments: object, cwd: Path | None = None, stdin: str | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "radistill.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        input=stdin,
        check=False,
        env={**os.environ, "COLUMNS": "200", "HF_HUB_OFFLINE": "1"},
    )


def refused(*arguments: object, cwd: Path | None = None) -> str:
    """The message of a command that must end with exit code 2 and without a traceback."""
    done = radistill_command(*arguments, cwd=cwd)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def test_version_is_printed() -> None:
    assert radistill_command("--version").stdout.strip() == f"radistill {radistill.__version__}"


def test_every_verb_has_help() -> None:
    from typer.main import get_command

    from radistill.cli import app

    names = list(get_command(app).commands)  # type: ignore[attr-defined]
    assert {"run", "generate", "assemble", "train", "evaluate", "report", "check", "chat", "demo"} <= set(names)
    done = radistill_command("--help")
    for name in names:
        assert f" {name} " in done.stdout
    for name in ("run", "generate", "chat", "evaluate"):
        assert radistill_command(name, "--help").returncode == 0


def test_a_missing_run_file_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "train.yaml").write_text("model: x", encoding="utf-8")
    message = refused("run", tmp_path / "trian.yaml")
    assert "does not exist" in message
    assert "train.yaml" in message
    assert message.count("\n") == 1


def test_wrong_keys_and_types_are_all_reported_with_file_line_and_key(
    raw_config: dict[str, Any], write_config: Write
) -> None:
    raw_config["train"]["learning_rte"] = 1
    raw_config["train"]["max_steps"] = "many"
    raw_config["method"] = {"name": "raddis"}
    message = refused("check", write_config(raw_config))
    assert "3 problems" in message
    assert "`train.learning_rte` is no key of this section. Did you mean 'learning_rate'?" in message
    assert "`train.max_steps`" in message
    assert "'many'" in message
    assert "Did you mean 'radis'?" in message
    assert message.count("run.yaml:") >= 3


def test_an_override_wins_and_its_errors_name_the_command_line(raw_config: dict[str, Any], write_config: Write) -> None:
    path = write_config(raw_config)
    message = refused("check", path, "train.max_step=3")
    assert "command line: `train.max_step`" in message
    assert "not an override" in refused("check", path, "--", "train.max_steps")


def test_missing_data_names_what_is_there(raw_config: dict[str, Any], write_config: Write, tmp_path: Path) -> None:
    raw_config["data"]["train"]["path"] = str(tmp_path / "nowhere")
    message = refused("run", write_config(raw_config))
    assert "data.train" in message
    assert "nowhere" in message


def test_empty_data_is_one_message(raw_config: dict[str, Any], write_config: Write, tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    for side in ("en", "de"):
        (folder / f"train.en-de.{side}").write_text("", encoding="utf-8")
    raw_config["data"]["train"]["path"] = str(folder)
    assert "data.train" in refused("generate", write_config(raw_config))


def test_unaligned_files_are_refused_with_both_counts(
    raw_config: dict[str, Any], write_config: Write, tmp_path: Path
) -> None:
    folder = tmp_path / "unaligned"
    folder.mkdir()
    (folder / "train.en-de.en").write_text("a\nb\nc\n", encoding="utf-8")
    (folder / "train.en-de.de").write_text("a\nb\n", encoding="utf-8")
    raw_config["data"]["train"]["path"] = str(folder)
    message = refused("generate", write_config(raw_config))
    assert "3" in message
    assert "2" in message


def copy_of(model: Path, folder: Path) -> Path:
    import shutil

    shutil.copytree(model, folder)
    return folder


def test_a_tokenizer_without_chat_template_is_refused(
    raw_config: dict[str, Any], write_config: Write, tiny_model: Path, tmp_path: Path
) -> None:
    model = copy_of(tiny_model, tmp_path / "bare")
    (model / "chat_template.jinja").unlink()
    raw_config["model"] = str(model)
    assert "has no chat template" in refused("run", write_config(raw_config))


def test_a_model_with_pickled_weights_only_is_refused(
    raw_config: dict[str, Any], write_config: Write, tiny_model: Path, tmp_path: Path
) -> None:
    model = copy_of(tiny_model, tmp_path / "pickled")
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    raw_config["model"] = str(model)
    message = refused("run", write_config(raw_config))
    assert "pytorch_model.bin" in message
    assert "safetensors only" in message


def test_a_template_that_drops_the_reference_is_refused(
    raw_config: dict[str, Any], write_config: Write, tiny_model: Path, tmp_path: Path
) -> None:
    model = copy_of(tiny_model, tmp_path / "dropping")
    template = "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}<|im_end|>{% endif %}{% endfor %}"
    (model / "chat_template.jinja").write_text(template, encoding="utf-8")
    raw_config["model"] = str(model)
    assert "drops the assistant's answer" in refused("run", write_config(raw_config))


def test_a_run_folder_of_another_config_is_refused_and_left_as_it_was(
    raw_config: dict[str, Any], write_config: Write
) -> None:
    path = write_config(raw_config)
    assert radistill_command("generate", path).returncode == 0
    folder = Path(raw_config["output_dir"])
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    message = refused("run", path, "generate.sampling.temperature=0.1")
    assert "sampling.temperature: 0.7 there, 0.1 now" in message
    assert "--redo generate" in message
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before


def test_a_stage_without_the_one_before_it_says_which(raw_config: dict[str, Any], write_config: Write) -> None:
    assert "the stage `assemble` is not finished" in refused("train", write_config(raw_config))


def test_an_unknown_stage_to_redo_is_refused(raw_config: dict[str, Any], write_config: Write) -> None:
    assert "Did you mean 'train'" in refused("run", write_config(raw_config), "--redo", "trian")


def test_report_of_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    assert "no run folder" in refused("report", tmp_path)


def test_finished_outputs_are_scored_without_a_run(tmp_path: Path) -> None:
    (tmp_path / "hyp").write_text("the cat sat on the mat\na dog barked loudly\n", encoding="utf-8")
    (tmp_path / "ref").write_text("the cat sat on the mat\na dog barked loudly\n", encoding="utf-8")
    done = radistill_command(
        "evaluate", "--predictions", tmp_path / "hyp", "--references", tmp_path / "ref", "--language", "en", "--json"
    )
    assert done.returncode == 0, done.stderr
    found = {s["metric"]: s["value"] for s in json.loads(done.stdout)}
    assert found["bleu"] == pytest.approx(100)
    assert "takes a run file, or" in refused("evaluate", "--predictions", tmp_path / "hyp")
    (tmp_path / "ref").write_text("the cat sat on the mat\n", encoding="utf-8")
    message = refused("evaluate", "--predictions", tmp_path / "hyp", "--references", tmp_path / "ref")
    assert "2" in message
    assert "1" in message


def test_init_writes_a_run_file_that_check_accepts(tmp_path: Path, tiny_model: Path, tiny_data: Path) -> None:
    made = radistill_command(
        "init", "mine.yaml", "--model", tiny_model, "--data", tiny_data, "--pair", "en-de", cwd=tmp_path
    )
    assert made.returncode == 0, made.stderr
    done = radistill_command("check", "mine.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no problem found" in done.stdout
    assert "exists already" in refused("init", "mine.yaml", cwd=tmp_path)


def test_init_repairs_the_name_of_the_run_and_the_next_command_can_be_copied(
    tmp_path: Path, tiny_model: Path, tiny_data: Path
) -> None:
    for file, name in (("2024.yaml", "2024"), ("my run.yaml", "my-run")):
        made = radistill_command("init", file, "--model", tiny_model, "--data", tiny_data, cwd=tmp_path)
        assert made.returncode == 0, made.stderr
        command = shlex.split(made.stdout.partition("next: radistill ")[2])
        done = radistill_command(*command, "data.train.pairs=[en-de]", "data.test.pairs=[en-de]", cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        assert load_config(tmp_path / file).name == name
    assert "not a pair of languages" in refused("init", "new.yaml", "--pair", "german", cwd=tmp_path)
    assert not (tmp_path / "new.yaml").exists()


def test_a_task_without_languages_goes_through_the_first_two_stages(
    raw_config: dict[str, Any], write_config: Write, tmp_path: Path
) -> None:
    (tmp_path / "texts.tsv").write_text("The old man sees the dog.\tA man.\nThe cat.\tA cat.\n", encoding="utf-8")
    raw_config["data"] = {
        "task": "summarise",
        "template": "Summarise: {source}",
        "train": {"path": str(tmp_path / "texts.tsv")},
    }
    path = write_config(raw_config)
    assert radistill_command("generate", path).returncode == 0
    assert radistill_command("assemble", path).returncode == 0
    shown = radistill_command("preview", path, "--rows", 1).stdout
    assert "Summarise: The old man sees the dog." in shown
    assert "A man." in shown
    assert "Did you mean 'translation'" in refused("generate", path, "data.task=translatoin")


def test_check_reports_problems_of_different_kinds_together(
    raw_config: dict[str, Any], write_config: Write, tmp_path: Path
) -> None:
    raw_config["model"] = str(tmp_path / "no-model")
    raw_config["data"]["test"]["path"] = str(tmp_path / "no-data")
    done = radistill_command("check", write_config(raw_config))
    assert done.returncode == 2
    assert "no-model" in done.stdout
    assert "no-data" in done.stdout
    assert "2 problem(s) found" in done.stdout


def test_check_as_json_holds_lengths_template_and_cost(raw_config: dict[str, Any], write_config: Write) -> None:
    done = radistill_command("check", write_config(raw_config), "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)["facts"]
    assert facts["train"]["examples"] == 24
    assert facts["template"]["end_of_turn"] == "<|im_end|>"
    assert facts["lengths"]["context"] == 256
    assert facts["cost"]["generated_tokens_at_most"] == 24 * 8


def test_preview_shows_segments_before_and_after_generation(raw_config: dict[str, Any], write_config: Write) -> None:
    path = write_config(raw_config)
    before = radistill_command("preview", path, "--rows", 1)
    assert "rationales are missing" in before.stdout
    assert "reference  weight 1" in before.stdout
    radistill_command("generate", path)
    radistill_command("assemble", path)
    after = radistill_command("preview", path, "--rows", 2)
    assert after.stdout.count("record ") == 2
    assert "rationale  weight 1" in after.stdout


def test_chat_streams_an_answer_to_each_line(tiny_model: Path) -> None:
    done = radistill_command(
        "chat", "--model", tiny_model, "--max-new-tokens", 12, "--temperature", 1, stdin="Hello\n/reset\nHello\n/quit\n"
    )
    assert done.returncode == 0, done.stderr
    half = len(done.stdout) // 2
    assert done.stdout.strip()
    assert done.stdout[:half] == done.stdout[half:], "the same question, begun anew with the same seed, differs"
    assert "holds no model" in refused("chat", "--model", tiny_model.parent)


def test_list_and_schema_know_every_plugin() -> None:
    from radistill import plugins

    listed = radistill_command("list").stdout
    schema = json.loads(radistill_command("schema").stdout)
    for kind in plugins.KINDS:
        for name in plugins.available(kind):
            assert f"  {name} " in listed
            assert f"{kind}.{name}" in schema["$defs"]
    assert json.loads(radistill_command("schema", "report").stdout)["$schema"]
    assert "Did you mean 'report'" in refused("schema", "reprot")
    assert "Did you mean 'methods'" in refused("list", "method")
    told = json.loads(radistill_command("list", "methods", "--json").stdout)
    assert [method["name"] for method in told["methods"]] == list(plugins.available("methods"))
    radis = next(method for method in told["methods"] if method["name"] == "radis")
    assert radis["ours"] is True
    assert {k: v for k, v in radis["settings"][0].items() if k != "what"} == {
        "name": "rationale_weight",
        "required": False,
        "default": 1.0,
    }


def test_env_names_versions_and_device() -> None:
    done = radistill_command("env")
    assert "transformers" in done.stdout
    assert "device" in done.stdout


def test_ctrl_c_before_a_stage_has_begun_is_one_message(tmp_path: Path) -> None:
    code = (
        "from radistill import cli, config\n"
        "def interrupted(*_): raise KeyboardInterrupt\n"
        "config.load_config = interrupted\n"
        "cli.main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "run", str(tmp_path / "a.yaml")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("interrupted before a stage had begun")
