"""Fixtures shared by all tests: a tiny random chat model, sentences, and run files made of them."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the project; tests that need it skip aloud where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"no real data at {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random two-layer Llama with a ChatML template, fp32."""
    from tiny import make_model, sentences

    folder = tmp_path_factory.mktemp("models") / "tiny"
    make_model(folder, corpus=[side for pair in sentences(800, "corpus") for side in pair], hidden=32)
    return folder


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with 300 aligned sentences to train on, and tests in both directions."""
    from tiny import write_sentences

    folder = tmp_path_factory.mktemp("data")
    write_sentences(folder)
    return folder


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[None]:
    """A Ray cluster of this machine, joined by this process, as a caller's own would be."""
    from radistill.backends.ray import cluster

    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_AUTH_MODE", "disabled")
        environment.delenv("RAY_ADDRESS", raising=False)
        # Actors are processes of their own, which must find the backends that tests make.
        environment.setenv(
            "PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
        )
        with cluster(None):
            yield


@pytest.fixture
def raw_config(tiny_model: Path, tiny_data: Path, tmp_path: Path) -> dict[str, Any]:
    """A small complete run as the plain values of a run file; tests change what they are about."""
    source = {"path": str(tiny_data), "pairs": ["en-de", "de-en"]}
    return {
        "name": "small",
        "model": str(tiny_model),
        "output_dir": str(tmp_path / "run"),
        "data": {"train": {**source, "limit": 24}, "test": {**source, "limit": 10}},
        "method": {"name": "radis"},
        "generate": {
            "backend": {"name": "transformers", "dtype": "float32", "batch_size": 8},
            "sampling": {"max_new_tokens": 8},
            "ledger": str(tmp_path / "ledger"),
            # What a random model writes is cut and says nothing: with filters hardly a rationale would be left.
            "filters": {"broken": False, "degenerate": False},
        },
        "train": {
            "learning_rate": 1e-3,
            "per_device_train_batch_size": 4,
            "bf16": False,
            "lora": None,
            "logging_steps": 1,
        },
        "evaluate": [{"task": "translation", "max_new_tokens": 8}],
        "report": {"examples": 5},
    }


@pytest.fixture
def write_config(tmp_path: Path) -> Callable[[dict[str, Any]], Path]:
    """Write plain values as a run file and return its path."""
    import yaml

    def write(raw: dict[str, Any], name: str = "run.yaml") -> Path:
        path = tmp_path / name
        path.write_text(yaml.safe_dump(raw, allow_unicode=True), encoding="utf-8")
        return path

    return write


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model that a test may spoil."""
    return Path(shutil.copytree(tiny_model, tmp_path / "models" / "tiny"))


@pytest.fixture
def adapter(folder: Path, tmp_path: Path) -> Path:
    """An adapter of it whose weights are not zero."""
    import torch

    from radistill.models import adapt, load, resolve
    from radistill.stage_settings import LoraSettings

    base = resolve(str(folder))
    adapted = adapt(load(base), LoraSettings(r=2, target_modules=("q_proj", "v_proj")), base_name=str(folder), seed=0)
    with torch.no_grad():
        for name, weights in adapted.named_parameters():
            if "lora_B" in name:
                weights.normal_(generator=torch.Generator().manual_seed(0))
    adapted.save_pretrained(str(tmp_path / "run" / "model"))
    return tmp_path / "run" / "model"


def _trained(folder: Path, model: Path, data: Path, lora: dict[str, Any] | None) -> Path:
    """A run that is trained, in a few steps of plain fine-tuning that change the answers."""
    from radistill import pipeline
    from radistill.config import config_from

    source = {"path": str(data), "pairs": ["en-de"]}
    raw = {
        "name": "small",
        "model": str(model),
        "output_dir": str(folder / "run"),
        "data": {"train": {**source, "limit": 24}, "test": {**source, "limit": 4}},
        "method": "vanilla",
        "generate": {"backend": "echo", "ledger": str(folder / "ledger")},
        "train": {"learning_rate": 2e-2, "max_steps": 6, "bf16": False, "lora": lora},
    }
    pipeline.run(config_from(raw), stages=("generate", "assemble", "train"))
    return folder / "run"


@pytest.fixture(scope="session")
def adapter_run(tiny_model: Path, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose model is an adapter of the tiny model; not to be written into."""
    lora = {"r": 4, "alpha": 8, "dropout": 0.0}
    return _trained(tmp_path_factory.mktemp("adapter-run"), tiny_model, tiny_data, lora)


@pytest.fixture(scope="session")
def full_run(tiny_model: Path, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose model is a full one; not to be written into."""
    return _trained(tmp_path_factory.mktemp("full-run"), tiny_model, tiny_data, None)


@pytest.fixture
def run_folder(adapter_run: Path, tmp_path: Path) -> Path:
    """A copy of the run with an adapter that a test may write into."""
    return Path(shutil.copytree(adapter_run, tmp_path / "runs" / "small"))
