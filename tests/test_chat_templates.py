"""Templates and tokenizers that cannot hold a continued answer are refused with one clear message."""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from fixtures_chat import (
    CHATML,
    CHATML_PROMPT,
    CHATML_TURNS,
    GEMMA,
    IMITATIONS,
    LLAMA_3,
    QWEN_2,
    QWEN_3,
    Imitation,
    chat_like,
    example,
    of_sentencepiece,
)
from radistill.chat import Chat, ChatSettings, RowError, load_chat
from radistill.errors import ChatTemplateError
from radistill.methods.radis import RaDis
from radistill.methods.vanilla import Vanilla
from radistill.records import Message, Sampling

USER = [Message("user", "Das Haus")]
PLAIN = replace(QWEN_2, template=CHATML)


def with_template(template: str, habits: Imitation = PLAIN, **settings: Any) -> Chat:
    return replace(habits, template=template).chat(**settings)


def turns(assistant: str) -> str:
    """ChatML in which the assistant's turn is written by that jinja code."""
    user = "{{ '<|im_start|>' + turn.role + '\n' + turn.content + '<|im_end|>\n' }}"
    return (
        "{% for turn in messages %}{% if turn.role == 'assistant' %}{{ '<|im_start|>assistant\n' }}"
        + assistant
        + "{% else %}"
        + user
        + "{% endif %}{% endfor %}"
        + CHATML_PROMPT
    )


def test_a_template_that_drops_the_answer_is_refused_with_what_it_renders() -> None:
    chat = with_template(turns("{{ '<|im_end|>\n' }}"))
    with pytest.raises(ChatTemplateError, match="drops the assistant's answer") as caught:
        chat.opening(USER, "Hello", "\n\n")
    assert "models/imitation" in str(caught.value)
    assert repr("<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n<|im_end|>\n") in str(caught.value)


def test_warnings_do_not_let_a_template_drop_the_answer() -> None:
    chat = with_template(turns("{{ '<|im_end|>\n' }}"), on_mismatch="warn")
    with pytest.raises(ChatTemplateError, match="drops"):
        chat.prompt(USER)


REWRITING = {
    "text before the answer": (turns("{{ 'Sure! ' + turn.content + '<|im_end|>\n' }}"), "writes 'Sure! ' before"),
    "think block": (
        turns("{{ '<think>\n\n</think>\n\n' + turn.content + '<|im_end|>\n' }}"),
        r"writes '<think>\\n\\n</think>\\n\\n' before",
    ),
    "other header": (
        CHATML.replace("'<|im_start|>assistant\n'", "'<|im_start|>bot\n'"),
        "does not begin a finished conversation",
    ),
    "text after the answer": (turns("{{ turn.content + '\nOver.<|im_end|>\n' }}"), r"writes '\\nOver.' after"),
    "text instead of an end": (turns("{{ turn.content + '\nOver.' }}"), r"writes '\\nOver.' after"),
}


@pytest.mark.parametrize(("template", "what"), REWRITING.values(), ids=REWRITING.keys())
def test_a_template_that_injects_text_is_refused_with_both_texts(template: str, what: str) -> None:
    with pytest.raises(ChatTemplateError, match=what) as caught:
        with_template(template).opening(USER, "Hello", "\n\n")
    message = str(caught.value)
    assert message.count("  expected: ") == message.count("  rendered: ") == 1
    expected, rendered = (line.split(": ", 1)[1] for line in message.splitlines()[1:3])
    assert expected != rendered
    assert "<|im_start|>" in expected
    assert "<|im_start|>" in rendered
    assert "chat.on_mismatch: warn" in message


@pytest.mark.parametrize(("template", "what"), REWRITING.values(), ids=REWRITING.keys())
def test_with_warnings_the_prompts_form_is_trained_on_and_both_texts_are_told(template: str, what: str) -> None:
    chat = with_template(template, on_mismatch="warn")
    row = example("Hello")
    (record,) = Vanilla().assemble(row, chat, [])
    prompt = chat.prompt(row.messages)
    assert record.text == prompt.text + "Hello" + "<|im_end|>"
    note = chat.check_rerendering(row.messages, "Hello")
    assert note is not None
    assert repr(chat.render(row.messages, answer="Hello")) in note
    assert prompt.text[-20:] in note.encode().decode("unicode_escape")


