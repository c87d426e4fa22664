"""Readers of training and test data. The file name is the format's name; files that start with `_` are helpers."""

import importlib
import inspect
import pkgutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from radistill.formats.base import Format


def available() -> tuple[str, ...]:
    """Names of all formats, sorted."""
    names = (module.name for module in pkgutil.iter_modules(__path__))
    return tuple(sorted(name for name in names if not name.startswith("_") and name != "base"))


def named(name: str) -> "Format":
    """The format of that name, which is one of `available()`."""
    from radistill.formats.base import Format

    module = importlib.import_module(f"{__name__}.{name}")
    found = [c for _, c in inspect.getmembers(module, inspect.isclass) if c.__module__ == module.__name__]
    (leaf,) = (c for c in found if issubclass(c, Format))
    return leaf()
