"""Prefix continuation, to the token, in the shapes of the models people use."""

import json
import unicodedata
from collections.abc import Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

from fixtures_chat import IMITATIONS, Imitation, chat_like, cover, example
from radistill.chat import Chat, RowError
from radistill.methods.radis import RaDis
from radistill.methods.vanilla import Vanilla
from radistill.records import FinishReason, Generation, Message, Sampling, TrainingRecord

REFERENCES = {
    "letter": "Hello, the house is old",
    "digit": "It costs 12",
    "full stop": "Hello.",
    "colon": "Two things follow:",
    "exclamation": "Good!",
    "straight quote": 'He said "Good."',
    "closing quote": "Er sagte „gut“",
    "bracket first": "(Hello)",
    "CJK in the vocabulary": "你好世界",
    "CJK in bytes": "東京の漢字。",
    "emoji": "ok 🙂",
    "joined emoji": "Good 👨‍👩‍👧‍👦",
    "only emoji": "🙂🙂🙂🙂",
    "combining marks": "cafe\u0301 n\u0303",
    "right to left": "שלום עולם",
    "Arabic": "مرحبا، كيف الحال؟",
    "Thai": "สวัสดีครับ",
    "NUL": "a\x00b",
    "replacement character": "a\ufffd",
    "zero width joiner first": "\u200dx",
    "braces": "{{ bos_token }} {% if x %} {0} %s",
    "newline inside": "Hello\n\nGood.\nthe house",
    "tab and blanks inside": "Hello\t  the   house",
    "white space around": " \n\tHello the house \n\n ",
    "no-break space around": "\u00a0Hello\u3000",
    "one letter": "a",
    "a word of the prompt": "assistant",
}
SEPARATORS = ("\n\n", "\n", "", " ##", "\n\n\n", ": ", "\n\n## Note\n")
MESSAGES = [Message("user", "Translate into English: Das Haus ist alt.")]
every_shape = pytest.mark.parametrize("name", IMITATIONS)
every_reference = pytest.mark.parametrize("kind", REFERENCES)


def spelled_lead(habits: Imitation) -> str:
    return habits.lead if habits.written is None else habits.written


def written(chat: Chat, ids: Sequence[int], *, finish_reason: FinishReason = "stop") -> Generation:
    text = chat.tokenizer.decode(list(ids), skip_special_tokens=False)
    return Generation(key="k", index=0, token_ids=tuple(ids), text=text, finish_reason=finish_reason)


def letters_of(chat: Chat, word: str) -> list[int]:
    """One id per letter: ids that no tokenizer would make of the word, but a model may write."""
    ids = [chat.tokenizer.convert_tokens_to_ids(letter) for letter in word]
    assert None not in ids
    assert ids != chat.tokenizer(word, add_special_tokens=False).input_ids
    return ids


def trained(name: str, reference: str, generation: Generation, **settings: Any) -> tuple[TrainingRecord, Chat]:
    chat = chat_like(name)
    (record,) = RaDis(**settings).assemble(example(reference), chat, [generation])
    return record, chat


def nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def after(chat: Chat, prompt: Sequence[int], ids: Sequence[int]) -> str:
    """What ids spell after the prompt, from the tokenizer's own decoder over everything."""
    whole: str = chat.tokenizer.decode([*prompt, *ids], skip_special_tokens=False)
    before: str = chat.tokenizer.decode(list(prompt), skip_special_tokens=False)
    assert whole.startswith(before)
    return nfc(whole[len(before) :])


@every_shape
def test_a_prompt_begins_with_one_bos_where_the_model_has_one(name: str) -> None:
    habits, chat = IMITATIONS[name], chat_like(name)
    prompt = chat.prompt(MESSAGES)
    bos = chat.tokenizer.bos_token_id
    if habits.bos is None:
        assert bos is None
        assert prompt.ids == tuple(chat.tokenizer(prompt.text, add_special_tokens=False).input_ids)
    else:
        assert prompt.ids[0] == bos
        # SmolLM2's BOS is the marker that begins every turn; all others have theirs once.
        assert prompt.ids.count(bos) == max(1, prompt.text.count(habits.bos))
        assert prompt.ids[1] != bos
    assert prompt.ids[-1] != chat.tokenizer.eos_token_id


@every_shape
def test_a_prompt_has_the_ids_that_transformers_makes_of_it(name: str) -> None:
    chat = chat_like(name)
    turns = [{"role": m.role, "content": m.content} for m in MESSAGES]
    settings = {"add_generation_prompt": True, "return_dict": False, **chat.settings.template_kwargs}
    theirs = chat.tokenizer.apply_chat_template(turns, tokenize=True, **settings)
    added = [chat.tokenizer.bos_token_id] if name == "zephyr" else []  # its template leaves the BOS to the tokenizer
    assert list(chat.prompt(MESSAGES).ids) == [*added, *theirs]


