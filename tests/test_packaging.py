"""The package installs what it imports, and the pins say what was tested."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DEVELOPMENT = {"test", "dev", "docs", "bench"}
"""Extras that the installed package must do without."""


def declared() -> set[str]:
    """Distributions that the package itself or one of its users' extras asks for."""
    extras = (words for name, words in PROJECT["optional-dependencies"].items() if name not in DEVELOPMENT)
    words = [*PROJECT["dependencies"], *(word for extra in extras for word in extra)]
    return {canonicalize_name(Requirement(word).name) for word in words}


def imported() -> dict[str, str]:
    """Every package from elsewhere that our code imports, wherever in a file → the place."""
    found: dict[str, str] = {}
    for path in sorted((REPOSITORY / "src").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names = [node.module]
            for top in {name.partition(".")[0] for name in names} - sys.stdlib_module_names - {"radistill"}:
                found.setdefault(top, f"{path.relative_to(REPOSITORY)}:{getattr(node, 'lineno', 0)}")
    return found


def test_everything_the_package_imports_is_declared() -> None:
    found = imported()
    assert len(found) >= 10
    provided = packages_distributions()
    missing = {
        f"{where} imports {top}"
        for top, where in found.items()
        if not {canonicalize_name(name) for name in provided.get(top, [top])} & declared()
    }
    assert missing == set()


def test_every_dependency_has_its_tested_version_within_the_declared_range() -> None:
    text = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8")
    tested = {
        str(canonicalize_name(name)): str(version)
        for name, version in re.findall(r"^(\S+)==(\S+)$", text, re.MULTILINE)
    }
    assert "+" not in tested["torch"], "a local version would shut out every other build of torch"
    layers = [PROJECT["dependencies"], *(PROJECT["optional-dependencies"][name] for name in DEVELOPMENT)]
    asked = [Requirement(word) for layer in layers for word in layer]
    ours = str(PROJECT["name"])
    wrong = [
        str(r)
        for r in asked
        if (name := canonicalize_name(r.name)) != ours and tested.get(name, "0") not in r.specifier
    ]
    assert wrong == []
