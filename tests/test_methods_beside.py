"""Context-free samples: what the model is asked for, and what is learned of what it writes."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from fakes_beside import ids_of, shape, texts_of, whole, written
from fixtures_chat import IMITATIONS, chat_like
from radistill.chat import Chat
from radistill.config import config_from
from radistill.errors import ConfigError
from radistill.methods._beside import empty_context, user_turn
from radistill.methods.context_free import ContextFree
from radistill.records import FinishReason, Generation, Message, Request, TrainingRecord, digest

Say = Callable[[Request, int], tuple[str, FinishReason]]
COUNTED = ("kept", "cut at markup", "empty", "equal", "failed", "short")


def answered(chat: Chat, requests: Sequence[Request], say: Say) -> list[Generation]:
    return [written(chat, *say(request, i)) for request in requests for i in range(request.sampling.n)]


def conversation(
    chat: Chat, message: str, answer: str | None = None, *, cut: bool = False, **settings: Any
) -> tuple[list[TrainingRecord], list[Request], Counter[str]]:
    """What becomes of one user's message and its answer: records, requests of the second round, counts."""
    method = ContextFree(start="user", ratio=1, **settings)
    run = whole(chat, 1)
    rounds = [[written(chat, message, "length" if cut else "stop")]]
    requests = list(method.plan_more(run, rounds))
    if requests:
        rounds.append([written(chat, answer or "")])
    records, counts = method.sorted_out(run, rounds)
    assert records == list(method.assemble_more(run, rounds))
    return records, requests, counts


# What is asked.


def test_samples_are_asked_for_in_batches_with_a_seed_of_their_own_at_temperature_one() -> None:
    chat = chat_like("llama-3")
    requests = ContextFree(max_new_tokens=40).plan_more(whole(chat), [])
    assert [(r.prompt_ids, r.sampling.n) for r in requests] == [
        *[((chat.tokenizer.bos_token_id,), n) for n in (32, 3)],
        *[(user_turn(chat).opening, n) for n in (32, 3)],
    ]
    assert {(r.sampling.temperature, r.sampling.top_p, r.sampling.max_new_tokens) for r in requests} == {(1, 1, 40)}
    assert {(r.purpose, r.example_id, r.spans[0].stop == len(r.prompt_ids)) for r in requests} == {("free", None, True)}
    others = ContextFree(max_new_tokens=40).plan_more(whole(chat, seed=1), [])
    assert len({r.sampling.seed for r in (*requests, *others)}) == len({r.key for r in (*requests, *others)}) == 8


def test_a_plan_is_the_same_every_time_and_changes_nothing_it_is_given() -> None:
    chat = chat_like("llama-3")
    assert ContextFree().plan_more(whole(chat), []) == ContextFree().plan_more(whole(chat), [])
    first = answered(
        chat, ContextFree().plan_more(whole(chat), []), lambda r, i: (f"Hello {r.sampling.seed} {i}", "stop")
    )
    rounds = [list(first)]
    plans = [ContextFree().plan_more(whole(chat), given) for given in (rounds, [list(first)], rounds)]
    assert plans[0] == plans[1] == plans[2]
    assert len(plans[0]) == 35
    assert rounds == [first]


@pytest.mark.parametrize(
    ("start", "ratio", "sizes"),
    [
        ("empty", 1, [32, 32, 6]),
        ("user", 0.5, [32, 3]),
        ("user", 2, [32, 32, 32, 32, 12]),
        ("both", 0.1, [3, 4]),
        ("both", 0.001, [1]),
    ],
)
def test_the_ratio_is_of_the_examples_and_the_starts_share_it(start: Any, ratio: float, sizes: list[int]) -> None:
    requests = ContextFree(start=start, ratio=ratio).plan_more(whole(chat_like("llama-3")), [])
    assert [r.sampling.n for r in requests] == sizes