@every_shape
def test_only_a_tokenizer_that_adds_a_bos_by_itself_is_taken_for_one(name: str) -> None:
    assert chat_like(name).adds_bos is IMITATIONS[name].adds[0]


@every_shape
def test_a_conversation_of_several_turns_keeps_the_bos_that_the_template_writes(name: str) -> None:
    habits, chat = IMITATIONS[name], chat_like(name)
    turns = [Message("user", "Hello"), Message("assistant", "Good"), Message("user", "the house")]
    prompt = chat.prompt(turns)
    in_text = prompt.text.count(habits.bos) if habits.bos else 0
    if name.startswith("llama-2"):
        assert in_text == 2
    own = 1 if habits.bos and not in_text else 0
    assert sum(i == chat.tokenizer.bos_token_id for i in prompt.ids) == in_text + own
    assert prompt.ids[own:] == tuple(chat.tokenizer(prompt.text, add_special_tokens=False).input_ids)


@every_shape
@every_reference
def test_the_ids_of_an_opening_spell_the_prompt_the_reference_and_the_separator(name: str, kind: str) -> None:
    habits, chat = IMITATIONS[name], chat_like(name)
    reference = nfc(REFERENCES[kind].strip())
    prompt = chat.prompt(MESSAGES).ids
    for separator in SEPARATORS:
        opening = chat.opening(MESSAGES, REFERENCES[kind], separator)
        assert opening.ids[: len(prompt)] == prompt
        assert after(chat, prompt, opening.ids[len(prompt) :]) == spelled_lead(habits) + reference + separator


@every_shape
@every_reference
def test_the_reference_span_holds_the_whole_reference_and_no_token_more(name: str, kind: str) -> None:
    habits, chat = IMITATIONS[name], chat_like(name)
    want = spelled_lead(habits) + nfc(REFERENCES[kind].strip())
    for separator in SEPARATORS:
        opening = chat.opening(MESSAGES, REFERENCES[kind], separator)
        prompt, span = cover(opening.spans, "prompt"), cover(opening.spans, "reference")
        assert prompt is not None
        assert span is not None
        ids = opening.ids
        spelled = after(chat, ids[: prompt.stop], ids[span.start : span.stop])
        # A token that spells the end of the reference and the beginning of the separator belongs to the reference.
        assert spelled.startswith(want)
        assert separator.startswith(spelled[len(want) :])
        if kind != "replacement character":  # which is also what a part of it is shown as
            before = nfc(chat.tokenizer.decode(list(ids[: prompt.stop])))
            assert not nfc(chat.tokenizer.decode(list(ids[: span.stop - 1]))).startswith(before + want)


@every_shape
@every_reference
def test_spans_lie_without_gaps_and_say_what_they_spell(name: str, kind: str) -> None:
    chat = chat_like(name)
    for separator in SEPARATORS:
        opening = chat.opening(MESSAGES, REFERENCES[kind], separator)
        at = 0
        for span in opening.spans:
            assert span.start == at < span.stop
            at = span.stop
        assert at == len(opening.ids)
        origins = [span.origin for span in opening.spans]
        assert origins in (["prompt", "reference"], ["prompt", "reference", "separator"])
        assert len(opening.texts) == len(opening.spans)
        prompt = chat.prompt(MESSAGES)
        assert opening.texts[0] == prompt.text
        ids = opening.ids[len(prompt.ids) :]
        assert nfc("".join(opening.texts[1:])) == after(chat, prompt.ids, ids)
        if len(opening.texts) == 3:
            assert separator.endswith(opening.texts[2])


@every_shape
def test_reference_and_separator_are_tokenized_in_the_context_of_the_prompt(name: str) -> None:
    chat = chat_like(name)
    prompt, lead = chat.prompt(MESSAGES), chat.shape.lead
    added = 0 if prompt.text.startswith(IMITATIONS[name].bos or "") else 1
    compared = 0
    for reference in REFERENCES.values():
        for separator in SEPARATORS:
            body = lead + reference.strip() + separator
            joint = chat.tokenizer(prompt.text + body, add_special_tokens=False).input_ids
            if tuple(joint[: len(prompt.ids) - added]) == prompt.ids[added:]:
                compared += 1
                assert list(chat.opening(MESSAGES, reference, separator).ids[added:]) == joint
    assert compared > 0 or name == "tight-byte-level"


def test_an_answer_after_plain_text_has_no_blank_that_it_would_have_alone() -> None:
    chat = chat_like("zephyr")
    opening = chat.opening(MESSAGES, "Hello", "")
    assert chat.tokenizer.convert_ids_to_tokens([opening.ids[-1]]) == ["Hello"]
    assert chat.tokenizer.tokenize("Hello") == ["▁Hello"]


