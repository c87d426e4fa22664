"""`merge` and `export` as a user meets them; `push` is in test_hub.py."""

import json
from pathlib import Path

from fakes_sharing import write_checkout
from test_cli import radistill_command, refused


def test_merge_says_what_it_compared_in_words_and_as_json(run_folder: Path) -> None:
    done = radistill_command("merge", run_folder, "--dtype", "bfloat16")
    assert done.returncode == 0, done.stderr
    assert f"{run_folder / 'merged'}: bfloat16\n" in done.stdout
    assert "of 20 greedy answers are equal; rounding alone leaves " in done.stdout
    assert "asking what was written the same, in bfloat16" in done.stderr
    assert "warn" not in done.stderr.lower()
    told = json.loads(radistill_command("merge", run_folder, "--dtype", "bfloat16", "--json").stdout)
    assert told["is_new"] is False
    assert told["folder"] == str(run_folder / "merged")
    assert told["answers"] == 20


def test_what_cannot_be_merged_or_exported_is_one_message(full_run: Path, run_folder: Path, tmp_path: Path) -> None:
    assert "there is nothing to merge" in refused("merge", full_run)
    assert "no model at" in refused("merge", tmp_path / "none" / "such")
    assert "is none of auto, bfloat16" in refused("merge", run_folder, "--dtype", "fp8")
    out = tmp_path / "small.gguf"
    assert "is no checkout of llama.cpp" in refused("export", full_run, "--llama-cpp", tmp_path, "--output", out)
    checkout = write_checkout(tmp_path / "llama.cpp", "sys.exit('this model is not known')")
    message = refused("export", full_run, "--llama-cpp", checkout, "--output", out)
    assert "this model is not known" in message
    assert not out.exists()


def test_export_writes_the_file_and_says_its_size(full_run: Path, tmp_path: Path) -> None:
    checkout = write_checkout(tmp_path / "llama.cpp")
    done = radistill_command(
        "export", full_run, "--llama-cpp", checkout, "--output", tmp_path / "small.gguf", "--type", "f16"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(" MB, f16\n")
    assert (tmp_path / "small.gguf").read_bytes()[:4] == b"GGUF"