def test_full_batches_are_the_same_at_every_ratio_so_that_the_ledger_serves_them() -> None:
    def keys(ratio: float) -> set[str]:
        return {
            r.key
            for r in ContextFree(ratio=ratio).plan_more(whole(chat_like("llama-3"), 1000), [])
            if r.sampling.n == 32
        }

    assert keys(0.1) < keys(0.5) < keys(1)
    assert len(keys(1)) == 30


def test_what_changes_only_the_loss_changes_no_request() -> None:
    run = whole(chat_like("llama-3"))
    assert ContextFree(weight=4, min_new_tokens=9).plan_more(run, []) == ContextFree().plan_more(run, [])


@pytest.mark.parametrize(
    ("name", "extra", "token"),
    [
        ("llama-2", (), "<s>"),
        ("gemma", (), "<bos>"),
        ("qwen2", ("<|endoftext|>",), "<|endoftext|>"),
        ("qwen2", (), "<|im_end|>"),
    ],
)
def test_the_empty_context_is_the_bos_or_else_what_ends_a_text(name: str, extra: tuple[str, ...], token: str) -> None:
    chat = IMITATIONS[name].chat()
    chat.extra_stop_ids = frozenset(chat.tokenizer.convert_tokens_to_ids(list(extra)))
    assert chat.tokenizer.convert_ids_to_tokens(list(empty_context(chat))) == [token]


@pytest.mark.parametrize("name", IMITATIONS)
def test_a_users_turn_is_what_stands_around_any_message(name: str) -> None:
    chat = chat_like(name)
    turn = user_turn(chat)
    for message in ("Good house", "12", "Note: the word"):
        ids = chat.prompt([Message("user", message)]).ids
        opened, closed = len(turn.opening), len(ids) - len(turn.closing)
        assert (ids[:opened], ids[closed:]) == (turn.opening, turn.closing)
        assert chat.spell(turn.opening, ids[opened:closed]).strip() == message


@pytest.mark.parametrize(
    ("name", "opening", "closing"),
    [
        ("llama-2", "<s>[INST]", " [/INST]"),
        ("llama-3", "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n", None),
        ("qwen3", "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"),
    ],
)
def test_the_opening_of_a_turn_never_ends_in_the_blank_of_the_first_word(
    name: str, opening: str, closing: str | None
) -> None:
    turn = user_turn(chat_like(name))
    assert turn.opening_text == opening
    assert closing in (None, turn.closing_text)


def test_words_that_anybody_writes_are_no_markup() -> None:
    marks = {name: user_turn(chat_like(name)).marks for name in ("llama-2", "zephyr", "smollm2", "qwen2", "llama-3")}
    assert marks.pop("llama-2") == ("[INST]", "[/INST]")
    assert marks.pop("zephyr") == ("<|user|>",)
    assert set(marks.values()) == {()}


# What becomes of it.


def test_a_text_is_learned_whole_with_its_end_only_where_the_model_stopped() -> None:
    chat = chat_like("llama-3")
    run, method = whole(chat, 4), ContextFree(start="empty", weight=0.5)
    said: list[tuple[str, FinishReason]] = [
        ("Hello.", "stop"),
        ("Good house", "length"),
        (" ", "stop"),
        ("Hello.", "stop"),
    ]
    rounds = [[written(chat, *one) for one in said]]
    stopped, cut = method.assemble_more(run, rounds)
    assert shape(stopped) == [("prompt", 0), ("free", 0.5), ("end", 0.5)]
    assert stopped.token_ids == (chat.tokenizer.bos_token_id, *ids_of(chat, "Hello."), chat.end_id)
    assert stopped.texts == ("<|begin_of_text|>", "Hello.", "<|eot_id|>")
    assert shape(cut) == [("prompt", 0), ("free", 0.5)]
    assert (stopped.example_id, stopped.id) == (None, digest("free", stopped.token_ids))
    assert method.plan_more(run, rounds) == []
    _, counts = method.sorted_out(run, rounds)
    assert {name: counts[name] for name in COUNTED} == dict(zip(COUNTED, (2, 0, 1, 1, 0, 0), strict=True))