def test_a_blank_that_a_tokenizer_writes_after_a_special_token_is_kept() -> None:
    chat = chat_like("phi-3")
    opening = chat.opening(MESSAGES, "Hello 你", "")
    tokens = chat.tokenizer.convert_ids_to_tokens(list(opening.ids))
    assert tokens[-4:] == ["<|assistant|>", "▁Hello", "▁", "你"]
    assert opening.texts[1] == " Hello 你"


MERGING = [
    # The prompt ends in `]`, and `](` and `]H` are tokens.
    ("mistral-v0.1", "(Hello", ["(", "Hello"]),
    ("mistral-v0.1", "Hello", ["Hello"]),
    # It ends in `>`, and the template puts a newline before a finished answer; `>` + newline is a token.
    ("tight-byte-level", "Hello", ["Ċ", "Hello"]),
]


@pytest.mark.parametrize(("name", "reference", "tokens"), MERGING)
def test_a_prompt_whose_last_token_would_merge_with_the_answer_stays_as_it_is(
    name: str, reference: str, tokens: list[str]
) -> None:
    chat = chat_like(name)
    prompt = chat.prompt(MESSAGES)
    joint = chat.tokenizer(prompt.text + chat.shape.lead + reference, add_special_tokens=False).input_ids
    whole = chat.tokenizer(prompt.text, add_special_tokens=False).input_ids
    assert joint[: len(whole)] != whole, "the vocabulary lacks the merge this test is about"
    opening = chat.opening(MESSAGES, reference, "\n")
    assert opening.ids[: len(prompt.ids)] == prompt.ids
    span = cover(opening.spans, "reference")
    assert span is not None
    assert chat.tokenizer.convert_ids_to_tokens(list(opening.ids[span.start : span.stop])) == tokens
    assert opening.texts[1:] == (chat.shape.lead + reference, "\n")


JOINED = [
    ("Hello.", "\n\n", ".ĊĊ", []),
    ("Hello.", "\n\n\n", ".ĊĊ", ["Ċ"]),
    ("[Good]", "\n\n## a", "]ĊĊ", ["#", "#", "Ġ", "a"]),
    ("the house", "\n", "Ġhouse", ["Ċ"]),
    ("the:", "\n\n", ":ĊĊ", []),
]


@pytest.mark.parametrize(("reference", "separator", "last", "rest"), JOINED)
def test_a_token_that_joins_reference_and_separator_belongs_to_the_reference(
    reference: str, separator: str, last: str, rest: list[str]
) -> None:
    chat = chat_like("llama-3")
    opening = chat.opening(MESSAGES, reference, separator)
    tokens = chat.tokenizer.convert_ids_to_tokens(list(opening.ids))
    span = cover(opening.spans, "reference")
    assert span is not None
    assert tokens[span.stop - 1] == last
    assert tokens[span.stop :] == rest
    assert (cover(opening.spans, "separator") is None) == (not rest)


def test_three_newlines_are_one_token_where_the_vocabulary_has_it() -> None:
    chat = chat_like("llama-3")
    opening = chat.opening(MESSAGES, "Hello", "\n\n\n")
    assert chat.tokenizer.convert_ids_to_tokens(list(opening.ids[-2:])) == ["Hello", "ĊĊĊ"]
    assert opening.texts[1:] == ("Hello", "\n\n\n")


@every_shape
@pytest.mark.parametrize("separator", ["\n\n", ""])
def test_what_the_engine_is_given_is_the_beginning_of_what_is_trained_on(name: str, separator: str) -> None:
    chat, method = chat_like(name), RaDis(separator=separator)
    for reference in REFERENCES.values():
        row = example(reference)
        (request,) = method.plan(row, chat, Sampling())
        ids = letters_of(chat, "Note")
        (record,) = method.assemble(row, chat, [written(chat, ids)])
        assert record.token_ids[: len(request.prompt_ids)] == request.prompt_ids
        assert list(record.token_ids[len(request.prompt_ids) :]) == [*ids, chat.end_id]
        assert [(s.origin, s.start, s.stop) for s in request.spans] == [
            (s.origin, s.start, s.stop) for s in record.segments if s.stop <= len(request.prompt_ids)
        ]
        # What evaluation sends is the same beginning.
        assert request.prompt_ids[: request.spans[0].stop] == chat.prompt(row.messages).ids


@every_shape
def test_what_the_model_wrote_is_never_tokenized_again(name: str) -> None:
    chat = chat_like(name)
    ids = [*letters_of(chat, "house"), *chat.tokenizer("漢🙂", add_special_tokens=False).input_ids[:-1]]
    record, _ = trained(name, "Hello.", written(chat, ids, finish_reason="length"))
    span = next(s for s in record.segments if s.origin == "rationale")
    assert list(record.token_ids[span.start : span.stop]) == ids


