"""Plugins are found by their file's name, here and in packages outside; one that cannot be imported says why."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from radistill import plugins
from radistill.config import as_dict, config_from
from radistill.errors import ConfigError
from radistill.methods.radis import RaDis
from radistill.settings import Settings

METHOD = '''"""A method."""
from radistill.methods.base import Method
from radistill.methods.vanilla import Vanilla
from radistill.settings import Settings

class Part(Settings):
    """Settings of its own, one level down."""

    depth: int = 1

class {name}(Method):
    """Nothing new."""

    strength: float = 0.5
    part: Part = Part()

    def assemble(self, example, chat, generations):
        return ()
'''


@pytest.fixture
def dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[plugins.Kind, str, str], None]:
    """Put a file among our own plugins of that kind."""

    def drop(kind: plugins.Kind, name: str, text: str) -> None:
        folder = tmp_path / kind
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.py").write_text(text, encoding="utf-8")
        package: ModuleType = importlib.import_module(f"radistill.{kind}")
        if str(folder) not in package.__path__:
            monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
        importlib.invalidate_caches()
        monkeypatch.delitem(sys.modules, f"radistill.{kind}.{name}", raising=False)

    return drop


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Install a package with entry points: its modules, and lines such as `l3sp = their_methods.l2sp`."""

    def install(group: str, *lines: str, **modules: str) -> None:
        site = tmp_path / "site"
        package = site / "their_methods"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text("")
        for name, text in modules.items():
            (package / f"{name}.py").write_text(text, encoding="utf-8")
            monkeypatch.delitem(sys.modules, f"their_methods.{name}", raising=False)
        info = site / "their_methods-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-methods\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[{group}]\n" + "\n".join(lines) + "\n")
        monkeypatch.syspath_prepend(str(site))
        monkeypatch.delitem(sys.modules, "their_methods", raising=False)

    return install


@pytest.mark.parametrize("kind", plugins.KINDS)
def test_every_plugin_that_is_available_is_named_after_its_file_and_can_be_loaded(kind: plugins.Kind) -> None:
    names = plugins.available(kind)
    assert names
    assert list(names) == sorted(names)
    assert "base" not in names
    for name in names:
        cls = plugins.load(kind, name)
        assert issubclass(cls, Settings)
        assert plugins.name_of(cls) == name
        assert plugins.name_of(cls()) == name


def test_a_file_put_among_the_methods_is_a_method_with_its_settings(dropped: Callable[..., None]) -> None:
    dropped("methods", "l3sp", METHOD.format(name="L2SP"))
    assert "l3sp" in plugins.available("methods")
    assert plugins.load("methods", "l3sp").__name__ == "L2SP"
    raw = {"name": "a", "output_dir": "o", "model": "m", "data": {"train": {"path": "d"}}}
    config = config_from({**raw, "method": {"name": "l3sp", "strength": 2, "part": {"depth": 3}}})
    assert as_dict(config)["method"] == {"name": "l3sp", "strength": 2.0, "part": {"depth": 3}}
    assert config_from(as_dict(config)) == config


def test_files_that_begin_with_an_underscore_are_no_plugins(dropped: Callable[..., None]) -> None:
    dropped("methods", "_helper", METHOD.format(name="Helper"))
    assert "_helper" not in plugins.available("methods")
    with pytest.raises(ConfigError, match="unknown method '_helper'"):
        plugins.load("methods", "_helper")
    with pytest.raises(ConfigError, match="unknown method 'base'"):
        plugins.load("methods", "base")


