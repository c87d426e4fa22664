"""The data flow is as drawn: stages import no other stage, leaves import no stage, nothing imports the command line.

Read from the source with `ast`, so that an import inside a function counts as well. Chains count too: a leaf that
imports a helper that imports a stage has imported the stage.
"""

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "src" / "radistill"

STAGES = frozenset({"generate", "assemble", "train", "evaluate", "report"})
LEAF_PACKAGES = frozenset({"methods", "backends", "metrics", "tasks", "formats"})
CONDUCTORS = frozenset({"pipeline", "cli", "demo"})
"""Only these may import more than one stage."""
LIGHT = frozenset({"", "errors", "settings", "records", "plugins"})
"""Imported by nearly everything, and so on the way to `radistill --help` ("" is the package itself)."""
HEAVY = frozenset(
    {"accelerate", "datasets", "jinja2", "matplotlib", "numpy", "peft", "py3langid", "pyarrow", "sacrebleu"}
    | {"safetensors", "torch", "transformers"}
)


@dataclass
class Imports:
    """What one module imports, by names relative to the package (`metrics.base`)."""

    anywhere: set[str] = field(default_factory=set)
    """Modules of ours, wherever in the file, `TYPE_CHECKING` and function bodies included."""
    on_import: set[str] = field(default_factory=set)
    """Modules of ours that are loaded with this one."""
    foreign_on_import: set[str] = field(default_factory=set)
    """Other people's packages that are loaded with this one."""


def read_graph(package: Path) -> dict[str, Imports]:
    """Every module of the package and what it imports."""
    modules = {name_of(path, package): path for path in sorted(package.rglob("*.py"))}
    graph = {name: read_imports(path, name, package.name, frozenset(modules)) for name, path in modules.items()}
    # The package's front offers public names lazily; only what it loads at once is on everybody's way.
    graph[""].anywhere = graph[""].on_import
    return graph


def name_of(path: Path, package: Path) -> str:
    parts = path.relative_to(package).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def read_imports(path: Path, name: str, package: str, known: frozenset[str]) -> Imports:
    found = Imports()
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    here = [package, *name.split(".")] if name else [package]
    if path.name != "__init__.py":
        here = here[:-1]
    for node, at_import in nodes(tree, at_import=True):
        for target in targets(node, here):
            top, _, rest = target.partition(".")
            if top != package:
                found.foreign_on_import |= {top} if at_import else set()
                continue
            # `from radistill.records import Example` names a module and a thing in it; keep the module.
            while rest and rest not in known:
                rest = rest.rpartition(".")[0]
            found.anywhere.add(rest)
            found.on_import |= {rest} if at_import else set()
    found.anywhere.discard(name)
    found.on_import.discard(name)
    return found


def nodes(tree: ast.AST, *, at_import: bool) -> Iterator[tuple[ast.AST, bool]]:
    """All nodes; the flag says whether they run when the module is imported."""
    for child in ast.iter_child_nodes(tree):
        inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        typing_only = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
        yield child, at_import
        yield from nodes(child, at_import=at_import and not inside and not typing_only)


def targets(node: ast.AST, here: list[str]) -> Iterator[str]:
    """Full dotted names the node imports."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = here[: len(here) - node.level + 1] if node.level else []
        module = ".".join([*base, *([node.module] if node.module else [])])
        yield from (f"{module}.{alias.name}" for alias in node.names)
    elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
        # A name put together at run time (plugins.py) is no import of any one module.
        yield from (
            word.value for word in node.args[:1] if isinstance(word, ast.Constant) and isinstance(word.value, str)
        )


def chains(graph: Mapping[str, Imports], start: str, *, on_import: bool = False) -> dict[str, list[str]]:
    """Every module reachable from `start`, with the shortest chain of imports that leads there."""
    found: dict[str, list[str]] = {start: [start]}
    queue = [start]
    for module in queue:
        imports = graph.get(module, Imports())
        for target in sorted(imports.on_import if on_import else imports.anywhere):
            if target not in found:
                found[target] = [*found[module], target]
                queue.append(target)
    return found


def room(module: str) -> str:
    """`methods` for `methods.radis`; a stage that became a package is still that stage."""
    return module.partition(".")[0]


def violations(graph: Mapping[str, Imports]) -> list[str]:
    """One sentence for each breach of the house's rules."""
    found = []
    for module, imports in graph.items():
        reached = chains(graph, module)
        direct = {room(target) for target in imports.anywhere}
        for target, chain in reached.items():
            path = " -> ".join(chain)
            if room(module) in STAGES and room(target) in STAGES - {room(module)}:
                found.append(f"stage imports stage: {path}")
            if room(module) in LEAF_PACKAGES and room(target) in STAGES | CONDUCTORS:
                found.append(f"leaf imports stage: {path}")
        if room(module) not in CONDUCTORS and len(direct & STAGES - {room(module)}) > 1:
            found.append(f"imports several stages: {module}: {', '.join(sorted(direct & STAGES))}")
        if "cli" in direct and room(module) not in {"cli", "__main__"}:
            found.append(f"imports the command line: {module}")
        if module in LIGHT:
            for target, chain in chains(graph, module, on_import=True).items():
                for heavy in sorted(graph.get(target, Imports()).foreign_on_import & HEAVY):
                    found.append(f"heavy at import: {' -> '.join([*chain, heavy])}")
    return found