def test_a_think_block_is_no_mismatch_once_the_prompt_has_it_too() -> None:
    with pytest.raises(ChatTemplateError, match="enable_thinking: false"):
        QWEN_3.chat(template_kwargs={}).opening(USER, "Hello", "\n\n")
    chat = QWEN_3.chat(template_kwargs={"enable_thinking": False})
    opening = chat.opening(USER, "Hello", "\n\n")
    assert opening.texts[0].endswith("<think>\n\n</think>\n\n")
    assert chat.check_rerendering(USER, "Hello") is None


def test_an_answer_that_holds_a_think_block_is_told_apart_from_a_template_that_cannot_be_used() -> None:
    chat = chat_like("qwen3")
    with pytest.raises(ChatTemplateError, match="rewrites the finished answer") as caught:
        chat.check_rerendering(USER, "Hello</think>\n\nGood")
    assert "Hello</think>" in str(caught.value)


TRIMMING = {"both": ("turn.content | trim", " Hello\n"), "newlines": ("turn.content.rstrip('\n')", "Hello\n\n")}


@pytest.mark.parametrize(("content", "answer"), TRIMMING.values(), ids=TRIMMING.keys())
def test_a_template_that_trims_is_told_with_both_texts_and_the_ids_do_not_pass_through_it(
    content: str, answer: str
) -> None:
    chat = with_template(turns("{{ " + content + " + '<|im_end|>\n' }}"))
    assert chat.check_rerendering(USER, "Hello") is None
    note = chat.check_rerendering(USER, answer)
    assert note is not None
    assert "white space" in note
    assert repr(chat.render(USER, answer=None) + answer + "<|im_end|>\n") in note
    assert repr(chat.render(USER, answer=answer)) in note
    assert chat.opening(USER, "Hello", "\n\n").texts[1:] == ("Hello", "\n\n")


DOUBLING = ["{{ bos_token }}{{ bos_token }}", "{{ bos_token }}\n{{ bos_token }}", " {{ bos_token + bos_token }}"]


@pytest.mark.parametrize("beginning", DOUBLING)
@pytest.mark.parametrize("adds", [True, False])
def test_a_template_that_doubles_the_bos_is_refused(beginning: str, adds: bool) -> None:
    habits = replace(GEMMA, adds=(adds, False))
    chat = with_template(GEMMA.template.replace("{{ bos_token }}", beginning), habits)
    with pytest.raises(ChatTemplateError, match=r"two BOS tokens \('<bos>'\)"):
        chat.prompt(USER)


def test_a_bos_behind_white_space_of_the_template_is_not_written_twice() -> None:
    chat = with_template("\n\n" + GEMMA.template, GEMMA)
    ids = chat.prompt(USER).ids
    assert ids.count(chat.tokenizer.bos_token_id) == 1


def test_a_model_without_a_bos_in_template_and_tokenizer_gets_none() -> None:
    chat = with_template(GEMMA.template.replace("{{ bos_token }}", ""), replace(GEMMA, adds=(False, False)))
    assert chat.tokenizer.bos_token_id not in chat.prompt(USER).ids


def test_a_template_without_an_end_of_turn_ends_with_the_eos_and_says_so() -> None:
    chat = with_template(turns("{{ turn.content + '\n' }}"))
    assert chat.end_id == chat.tokenizer.eos_token_id
    (note,) = chat.shape.notes
    assert "no end-of-turn" in note
    assert "'<|im_end|>'" in note
    assert not chat_like("qwen2").shape.notes


def test_a_template_without_an_end_of_turn_and_without_an_eos_is_refused() -> None:
    habits = replace(PLAIN, eos=None, special=("<|im_start|>", "<|im_end|>"))
    with pytest.raises(ChatTemplateError, match="could never learn to stop"):
        with_template(turns("{{ turn.content + '\n' }}"), habits).opening(USER, "Hello", "\n")


