"""Finds methods, backends, metrics and tasks by file name.

`methods/radis.py` holds the one class `RaDis(Method)` and is named `radis`. There is no list to edit. Packages
outside this one join through the entry-point groups `radistill.methods`, `radistill.backends`, … ; a file that
fails to import says so with its own error, never as "unknown method".
"""

import importlib
import inspect
import pkgutil
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import Any, Literal, get_args

from radistill.errors import ConfigError, did_you_mean
from radistill.settings import Settings

Kind = Literal["methods", "backends", "metrics", "tasks"]
KINDS: tuple[Kind, ...] = get_args(Kind)


def available(kind: Kind) -> tuple[str, ...]:
    """Names of all plugins of one kind, sorted, without importing any of them."""
    return tuple(sorted(_files(kind) | set(_outside(kind))))


def load(kind: Kind, name: str) -> type[Settings]:
    """The class of that name.

    Raises:
        ConfigError: no plugin of this kind has that name.
    """
    # Our own file wins: an installed package must not be able to replace what the name means here.
    if name in _files(kind):
        return _leaf(kind, importlib.import_module(f"radistill.{kind}.{name}"))
    outside = _outside(kind)
    if name not in outside:
        known = available(kind)
        raise ConfigError(f"unknown {kind[:-1]} {name!r}; known: {', '.join(known)}.{did_you_mean(name, known)}")
    loaded = outside[name].load()
    return _checked(kind, loaded) if inspect.isclass(loaded) else _leaf(kind, loaded)


def default(kind: Kind, name: str) -> Any:
    """The plugin of that name with the settings that it has by itself."""
    return load(kind, name)()


def name_of(plugin: object) -> str:
    """The name under which a plugin instance or class is found: that of its file, or of its entry point."""
    cls = plugin if inspect.isclass(plugin) else type(plugin)
    module = cls.__module__
    if not module.startswith("radistill."):
        for point in (point for kind in KINDS for point in _outside(kind).values()):
            if point.module == module and (point.attr or cls.__qualname__) == cls.__qualname__:
                return point.name
    return module.rpartition(".")[2]


def _files(kind: Kind) -> set[str]:
    package = importlib.import_module(f"radistill.{kind}")
    names = {module.name for module in pkgutil.iter_modules(package.__path__)}
    return {name for name in names if not name.startswith("_") and name != "base"}


def _outside(kind: Kind) -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=f"radistill.{kind}")}


def _checked(kind: Kind, cls: type[Any]) -> type[Settings]:
    base = _base(kind)
    if not issubclass(cls, base):
        raise TypeError(f"{cls.__module__}.{cls.__qualname__} is offered to radistill.{kind} but is no {base.__name__}")
    return cls


def _base(kind: Kind) -> type[Settings]:
    base: type[Settings] = importlib.import_module(f"radistill.{kind}.base").PLUGIN
    return base


def _leaf(kind: Kind, module: ModuleType) -> type[Settings]:
    base = _base(kind)
    found = [
        c
        for _, c in inspect.getmembers(module, inspect.isclass)
        if issubclass(c, base) and c.__module__ == module.__name__
    ]
    if len(found) != 1:
        names = [c.__name__ for c in found]
        raise TypeError(f"{module.__name__} must hold exactly one {base.__name__}, it holds {names}")
    leaf: type[Settings] = found[0]
    return leaf
