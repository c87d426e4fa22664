"""Where the real engines are: environments that `make test-servers` makes."""

import os
from pathlib import Path

import pytest

from fakes_engines import ROOT

HOME = Path(os.environ.get("RADISTILL_SERVERS", ROOT / ".servers"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All that stands in this folder takes minutes and an environment."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.servers)


def environment(name: str) -> Path:
    """The folder of an engine's environment; skips aloud where there is none."""
    folder = HOME / name
    if not (folder / ".ready").exists():
        pytest.skip(f"no environment with {name} at {folder}: make test-servers makes it")
    return folder.absolute()


@pytest.fixture(scope="session")
def vllm() -> Path:
    return environment("vllm")


@pytest.fixture(scope="session")
def transformers_serve() -> Path:
    return environment("transformers")


@pytest.fixture(scope="session")
def ray() -> Path:
    return environment("ray")
