"""Every format: what it reads, what it refuses and why, and how it is recognised."""

import json
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from radistill import formats
from radistill.data import FormatName
from radistill.errors import DataError
from radistill.formats import _objects
from radistill.formats._detect import detect
from radistill.formats._find import Found
from radistill.formats.base import UNNAMED, BadRow, Conversation, ObjectFormat, Pair, Reject, Row
from radistill.metrics.bleu import BLEU
from radistill.records import Message
from radistill.tasks.translation import Translation

USER, ANSWER = Message("user", "Hi"), "Hello!"
GOOD: dict[str, dict[str, Any]] = {
    "messages": {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]},
    "sharegpt": {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}]},
    "alpaca": {"instruction": "Hi", "input": "", "output": "Hello!"},
    "prompt_completion": {"prompt": "Hi", "completion": "Hello!"},
}


def conversation(name: str, row: dict[str, Any]) -> Conversation:
    reader = formats.named(name)
    assert isinstance(reader, ObjectFormat)
    content = reader.content(row)
    assert isinstance(content, Conversation)
    return content


def read(name: str, *files: Path, columns: str | None = None) -> list[Row | Reject]:
    return list(formats.named(name).rows(files, Pair.of(columns) if columns else None))


def contents(rows: list[Row | Reject]) -> list[object]:
    return [row.content if isinstance(row, Row) else row.reason for row in rows]


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_the_names_a_config_may_use_are_the_files_of_the_package() -> None:
    assert {"auto", *formats.available()} == set(get_args(FormatName))


@pytest.mark.parametrize("name", sorted(GOOD))
def test_each_instruction_format_reads_its_row(name: str) -> None:
    assert conversation(name, GOOD[name]) == Conversation((USER,), ANSWER, "Hi")


def test_the_last_assistant_turn_is_the_reference_and_the_turns_before_are_kept() -> None:
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "And now?"},
        {"role": "assistant", "content": "Now what?\n"},
    ]
    found = conversation("messages", {"messages": turns})
    assert [m.role for m in found.messages] == ["system", "user", "assistant", "user"]
    assert found.reference == "Now what?"
    assert found.source == "And now?"


def test_sharegpt_takes_its_system_message_from_a_turn_or_from_beside_the_turns() -> None:
    inside = {"conversations": [{"from": "system", "value": "S"}, *GOOD["sharegpt"]["conversations"]]}
    beside = {"system": "S", **GOOD["sharegpt"]}
    assert conversation("sharegpt", inside) == conversation("sharegpt", beside)
    assert conversation("sharegpt", inside).messages[0] == Message("system", "S")


def test_alpaca_joins_instruction_and_input_and_remembers_the_input_as_the_source() -> None:
    row = {"instruction": "Shout.", "input": "hey", "output": "HEY", "history": [["a", "b"]], "system": "S"}
    found = conversation("alpaca", row)
    expected = (Message("system", "S"), Message("user", "a"), Message("assistant", "b"), Message("user", "Shout.\nhey"))
    assert found == Conversation(expected, "HEY", "hey")
    assert conversation("alpaca", {"instruction": "Shout.", "output": "HEY"}).messages == (Message("user", "Shout."),)


def test_prompt_and_completion_may_be_lists_of_turns() -> None:
    prompt = [{"role": "system", "content": "S"}, {"role": "user", "content": "Hi"}]
    row = {"prompt": prompt, "completion": [{"role": "assistant", "content": "Hello!"}]}
    assert conversation("prompt_completion", row) == Conversation((Message("system", "S"), USER), ANSWER, "Hi")


def turns_of(*roles: str) -> dict[str, object]:
    return {"messages": [{"role": role, "content": f"text {n}"} for n, role in enumerate(roles)]}


