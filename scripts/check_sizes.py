"""Refuses Python files and functions that have grown too long to be read at one go.

usage: python scripts/check_sizes.py [FOLDER]      (default: the repository)
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
FOLDERS = ("src", "tests", "scripts", "benchmarks", "examples")


def findings(path: Path) -> Iterator[tuple[int, str]]:
    """Line and message for everything in the file that is too long."""
    text = path.read_text(encoding="utf-8")
    n_lines = len(text.removesuffix("\n").split("\n"))
    if n_lines > MAX_FILE_LINES:
        yield 1, f"the file has {n_lines} lines, at most {MAX_FILE_LINES} are allowed; which part wants its own file?"
    for node in ast.walk(ast.parse(text, filename=str(path))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            length = node.end_lineno - node.lineno + 1
            if length > MAX_FUNCTION_LINES:
                yield node.lineno, f"{node.name} has {length} lines, at most {MAX_FUNCTION_LINES} are allowed"


def main() -> int:
    """Print every finding; the exit code is 1 when there is one, or when there was nothing to look at."""
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[1]
    paths = sorted(path for folder in FOLDERS for path in (root / folder).rglob("*.py"))
    if not paths:
        print(f"no Python file under {root}: {', '.join(FOLDERS)}")
        return 1
    n_findings = 0
    for path in paths:
        for line, message in findings(path):
            print(f"{path.relative_to(root)}:{line}: {message}")
            n_findings += 1
    if not n_findings:
        print(f"{len(paths)} files within the limits")
    return 1 if n_findings else 0


if __name__ == "__main__":
    sys.exit(main())
