"""Pseudorehearsal: what random messages are, and what is learned of the answers to them."""

import re

import pytest

from fakes_beside import shape, whole, written
from fixtures_chat import IMITATIONS, chat_like
from radistill.errors import ModelError
from radistill.methods.pseudorehearsal import Pseudorehearsal, _plain_tokens
from radistill.records import Generation, Message


@pytest.mark.parametrize("name", sorted(IMITATIONS))
def test_each_message_is_another_and_is_rendered_as_any_message_is(name: str) -> None:
    chat = chat_like(name)
    requests = Pseudorehearsal(ratio=0.5, max_new_tokens=9).plan_more(whole(chat, 70), [])
    assert len({r.prompt_ids for r in requests}) == len(requests) == 35
    usual, special = chat.prompt([Message("user", "Hello")]).ids, {*chat.tokenizer.all_special_ids}
    assert {(r.sampling.temperature, r.sampling.top_p, r.sampling.max_new_tokens) for r in requests} == {(1, 1, 9)}
    for request in requests:
        assert [i for i in request.prompt_ids if i in special] == [i for i in usual if i in special]
        assert [(s.origin, s.start, s.stop) for s in request.spans] == [("prompt", 0, len(request.prompt_ids))]


def test_another_seed_has_other_messages_and_more_examples_the_same_and_more() -> None:
    chat = chat_like("llama-3")
    ids = [[r.prompt_ids for r in Pseudorehearsal().plan_more(whole(chat, n, seed), [])] for n, seed in
           ((40, 0), (80, 0), (40, 1))]  # fmt: skip
    assert ids[1][:20] == ids[0]
    assert not set(ids[2]) & set(ids[0])


def test_tokens_are_neither_markup_nor_mere_punctuation_nor_parts_of_characters() -> None:
    chat = chat_like("llama-3")
    spelled = [chat.tokenizer.decode([i]) for i in _plain_tokens(chat)]
    assert len(spelled) > 50
    assert all(re.search(r"\w", text) and "\ufffd" not in text for text in spelled)
    assert not set(_plain_tokens(chat)) & {*chat.tokenizer.all_special_ids, *chat.stop_ids}


def test_the_answer_is_learned_with_its_weight_and_the_message_is_not() -> None:
    chat = chat_like("llama-3")
    method, run = Pseudorehearsal(ratio=1, weight=2.5), whole(chat, 4)
    answers = [
        written(chat, "a dog"),
        written(chat, "a dog that", "length"),
        written(chat, "", "stop"),
        Generation(key="k", index=0, token_ids=(), text="", finish_reason="error", error="lost"),
    ]
    ended, cut = method.assemble_more(run, [answers])
    assert shape(ended) == [("prompt", 0.0), ("free", 2.5), ("end", 2.5)]
    assert shape(cut) == [("prompt", 0.0), ("free", 2.5)]
    for record, request in zip((ended, cut), method.plan_more(run, []), strict=False):
        assert record.token_ids[: len(request.prompt_ids)] == request.prompt_ids
        assert record.example_id is None


def test_a_vocabulary_that_is_too_small_is_refused_with_what_to_set() -> None:
    chat = chat_like("llama-3")
    with pytest.raises(ModelError, match=r"longest.*ratio"):
        Pseudorehearsal(ratio=400, shortest=1, longest=1).plan_more(whole(chat, 70), [])


def test_the_longest_message_is_not_shorter_than_the_shortest() -> None:
    with pytest.raises(ValueError, match="less than shortest"):
        Pseudorehearsal(shortest=5, longest=4)
