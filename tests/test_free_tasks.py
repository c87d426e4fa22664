"""Tasks other than translation: sides without languages, worded by a template of one's own."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from radistill.data import DataSettings, DataSource, Loaded, load
from radistill.errors import DataError
from radistill.records import Message

SUMMARISE = {"task": "summarise", "template": "Summarise: {source}"}
TEXTS, SUMMARIES = ["A long text.", "Another long text."], ["Short.", "Shorter."]


def lines(folder: Path, name: str, texts: Sequence[str]) -> Path:
    path = folder / name
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return path


def read(
    path: Path, *, task: str = "translation", template: str | Sequence[str] | None = None, **source: Any
) -> Loaded:
    settings = {"train": DataSource(path=str(path), **source), "task": task, "template": template}
    return load(DataSettings.model_validate(settings), "train", seed=0)


def sides(loaded: Loaded) -> list[tuple[str, str, str]]:
    return [(e.tags["pair"], e.tags["source"], e.reference) for e in loaded.examples]


def laid_out(folder: Path, layout: str) -> Path:
    """Two texts with their summaries in one of the ways they may lie in; the path to read."""
    rows = list(zip(TEXTS, SUMMARIES, strict=True))
    if layout in ("tsv", "headed tsv", "tsv folder"):
        header = ["source\ttarget"] if layout == "headed tsv" else []
        file = lines(folder, "train.tsv", [*header, *(f"{a}\t{b}" for a, b in rows)])
        return folder if layout == "tsv folder" else file
    if layout == "json":
        return lines(folder, "a.json", [json.dumps([{"source": a, "target": b} for a, b in rows])])
    lines(folder, "train.source", TEXTS)
    lines(folder, "train.target", SUMMARIES)
    return {"folder": folder, "stem": folder / "train", "one file": folder / "train.target"}[layout]


@pytest.mark.parametrize("layout", ["tsv", "headed tsv", "tsv folder", "json", "folder", "stem", "one file"])
def test_a_task_without_languages_needs_no_pair_and_is_worded_by_its_template(tmp_path: Path, layout: str) -> None:
    loaded = read(laid_out(tmp_path, layout), **SUMMARISE)
    assert [e.messages for e in loaded.examples] == [(Message("user", f"Summarise: {text}"),) for text in TEXTS]
    assert [e.reference for e in loaded.examples] == SUMMARIES
    assert [e.tags["source"] for e in loaded.examples] == TEXTS
    assert all("pair" not in e.tags and e.task == "summarise" for e in loaded.examples)
    assert loaded.pairs == {}


@pytest.mark.parametrize("layout", ["tsv", "json", "folder"])
def test_wordings_that_name_languages_need_a_pair_and_the_message_says_both_ways_out(
    tmp_path: Path, layout: str
) -> None:
    path = laid_out(tmp_path, layout)
    for template in (None, "alma", ["Summarise: {source}", "Auf {target_language}: {source}"]):
        with pytest.raises(DataError, match=r"which languages .*Name them: pairs: \[de-en\]\. .*Summarise: \{source\}"):
            read(path, task="summarise", template=template)
    loaded = read(path, pairs=("de-en", "en-de"), template="alma")
    assert sides(loaded)[::2] == [("de-en", TEXTS[0], SUMMARIES[0]), ("en-de", SUMMARIES[0], TEXTS[0])]


def test_rows_of_source_and_target_take_their_pair_from_the_name_of_their_file(tmp_path: Path) -> None:
    lines(tmp_path, "shots.de-en.json", ['[{"source": "Ja.", "target": "Yes."}]'])
    assert sides(read(tmp_path, split="shots", pairs=("en-de",))) == [("en-de", "Yes.", "Ja.")]


def test_half_of_source_and_target_is_refused_and_other_languages_go_first(tmp_path: Path) -> None:
    lines(tmp_path, "train.source", TEXTS)
    with pytest.raises(DataError, match=r"train\.source stands alone: .*train\.target is missing.*one per side"):
        read(tmp_path, **SUMMARISE)
    lines(tmp_path, "train.target", SUMMARIES)
    with pytest.raises(DataError, match="no files for the pair fr-de beside de-en"):
        read(tmp_path / "train", pairs=("de-en", "fr-de"))
    lines(tmp_path, "train.de", ["Ja."])
    lines(tmp_path, "train.en", ["Yes."])
    assert sides(read(tmp_path / "train", pairs=("de-en",)))[0][1] == "Ja."
    assert read(tmp_path / "train.source", **SUMMARISE).examples[0].reference == SUMMARIES[0]


def test_bad_rows_without_languages_are_refused_by_side(tmp_path: Path) -> None:
    file = lines(tmp_path, "a.jsonl", ['{"source": "x", "target": " "}', '{"source": "x", "target": "y"}'])
    (refused,) = read(file, **SUMMARISE).rejects
    assert (refused.line, refused.reason) == (1, "the target side is empty")


@pytest.mark.parametrize("slip", ["translatoin", "translations", "Translation", "tranlation"])
def test_a_task_that_is_nearly_a_known_one_is_taken_for_a_slip(slip: str) -> None:
    with pytest.raises(ValidationError, match=rf"'{slip}' is no known task\. Did you mean 'translation'\?"):
        DataSettings.model_validate({"task": slip, "train": {"path": "a"}})


@pytest.mark.parametrize("label", ["translation", "summarise", "transliteration", "sql"])
def test_any_other_task_is_a_label(label: str) -> None:
    assert DataSettings.model_validate({"task": label, "train": {"path": "a"}}).task == label
