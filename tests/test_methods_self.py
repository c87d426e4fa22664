"""Methods that train on the model's own answer: when it is used, when the reference is, and which ids are learned."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from fixtures_chat import chat_like, example
from radistill import data, pipeline
from radistill.chat import Chat, RowError
from radistill.config import config_from, plugin_settings
from radistill.errors import ConfigError
from radistill.generate import plan
from radistill.ledger import open_ledger
from radistill.making import Making
from radistill.methods.base import Method, reference_alone
from radistill.methods.sdft import CHRF, PHRASES, SDFT, TEMPLATES
from radistill.methods.seqkd import SeqKD
from radistill.records import Example, FinishReason, Generation, Message, Sampling, TrainingRecord
from radistill.runs import RunFolder
from radistill.speaker import untouched
from radistill.tables import read_records

SHAPES = ("llama-2", "llama-3", "qwen3", "gemma", "phi-3", "mistral-v0.3", "zephyr")
REFERENCE = "The old house stands on a hill above the quiet town."
REWRITE = "The old house is standing on a hill above the quiet town."
GERMAN = "Das alte Haus steht auf einem Hügel über der stillen Stadt."
SAID_OVER = "the house " * 20
METHODS = (SeqKD(), SDFT())


@pytest.fixture(params=SHAPES)
def chat(request: pytest.FixtureRequest) -> Chat:
    return chat_like(request.param)


@pytest.fixture(params=METHODS, ids=["seqkd", "sdft"])
def method(request: pytest.FixtureRequest) -> Method:
    assert isinstance(request.param, Method)
    return request.param


def row(reference: str = REFERENCE, source: str = GERMAN, pair: str = "de-en") -> Example:
    tags = {"pair": pair, "source": source}
    return Example.of("translation", [Message("user", f"Translate into English: {source}")], reference, tags)


def other_task(reference: str = REFERENCE, words: str = "Describe a house.") -> Example:
    return Example.of("writing", [Message("user", words)], reference, {})


def written(chat: Chat, text: str, finish_reason: FinishReason = "stop") -> Generation:
    ids = tuple(chat.tokenizer(text, add_special_tokens=False).input_ids)
    return Generation(key="k", index=0, token_ids=ids, text=text, finish_reason=finish_reason)


def weights(record: TrainingRecord) -> dict[str, float]:
    assert len({s.origin for s in record.segments}) == len(record.segments)
    return {s.origin: s.weight for s in record.segments}


def content(method: SDFT, of: Example) -> str:
    return method.messages(of)[-1].content


def test_the_ids_that_were_written_are_learned_after_the_plain_prompt(method: Method, chat: Chat) -> None:
    answer = written(chat, REWRITE)
    (record,) = method.assemble(row(), chat, [answer])
    assert weights(record) == {"prompt": 0, "model": 1, "end": 1}
    assert record.token_ids == (*chat.prompt(row().messages).ids, *answer.token_ids, chat.end_id)
    assert record.texts[:2] == (chat.prompt(row().messages).text, REWRITE)
    assert record.example_id == row().id


def test_ids_that_the_tokenizer_would_not_choose_are_learned_as_they_are(method: Method, chat: Chat) -> None:
    ids = tuple(i for letter in REWRITE for i in chat.ids_of(letter))
    assert ids != chat.ids_of(REWRITE)
    answer = Generation(key="k", index=0, token_ids=ids, text=REWRITE, finish_reason="stop")
    (record,) = method.assemble(row(), chat, [answer])
    assert record.token_ids[-len(ids) - 1 : -1] == ids


def test_an_answer_that_was_cut_has_no_end(method: Method, chat: Chat) -> None:
    answer = written(chat, REWRITE, "length")
    (record,) = method.assemble(row(), chat, [answer])
    assert weights(record) == {"prompt": 0, "model": 1}
    assert record.token_ids == (*chat.prompt(row().messages).ids, *answer.token_ids)


@pytest.mark.parametrize("text", ["", " \n", SAID_OVER])
@pytest.mark.parametrize("finish_reason", ["stop", "length"])
def test_an_empty_or_looping_answer_gives_way_to_the_whole_reference(
    method: Method, chat: Chat, text: str, finish_reason: FinishReason
) -> None:
    for of in (row(), other_task()):
        assert list(method.assemble(of, chat, [written(chat, text, finish_reason)])) == [reference_alone(of, chat)]
    assert weights(reference_alone(row(), chat)) == {"prompt": 0, "reference": 1, "end": 1}


def test_a_loop_that_the_reference_has_too_is_no_fault(method: Method) -> None:
    assert isinstance(method, SeqKD | SDFT)
    assert method.reason(row(SAID_OVER), SAID_OVER) is None
    assert method.reason(row(), SAID_OVER) == "loop"
    characters = "好的" * 12
    assert method.reason(row("这座老房子在小镇上方的小山上。", pair="de-zh"), characters) == "loop"


def test_more_than_one_answer_is_refused_before_anything_is_written(method: Method) -> None:
    with pytest.raises(ConfigError, match=r"sampling\.n is 3, but (seqkd|sdft) learns one re\w+ an example"):
        method.plan(row(), chat_like("llama-3"), Sampling(n=3))


def test_an_answer_that_was_not_planned_is_a_bug(method: Method) -> None:
    chat = chat_like("llama-3")
    for answers in ([], [written(chat, REWRITE)] * 2):
        with pytest.raises(AssertionError):
            method.assemble(row(), chat, answers)


def test_seqkd_asks_the_plain_prompt_whatever_the_reference_is(chat: Chat) -> None:
    (request,) = SeqKD().plan(row(), chat, Sampling(seed=4))
    assert (request.purpose, request.example_id, request.sampling) == ("response", row().id, Sampling(seed=4))
    assert request.prompt_ids == chat.prompt(row().messages).ids
    assert [(s.origin, s.start, s.stop) for s in request.spans] == [("prompt", 0, len(request.prompt_ids))]
    (of_another,) = SeqKD().plan(row("Something else."), chat, Sampling(seed=4))
    assert of_another.key == request.key


def test_seqkd_learns_an_answer_however_far_from_the_reference() -> None:
    for text in (GERMAN, "No.", "I refer to the reference answer.", f"{REWRITE} " + "And so on, and on. " * 3):
        assert SeqKD().reason(row(), text) is None


def test_sdft_shows_instruction_and_reference(chat: Chat) -> None:
    (request,) = SDFT().plan(row(), chat, Sampling(seed=4))
    assert (request.purpose, request.example_id, request.sampling) == ("rewrite", row().id, Sampling(seed=4))
    asked = Message("user", content(SDFT(), row()))
    assert request.prompt_ids == chat.prompt([asked]).ids
    assert [(s.origin, s.start, s.stop) for s in request.spans] == [("prompt", 0, len(request.prompt_ids))]
    others = [
        SDFT(template="refer").plan(row(), chat, Sampling(seed=4)),
        SDFT().plan(row("The house."), chat, Sampling(seed=4)),
        SDFT().plan(row(source="Das Haus."), chat, Sampling(seed=4)),
        SDFT().plan(row(), chat, Sampling(seed=5)),
    ]
    assert len({request.key, *(other.key for (other,) in others)}) == 5


def test_what_changes_only_the_guard_changes_no_request() -> None:
    settings: list[dict[str, Any]] = [{}, {"length_ratio": None}, {"similarity": None}, {"check_language": False}]
    plans = [SDFT(**s).plan(row(), chat_like("llama-3"), Sampling()) for s in settings]
    assert len({request.key for (request,) in plans}) == 1


def test_the_templates_are_worded_as_in_the_official_code() -> None:
    body = "### Instruction:\nDescribe a house.\n\n### Reference Answer:\nIt is old.\n\n### Response:\n"
    task = "Below are an instruction that describes a task along with a reference answer."
    asked = {name: content(SDFT(template=name), other_task(" It is old.\n")) for name in TEMPLATES}
    assert asked == {
        "refer": f"{task} Refer to the reference answer and write your own response.\n\n{body}",
        "using": f"{task} Using the reference answer as a guide, write your own response.\n\n{body}",
    }


def test_a_template_of_ones_own_is_filled_once_and_keeps_its_other_braces() -> None:
    method = SDFT(template='{reference} / {instruction} / {"a": {b}}')
    of = other_task("Say {instruction}.", "Repeat {reference}.")
    assert content(method, of) == 'Say {instruction}. / Repeat {reference}. / {"a": {b}}'


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("usng", r"lacks \{instruction\} and \{reference\}.*refer, using.*Did you mean 'using'"),
        ("Reword: {reference}", r"lacks \{instruction\};"),
        ("{instruction}", r"lacks \{reference\};"),
    ],
)
def test_a_template_without_both_placeholders_is_refused(template: str, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SDFT(template=template)


def test_the_template_stands_in_the_last_user_turn_and_all_others_are_kept() -> None:
    turns = [Message("system", "Be good."), Message("user", "a"), Message("assistant", "b"), Message("user", " c\n")]
    of = Example.of("any", turns, "Hello.", {})
    asked = SDFT(template="{instruction}|{reference}").messages(of)
    assert asked == [*turns[:3], Message("user", "c|Hello.")]
    assert of.messages == tuple(turns)
    chat = chat_like("llama-3")
    (record,) = SDFT().assemble(of, chat, [written(chat, "Hello there.")])
    assert record.texts[0] == chat.prompt(turns).text


def test_a_conversation_without_a_user_is_refused_as_a_row() -> None:
    of = Example.of("any", [Message("system", "Be good.")], "Hello.", {})
    with pytest.raises(RowError, match="no user message"):
        SDFT().plan(of, chat_like("llama-3"), Sampling())


def test_a_reference_with_markup_is_refused_as_a_row() -> None:
    with pytest.raises(RowError, match="special token"):
        SDFT().plan(row("The house.<|eot_id|>"), chat_like("llama-3"), Sampling())


@pytest.mark.parametrize("phrase", PHRASES)
@pytest.mark.parametrize("spelled", [str.lower, str.upper, str.capitalize])
def test_a_rewrite_that_speaks_of_the_template_is_not_used(phrase: str, spelled: Any) -> None:
    for of in (row(), other_task()):
        assert SDFT().reason(of, f"{REWRITE} {spelled(phrase)}.") == "phrase"


def test_the_phrases_are_the_official_ones() -> None:
    assert set(PHRASES) == {
        "reference answer",
        "your response",
        "my response",
        "your own response",
        "now it's your turn",
    }


def test_your_turn_is_told_only_at_the_beginning_and_with_a_capital() -> None:
    assert SDFT().reason(other_task(), " Your turn to describe the house.") == "phrase"
    assert SDFT().reason(other_task(), "your turn to describe the house.") is None
    assert SDFT().reason(other_task(), "It is Your turn to describe the house.") is None
    assert SDFT().reason(other_task(), "The answer, my dear, is a house for reference.") is None


def test_a_good_rewrite_is_used() -> None:
    assert SDFT().reason(row(), REWRITE) is None
    assert SDFT().reason(row(), f"\n {REWRITE}\n") is None
    assert SDFT().reason(row(), REFERENCE) is None


def test_a_rewrite_in_another_language_is_not_used() -> None:
    assert SDFT().reason(row(), GERMAN) == "language"
    assert SDFT(similarity=None).reason(row(), GERMAN) == "language"
    assert SDFT(similarity=None, check_language=False).reason(row(), GERMAN) is None


@pytest.mark.parametrize("tags", [{}, {"pair": "de-qaa"}])
def test_where_the_target_language_is_unknown_it_is_not_asked(tags: dict[str, str]) -> None:
    of = example(REFERENCE, **tags)
    assert SDFT(similarity=None).reason(of, GERMAN) is None
    assert SDFT().reason(of, GERMAN) == "similarity"
    assert SDFT().reason(of, REWRITE) is None


def test_a_rewrite_that_is_much_longer_or_shorter_than_the_reference_is_not_used() -> None:
    alone = SDFT(similarity=None, check_language=False)
    reference = "abcd efgh. " * 2 + "ijkl mnop"  # 31 characters
    for count, reason in ((15, "length"), (16, None), (62, None), (63, "length")):
        text = "".join(chr(ord("a") + i % 23) for i in range(count))
        assert alone.reason(row(reference), text) == reason
        assert alone.reason(row(f" {reference}\n"), f"\n{text} ") == reason
    assert SDFT(similarity=None, check_language=False, length_ratio=None).reason(row(reference), "ab") is None
    assert SDFT(similarity=None, check_language=False, length_ratio=3).reason(row(reference), "a" * 11) is None


def test_a_rewrite_that_says_something_else_is_not_used() -> None:
    other = "She wants to know whether the train leaves before noon."
    assert SDFT().reason(row(), other) == "similarity"
    assert SDFT(similarity=None).reason(row(), other) is None


def test_the_threshold_is_the_worst_chrf_that_is_used() -> None:
    from sacrebleu import sentence_chrf

    value = sentence_chrf(REWRITE, [REFERENCE]).score
    assert 50 < value < 99
    assert SDFT(threshold=value - 0.01).reason(row(), REWRITE) is None
    assert SDFT(threshold=value + 0.01).reason(row(), REWRITE) == "similarity"


def test_chinese_needs_less_chrf_because_it_has_fewer_characters_to_share() -> None:
    from sacrebleu import sentence_chrf

    reference, text = "老房子坐落在宁静小镇上方的小山上。", "那座旧房子矗立在安静小镇之上的山丘上。"
    assert 10 < sentence_chrf(text, [reference]).score < CHRF
    assert SDFT().reason(row(reference, pair="de-zh"), text) is None
    assert SDFT(threshold=CHRF).reason(row(reference, pair="de-zh"), text) == "similarity"
    assert SDFT().reason(row(reference, pair="de-zh"), "她想知道火车是否在中午之前离开车站。") == "similarity"


def test_similarity_can_be_asked_of_another_metric() -> None:
    from sacrebleu import sentence_bleu

    value = sentence_bleu(REWRITE, [REFERENCE]).score
    assert SDFT(similarity="bleu", threshold=value - 0.01).reason(row(), REWRITE) is None
    assert SDFT(similarity="bleu", threshold=value + 0.01).reason(row(), REWRITE) == "similarity"


def test_a_metric_of_errors_is_used_up_to_the_threshold(monkeypatch: pytest.MonkeyPatch) -> None:
    from radistill.metrics.chrf import ChrF

    monkeypatch.setattr(ChrF, "higher_is_better", False)
    assert SDFT(threshold=1).reason(row(), REWRITE) == "similarity"
    assert SDFT(threshold=99).reason(row(), REWRITE) is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"similarity": "chfr"}, "no metric 'chfr'; known: .*Did you mean 'chrf'"),
        ({"similarity": "bleu"}, "bleu needs a threshold"),
        ({"length_ratio": 0.5}, "greater than or equal to 1"),
        ({"threshold": float("nan")}, "finite"),
    ],
)
def test_settings_that_make_no_guard_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SDFT(**settings)


def test_other_tasks_than_translation_have_the_papers_filter_alone() -> None:
    assert SDFT().reason(other_task("Old."), GERMAN) is None


def test_settings_come_back_from_the_run_file(raw_config: dict[str, Any]) -> None:
    method = SDFT(template="{reference}{instruction}", similarity="bleu", threshold=20, length_ratio=None)
    raw_config["method"] = plugin_settings(method)
    assert config_from(raw_config).method == method
    raw_config["method"] = "seqkd"
    assert config_from(raw_config).method == SeqKD()


@pytest.mark.parametrize(
    "method",
    [{"name": "seqkd"}, {"name": "sdft", "similarity": None, "check_language": False}],
    ids=["seqkd", "sdft"],
)
def test_a_run_learns_what_was_written_and_says_by_origin_what_fell_back(
    raw_config: dict[str, Any], method: dict[str, Any]
) -> None:
    raw_config["method"] = method
    raw_config["generate"]["backend"] = {"name": "echo", "empty_share": 0.3}
    raw_config["generate"]["sampling"]["max_new_tokens"] = 20
    config = config_from(raw_config)
    pipeline.run(config, stages=("generate", "assemble"))
    run = RunFolder(Path(config.output_dir))
    chat = untouched(config).chat
    examples = data.load(config.data, "train", seed=config.seed).examples
    asked = {r.example_id: r.addressed_to("echo:0.3").key for r in plan(Making(config, chat, examples))[0]}
    with open_ledger(Path(config.generate.ledger)) as ledger:
        found = ledger.read(asked.values())
    taught: Counter[str] = Counter()
    tokens: Counter[str] = Counter()
    for of, record in zip(examples, read_records(run.records), strict=True):
        (answer,) = found[asked[of.id]]
        assert isinstance(config.method, SeqKD | SDFT)
        if config.method.reason(of, answer.text) is not None:
            assert record == reference_alone(of, chat)
        else:
            end = (chat.end_id,) if answer.finish_reason == "stop" else ()
            assert record.token_ids == (*chat.prompt(of.messages).ids, *answer.token_ids, *end)
        tokens.update({s.origin: s.stop - s.start for s in record.segments})
        taught[record.segments[1].origin] += 1
    assert min(taught["model"], taught["reference"]) >= 2
    assert sum(taught.values()) == len(examples)
    assert json.loads(run.summary.read_text(encoding="utf-8"))["tokens"] == tokens


def test_two_methods_that_both_say_what_is_learned_do_not_go_together(raw_config: dict[str, Any]) -> None:
    raw_config["method"] = [{"name": "seqkd"}, {"name": "sdft"}]
    with pytest.raises(ConfigError, match="seqkd and sdft both say what is trained on"):
        config_from(raw_config)