@pytest.mark.parametrize(
    ("name", "row", "reason"),
    [
        ("messages", {}, "must be a list of turns"),
        ("messages", {"messages": []}, "with at least one"),
        ("messages", {"messages": ["Hi"]}, "turn 1 of 'messages' is no object"),
        ("messages", turns_of("user"), "no assistant turn"),
        ("messages", turns_of("assistant"), "turn 1 is the assistant's where the user's should be"),
        ("messages", turns_of("user", "assistant", "user"), "the last turn is the user's"),
        ("messages", turns_of("user", "user", "assistant"), "turn 2 is the user's where the assistant's should be"),
        ("messages", turns_of("user", "system", "assistant"), "turn 2 is the system's"),
        ("messages", turns_of("user", "tool", "assistant"), "turn 2: unknown role 'tool'"),
        ("messages", {"messages": [{"role": "user", "content": None}]}, r"turn 1 \(user\) is missing"),
        ("messages", {"messages": [{"role": "user", "content": [1]}]}, r"turn 1 \(user\) is no text but list"),
        ("sharegpt", {"conversations": [{"from": "function_call", "value": "x"}]}, "unknown role 'function_call'"),
        ("sharegpt", {"conversations": "Hi"}, "must be a list of turns"),
        ("alpaca", {"instruction": "Hi", "output": " \n"}, "'output' is empty"),
        ("alpaca", {"instruction": "Hi", "output": 3}, "'output' is no text but int"),
        ("alpaca", {"instruction": "Hi", "input": "a\x00b", "output": "x"}, r"'input' holds .* U\+0000"),
        ("alpaca", {"instruction": "Hi", "output": "x", "history": [["one"]]}, "'history' must be"),
        ("prompt_completion", {"prompt": "Hi"}, "'completion' is missing"),
        ("prompt_completion", {"prompt": [], "completion": "x"}, "must both be text"),
        ("prompt_completion", {"prompt": "Hi", "completion": "\ud800"}, r"U\+D800"),
    ],
)
def test_a_bad_row_is_refused_with_its_reason(name: str, row: dict[str, object], reason: str) -> None:
    with pytest.raises(BadRow, match=reason):
        conversation(name, row)


def test_json_lists_and_json_lines_give_the_same_rows(tmp_path: Path) -> None:
    rows = [{"translation": {"de": f"Satz {n}", "en": f"sentence {n}"}} for n in range(5)]
    texts = [row["translation"] for row in rows]
    line = write(tmp_path / "a.json", json.dumps(rows))
    pretty = write(tmp_path / "b.json", "\ufeff" + json.dumps(rows, indent=4).replace("\n", "\r\n"))
    lines = write(tmp_path / "c.json", "\n\n".join(map(json.dumps, rows)))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "d.parquet")
    for file in (line, pretty, lines, tmp_path / "d.parquet"):
        assert contents(read("alma", file)) == texts


def test_the_line_of_a_row_is_its_line_in_the_file(tmp_path: Path) -> None:
    pretty = write(tmp_path / "a.json", '[\n  {"a": 1,\n   "b": 2},\n\n  {"a": 3}\n]\n')
    lines = write(tmp_path / "b.jsonl", '{"a": 1}\n\n{"a": 3}\n')
    assert [(i.line, i.number) for i in _objects.items(pretty)] == [(2, 1), (5, 2)]
    assert [i.line for i in _objects.items(lines)] == [1, 3]