def test_what_an_engine_could_not_write_is_left_out() -> None:
    chat = chat_like("llama-3")
    failed = Generation(key="k", index=0, token_ids=(), text="", finish_reason="error", error="lost")
    records, counts = ContextFree(start="empty").sorted_out(whole(chat, 2), [[failed, written(chat, "Hello")]])
    assert (len(records), counts["failed"], counts["empty"]) == (1, 1, 0)


def test_a_user_message_and_its_answer_are_learned_and_what_the_template_writes_between_is_not() -> None:
    chat = chat_like("llama-3")
    ((record,), (request,), counts) = conversation(chat, "Hello house", "Good.", weight=2)
    prompt = chat.prompt([Message("user", "Hello house")])
    assert request.prompt_ids == prompt.ids
    assert (request.sampling.n, request.sampling.temperature, request.purpose) == (1, 1, "free")
    assert [span.origin for span in request.spans] == ["prompt", "free", "prompt"]
    assert (request.spans[0].start, request.spans[-1].stop) == (0, len(prompt.ids))
    assert shape(record) == [("prompt", 0), ("free", 2), ("end", 2), ("prompt", 0), ("free", 2), ("end", 2)]
    assert record.token_ids == (*prompt.ids, *ids_of(chat, "Good."), chat.end_id)
    assert texts_of(record, "free") == ["Hello house", "Good."]
    assert record.text == f"{prompt.text}Good.<|eot_id|>"
    assert counts["kept"] == 1


def test_a_message_that_no_token_ends_has_no_end_to_learn() -> None:
    (record,), _, _ = conversation(chat_like("llama-2"), " Hello house", " Good")
    assert shape(record) == [("prompt", 0), ("free", 1), ("prompt", 0), ("free", 1), ("end", 1)]


@pytest.mark.parametrize(("name", "mark"), [("llama-2", " [/INST]"), ("mistral-v0.3", "[/INST]")])
def test_a_model_that_goes_on_past_its_message_has_ended_it(name: str, mark: str) -> None:
    """Where a turn ends in a mark and not in a stop token, the model writes mark and answer in one go."""
    chat = chat_like(name)
    (record,), (request,), counts = conversation(chat, f" Hello house{mark} Good", " the word", cut=True)
    assert request.prompt_ids == chat.prompt([Message("user", "Hello house")]).ids
    assert [text.strip() for text in texts_of(record, "free")] == ["Hello house", "the word"]
    assert counts["cut at markup"] == 1


@pytest.mark.parametrize("markup", ["<|start_header_id|>", "<|reserved_3|>", "<|end_of_text|>", "<|begin_of_text|>"])
def test_a_sample_is_cut_where_the_model_writes_markup_and_has_no_end_there(markup: str) -> None:
    chat = chat_like("llama-3")
    (record,), requests, counts = conversation(chat, f"Hello house{markup}user word")
    assert requests == []
    assert shape(record) == [("prompt", 0), ("free", 1)]
    assert texts_of(record, "free") == ["Hello house"]
    assert counts["cut at markup"] == 1
    (text,), counts = ContextFree(start="empty").sorted_out(whole(chat, 1), [[written(chat, f"Good{markup}word")]])
    assert (text.texts[1:], counts["cut at markup"]) == (("Good",), 1)


def test_an_answer_is_cut_like_a_message() -> None:
    chat = chat_like("llama-2")
    (record,), _, counts = conversation(chat, " Hello", " Good [INST] the word")
    assert shape(record)[-1] == ("free", 1)
    assert texts_of(record, "free")[-1].strip() == "Good"
    assert counts["cut at markup"] == 1


def test_markup_alone_is_an_empty_sample() -> None:
    records, requests, counts = conversation(chat_like("llama-3"), "<|start_header_id|>user")
    assert (records, requests, counts["empty"], counts["cut at markup"]) == ([], [], 1, 1)