def test_an_end_of_turn_need_not_be_marked_as_special() -> None:
    # Some ChatML models on the Llama tokenizer: <|im_end|> was merely added, and the EOS is still </s>.
    habits = replace(PLAIN, raw=of_sentencepiece("first"), eos="</s>", special=(), plain=("<|im_start|>", "<|im_end|>"))
    chat = habits.chat()
    assert chat.tokenizer.convert_ids_to_tokens(chat.end_id) == "<|im_end|>"
    assert set(chat.stop_ids) == {chat.end_id, chat.tokenizer.eos_token_id}
    with pytest.raises(RowError, match=r"<\|im_end\|>"):
        chat.opening(USER, "Hello <|im_end|>", "\n")


RAISING: dict[str, tuple[str, str]] = {
    "by itself": ("{{ raise_exception('no such turn') }}", "no such turn"),
    "an unknown name": ("{{ messages[0].content + absent.word }}", "'absent' is undefined"),
    "a wrong type": ("{% for turn in messages %}{{ turn.content + 1 }}{% endfor %}", "str"),
    "its grammar": ("{% for turn in messages %}{{ turn.content }}", "endfor"),
    "a division": ("{{ 1 / 0 }}", "division"),
}


@pytest.mark.parametrize(("template", "words"), RAISING.values(), ids=RAISING.keys())
def test_a_template_that_raises_is_one_message_with_its_own_words(template: str, words: str) -> None:
    with pytest.raises(ChatTemplateError, match=words) as caught:
        with_template(template).prompt(USER)
    assert "refuses the turns ['user']" in str(caught.value)
    assert "models/imitation" in str(caught.value)


@pytest.mark.parametrize("name", [name for name, habits in IMITATIONS.items() if not habits.system])
def test_turns_that_a_template_refuses_are_that_rows_fault_and_named(name: str) -> None:
    with pytest.raises(RowError, match=r"refuses the turns \['system', 'user'\]: .*(System role|roles)"):
        chat_like(name).prompt([Message("system", "Be kind."), *USER])
    with pytest.raises(RowError, match="alternate"):
        chat_like(name).prompt([*USER, *USER])


@pytest.mark.parametrize("name", [name for name, habits in IMITATIONS.items() if habits.system])
def test_a_system_message_stands_in_the_prompt(name: str) -> None:
    assert "Be kind." in chat_like(name).prompt([Message("system", "Be kind."), *USER]).text


def test_a_tokenizer_without_chat_template_is_refused_with_what_to_do() -> None:
    tokenizer = PLAIN.tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(ChatTemplateError, match=r"mine has no chat template.*chat_template\.jinja"):
        Chat(tokenizer=tokenizer, name="mine")


def test_a_tokenizer_of_the_slow_kind_is_refused_with_what_to_do() -> None:
    from transformers import ByT5Tokenizer

    slow: Any = ByT5Tokenizer
    with pytest.raises(ChatTemplateError, match=r"mine has no fast tokenizer \(tokenizer\.json\)"):
        Chat(tokenizer=slow(), name="mine")


@pytest.mark.parametrize("key", ["tokenize", "add_generation_prompt", "continue_final_message"])
def test_template_settings_cannot_change_what_is_rendered(key: str) -> None:
    with pytest.raises(ValidationError, match=f"{key} may not be set"):
        ChatSettings(template_kwargs={key: True})


def test_a_setting_of_the_template_reaches_it() -> None:
    template = "{{ greeting }}" + CHATML
    assert with_template(template, template_kwargs={"greeting": "Good"}).prompt(USER).text.startswith("Good<|im")


@pytest.mark.parametrize("name", IMITATIONS)
def test_a_chat_that_was_saved_and_loaded_gives_the_same_ids(name: str, tmp_path: Path) -> None:
    chat = chat_like(name)
    chat.tokenizer.save_pretrained(str(tmp_path))
    again = load_chat(tmp_path, chat.settings, name="again")
    assert again.name == "again"
    assert again.shape == chat.shape
    assert again.stop_ids == chat.stop_ids
    for reference in ("Hello.", "(Hello)", "漢字 🙂"):
        assert again.opening(USER, reference, "\n\n") == chat.opening(USER, reference, "\n\n")


@pytest.mark.parametrize(("stored", "more"), [(7, {7}), ([7, 9], {7, 9}), (None, set())])
def test_the_model_stops_wherever_its_generation_config_says(stored: object, more: set[int], tmp_path: Path) -> None:
    LLAMA_3.tokenizer().save_pretrained(str(tmp_path))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": stored}))
    chat = load_chat(tmp_path, ChatSettings())
    assert set(chat.stop_ids) == {chat.end_id, chat.tokenizer.eos_token_id} | more


