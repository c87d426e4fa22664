"""What `import radistill` offers."""

import importlib

import pytest

import radistill


@pytest.mark.parametrize("name", radistill.__all__)
def test_every_public_name_is_there_and_documented(name: str) -> None:
    found = getattr(radistill, name)
    assert name in dir(radistill)
    if name != "__version__":
        assert found.__doc__
        assert found is getattr(importlib.import_module(found.__module__), name)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Radis'"):
        _ = radistill.Radis
