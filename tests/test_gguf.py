"""GGUF by llama.cpp's own converter: here one that converts nothing, so that only what radistill does is tested."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from fakes_sharing import write_checkout
from radistill.errors import ModelError, RunFolderError, SharingError
from radistill.gguf import Conversion, export
from radistill.merge import read_note


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    return write_checkout(tmp_path / "llama.cpp")


def told(file: Path) -> dict[str, object]:
    """What the converter was given."""
    content = file.read_bytes()
    assert content[:4] == b"GGUF"
    found: dict[str, object] = json.loads(content[4:])
    return found


def test_an_adapter_is_merged_first_and_the_merged_model_used_again(
    run_folder: Path, checkout: Path, tmp_path: Path
) -> None:
    done = export(str(run_folder), tmp_path / "small.gguf", Conversion(checkout, "f16"))
    found = told(done)
    assert (found["type"], found["layers"], found["python"]) == ("f16", 2, sys.executable)
    assert found["model"] == str(run_folder / "merged")
    assert read_note(run_folder / "merged") is not None
    before = (run_folder / "merged" / "model.safetensors").stat().st_mtime_ns
    assert told(export(str(run_folder), tmp_path / "other.gguf", Conversion(checkout)))["type"] == "q8_0"
    assert (run_folder / "merged" / "model.safetensors").stat().st_mtime_ns == before


def test_a_merged_model_of_an_earlier_training_is_not_taken(run_folder: Path, checkout: Path, tmp_path: Path) -> None:
    export(str(run_folder), tmp_path / "small.gguf", Conversion(checkout))
    with (run_folder / "model" / "adapter_config.json").open("a", encoding="utf-8") as file:
        file.write("\n")
    with pytest.raises(RunFolderError, match="holds another merged model:\n  adapter: sha256"):
        export(str(run_folder), tmp_path / "new.gguf", Conversion(checkout))


def test_full_models_are_converted_as_they_are(
    full_run: Path, tiny_model: Path, checkout: Path, tmp_path: Path
) -> None:
    found = told(export(str(full_run), tmp_path / "a.gguf", Conversion(checkout)))
    assert found["model"] == str(full_run / "model")
    assert not (full_run / "merged").exists()
    assert told(export(str(tiny_model), tmp_path / "b.gguf", Conversion(checkout)))["model"] == str(tiny_model)


def test_a_file_that_is_there_stays_unless_told_otherwise(full_run: Path, checkout: Path, tmp_path: Path) -> None:
    file = tmp_path / "small.gguf"
    file.write_bytes(b"mine")
    with pytest.raises(RunFolderError, match=r"is there already\. Replace it with --redo"):
        export(str(full_run), file, Conversion(checkout))
    with pytest.raises(RunFolderError, match=r"is a folder. Name the file to write: --output .*model.gguf"):
        export(str(full_run), tmp_path, Conversion(checkout), redo=True)
    assert file.read_bytes() == b"mine"
    export(str(full_run), file, Conversion(checkout), redo=True)
    assert told(file)["type"] == "q8_0"


FAILURES = {
    "an error": (
        'raise NotImplementedError("BPE pre-tokenizer was not recognized")',
        "BPE pre-tokenizer was not recogn",
    ),
    "no file": ("pass", "ended well and wrote no GGUF file"),
    "half a file": ('Path(given.outfile).write_bytes(b"GG")', "ended well and wrote no GGUF file"),
    "killed": ("os.kill(os.getpid(), 9)", "failed (exit code -9)"),
    "a missing package": ("import no_such_package", "Name an environment that has it: --env DIR"),
}


@pytest.mark.parametrize(("body", "message"), FAILURES.values(), ids=FAILURES.keys())
def test_a_converter_that_fails_is_quoted_and_leaves_nothing(
    full_run: Path, tmp_path: Path, body: str, message: str
) -> None:
    checkout = write_checkout(tmp_path / "llama.cpp", f'Path(given.outfile + "2").write_text("x")\n{body}')
    with pytest.raises(SharingError) as error:
        export(str(full_run), tmp_path / "out" / "small.gguf", Conversion(checkout))
    assert message in str(error.value)
    assert "INFO: tensor 39" in str(error.value)
    assert "INFO: tensor 3\n" not in str(error.value), "only the end of what it said"
    assert list((tmp_path / "out").iterdir()) == []


def test_what_cannot_be_is_refused_before_anything_is_merged(run_folder: Path, checkout: Path, tmp_path: Path) -> None:
    out = tmp_path / "small.gguf"
    for how, message in (
        (Conversion(tmp_path), "is no checkout of llama.cpp: it has no convert_hf_to_gguf.py. Get one with git clone"),
        (Conversion(checkout, "q8"), "Did you mean 'q8_0'?"),
        (Conversion(checkout, "iq3_xxs"), "made by llama.cpp's llama-quantize from a file of type f16 or bf16"),
        (Conversion(checkout, env=tmp_path / "none"), "is no environment: there is no "),
    ):
        with pytest.raises(SharingError) as error:
            export(str(run_folder), out, how)
        assert message in str(error.value)
    with pytest.raises(ModelError, match="no model at"):
        export(str(tmp_path / "no" / "where"), out, Conversion(checkout))
    assert not (run_folder / "merged").exists()


def test_an_adapter_outside_a_run_is_to_be_merged_by_the_user(adapter: Path, checkout: Path, tmp_path: Path) -> None:
    shutil.move(adapter, tmp_path / "alone")
    with pytest.raises(SharingError, match=r"Merge it first, radistill merge .*alone --output DIR"):
        export(str(tmp_path / "alone"), tmp_path / "a.gguf", Conversion(checkout))


def test_the_converter_runs_in_the_environment_that_is_named_and_is_given_no_token(
    full_run: Path, checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = tmp_path / "env"
    (env / "bin").mkdir(parents=True)
    (env / "bin" / "python").symlink_to(sys.executable)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    found = told(export(str(full_run), tmp_path / "a.gguf", Conversion(checkout, env=env)))
    assert found["python"] == str(env / "bin" / "python")
    environ = found["environ"]
    assert isinstance(environ, dict)
    assert {"HF_TOKEN", "PYTHONPATH"}.isdisjoint(environ)
    assert "PATH" in environ