def test_the_package_keeps_the_rules() -> None:
    assert violations(read_graph(PACKAGE)) == []


def test_every_stage_and_every_room_was_looked_at() -> None:
    graph = read_graph(PACKAGE)
    stages_and_conductors = STAGES | CONDUCTORS
    assert sorted(stages_and_conductors - {room(module) for module in graph}) == []
    for package in LEAF_PACKAGES:
        assert any(module.startswith(f"{package}.") for module in graph), f"no leaf of {package} was seen"
    assert set(LIGHT) <= set(graph)
    assert len(graph) >= 35
    assert sum(len(imports.anywhere) for imports in graph.values()) >= 60


GOOD = {
    "__init__.py": "def __getattr__(name):\n    from radistill import pipeline, cli",
    "errors.py": "import difflib",
    "settings.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch",
    "records.py": "from radistill.settings import Settings",
    "plugins.py": "import importlib\ndef load(name):\n    return importlib.import_module(f'radistill.methods.{name}')",
    "chat.py": "from radistill.records import Message\ndef f():\n    import torch",
    "generate.py": "from radistill.chat import Chat",
    "assemble.py": "from radistill import chat",
    "train.py": "import torch\nfrom radistill import __version__",
    "evaluate.py": "",
    "report.py": "",
    "pipeline.py": "from radistill import assemble, evaluate, generate, report, train",
    "cli.py": "def run():\n    from radistill import pipeline",
    "methods/__init__.py": "",
    "methods/base.py": "from radistill.records import Example",
    "methods/radis.py": "from .base import Method\nfrom ..chat import Chat",
}


def graph_of(tmp_path: Path, changed: Mapping[str, str] | None = None) -> dict[str, Imports]:
    package = tmp_path / "radistill"
    for name, text in {**GOOD, **(changed or {})}.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)
    return read_graph(package)


def test_a_good_house_has_no_violation(tmp_path: Path) -> None:
    graph = graph_of(tmp_path)
    assert violations(graph) == []
    assert graph["methods.radis"].anywhere == {"methods.base", "chat"}
    assert graph["pipeline"].anywhere >= STAGES


@pytest.mark.parametrize(
    ("module", "text", "breach"),
    [
        ("train", "from radistill.generate import ask", "stage imports stage: train -> generate"),
        ("train", "def f():\n    from radistill import generate", "stage imports stage: train -> generate"),
        ("train", "from . import generate", "stage imports stage: train -> generate"),
        ("train", "import radistill.generate as g", "stage imports stage: train -> generate"),
        (
            "train",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from radistill.generate import Ask",
            "stage imports stage: train -> generate",
        ),
        (
            "train",
            "import importlib\nimportlib.import_module('radistill.generate')",
            "stage imports stage: train -> generate",
        ),
        ("chat", "from radistill.train import fit", "stage imports stage: generate -> chat -> train"),
        ("chat", "from radistill.train import fit", "leaf imports stage: methods.radis -> chat -> train"),
        ("methods/radis", "from ..report import write", "leaf imports stage: methods.radis -> report"),
        ("methods/base", "from radistill import pipeline", "leaf imports stage: methods.base -> pipeline"),
        ("chat", "from radistill import train, report", "imports several stages: chat: report, train"),
        ("__init__", "from radistill.pipeline import run", "stage imports stage: train ->  -> pipeline -> generate"),
        ("records", "def f():\n    import radistill.cli", "imports the command line: records"),
        ("records", "import torch.nn", "heavy at import: records -> torch"),
        ("records", "try:\n    import numpy\nexcept ImportError:\n    pass", "heavy at import: records -> numpy"),
        ("settings", "import pyarrow.parquet as pq", "heavy at import: records -> settings -> pyarrow"),
    ],
)
def test_each_breach_is_seen(tmp_path: Path, module: str, text: str, breach: str) -> None:
    assert breach in violations(graph_of(tmp_path, {f"{module}.py": text}))
