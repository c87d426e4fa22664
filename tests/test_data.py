"""From the `data:` section to examples: what is found, chosen, refused and said."""

import json
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from radistill.data import DataSettings, DataSource, Loaded, Part, load
from radistill.errors import DataError
from radistill.records import Message

Pool = Callable[[str, Sequence[int]], Path]
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
ALMA_PAIRS = ("de-en", "en-de", "cs-en", "en-cs", "ru-en", "en-ru", "zh-en", "en-zh")
needs_alma = pytest.mark.skipif(not (SHARED / "alma").is_dir(), reason="needs ../shared/data/alma, which is not here")

DE = ["Guten Tag.", "Wie geht es?", "Danke, gut."]
EN = ["Good day.", "How are you?", "Fine, thanks."]


def lines(folder: Path, name: str, texts: Sequence[str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return path


def alma(folder: Path, name: str, rows: Sequence[dict[str, object]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(json.dumps([{"translation": row} for row in rows]), encoding="utf-8")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Like ALMA's: lines to train on, a JSON list for each direction to test on."""
    root = tmp_path / "deen"
    lines(root, "train.de-en.de", DE)
    lines(root, "train.de-en.en", EN)
    alma(root, "test.de-en.json", [{"de": "Original.", "en": "Translated."}])
    alma(root, "test.en-de.json", [{"en": "Original text.", "de": "Text, übersetzt."}])
    return root


def read(
    path: Path, part: Part = "train", *, seed: int = 0, source: dict[str, Any] | None = None, **more: Any
) -> Loaded:
    asked = DataSource(path=str(path), **(source or {}))
    train, test = (asked, None) if part == "train" else (DataSource(path="unused"), asked)
    return load(DataSettings(train=train, test=test, **more), part, seed=seed)


def sides(loaded: Loaded) -> list[tuple[str, str, str]]:
    return [(e.tags["pair"], e.tags["source"], e.reference) for e in loaded.examples]


def ids(loaded: Loaded) -> list[str]:
    return [e.id for e in loaded.examples]


def test_settings_open_without_numpy_or_a_reader() -> None:
    code = "import sys, radistill.data; print([m for m in ('numpy', 'pyarrow', 'torch') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_the_split_is_test_for_the_test_source_unless_it_is_named() -> None:
    settings = DataSettings.model_validate({"train": {"path": "a"}, "test": {"path": "a"}})
    assert (settings.train.split, settings.source("test").split) == ("train", "test")
    named = DataSettings.model_validate({"train": {"path": "a"}, "test": {"path": "a", "split": "train"}})
    assert named.source("test").split == "train"
    assert DataSettings.model_validate(settings.model_dump()) == settings


@pytest.mark.parametrize(
    "wrong", [{"pairs": ["deen"]}, {"pairs": ["de-en", "de-en"]}, {"pairs": []}, {"limit": 0}, {"format": "csv"}]
)
def test_wrong_settings_are_refused_before_anything_is_read(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        DataSource.model_validate({"path": "a", **wrong})


def test_both_directions_of_line_files_are_read_from_one_pair_of_files(folder: Path) -> None:
    loaded = read(folder, source={"pairs": ("de-en", "en-de")})
    forward = [("de-en", d, e) for d, e in zip(DE, EN, strict=True)]
    backward = [("en-de", e, d) for d, e in zip(DE, EN, strict=True)]
    assert sides(loaded) == forward + backward
    assert loaded.counts == {"rows": 3, "rejected": 0, "equal": 0, "usable": 6, "examples": 6}
    assert loaded.pairs == {"de-en": 3, "en-de": 3}
    assert [f.name for f in loaded.files] == ["train.de-en.de", "train.de-en.en"]
    assert loaded.notes == ()


def test_without_pairs_the_directions_in_the_names_are_read(folder: Path) -> None:
    assert read(folder).pairs == {"de-en": 3}
    assert read(folder, "test").pairs == {"de-en": 1, "en-de": 1}


def test_a_test_direction_is_read_from_its_own_file(folder: Path) -> None:
    loaded = read(folder, "test", source={"pairs": ("en-de", "de-en")})
    assert sides(loaded) == [("en-de", "Original text.", "Text, übersetzt."), ("de-en", "Original.", "Translated.")]
    assert loaded.notes == ()


def test_a_test_read_backwards_for_want_of_its_own_file_is_said(folder: Path) -> None:
    (folder / "test.en-de.json").unlink()
    loaded = read(folder, "test", source={"pairs": ("en-de",)})
    assert sides(loaded) == [("en-de", "Translated.", "Original.")]
    assert "read backwards" in loaded.notes[0]


@pytest.mark.parametrize("name", ["deen", "ende", "de-en", "EN_DE"])
def test_subfolders_named_for_the_pair_are_searched(folder: Path, tmp_path: Path, name: str) -> None:
    root = tmp_path / "all"
    shutil.copytree(folder, root / name)
    lines(root / "csen", "train.cs-en.cs", ["Ahoj."])
    lines(root / "csen", "train.cs-en.en", ["Hi."])
    lines(root / "old", "train.fr-en.fr", ["Salut."])
    loaded = read(root, source={"pairs": ("en-cs", "de-en")})
    assert loaded.pairs == {"en-cs": 1, "de-en": 3}
    assert read(root).pairs == {"cs-en": 1, "de-en": 3}


def test_a_pair_that_is_not_there_is_answered_with_those_that_are(folder: Path) -> None:
    with pytest.raises(DataError, match=r"data\.train: .* no 'train' files for the pair fr-en\. Pairs there: de-en"):
        read(folder, source={"pairs": ("de-en", "fr-en")})


def test_a_split_that_is_not_there_is_answered_with_what_is(folder: Path) -> None:
    with pytest.raises(DataError, match=r"no files of the split 'tests'.*test\.de-en\.json.*Did you mean 'test'"):
        read(folder, "test", source={"split": "tests"})


def test_files_of_another_format_than_asked_for_are_pointed_out(folder: Path) -> None:
    with pytest.raises(DataError, match=r"has files of the split 'train', but none of the format asked for.*auto"):
        read(folder, source={"format": "tsv"})
    with pytest.raises(DataError, match=r"does not look like the format asked for"):
        read(folder / "test.de-en.json", source={"format": "tsv"})


def test_a_missing_path_is_answered_with_what_is_there(folder: Path) -> None:
    with pytest.raises(DataError, match=r"no file or folder .*deem\. .* holds deen\. Did you mean 'deen'"):
        read(folder.parent / "deem")
    with pytest.raises(DataError, match=r"no file or folder .*Did you mean 'deen'"):
        read(folder.parent / "dee" / "x" / "y.json")


def test_a_missing_relative_path_names_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"The working directory \(.*\) holds nothing"):
        read(Path("gone.json"))


def test_half_of_a_pair_of_line_files_is_refused(folder: Path) -> None:
    (folder / "train.de-en.en").unlink()
    with pytest.raises(DataError, match=r"train\.de-en\.de stands alone: .*train\.de-en\.en is missing"):
        read(folder)
    alma(folder, "train.de-en.json", [{"de": "Ja, gern.", "en": "Yes, please."}])
    assert read(folder).pairs == {"de-en": 1}


def test_half_of_a_pair_gives_way_to_a_whole_file_of_another_kind(folder: Path) -> None:
    (folder / "train.de-en.en").unlink()
    lines(folder, "train.de-en.tsv", ["Ja.\tYes."])
    assert [f.name for f in read(folder).files] == ["train.de-en.tsv"]


def test_of_two_kinds_of_files_for_one_pair_one_is_read_and_the_other_named(folder: Path) -> None:
    alma(folder, "train.de-en.json", [{"de": "Ja, gern.", "en": "Yes, please."}])
    loaded = read(folder)
    assert loaded.pairs == {"de-en": 1}
    assert "train.de-en.de is not" in loaded.notes[0]
    assert read(folder, source={"format": "lines"}).pairs == {"de-en": 3}


def test_plain_line_files_are_found_by_what_their_names_share(tmp_path: Path) -> None:
    lines(tmp_path, "news.de", DE)
    lines(tmp_path, "news.en", EN)
    for path in (tmp_path / "news", tmp_path / "news.de", tmp_path / "news.en"):
        assert read(path, source={"pairs": ("de-en", "en-de")}).pairs == {"de-en": 3, "en-de": 3}
    assert read(tmp_path, source={"split": "news", "pairs": ("en-de",)}).pairs == {"en-de": 3}
    with pytest.raises(DataError, match="has the languages de, en, but which is translated into which"):
        read(tmp_path / "news")
    with pytest.raises(DataError, match="no files for the pair de-fr beside de-en"):
        read(tmp_path / "news", source={"pairs": ("de-en", "de-fr")})


def test_one_of_two_named_line_files_is_enough(folder: Path) -> None:
    assert read(folder / "train.de-en.en").pairs == {"de-en": 3}
    assert read(folder / "train.de-en").pairs == {"de-en": 3}


def test_single_files_are_read_by_name_or_first_row(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"de": "Ja, gern.", "en": "Yes, please.", "fr": "Oui, merci."}]
    many = alma(tmp_path, "many.json", rows)
    assert read(many, source={"pairs": ("fr-de", "en-fr")}).pairs == {"fr-de": 1, "en-fr": 1}
    with pytest.raises(DataError, match=r"have the languages de, en, fr\. Name the pairs"):
        read(many)
    two = alma(tmp_path, "two.json", [{"en": "Yes, please.", "de": "Ja, gern."}])
    assert read(two).pairs == {"en-de": 1}
    tsv = lines(tmp_path, "train.de-en.tsv", ["Ja.\tYes."])
    assert read(tsv).pairs == {"de-en": 1}
    odd = lines(tmp_path, "table.txt", ["Ja.\tYes."])
    assert read(odd, source={"pairs": ("de-en", "en-de")}).pairs == {"de-en": 1, "en-de": 1}
    with pytest.raises(DataError, match="does not say which languages its columns are"):
        read(odd)


def test_a_name_that_only_looks_like_a_pair_is_none(tmp_path: Path) -> None:
    file = lines(tmp_path, "my-set.jsonl", ['{"prompt": "Say hi", "completion": "hi"}'])
    assert "pair" not in read(file).examples[0].tags
    made_up = alma(tmp_path, "train.qx-qy.json", [{"qx": "Blorp.", "qy": "Snood."}])
    assert read(made_up, source={"pairs": ("qy-qx",)}, template="Say {source}").pairs == {"qy-qx": 1}
    assert read(tmp_path, source={"pairs": ("qx-qy",)}, template="Say {source}").pairs == {"qx-qy": 1}


def test_a_file_of_no_known_kind_is_described(tmp_path: Path) -> None:
    file = lines(tmp_path, "a.csv", ["de,en", "Ja,Yes"])
    with pytest.raises(DataError, match=r"cannot tell the format of .*a\.csv: its name ends in \.csv.*'de,en'"):
        read(file)


def test_the_other_formats_are_read_from_a_folder_by_split(tmp_path: Path) -> None:
    (tmp_path / "train-0.jsonl").write_text('{"instruction": "Say hi", "output": "hi"}\n')
    (tmp_path / "train-1.jsonl").write_text('{"instruction": "Say ho", "output": "ho"}\n')
    (tmp_path / "trainer.jsonl").write_text("not ours")
    loaded = read(tmp_path)
    assert [e.reference for e in loaded.examples] == ["hi", "ho"]
    assert loaded.examples[0].messages == (Message("user", "Say hi"),)
    assert loaded.examples[0].tags == {"split": "train", "source": "Say hi", "file": "train-0.jsonl", "row": "1"}


def test_conversations_may_all_belong_to_one_pair_but_not_to_two(tmp_path: Path) -> None:
    file = tmp_path / "chat.jsonl"
    file.write_text('{"prompt": "Say hi", "completion": "hi"}\n')
    loaded = read(file, source={"pairs": ("de-en",)}, template="Say {source}")
    assert loaded.pairs == {"de-en": 1}
    assert "template` is not used" in loaded.notes[0]
    with pytest.raises(DataError, match="are conversations, which cannot be turned round"):
        read(file, source={"pairs": ("de-en", "en-de")})


def test_the_system_message_comes_first_unless_the_row_has_its_own(tmp_path: Path) -> None:
    own = [{"role": r, "content": r} for r in ("system", "user", "assistant")]
    file = tmp_path / "chat.jsonl"
    file.write_text("\n".join(json.dumps({"messages": m}) for m in (own, own[1:])))
    with_own, without = read(file, system="Be kind.").examples
    assert with_own.messages == (Message("system", "system"), Message("user", "user"))
    assert without.messages == (Message("system", "Be kind."), Message("user", "user"))


def test_every_bad_row_is_counted_once_with_its_place_and_reason(tmp_path: Path) -> None:
    bad: list[dict[str, object]] = [
        {"de": " ", "en": "x"},
        {"en": "x"},
        {"de": 3, "en": "x"},
        {"de": "a\x07b", "en": "x"},
    ]
    file = alma(tmp_path, "train.de-en.json", [*bad, {"de": " Ja \n", "en": "\u00a0Yes"}])
    loaded = read(file, source={"pairs": ("de-en", "en-de")})
    assert sides(loaded) == [("de-en", "Ja", "Yes"), ("en-de", "Yes", "Ja")]
    assert [r.reason for r in loaded.rejects] == [
        "the de side is empty",
        "row 2: the de side is missing",
        "row 3: the de side is no text but int",
        "row 4: the de side holds the control character U+0007",
    ]
    assert [r.row["translation"] for r in loaded.rejects] == bad
    assert {r.file for r in loaded.rejects} == {str(file)}
    assert loaded.counts["rows"] == loaded.counts["rejected"] + 1


def test_empty_data_is_an_error_that_says_what_was_refused(tmp_path: Path) -> None:
    empty = lines(tmp_path, "a.jsonl", [])
    for name in ("auto", "alma"):
        with pytest.raises(DataError, match="holds no rows"):
            read(empty, source={"format": name})
    blank = lines(tmp_path, "b.de", ["", ""]), lines(tmp_path, "b.en", ["x", "y"])
    with pytest.raises(DataError, match=r"no usable row\. Refused: 2, the first at line 1: the de side is empty"):
        read(blank[0], source={"pairs": ("de-en",)})
    chat = lines(tmp_path, "c.jsonl", ['{"messages": []}'])
    with pytest.raises(DataError, match=r"no usable row\. Refused: 1"):
        read(chat)
    half = alma(tmp_path, "d.json", [{"de": "Ja", "en": "Yes"}])
    with pytest.raises(DataError, match=r"for de-fr, has no usable row.*the fr side is missing"):
        read(half, source={"pairs": ("de-en", "de-fr")})


def test_wrong_templates_and_missing_tests_name_their_key(folder: Path) -> None:
    with pytest.raises(DataError, match=r"^data\.template: unknown placeholder"):
        read(folder, template="{text}")
    with pytest.raises(DataError, match=r"^data\.test is not set"):
        load(DataSettings(train=DataSource(path=str(folder))), "test", seed=0)


def test_an_unreadable_file_is_a_message(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", "train.de-en.de")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DataError, match=r"data\.train: .*Permission denied"):
        read(folder)


def test_the_wording_follows_the_content_not_the_row(tmp_path: Path) -> None:
    de, en = [f"Satz {n}" for n in range(60)], [f"sentence {n}" for n in range(60)]
    order = list(range(60))
    random.Random(1).shuffle(order)
    for name, rows in (("one", range(60)), ("other", order[:40])):
        lines(tmp_path / name, "train.de-en.de", [de[n] for n in rows])
        lines(tmp_path / name, "train.de-en.en", [en[n] for n in rows])
    one = {e.tags["source"]: e for e in read(tmp_path / "one").examples}
    other = read(tmp_path / "other").examples
    assert len({e.messages[0].content.replace(e.tags["source"], "") for e in one.values()}) > 5
    assert all(one[e.tags["source"]].messages == e.messages for e in other)
    assert set(ids(read(tmp_path / "other"))) < set(ids(read(tmp_path / "one")))
    assert set(ids(read(tmp_path / "one", seed=1))) != set(ids(read(tmp_path / "one")))


def test_equal_rows_get_ids_of_their_own(tmp_path: Path) -> None:
    lines(tmp_path, "a.de", ["Ja.", "Nein.", "Ja.", "Ja."])
    lines(tmp_path, "a.en", ["Yes.", "No.", "Yes.", "Yes."])
    loaded = read(tmp_path / "a", source={"pairs": ("de-en",)})
    assert len(set(ids(loaded))) == 4
    assert loaded.counts["equal"] == 2


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    def make(name: str, order: Sequence[int]) -> Path:
        for pair, word in (("de-en", "Satz"), ("cs-en", "Věta")):
            code = pair[:2]
            lines(tmp_path / name, f"train.{pair}.{code}", [f"{word} {n % 45}" for n in order])
            lines(tmp_path / name, f"train.{pair}.en", [f"sentence {n % 45}" for n in order])
        return tmp_path / name

    return make


def test_a_limit_takes_the_same_examples_whatever_the_order_of_rows_and_files(pool: Pool) -> None:
    order = list(range(50))  # five rows of each pair occur twice
    straight, turned = pool("straight", order), pool("turned", order[::-1])
    asked = {"pairs": ("de-en", "cs-en", "en-de"), "limit": 30}
    again = {"pairs": ("en-de", "cs-en", "de-en"), "limit": 30}
    one, other = read(straight, source=asked), read(turned, source=again)
    assert ids(one) == ids(other)
    assert len(one.examples) == 30
    assert one.counts["usable"] == 150
    assert set(one.pairs) == {"de-en", "cs-en", "en-de"}


def test_a_limit_is_a_prefix_of_a_seeded_shuffle_that_the_wording_does_not_touch(pool: Pool) -> None:
    path = pool("pool", range(45))
    ten, twenty = (read(path, source={"limit": n}) for n in (10, 20))
    assert ids(ten) == ids(twenty)[:10]
    assert sides(ten) == sides(read(path, source={"limit": 10}, template="alma"))
    assert sides(ten) != sides(read(path, source={"limit": 10}, seed=1))
    assert sides(ten) != sides(read(path))[:10]
    assert len(read(path, source={"limit": 1000}).examples) == 90


@needs_alma
def test_alma_is_read_in_all_eight_directions_in_seconds() -> None:
    source = DataSource(path=str(SHARED / "alma"), pairs=ALMA_PAIRS)
    settings = DataSettings(train=source, test=source)
    start = time.monotonic()
    train, test = load(settings, "train", seed=0), load(settings, "test", seed=0)
    assert time.monotonic() - start < 30
    assert train.counts == {"rows": 56693, "rejected": 0, "equal": 60, "usable": 113386, "examples": 113386}
    assert len(set(ids(train))) == 113386
    rows = (14211, 14211, 12076, 12076, 15000, 15000, 15406, 15406)
    assert train.pairs == dict(zip(ALMA_PAIRS, rows, strict=True))
    assert test.pairs == dict(zip(ALMA_PAIRS, (1984, 2037, 1448, 2037, 2016, 2037, 1875, 2037), strict=True))
    assert test.notes == ()


@needs_alma
def test_almas_tests_are_in_the_order_of_the_published_outputs() -> None:
    loaded = read(SHARED / "alma" / "deen", "test", source={"pairs": ("de-en",)})
    rows = json.loads((SHARED / "alma" / "deen" / "test.de-en.json").read_text(encoding="utf-8"))
    assert [e.reference for e in loaded.examples] == [row["translation"]["en"].strip() for row in rows]


@pytest.mark.skipif(not (SHARED / "sdft").is_dir(), reason="needs ../shared/data/sdft, which is not here")
def test_real_alpaca_data_are_recognised_and_their_empty_answers_refused() -> None:
    loaded = read(SHARED / "sdft" / "alpaca_train.json")
    assert loaded.counts["rows"] == 2000
    assert loaded.counts["usable"] + loaded.counts["rejected"] == 2000
    assert all(e.reference.strip() for e in loaded.examples)