def test_a_broken_json_line_is_reported_and_the_rest_is_read(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", '{"translation": {"de": "a", "en": "b"}}\n{"translation": {"de"\n[1]\n')
    good, torn, wrong = read("alma", file)
    assert isinstance(good, Row)
    assert isinstance(torn, Reject)
    assert isinstance(wrong, Reject)
    assert (torn.file, torn.line, torn.row) == (str(file), 2, '{"translation": {"de"')
    assert torn.reason.startswith("broken JSON at column 22")
    assert wrong.reason == "a row must be an object, this is a list"


def test_rows_of_a_list_on_one_line_are_told_apart_by_number(tmp_path: Path) -> None:
    file = write(tmp_path / "a.json", '[{"translation": {"de": "a"}}, {"x": 1}, {"x": 1}]')
    _, second, third = read("alma", file)
    assert isinstance(second, Reject)
    assert isinstance(third, Reject)
    assert (second.line, second.reason) == (1, "row 2: no object under 'translation'")
    assert third.reason == "row 3: no object under 'translation'"


@pytest.mark.parametrize("text", ['[{"a": 1}, {"a"', '[{"a": 1} {"a": 2}]', '[{"a": 1}] tail', "[", '[{"a": 1},'])
def test_a_list_that_breaks_off_is_an_error_with_its_place(tmp_path: Path, text: str) -> None:
    with pytest.raises(DataError, match=r"a\.json, line 1, column \d+: broken JSON list"):
        list(_objects.items(write(tmp_path / "a.json", text)))


def test_very_deep_nesting_is_a_message_not_a_crash(tmp_path: Path) -> None:
    deep = "[" * 200_000
    with pytest.raises(DataError, match="nested too deeply"):
        list(_objects.items(write(tmp_path / "a.json", deep)))
    (item,) = _objects.items(write(tmp_path / "a.jsonl", '{"a":' + deep))
    assert item.error == "broken JSON: nested too deeply"


def test_one_object_over_many_lines_is_no_format(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="neither a JSON list nor JSON Lines"):
        _objects.items(write(tmp_path / "a.json", '{\n "data": []\n}'))


def test_bytes_that_are_not_utf8_are_named_by_file_and_line(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", '{"a": 1}\n{"a": "Käse"}\n'.encode("latin-1"))
    with pytest.raises(DataError, match=r"a\.jsonl, line 2: not UTF-8 \(byte 0xe4 at position 9\)"):
        list(_objects.items(file))


@pytest.mark.parametrize(
    ("start", "repair"), [("ab".encode("utf-16"), "iconv -f UTF-16"), (b"\x1f\x8b\x08", "It is compressed")]
)
def test_other_encodings_and_archives_are_told_by_their_first_bytes(tmp_path: Path, start: bytes, repair: str) -> None:
    with pytest.raises(DataError, match=repair):
        list(_objects.numbered_lines(write(tmp_path / "a.de", start)))


def test_a_file_that_only_says_it_is_parquet_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a readable parquet file"):
        list(_objects.items(write(tmp_path / "a.parquet", "no")))


def test_a_reject_can_always_be_written_as_json(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", '{"prompt": "x", "completion": "\\ud800"}')
    (refused,) = read("prompt_completion", file)
    assert isinstance(refused, Reject)
    assert "\\ud800" in json.dumps(refused.row, ensure_ascii=False).encode().decode()


def test_line_files_are_paired_by_line_and_only_newline_ends_a_line(tmp_path: Path) -> None:
    de = write(tmp_path / "a.de", "eins\u2028eins\x85\nzwei\r\ndrei")
    en = write(tmp_path / "a.en", "one\ntwo\nthree\n")
    assert contents(read("lines", de, en, columns="de-en")) == [
        {"de": "eins\u2028eins\x85", "en": "one"},
        {"de": "zwei", "en": "two"},
        {"de": "drei", "en": "three"},
    ]


@pytest.mark.parametrize(("de", "en"), [("a\nb\nc\n", "a\nb\n"), ("a\nb\n", "a\nb\nc\n")])
def test_unaligned_line_files_are_refused_with_both_counts(tmp_path: Path, de: str, en: str) -> None:
    files = write(tmp_path / "a.de", de), write(tmp_path / "a.en", en)
    with pytest.raises(DataError) as error:
        read("lines", *files, columns="de-en")
    assert f"a.de has {de.count(chr(10))} lines" in str(error.value)
    assert f"a.en has {en.count(chr(10))} lines" in str(error.value)


def test_tsv_without_header_takes_its_columns_in_the_order_of_the_pair(tmp_path: Path) -> None:
    file = write(tmp_path / "a.tsv", 'Er sagte: "Nein\tHe said: "No\nallein\n')
    first, second = read("tsv", file, columns="de-en")
    assert isinstance(first, Row)
    assert first.content == {"de": 'Er sagte: "Nein', "en": 'He said: "No'}
    assert isinstance(second, Reject)
    assert (second.line, second.reason) == (2, "1 columns where 2 should be")


@pytest.mark.parametrize("header", ["id\ten\tde", "id\tTarget\tSource", "id\ttgt\tsrc"])
def test_tsv_with_a_header_finds_its_columns_by_name(tmp_path: Path, header: str) -> None:
    file = write(tmp_path / "a.tsv", f"{header}\n7\tone\teins\n")
    (row,) = read("tsv", file, columns="de-en")
    assert isinstance(row, Row)
    assert row.content == {"id": "7", "en": "one", "de": "eins"}
    assert row.line == 2


def test_tsv_without_languages_has_source_and_target_with_or_without_a_header(tmp_path: Path) -> None:
    bare = write(tmp_path / "a.tsv", "long text\tshort\n")
    headed = write(tmp_path / "b.tsv", "id\ttarget\tsource\n7\tshort\tlong text\n")
    (one,), (other,) = (list(formats.named("tsv").rows((file,), UNNAMED)) for file in (bare, headed))
    assert isinstance(one, Row)
    assert isinstance(other, Row)
    assert one.content == {"source": "long text", "target": "short"}
    assert other.content == {"id": "7", "source": "long text", "target": "short"}


def test_rows_of_source_and_target_get_the_languages_of_the_columns(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", '{"source": "Ja", "target": "Yes", "id": 1}\n{"source": "Nein"}\n{"id": 2}\n')
    assert contents(read("source_target", file, columns="de-en")) == [
        {"de": "Ja", "en": "Yes"},
        {"de": "Nein", "en": None},
        "neither 'source' nor 'target'",
    ]
    assert contents(read("source_target", file))[0] == {"source": "Ja", "target": "Yes"}


@pytest.mark.parametrize("name", [*sorted(GOOD), "alma", "source_target"])
def test_the_format_is_recognised_by_the_first_rows(tmp_path: Path, name: str) -> None:
    pairs: dict[str, dict[str, Any]] = {
        "alma": {"translation": {"de": "a", "en": "b"}},
        "source_target": {"source": "a", "target": "b"},
    }
    row = {**GOOD, **pairs}[name]
    file = write(tmp_path / "a.jsonl", "broken\n" + json.dumps({"id": 1, **row}) + "\n")
    assert detect(Found("objects", (file,))) == name


def test_what_cannot_be_recognised_is_described(tmp_path: Path) -> None:
    unknown = write(tmp_path / "a.jsonl", '{"question": "x", "answer": "y"}')
    with pytest.raises(DataError, match=r"keys 'question', 'answer', which fits none\. Known: alma .* Set format"):
        detect(Found("objects", (unknown,)))
    both = write(tmp_path / "b.jsonl", json.dumps({**GOOD["alpaca"], **GOOD["messages"]}))
    with pytest.raises(DataError, match="fits alpaca and messages"):
        detect(Found("objects", (both,)))
    with pytest.raises(DataError, match="holds no rows"):
        detect(Found("objects", (write(tmp_path / "c.json", "[]"),)))


def test_a_pair_is_two_different_codes() -> None:
    assert Pair.of("deu_Latn-pt_BR") == ("deu_Latn", "pt_BR")
    assert str(Pair.of("de-en").back) == "en-de"
    for wrong in ("deen", "de-de", "de-", "de_en", "de-en-fr", "german-english", "source-target"):
        with pytest.raises(DataError, match="not a pair"):
            Pair.of(wrong)


def test_a_script_after_a_hyphen_is_answered_with_the_form_that_is_read() -> None:
    with pytest.raises(DataError, match=r"'en-zh-Hans' is not a pair.*underscore, as in en-zh_Hans"):
        Pair.of("en-zh-Hans")
    pair = Pair.of("en-zh_Hans")
    assert Translation().language(str(pair)) == pair.target == "zh_Hans"
    assert BLEU().tokenizer(pair.target) == "zh"
