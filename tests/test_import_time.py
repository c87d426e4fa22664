"""`import radistill` and `radistill --help` open nothing heavy.

Seconds differ from machine to machine; which modules are loaded does not. So the modules are what is looked at.
"""

import json
import subprocess
import sys

HEAVY = frozenset(
    {"accelerate", "datasets", "jinja2", "matplotlib", "numpy", "peft", "py3langid", "pyarrow", "sacrebleu"}
    | {"safetensors", "tokenizers", "torch", "transformers"}
)

# What the console script does, told to stderr, so that the help text stays readable on stdout.
HELP = """
import sys
sys.argv = ["radistill", *{arguments!r}]
from radistill.cli import main
try:
    main()
except SystemExit as end:
    assert not end.code, f"exit code {{end.code}}"
"""


def loaded_after(code: str) -> tuple[set[str], str]:
    """Top-level packages that a fresh interpreter holds after the code has run, and what the code printed."""
    probe = f"{code}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return {name.partition(".")[0] for name in json.loads(done.stderr.splitlines()[-1])}, done.stdout


def test_the_probe_sees_what_a_function_imports() -> None:
    loaded, _ = loaded_after("def inside():\n    import numpy.linalg\ninside()")
    assert "numpy" in loaded


def test_importing_radistill_opens_nothing_heavy() -> None:
    loaded, _ = loaded_after("import radistill")
    assert "radistill" in loaded
    assert loaded & (HEAVY | {"pydantic", "typer"}) == set()


def test_help_opens_nothing_heavy() -> None:
    loaded, text = loaded_after(HELP.format(arguments=["--help"]))
    assert "Usage" in text
    assert loaded & HEAVY == set()


def test_help_of_a_verb_opens_nothing_heavy() -> None:
    loaded, text = loaded_after(HELP.format(arguments=["run", "--help"]))
    assert "Usage" in text
    assert loaded & HEAVY == set()


def test_the_module_can_be_run_by_name() -> None:
    command = [sys.executable, "-m", "radistill.cli", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout
