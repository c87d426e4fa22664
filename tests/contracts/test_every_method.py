"""What every method must do, whoever wrote it."""

import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from fixtures_chat import chat_like, example
from radistill import plugins, seeds
from radistill.chat import Chat
from radistill.config import config_from, plugin_settings
from radistill.methods._composed import flag
from radistill.methods.base import Method
from radistill.records import Example, FinishReason, Generation, Message, Request, Sampling, TrainingRecord

SHAPES = ("llama-2", "llama-3", "qwen3", "gemma", "phi-3")
REFERENCES = ("Hello, the house.", " Er sagte „gut“\n", "東京🙂", "a")
ENDINGS: dict[str, tuple[str, FinishReason]] = {
    "stopped": (" Note: Good", "stop"),
    "cut": (" Note: Go", "length"),
    "empty": ("", "stop"),
}


@pytest.fixture(params=plugins.available("methods"))
def method(request: pytest.FixtureRequest) -> Method:
    made = plugins.load("methods", request.param)()
    assert isinstance(made, Method)
    return made


@pytest.fixture(params=SHAPES)
def chat(request: pytest.FixtureRequest) -> Chat:
    return chat_like(request.param)


def answers(chat: Chat, requests: Sequence[Request], ending: str) -> list[Generation]:
    text, reason = ENDINGS[ending]
    ids = tuple(chat.tokenizer(text, add_special_tokens=False).input_ids)
    return [
        Generation(key=request.key, index=i, token_ids=ids, text=text, finish_reason=reason)
        for request in requests
        for i in range(request.sampling.n)
    ]


def records_of(method: Method, row: Example, chat: Chat, ending: str) -> list[TrainingRecord]:
    requests = method.plan(row, chat, Sampling())
    return list(method.assemble(row, chat, answers(chat, requests, ending)))


def test_a_method_needs_no_settings_and_describes_those_it_has(method: Method) -> None:
    assert type(method).__doc__
    assert all(field.description for field in type(method).model_fields.values())
    assert isinstance(type(method).ours, bool)


def test_settings_survive_the_run_file(method: Method) -> None:
    plain = plugin_settings(method)
    assert plain["name"] == plugins.name_of(method)
    raw: dict[str, Any] = {
        "name": "x",
        "model": "m",
        "output_dir": "o",
        "data": {"train": {"path": "d"}},
        "method": plain,
    }
    assert config_from(raw).method == method


def test_plans_are_the_same_every_time(method: Method, chat: Chat) -> None:
    sampling = Sampling(seed=3, temperature=0.3)
    for reference in REFERENCES:
        row = example(reference)
        again = example(reference)
        first, second = method.plan(row, chat, sampling), method.plan(again, chat, sampling)
        assert [r.key for r in first] == [r.key for r in second]
        assert list(first) == list(second)


def test_a_plan_asks_for_what_it_was_told_and_says_where_the_ids_come_from(method: Method, chat: Chat) -> None:
    sampling = Sampling(seed=5, max_new_tokens=9)
    row = example("Hello.")
    for request in method.plan(row, chat, sampling):
        assert request.example_id in (row.id, None)
        assert (request.sampling.seed, request.sampling.max_new_tokens) == (5, 9)
        assert request.purpose not in ("prediction", "score")
        assert (request.purpose == "rationale") == flag(method, "writes_rationales")
        assert [span.start for span in request.spans] == [0, *(span.stop for span in request.spans[:-1])]
        assert request.spans[-1].stop == len(request.prompt_ids)


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_reference_is_never_lost_or_cut(method: Method, chat: Chat, ending: str) -> None:
    for reference in REFERENCES:
        records = records_of(method, example(reference), chat, ending)
        assert records
        taught = [
            text
            for record in records
            for segment, text in zip(record.segments, record.texts, strict=True)
            if segment.origin == "reference" and segment.weight > 0
        ]
        # A method may teach the model's own answer in its place, but no half of it.
        assert taught or any(s.origin == "model" for record in records for s in record.segments)
        assert all(reference.strip() in text for text in taught)


