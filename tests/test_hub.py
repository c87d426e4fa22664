"""`radistill push` uploads a model with its card, to a hub on this machine; nothing else uploads anything."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fakes_sharing import Hub, hub
from radistill.merge import merge
from test_models import edit

PACKAGE = Path(__file__).resolve().parents[1] / "src" / "radistill"
TOKEN = "hf_secretsecretsecret"


@pytest.fixture
def here() -> Iterator[Hub]:
    with hub() as known:
        yield known


def pushed(
    known: Hub, *arguments: object, token: str | None = TOKEN, **more: str
) -> "subprocess.CompletedProcess[str]":
    """`radistill push` in a process of its own, in which huggingface_hub knows only that hub."""
    without = {k: v for k, v in os.environ.items() if k not in ("HF_TOKEN", "HF_HUB_OFFLINE", "HUGGING_FACE_HUB_TOKEN")}
    env = without | {
        "HF_ENDPOINT": known.url,
        "HF_HUB_DISABLE_TELEMETRY": "1",
        **({"HF_TOKEN": token} if token else {}),
    }
    command = [sys.executable, "-m", "radistill.cli", "push", *map(str, arguments)]
    return subprocess.run(command, env=env | more, capture_output=True, text=True, timeout=120, check=False)


def refused(done: "subprocess.CompletedProcess[str]") -> str:
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert TOKEN not in done.stderr + done.stdout
    return done.stderr


def test_a_full_model_is_uploaded_with_its_card_in_one_commit(here: Hub, full_run: Path) -> None:
    done = pushed(here, full_run, "--repo", "owner/small")
    assert done.returncode == 0, done.stderr
    model = full_run / "model"
    assert here.files == {name: (model / name).read_bytes() for name in here.files}
    assert {
        "README.md",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "chat_template.jinja",
    } <= here.files.keys()
    assert not any("checkpoint" in name or name.startswith(".") for name in here.files)
    assert here.tokens == {f"Bearer {TOKEN}"}
    assert here.made[0]["name"] == "small"
    assert here.made[0]["organization"] == "owner"
    assert here.made[0].get("private") is True or here.made[0].get("visibility") == "private"
    assert sum("/commit/" in asked for asked in here.asked) == 1
    assert f"{len(here.files)} files" in done.stdout


def test_a_merged_model_is_pushed_by_its_folder_and_in_public_if_asked(here: Hub, run_folder: Path) -> None:
    merged = merge(str(run_folder)).folder
    done = pushed(here, merged, "--repo", "owner/small", "--public")
    assert done.returncode == 0, done.stderr
    assert here.made[0].get("private") is False or here.made[0].get("visibility") == "public"
    assert b"Merged and unmerged" in here.files["README.md"]


def test_an_adapter_is_pushed_only_if_others_can_find_its_base(here: Hub, run_folder: Path) -> None:
    message = refused(pushed(here, run_folder, "--repo", "owner/small"))
    assert "is a folder of this machine: nobody else could load it. Merge it" in message
    assert here.asked == []
    edit(run_folder / "model" / "adapter_config.json", base_model_name_or_path="somebody/tiny")
    assert pushed(here, run_folder, "--repo", "owner/small").returncode == 0
    assert "adapter_model.safetensors" in here.files


def test_the_token_comes_from_the_environment_only_and_is_written_nowhere(
    here: Hub, full_run: Path, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("hf_of_another_program", encoding="utf-8")
    home = {"HF_HOME": str(tmp_path), "HOME": str(tmp_path)}
    message = refused(pushed(here, full_run, "--repo", "owner/small", token=None, **home))
    assert "in the environment variable HF_TOKEN" in message
    assert here.asked == []
    assert pushed(here, full_run, "--repo", "owner/small", **home).returncode == 0
    written = [file for place in (tmp_path, full_run) for file in place.rglob("*") if file.is_file()]
    assert [file for file in written if TOKEN.encode() in file.read_bytes()] == []
    assert not any(TOKEN.encode() in content for content in here.files.values())


@pytest.mark.parametrize("status", [401, 403, 404, 409, 422])
def test_what_the_hub_refuses_is_one_message(here: Hub, full_run: Path, status: int) -> None:
    here.refuses = status
    message = refused(pushed(here, full_run, "--repo", "owner/small"))
    assert "owner/small could not be uploaded: " in message
    assert str(status) in message
    assert here.files == {}


def test_a_hub_that_is_not_there_is_one_message(here: Hub, full_run: Path) -> None:
    assert "could not be uploaded" in refused(pushed(here, full_run, "--repo", "o/n", HF_ENDPOINT="http://127.0.0.1:9"))
    assert "could not be uploaded" in refused(pushed(here, full_run, "--repo", "o/n", HF_HUB_OFFLINE="1"))
    assert here.asked == []


@pytest.mark.parametrize("repo", ["small", "a/b/c", "https://huggingface.co/a/b", "-a/b", "owner/sm all"])
def test_what_is_no_repository_is_refused(here: Hub, full_run: Path, repo: str) -> None:
    refused(pushed(here, full_run, f"--repo={repo}"))
    assert here.files == {}


def test_what_holds_no_model_is_refused(here: Hub, tmp_path: Path) -> None:
    assert "holds no model" in refused(pushed(here, tmp_path, "--repo", "owner/small"))
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    assert "holds no weights" in refused(pushed(here, tmp_path, "--repo", "owner/small"))


UPLOADS = re.compile(r"HfApi|create_repo|create_commit|upload_\w+\(|push_to_hub|login\(")


def test_nothing_else_in_the_program_uploads_anything() -> None:
    found = {path.name for path in PACKAGE.rglob("*.py") if UPLOADS.search(path.read_text(encoding="utf-8"))}
    assert found == {"hub.py"}
    callers = re.compile(r"import hub\b|radistill\.hub\b|hub\.push")
    assert {p.name for p in PACKAGE.rglob("*.py") if callers.search(p.read_text(encoding="utf-8"))} == {"cli_model.py"}
