"""Trackers are told what the log says, and send nothing anywhere."""

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from radistill import tables, trackers
from radistill.runs import RunFolder

TRAIN = """
import json, sys
from radistill import pipeline
from radistill.config import config_from
pipeline.run(config_from(json.loads(sys.argv[1])), stages=("generate", "assemble", "train"))
"""


@pytest.fixture
def counted() -> Iterator[tuple[str, list[bytes]]]:
    """A proxy that refuses everything, and what it was asked for."""
    asked: list[bytes] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                asked.append(connection.recv(4096).split(b"\r\n")[0])

    threading.Thread(target=serve, daemon=True).start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}", asked
    listener.close()


@pytest.fixture
def raw(raw_config: dict[str, Any]) -> dict[str, Any]:
    """A few steps of plain fine-tuning."""
    raw_config |= {"method": "vanilla"}
    raw_config["train"] |= {"max_steps": 3}
    return raw_config


def train(raw: dict[str, Any], tracker: str, proxy: str, folder: Path, **environment: str) -> list[dict[str, Any]]:
    """In a process of its own, whose home is that folder; returns the local log."""
    raw["train"]["report_to"] = [tracker]
    hidden = ("WANDB", "MLFLOW", "TRACKIO", "TENSORBOARD", "GRADIO")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
    through = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "ALL_PROXY"), proxy)
    local = {"NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost", "HOME": str(folder)}
    done = subprocess.run(
        [sys.executable, "-c", TRAIN, json.dumps(raw)],
        cwd=folder,
        env={**kept, **through, **local, "HF_HOME": str(folder / "hf"), **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return list(tables.read_jsonl(RunFolder(Path(raw["output_dir"])).train_log))


def test_tensorboard_has_the_losses_of_the_log(
    raw: dict[str, Any], counted: tuple[str, list[bytes]], tmp_path: Path
) -> None:
    pytest.importorskip("tensorboard", reason="the extra `tensorboard` is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = train(raw, "tensorboard", counted[0], tmp_path)
    folder = RunFolder(Path(raw["output_dir"])).path / "tensorboard"
    told = EventAccumulator(str(folder)).Reload()
    found = [(event.step, event.value) for event in told.Scalars("train/loss")]
    assert [step for step, _ in found] == [1, 2, 3]
    assert [value for _, value in found] == pytest.approx([row["loss"] for row in log], rel=1e-6)
    assert "train/loss/reference" in told.Tags()["scalars"]
    assert not list(RunFolder(Path(raw["output_dir"])).model.glob("runs"))
    assert not counted[1]


def test_trackio_has_the_losses_of_the_log(
    raw: dict[str, Any], counted: tuple[str, list[bytes]], tmp_path: Path
) -> None:
    pytest.importorskip("trackio", reason="the extra `trackio` is not installed")
    import sqlite3

    log = train(raw, "trackio", counted[0], tmp_path, TRACKIO_DIR=str(tmp_path / "trackio"))
    (file,) = (tmp_path / "trackio").glob(f"{trackers.PROJECT}*.db")
    with sqlite3.connect(file) as stored:
        rows = stored.execute("select step, metrics from metrics order by step").fetchall()
    found = {step: json.loads(told)["train/loss"] for step, told in rows if "train/loss" in json.loads(told)}
    assert list(found.values()) == pytest.approx([row["loss"] for row in log])
    assert not counted[1]


def test_wandb_is_offline_unless_the_user_says_otherwise(
    raw: dict[str, Any], counted: tuple[str, list[bytes]], tmp_path: Path
) -> None:
    pytest.importorskip("wandb", reason="the extra `wandb` is not installed")
    train(raw, "wandb", counted[0], tmp_path)
    (run,) = (tmp_path / "wandb").glob("offline-run-*")
    assert list(run.glob("*.wandb"))
    assert not counted[1]
    raw["output_dir"] += "-2"
    train(raw, "wandb", counted[0], tmp_path, WANDB_MODE="disabled")
    assert len(list((tmp_path / "wandb").glob("offline-run-*"))) == 1


def test_mlflow_writes_here_and_tells_nobody(
    raw: dict[str, Any], counted: tuple[str, list[bytes]], tmp_path: Path
) -> None:
    pytest.importorskip("mlflow", reason="the extra `mlflow` is not installed")
    place = {"MLFLOW_TRACKING_URI": (tmp_path / "mlruns").as_uri(), "MLFLOW_ALLOW_FILE_STORE": "true"}
    log = train(raw, "mlflow", counted[0], tmp_path, **place)
    (file,) = (tmp_path / "mlruns").glob("*/*/metrics/loss")
    found = [float(line.split()[1]) for line in file.read_text(encoding="utf-8").splitlines()]
    assert found == pytest.approx([row["loss"] for row in log])
    assert not counted[1]


def test_what_the_user_has_set_stays_and_nothing_is_left_behind(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.delenv("MLFLOW_DISABLE_TELEMETRY", raising=False)
    with trackers.at_home(RunFolder(tmp_path)):
        assert os.environ["WANDB_MODE"] == "online"
        assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
        assert os.environ["TENSORBOARD_LOGGING_DIR"] == str(tmp_path / "tensorboard")
    assert os.environ["WANDB_MODE"] == "online"
    assert "MLFLOW_DISABLE_TELEMETRY" not in os.environ