def broken_tokenizer(folder: Path) -> None:
    LLAMA_3.tokenizer().save_pretrained(str(folder))
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')


def torn_tokenizer(folder: Path) -> None:
    LLAMA_3.tokenizer().save_pretrained(str(folder))
    whole = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(whole[: len(whole) // 2])


def torn_generation_config(folder: Path) -> None:
    LLAMA_3.tokenizer().save_pretrained(str(folder))
    (folder / "generation_config.json").write_text("{")


def nothing_at_all(folder: Path) -> None:
    assert not list(folder.iterdir())


BROKEN = [broken_tokenizer, torn_tokenizer, torn_generation_config, nothing_at_all]


@pytest.mark.parametrize("make", BROKEN)
def test_a_folder_whose_tokenizer_cannot_be_read_is_one_message(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path)
    with pytest.raises(ChatTemplateError) as caught:
        load_chat(tmp_path, ChatSettings())
    assert str(tmp_path) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("name", IMITATIONS)
@pytest.mark.parametrize("text", ["漢字", " Hello", "\n\n🙂🙂", "Hello the house", "\ufffd\ufffd", "مرحبا"])
def test_text_is_spelled_as_it_stands_after_other_ids(name: str, text: str) -> None:
    chat = chat_like(name)
    anchor = chat.tokenizer("x", add_special_tokens=False).input_ids
    ids = chat.tokenizer("x" + text, add_special_tokens=False).input_ids
    assert ids[: len(anchor)] == anchor
    prompt = chat.prompt([Message("user", "Das Haus 東京")]).ids
    for before in (prompt, [*prompt, *chat.tokenizer("東京🙂", add_special_tokens=False).input_ids]):
        assert chat.spell(before, ids[len(anchor) :]) == text
    assert chat.spell(prompt, []) == ""


@pytest.mark.parametrize("name", IMITATIONS)
def test_an_answer_cut_inside_a_character_keeps_all_before_it(name: str) -> None:
    chat = chat_like(name)
    prompt = chat.prompt(USER).ids
    ids = chat.tokenizer("x漢字京", add_special_tokens=False).input_ids[1:]
    for lost in (1, 2):
        assert chat.spell(prompt, ids[:-lost]).lstrip(" x") == "漢字\ufffd"


def test_a_row_costs_two_calls_of_the_tokenizer_and_three_decodings(monkeypatch: pytest.MonkeyPatch) -> None:
    chat = LLAMA_3.chat()
    RaDis().plan(example("Hello."), chat, Sampling())
    calls: list[str] = []
    cls = type(chat.tokenizer)
    for method in ("__call__", "decode", "apply_chat_template"):
        whole = getattr(cls, method)

        def counted(self: Any, *args: Any, _whole: Any = whole, _name: str = method, **kwargs: Any) -> Any:
            calls.append(_name)
            return _whole(self, *args, **kwargs)

        monkeypatch.setattr(cls, method, counted)
    RaDis().plan(example("the house"), chat, Sampling())
    assert calls.count("__call__") <= 2
    assert calls.count("decode") <= 3
    assert calls.count("apply_chat_template") == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama-2", "llama-3", "qwen3", "gemma"])
def test_three_thousand_short_rows_are_planned_in_a_second_of_work(name: str) -> None:
    chat, method = chat_like(name), RaDis()
    rows = [example(f"Hello, the house {i}", f"Translate into English: Das Haus {i}") for i in range(1500)]
    method.plan(rows[0], chat, Sampling())
    start = time.process_time()
    for row in rows:
        method.plan(row, chat, Sampling())
    assert len(rows) / (time.process_time() - start) > 3000


def test_the_turns_of_an_ordinary_template_are_all_there() -> None:
    assert CHATML.startswith(CHATML_TURNS)
    text = with_template(CHATML).prompt([Message("user", "a"), Message("assistant", "b"), Message("user", "c")]).text
    assert [text.count(f"\n{word}<|im_end|>") for word in "abc"] == [1, 1, 1]