def test_a_name_that_is_nearly_right_is_told_with_the_right_one() -> None:
    with pytest.raises(ConfigError, match=r"^unknown method 'raddis'; known: .*radis.*\. Did you mean 'radis'\?$"):
        plugins.load("methods", "raddis")
    with pytest.raises(ConfigError, match=r"^unknown metric 'blue'; known: bleu, .*Did you mean 'bleu'\?$"):
        plugins.load("metrics", "blue")
    with pytest.raises(ConfigError, match=r"^unknown backend 'zzzz'; known: [a-z, ]*\.$"):
        plugins.load("backends", "zzzz")
    for name in ("", ".", "radis.RaDis", "..methods.radis", "radis/../vanilla", "RaDis"):
        with pytest.raises(ConfigError, match="unknown method"):
            plugins.load("methods", name)


@pytest.mark.parametrize(
    ("text", "error", "told"),
    [
        ("import no_such_package_anywhere", ImportError, "no_such_package_anywhere"),
        ("def broken(:", SyntaxError, "invalid syntax"),
        ("1 / 0", ZeroDivisionError, "division by zero"),
        ("value = 1", TypeError, r"must hold exactly one Method, it holds \[\]"),
        (
            METHOD.format(name="One") + METHOD.format(name="Two"),
            TypeError,
            r"exactly one Method, it holds \['One', 'Two'\]",
        ),
    ],
    ids=["import", "syntax", "error", "none", "two"],
)
def test_a_file_that_cannot_be_used_shows_its_own_error_and_hides_no_other(
    dropped: Callable[..., None], text: str, error: type[Exception], told: str
) -> None:
    dropped("methods", "broken", text)
    assert {"broken", "radis"} <= set(plugins.available("methods"))
    with pytest.raises(error, match=told):
        plugins.load("methods", "broken")
    raw = {"name": "a", "output_dir": "o", "model": "m", "data": {"train": {"path": "d"}}, "method": "broken"}
    with pytest.raises(error, match=told):
        config_from(raw)
    assert plugins.load("methods", "radis") is RaDis


@pytest.mark.parametrize("target", ["their_methods.leaf", "their_methods.leaf:Theirs"])
def test_a_package_outside_adds_a_method_under_the_name_of_its_entry_point(
    installed: Callable[..., None], target: str
) -> None:
    installed("radistill.methods", f"their-own = {target}", leaf=METHOD.format(name="Theirs"))
    assert "their-own" in plugins.available("methods")
    cls = plugins.load("methods", "their-own")
    assert cls.__name__ == "Theirs"
    assert plugins.name_of(cls()) == "their-own"
    raw = {"name": "a", "output_dir": "o", "model": "m", "data": {"train": {"path": "d"}}}
    config = config_from({**raw, "method": {"name": "their-own", "part": {"depth": 2}}})
    assert as_dict(config)["method"] == {"name": "their-own", "strength": 0.5, "part": {"depth": 2}}
    assert config_from(as_dict(config)) == config
    with pytest.raises(ConfigError, match=r"`method\.strenght` is no key of this section\. Did you mean 'strength'\?"):
        config_from({**raw, "method": {"name": "their-own", "strenght": 2}})


def test_a_package_outside_cannot_replace_one_of_ours(installed: Callable[..., None]) -> None:
    installed("radistill.methods", "radis = their_methods.leaf", leaf=METHOD.format(name="Theirs"))
    assert plugins.load("methods", "radis") is RaDis
    assert plugins.available("methods").count("radis") == 1


def test_what_a_package_offers_must_be_what_it_says(installed: Callable[..., None]) -> None:
    installed(
        "radistill.metrics",
        "a-method = their_methods.leaf:Theirs",
        "nothing = their_methods.leaf:Missing",
        "gone = their_methods.gone",
        leaf=METHOD.format(name="Theirs"),
    )
    with pytest.raises(
        TypeError, match=r"their_methods\.leaf\.Theirs is offered to radistill\.metrics but is no Metric"
    ):
        plugins.load("metrics", "a-method")
    with pytest.raises(AttributeError, match="Missing"):
        plugins.load("metrics", "nothing")
    with pytest.raises(ModuleNotFoundError, match=r"their_methods\.gone"):
        plugins.load("metrics", "gone")
    assert "a-method" not in plugins.available("methods")
