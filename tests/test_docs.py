"""Every command in README and docs is executed here, in order, in a folder like a user's.

`make demo` and `make test` are executed by .ci/run. Placeholders such as `path/to/model` really are there.
"""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from fakes_sharing import write_checkout
from tiny import make_model, sentences

ROOT = Path(__file__).resolve().parents[1]
LAB = ROOT / "src/radistill/lab/README.md"
PAGES = [ROOT / "README.md", LAB, *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(?:bash|sh|console)\n(.*?)^```", re.MULTILINE | re.DOTALL)
BY_CI = {"make demo", "make test"}
NEEDS_REAL_DATA = "configs/alma"


def commands(page: Path) -> list[str]:
    lines = [line for block in FENCE.findall(page.read_text(encoding="utf-8")) for line in block.splitlines()]
    return [stripped for line in lines if (stripped := re.sub(r"\s+#.*", "", line).strip())]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path) -> Path:
    """A project folder with everything the pages speak of."""
    folder = tmp_path_factory.mktemp("user") / "project"
    folder.mkdir()
    (folder / "configs").symlink_to(ROOT / "configs")
    (folder / "path/to").mkdir(parents=True)
    # Its vocabulary knows none of ALMA's languages, so that a sentence is many tokens.
    make_model(
        folder / "path/to/model", corpus=[s for p in sentences(800, "corpus") for s in p], hidden=16, context=8192
    )
    (folder / "path/to/data").symlink_to(tiny_data)
    write_checkout(folder / "path/to/llama.cpp")
    if (ROOT.parent / "shared").is_dir():
        (folder.parent / "shared").symlink_to(ROOT.parent / "shared")
    for name in ("hypotheses.txt", "references.txt"):
        (folder / name).write_text("The old man sees the dog.\nThe cat knows the tree.\n", encoding="utf-8")
    return folder


def test_the_pages_hold_commands_to_execute() -> None:
    found = {page.relative_to(ROOT).as_posix(): len(commands(page)) for page in PAGES}
    assert found["README.md"] >= 8
    assert sum(found.values()) >= 20


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_every_command_of_the_page_works(page: Path, place: Path) -> None:
    (place / "my-run.yaml").unlink(missing_ok=True)
    for command in commands(page):
        if command in BY_CI:
            continue
        if NEEDS_REAL_DATA in command and not (place.parent / "shared").exists():
            pytest.skip(f"no real data beside the project for: {command}")
        done = subprocess.run(
            ["bash", "-c", with_small_lengths(command)], cwd=place, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


def with_small_lengths(command: str) -> str:
    """The command with this environment's radistill; what runs a model is given few rows and tokens."""
    interpreter = f"{shlex.quote(sys.executable)} -m radistill.cli"
    if "--serve-with" in command:  # needs an engine: tests/servers starts one; here its run file is checked
        command = re.sub(r"generate (.*) --serve-with .*", r"check \1 generate.backend=openai", command)
    if "radistill push" in command:  # needs the hub: tests/test_hub.py has one of its own
        command = "radistill push --help"
    written = re.sub(r"(?<![\w/.-])radistill (?=[a-z-])", f"{interpreter} ", command)
    verb = re.search(r"radistill\.cli (run|generate|assemble|train|evaluate|preview)\b", written)
    if verb and "my-run.yaml" in written:
        written += (
            " data.train.pairs=[en-de] data.test.pairs=[en-de] data.train.limit=8 data.test.limit=6"
            " generate.sampling.max_new_tokens=8 evaluate.0.max_new_tokens=8 train.bf16=false"
        )
    if "configs/lab-" in written:
        written += " data.train.limit=8 data.test.limit=4 generate.sampling.max_new_tokens=8 train.bf16=false"
        written += " evaluate.0.max_new_tokens=8" + "".join(f" evaluate.{n}.items=2" for n in range(1, 15))
    if "radistill.cli lab pretrain" in written:
        written = re.sub(r"--(hidden-size|layers|texts|chats|practice|mixed) \d+", "", written)
        written += " --hidden-size 64 --layers 1 --texts 64 --chats 64 --practice 0 --mixed 0"
    if "radistill.cli lab exam" in written:
        written = re.sub(r"--items \d+", "", written) + " --items 2"
    if written.startswith("python benchmarks/lab_"):
        written = written.replace("python benchmarks/", f"{shlex.quote(sys.executable)} {ROOT}/benchmarks/")
        written = written.replace("--all --seeds 3", "--only vanilla-0.001 --tiny")
    if "radistill.cli compare" in written and written.endswith("--quick"):
        written += " quick.methods=[vanilla]"
    if "radistill.cli chat" in written:
        written += " --max-new-tokens 8"
    return written


def test_a_command_that_does_not_exist_would_be_noticed(place: Path) -> None:
    done = subprocess.run(
        ["bash", "-c", with_small_lengths("radistill rnu my-run.yaml")], cwd=place, capture_output=True, check=False
    )
    assert done.returncode != 0


def test_the_quickstart_works(tiny_model: Path, tiny_data: Path, tmp_path: Path) -> None:
    script = ROOT / "examples" / "quickstart.py"
    assert len(script.read_text(encoding="utf-8").splitlines()) <= 40
    done = subprocess.run(
        [sys.executable, str(script), str(tiny_model), str(tiny_data), str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "report.html").exists()


def test_links_between_pages_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_page_of_settings_is_what_the_classes_say() -> None:
    done = subprocess.run([sys.executable, str(ROOT / "scripts" / "write_reference.py"), "--check"], check=False)
    assert done.returncode == 0, "run: python scripts/write_reference.py"


def test_the_page_of_sentences_is_what_the_lab_writes() -> None:
    done = subprocess.run([sys.executable, str(ROOT / "scripts" / "write_esperanto.py"), "--check"], check=False)
    assert done.returncode == 0, "run: python scripts/write_esperanto.py"