def test_a_message_that_was_cut_or_has_no_answer_is_learned_as_far_as_the_model_wrote_it() -> None:
    chat = chat_like("llama-3")
    (record,), requests, _ = conversation(chat, "Hello house", cut=True)
    assert requests == []
    assert shape(record) == [("prompt", 0), ("free", 1)]
    (record,), requests, _ = conversation(chat, "Hello house", "")
    assert len(requests) == 1
    assert shape(record) == [("prompt", 0), ("free", 1), ("end", 1)]
    assert record.token_ids[-1] == chat.end_id


def test_equal_messages_are_answered_once_and_the_ended_one_of_them() -> None:
    chat = chat_like("llama-3")
    run, method = whole(chat, 4), ContextFree(start="user")
    first = [
        written(chat, "Hello", "length"),
        written(chat, "Good"),
        written(chat, "Hello"),
        written(chat, "Good", "length"),
    ]
    requests = method.plan_more(run, [first])
    assert [r.prompt_ids for r in requests] == [chat.prompt([Message("user", m)]).ids for m in ("Hello", "Good")]
    rounds = [first, answered(chat, requests, lambda _, __: ("word", "stop"))]
    assert [texts_of(r, "free")[0] for r in method.assemble_more(run, rounds)] == ["Hello", "Good"]
    assert method.plan_more(run, rounds) == ()


def test_answers_go_to_their_own_messages_whatever_was_cut_between_them() -> None:
    chat = chat_like("llama-3")
    run, method = whole(chat, 4), ContextFree(start="both")
    cut = {"text two", "Hello"}
    first = [
        written(chat, text, "length" if text in cut else "stop") for text in ("a text", *sorted(cut)[::-1], "Good")
    ]
    (request,) = method.plan_more(run, [first])
    assert request.prompt_ids == chat.prompt([Message("user", "Good")]).ids
    records = list(method.assemble_more(run, [first, [written(chat, "house")]]))
    assert [texts_of(r, "free") for r in records] == [["a text"], ["text two"], ["Hello"], ["Good", "house"]]


def test_a_text_and_a_message_that_are_the_same_are_learned_once() -> None:
    bare = "{{ bos_token }}{% for turn in messages %}{{ turn['content'] + eos_token }}{% endfor %}"
    chat = dataclasses.replace(IMITATIONS["mistral-v0.1"], template=bare).chat()
    assert user_turn(chat).opening == empty_context(chat)
    said = [written(chat, "Hello", "length"), written(chat, "Hello", "length")]
    records, counts = ContextFree().sorted_out(whole(chat, 2), [said])
    assert (len(records), counts["kept"], counts["equal"]) == (1, 1, 1)


@pytest.mark.parametrize(("limit", "kept"), [(1, 3), (2, 2), (3, 1), (4, 0)])
def test_samples_shorter_than_the_minimum_are_dropped(limit: int, kept: int) -> None:
    chat = chat_like("llama-3")
    said = ["Hello", "Hello house", "Hello house word"]
    assert [len(ids_of(chat, text)) for text in said] == [1, 2, 3]
    method = ContextFree(start="empty", min_new_tokens=limit)
    records, counts = method.sorted_out(whole(chat, 3), [[written(chat, text) for text in said]])
    assert (len(records), counts["kept"], counts["short"]) == (kept, kept, 3 - kept)


@pytest.mark.parametrize("settings", [{"ratio": 0}, {"weight": 0}, {"min_new_tokens": 0}, {"start": "system"}])
def test_context_free_settings_that_mean_nothing_are_refused_with_their_key(
    raw_config: dict[str, Any], settings: dict[str, Any]
) -> None:
    raw_config["method"] = {"name": "context_free", **settings}
    with pytest.raises(ConfigError, match=rf"method\.{next(iter(settings))}"):
        config_from(raw_config)