@every_shape
def test_an_end_of_turn_is_trained_exactly_when_the_model_stopped_by_itself(name: str) -> None:
    habits, chat = IMITATIONS[name], chat_like(name)
    assert chat.tokenizer.convert_ids_to_tokens(chat.end_id) == habits.end
    assert {chat.end_id, chat.tokenizer.eos_token_id} <= set(chat.stop_ids)
    ids = letters_of(chat, "Note")
    stopped, _ = trained(name, "Hello", written(chat, ids))
    assert stopped.token_ids[-1] == chat.end_id
    assert stopped.segments[-1].origin == "end"
    assert stopped.texts[-1].strip() == habits.end
    cut, _ = trained(name, "Hello", written(chat, ids, finish_reason="length"))
    assert list(cut.token_ids[-len(ids) :]) == ids
    assert "end" not in [s.origin for s in cut.segments]
    assert cut.token_ids == stopped.token_ids[:-1]


@every_shape
def test_an_empty_rationale_leaves_the_reference_with_its_end_of_turn(name: str) -> None:
    chat = chat_like(name)
    row = example("Hello.")
    record, _ = trained(name, "Hello.", written(chat, []))
    (plain,) = Vanilla().assemble(row, chat, [])
    assert record == plain
    assert [s.origin for s in record.segments] == ["prompt", "reference", "end"]
    assert record.token_ids == (*chat.opening(row.messages, "Hello.", "").ids, chat.end_id)


@every_shape
@every_reference
def test_trained_ids_spell_the_finished_conversation_of_the_template(name: str, kind: str) -> None:
    habits, chat = IMITATIONS[name], chat_like(name)
    row = example(REFERENCES[kind])
    record, _ = trained(name, REFERENCES[kind], written(chat, letters_of(chat, "Note")))
    prompt = chat.prompt(row.messages)
    spelled = after(chat, prompt.ids, record.token_ids[len(prompt.ids) : -1])
    answer = f"{nfc(REFERENCES[kind].strip())}\n\nNote"
    assert spelled == spelled_lead(habits) + answer
    rendered = chat.render(row.messages, answer=answer)
    assert rendered.startswith(prompt.text + habits.lead + answer)
    tail = rendered[len(prompt.text + habits.lead + answer) :]
    assert tail.strip() == chat.tokenizer.decode([record.token_ids[-1]]) == habits.end
    assert chat.check_rerendering(row.messages, answer) is None


@every_shape
@pytest.mark.parametrize("place", ["message", "reference", "separator"])
def test_text_that_holds_a_special_token_is_refused_by_name(name: str, place: str) -> None:
    habits, chat = IMITATIONS[name], chat_like(name)
    words = {habits.bos, habits.eos, habits.end, *map(str, chat.tokenizer.all_special_tokens)} - {None}
    words |= {str(getattr(token, "content", token)) for token in habits.special}
    for word in sorted(map(str, words)):
        texts = {"message": "Hello", "reference": "Hello", "separator": "\n", place: f"a {word} b"}
        with pytest.raises(RowError, match="special token") as caught:
            chat.opening([Message("user", texts["message"])], texts["reference"], texts["separator"])
        assert repr(word) in str(caught.value)


def test_an_added_token_that_is_no_markup_may_be_taught() -> None:
    for name, word in [("qwen3", "<tool_call>"), ("gemma", "<table>")]:
        opening = chat_like(name).opening(MESSAGES, f"Hello {word} Good", "\n\n")
        assert f"Hello {word} Good" in "".join(opening.texts[1:])


@every_shape
@pytest.mark.parametrize(
    ("reference", "reason"), [("half \ud83d", "surrogate"), (" \n\t\u00a0", "empty"), ("", "empty")]
)
def test_a_reference_that_cannot_be_put_into_ids_is_refused(name: str, reference: str, reason: str) -> None:
    with pytest.raises(RowError, match=reason):
        chat_like(name).opening(MESSAGES, reference, "\n\n")


@every_shape
def test_half_a_character_in_a_message_is_refused(name: str) -> None:
    with pytest.raises(RowError, match="surrogate"):
        chat_like(name).prompt([Message("user", "half \ud83d of it")])


@every_shape
def test_real_sentences_come_back_whole(name: str, shared_data: Path) -> None:
    habits, chat = IMITATIONS[name], chat_like(name)
    for file in sorted(shared_data.glob("alma/*/valid.*.json")):
        rows = json.loads(file.read_text(encoding="utf-8"))[:25]
        for source, reference in [pair for row in rows for pair in permutations(row["translation"].values())]:
            opening = chat.opening([Message("user", f"Translate:\n{source}")], reference, "\n\n")
            assert nfc("".join(opening.texts[1:])) == spelled_lead(habits) + nfc(reference.strip()) + "\n\n"
