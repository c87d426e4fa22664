"""Names of examples, requests and records depend on their content, all of it and nothing else."""

import dataclasses
import json
import subprocess
import sys
from typing import Any

import pytest
from pydantic import ValidationError

from radistill.records import (
    Example,
    Generation,
    Message,
    Request,
    Sampling,
    Segment,
    TrainingRecord,
    digest,
    json_line,
    only,
)

ASKED = (Message("user", "Translate: Größe 🙂"),)


def test_a_digest_is_the_same_in_every_process() -> None:
    parts = ["translation", [("user", "Größe \ud83d")], {"b": 1, "a": None}, 0.5, True]
    code = f"from radistill.records import digest; print(digest(*{parts!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == digest(*parts)
    assert digest("a") == "f53b3155b302982e196b7645b7b614b1"


def test_different_parts_have_different_digests() -> None:
    parts: list[tuple[object, ...]] = [
        (), ("",), ("a",), ("a", ""), ("", "a"), ("a", "b"), ("ab",), (["a", "b"],), (["a"], "b"), (1,), ("1",), (1.5,),
        (True,), (None,), ("None",), ({},), ([],), ("a\\",), ('a"',), ("a", "\n"), ("a\n",), ("é",), ("e\u0301",),
    ]  # fmt: skip
    assert len({digest(*p) for p in parts}) == len(parts)
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest((1, 2)) == digest([1, 2])


def test_an_example_is_named_by_its_content_and_never_by_its_tags() -> None:
    example = Example.of("t", ASKED, "Size", {"pair": "de-en", "row": "7"})
    assert Example.of("t", list(ASKED), "Size", {"row": "8"}).id == example.id
    others = [
        Example.of("u", ASKED, "Size", {}),
        Example.of("t", (*ASKED, Message("assistant", "")), "Size", {}),
        Example.of("t", (Message("system", ASKED[0].content),), "Size", {}),
        Example.of("t", (), "Size", {}),
        Example.of("t", ASKED, "size", {}),
        Example.of("t", ASKED, "Size", {}, ordinal=1),
        Example.of("t", ASKED, "Size", {}, ordinal=2),
    ]
    assert len({example.id, *(other.id for other in others)}) == 8


SAMPLING = Sampling(temperature=0.7, top_p=0.9, max_new_tokens=32, n=1, seed=3)
REQUEST = Request(purpose="rationale", prompt_ids=(1, 2, 3), sampling=SAMPLING, example_id="e", model="m")


@pytest.mark.parametrize(
    "change",
    [
        {"prompt_ids": (1, 2)}, {"prompt_ids": (12, 3)}, {"prompt_ids": (1, 23)}, {"model": "n"}, {"purpose": "score"},
        {"sampling": SAMPLING.model_copy(update={"temperature": 0.71})},
        {"sampling": SAMPLING.model_copy(update={"top_p": 1.0})},
        {"sampling": SAMPLING.model_copy(update={"max_new_tokens": 33})},
        {"sampling": SAMPLING.model_copy(update={"n": 2})},
        {"sampling": SAMPLING.model_copy(update={"seed": 4})},
        {"sampling": SAMPLING.model_copy(update={"temperature": 0.0})},
    ],
)  # fmt: skip
def test_whatever_can_change_an_answer_changes_the_key(change: dict[str, Any]) -> None:
    assert dataclasses.replace(REQUEST, **change).key != REQUEST.key


@pytest.mark.parametrize(
    "change", [{"purpose": "prediction"}, {"example_id": "f"}, {"example_id": None}, {"spans": ()}]
)
def test_whoever_asks_and_whatever_for_the_key_is_the_same(change: dict[str, Any]) -> None:
    assert dataclasses.replace(REQUEST, **change).key == REQUEST.key


def test_greedy_decoding_does_not_depend_on_seed_and_top_p() -> None:
    def key(**sampling: object) -> str:
        return dataclasses.replace(REQUEST, sampling=Sampling.model_validate({"temperature": 0, **sampling})).key

    assert key() == key(seed=1) == key(top_p=0.5)
    assert len({key(), key(n=2), key(max_new_tokens=1)}) == 3


def test_a_request_is_addressed_to_a_model() -> None:
    assert REQUEST.addressed_to("other").model == "other"
    assert REQUEST.addressed_to("other").key != REQUEST.key
    assert REQUEST.addressed_to("m") == REQUEST


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -0.1}, {"top_p": 0}, {"top_p": 1.1}, {"max_new_tokens": 0}, {"n": 0},
        {"temperature": float("nan")}, {"temperature": float("inf")}, {"tempreature": 1},
    ],
)  # fmt: skip
def test_sampling_that_makes_no_sense_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Sampling.model_validate(wrong)


def record(*segments: Segment, n: int = 4) -> TrainingRecord:
    return TrainingRecord(
        id="r", example_id=None, token_ids=tuple(range(n)), segments=segments, texts=tuple("abcdef"[: len(segments)])
    )


def test_a_record_is_covered_by_its_segments() -> None:
    assert (
        record(Segment("prompt", 0, 2, 0.0), Segment("reference", 2, 2, 1.0), Segment("end", 2, 4, 1.0)).text == "abc"
    )


@pytest.mark.parametrize(
    "segments",
    [
        (),
        (Segment("prompt", 0, 3, 0.0),),
        (Segment("prompt", 1, 4, 0.0),),
        (Segment("prompt", 0, 5, 0.0),),
        (Segment("prompt", 0, 1, 0.0), Segment("reference", 2, 4, 1.0)),
        (Segment("prompt", 0, 3, 0.0), Segment("reference", 2, 4, 1.0)),
        (Segment("prompt", 0, 3, 0.0), Segment("reference", 3, 2, 1.0), Segment("end", 2, 4, 1.0)),
    ],
    ids=["none", "short", "late", "long", "gap", "overlap", "backwards"],
)
def test_a_record_with_a_gap_or_an_overlap_cannot_be_made(segments: tuple[Segment, ...]) -> None:
    with pytest.raises(AssertionError):
        record(*segments)


def test_a_record_has_a_text_for_every_segment() -> None:
    with pytest.raises(AssertionError):
        dataclasses.replace(record(Segment("prompt", 0, 4, 0.0)), texts=())


def test_only_takes_exactly_one_generation() -> None:
    generation = Generation(key="k", index=0, token_ids=(1, 2), text="x", finish_reason="stop")
    assert only([generation]) is generation
    assert generation.n_tokens == 2
    for several in ([], [generation, generation]):
        with pytest.raises(AssertionError):
            only(several)


@pytest.mark.parametrize("text", ["", "Größe 日本 🙂", "a\nb\u2028\0", '"\\', "\ud83d", "\udfff\ud83d end"])
def test_a_json_line_is_one_line_of_utf8_that_gives_the_row_back(text: str) -> None:
    row = {"text": text, "ids": [1, 2], text: None}
    line = json_line(row)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert json.loads(line.decode("utf-8")) == row
    assert json_line({"a": "é"}, compact=True) == '{"a":"é"}\n'.encode()