@pytest.mark.parametrize("ending", ENDINGS)
def test_weights_are_never_negative_and_prompts_are_never_learned(method: Method, chat: Chat, ending: str) -> None:
    for reference in REFERENCES:
        for record in records_of(method, example(reference), chat, ending):
            assert all(segment.weight >= 0 and np.isfinite(segment.weight) for segment in record.segments)
            assert all(segment.weight == 0 for segment in record.segments if segment.origin == "prompt")
            assert any(segment.weight > 0 for segment in record.segments)
            assert all(segment.stop > segment.start for segment in record.segments)


@pytest.mark.parametrize("ending", ENDINGS)
def test_what_is_planned_begins_what_is_trained_on_unless_nothing_was_written(
    method: Method, chat: Chat, ending: str
) -> None:
    row = example("Hello, the house")
    plain = chat.prompt(row.messages).ids
    requests = method.plan(row, chat, Sampling())
    records = method.assemble(row, chat, answers(chat, requests, ending))
    for request in requests:
        if request.purpose == "rewrite":  # shown the reference, and trained to do without
            assert all(record.token_ids[: len(plain)] == plain for record in records)
            continue
        prompt = request.prompt_ids[: request.spans[0].stop]
        shown = prompt if ending == "empty" else request.prompt_ids
        assert any(record.token_ids[: len(shown)] == shown for record in records)


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_end_of_turn_is_the_templates_and_there_only_when_the_model_stopped(
    method: Method, chat: Chat, ending: str
) -> None:
    row = example("Hello.")
    requests = method.plan(row, chat, Sampling())
    for record in method.assemble(row, chat, answers(chat, requests, ending)):
        ends = [s for s in record.segments if s.origin == "end"]
        is_written = any(s.origin in ("model", "rationale") for s in record.segments)
        assert len(ends) == (0 if is_written and ending == "cut" else 1)
        for end in ends:
            assert (end.start, end.stop) == (len(record.token_ids) - 1, len(record.token_ids))
            assert record.token_ids[-1] == chat.end_id
        assert chat.end_id not in record.token_ids[record.segments[0].stop : -1]


def test_a_record_is_named_by_its_example_and_its_ids(method: Method, chat: Chat) -> None:
    def ids(row: Example, ending: str) -> list[str]:
        return [record.id for record in records_of(method, row, chat, ending)]

    row, twin = example("Hello."), Example.of("translation", example("Hello.").messages, "Hello.", {}, ordinal=1)
    assert ids(row, "stopped") == ids(row, "stopped")
    assert not set(ids(row, "stopped")) & set(ids(twin, "stopped"))
    assert not set(ids(row, "stopped")) & set(ids(example("Hello!"), "stopped"))


def test_every_example_has_one_donor_among_the_examples(method: Method) -> None:
    names = [f"e{i}" for i in range(50)]
    donors = method.donors(names, seeds.generator(0, "donors"))
    assert sorted(donors) == sorted(names)
    assert set(donors.values()) <= set(names)
    assert donors == method.donors(names, seeds.generator(0, "donors"))


def test_earlier_turns_and_a_system_message_are_kept(method: Method) -> None:
    turns = [Message("system", "Be good."), Message("user", "a"), Message("assistant", "b"), Message("user", "c")]
    row = Example.of("any", turns, "Hello.", {})
    chat = chat_like("llama-3")
    for record in records_of(method, row, chat, "stopped"):
        assert [record.texts[0].count(words) for words in ("Be good.", "\na<", "\nb<", "\nc<")] == [1, 1, 1, 1]


def test_no_method_loads_an_engine_when_it_is_imported() -> None:
    names = [f"radistill.methods.{name}" for name in plugins.available("methods")]
    code = f"import sys, {', '.join(names)}; print(*{{'torch', 'transformers', 'pyarrow'}} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
