"""Servers: which of them can continue a prefix, how it is seen, and that no fault of theirs loses or doubles a row."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fakes_openai import PLAN, answered, answers_of, requests
from fakes_server import Behaviour, faulty, serving
from radistill import models
from radistill.ask import answers_to, ask
from radistill.backends._http import Server
from radistill.backends.openai import OpenAI, OpenAIGenerator
from radistill.chat import ChatSettings, load_chat
from radistill.config import config_from
from radistill.errors import BackendError, ConfigError
from radistill.ledger import open_ledger
from radistill.records import Generation, Message, Request, Sampling
from radistill.speaker import Speaker


@pytest.fixture(scope="module")
def speaker(tiny_model: Path) -> Speaker:
    return Speaker(weights=models.resolve(str(tiny_model)), chat=load_chat(tiny_model, ChatSettings()))


@pytest.mark.parametrize("sampling", [PLAN, Sampling(temperature=0.0, max_new_tokens=2, n=2)], ids=["drawn", "greedy"])
def test_all_three_forms_give_the_same_rows(speaker: Speaker, sampling: Sampling) -> None:
    plan = requests(speaker, 20, sampling)
    by_form = {}
    for form in ("ids", "text", "chat"):
        with serving(speaker.chat) as server:
            by_form[form] = answered(server, speaker, plan, form=form)
    assert by_form["ids"] == by_form["text"] == by_form["chat"]
    found = by_form["ids"]
    assert [(g.key, g.index) for g in found] == [(r.key, i) for r in plan for i in range(sampling.n)]
    assert {g.finish_reason for g in found} == {"stop", "length"}
    assert all(g.text == speaker.chat.spell(plan[0].prompt_ids, g.token_ids) for g in found)
    assert not any(speaker.chat.end_id in g.token_ids for g in found)


@pytest.mark.parametrize(
    ("behaviour", "form"),
    [
        (Behaviour(), "ids"),
        (Behaviour(can=("text", "chat")), "text"),
        (Behaviour(can=("chat",)), "chat"),
        (Behaviour(can=("ids", "text"), ends_turns=False), "ids"),
        (Behaviour(can=("ids",), without_usage=True), "ids"),
        (Behaviour(can=("text",), strict=("generation_config",), lists=False), "text"),
        (Behaviour(can=("text",), strict=()), "text"),
        (Behaviour(can=("chat",), strict=("continue_final_message", "add_generation_prompt")), "chat"),
    ],
)
def test_the_best_form_that_a_server_can_do_is_taken(speaker: Speaker, behaviour: Behaviour, form: str) -> None:
    settings: dict[str, Any] = {} if behaviour.lists else {"served_model": "served"}
    with (
        serving(speaker.chat, behaviour) as server,
        OpenAI(base_url=(server.url,), **settings).open(speaker) as generator,
    ):
        assert isinstance(generator, OpenAIGenerator)
        assert generator.form.name == form
        assert generator.capabilities[form] == "yes"
        assert set(generator.capabilities.values()) - {"yes"} or form == "ids"
        assert speaker.weights.identity in generator.identity
        assert f"|openai|{'fake' if behaviour.lists else ''}|served|{form}|" in generator.identity
        assert len(answers_of(generator, requests(speaker, 3))) == 3


def test_a_server_that_draws_nothing_is_asked_for_no_draws(speaker: Speaker) -> None:
    greedy = Sampling(temperature=0.0, max_new_tokens=12)
    with serving(speaker.chat, Behaviour(greedy=True)) as server:
        assert len(answered(server, speaker, requests(speaker, 3, greedy))) == 3
        with pytest.raises(BackendError, match=r"draws nothing.*temperature 1\.0.*sampling\.temperature=0"):
            answered(server, speaker, requests(speaker, 3))


def test_a_server_is_told_what_it_must_know_in_words_it_knows(speaker: Speaker) -> None:
    plan = requests(speaker, 4)
    by_words = {}
    for strict in (None, ("generation_config",), ()):
        with serving(speaker.chat, Behaviour(can=("text",), strict=strict)) as server:
            by_words[strict] = answered(server, speaker, plan)
            body = server.bodies[-1]
        if strict is None:
            assert body["stop_token_ids"] == list(speaker.chat.stop_ids)
        elif strict:
            told = json.loads(body["generation_config"])
            assert told["do_sample"] is True
            assert (told["top_k"], told["eos_token_id"]) == (0, list(speaker.chat.stop_ids))
        else:
            assert body["stop"] == [speaker.chat.spell((), [stop]) for stop in speaker.chat.stop_ids]
    assert by_words[None] == by_words["generation_config",] == by_words[()]


@pytest.mark.parametrize(
    ("behaviour", "said"),
    [
        (
            Behaviour(can=()),
            r"ids: the server says 422: prompt: not a string\n  text: .* texts are not taken\n  chat: ",
        ),
        (Behaviour(swallows=2), r"ids: it swallows a part of a prompt.*\n  text: it swallows a part of a prompt"),
        (Behaviour(can=("chat",), opens_a_new_turn=True), r"chat: it adds to a prompt, as a new turn does"),
        (Behaviour(can=("text",), without_usage=True), r"text: its answers have no usage\.prompt_tokens"),
    ],
)
def test_a_server_that_cannot_continue_is_refused_before_the_first_row(
    speaker: Speaker, behaviour: Behaviour, said: str
) -> None:
    with serving(speaker.chat, behaviour) as server:
        with pytest.raises(BackendError, match=said), OpenAI(base_url=(server.url,)).open(speaker):
            pass
        assert server.requests <= 2 * (1 + 3 + 3)


def test_whatever_a_server_does_wrong_every_row_is_there_once_and_the_same(speaker: Speaker, tmp_path: Path) -> None:
    with serving(speaker.chat) as well, OpenAI(base_url=(well.url,)).open(speaker) as generator:
        plan = requests(speaker, 150, model=generator.identity)
    with serving(speaker.chat) as well:
        quiet = [(g.token_ids, g.text, g.finish_reason) for g in answered(well, speaker, plan)]
    with serving(speaker.chat, Behaviour(fault=faulty(0.3))) as server:
        backend = OpenAI(base_url=(server.url,), timeout=0.5, tries=30)
        with backend.open(speaker) as generator, open_ledger(tmp_path) as ledger:
            plan = requests(speaker, 150, model=generator.identity)
            done = ask(plan, generator, ledger, title="")
            stored = answers_to(plan, ledger)
        assert (done.written, done.failed) == (150, 0)
        assert server.requests > 180
    rows = [row for r in plan for row in stored[r.key]]
    assert [(g.token_ids, g.text, g.finish_reason) for g in rows] == quiet


def test_a_request_that_always_comes_back_unusable_is_a_failed_row(speaker: Speaker) -> None:
    def broken(body_number: int) -> str | None:
        return "malformed" if body_number > 6 else None

    with serving(speaker.chat, Behaviour(fault=broken)) as server:
        found = answered(server, speaker, requests(speaker, 3), tries=2)
    assert [g.finish_reason for g in found] == ["error"] * 3
    assert all("no JSON" in str(g.error) and "(2 times)" in str(g.error) for g in found)


def test_a_server_that_is_killed_and_started_again_is_waited_for(speaker: Speaker) -> None:
    found: list[Generation] = []
    with ExitStack() as first:
        server = first.enter_context(serving(speaker.chat, Behaviour(delay=0.02)))
        with OpenAI(base_url=(server.url,), concurrency=4, timeout=5).open(speaker) as generator:
            plan = requests(speaker, 120)
            every = generator.answers(plan, {r.key for r in plan})
            thread = threading.Thread(target=lambda: found.extend(g for together in every for g in together))
            thread.start()
            while server.requests < 30:
                time.sleep(0.01)
            server.dead = True
            first.close()
            time.sleep(0.5)
            assert thread.is_alive()
            with serving(speaker.chat, port=server.port) as second:
                thread.join(60)
                assert second.requests > 80
    assert sorted(g.key for g in found) == sorted(r.key for r in plan)
    assert not [g for g in found if g.finish_reason == "error"]


def test_an_engine_that_is_gone_for_too_long_is_lost_and_what_was_written_is_kept(
    speaker: Speaker, tmp_path: Path
) -> None:
    with serving(speaker.chat, Behaviour(fault=lambda n: "503" if n > 60 else None)) as server:
        backend = OpenAI(base_url=(server.url,), patience=1.0, concurrency=8)
        with backend.open(speaker) as generator, open_ledger(tmp_path) as ledger:
            plan = requests(speaker, 100, model=generator.identity)
            with pytest.raises(BackendError, match=r"no server has given a usable answer for \d+ seconds; last: .*503"):
                ask(plan, generator, ledger, title="")
            kept = 100 - len(ledger.missing(r.key for r in plan))
            assert 40 < kept < 60
            server.behaviour.fault = lambda _: None
            done = ask(plan, generator, ledger, title="")
            assert (done.from_ledger, done.written) == (kept, 100 - kept)


def test_a_key_comes_from_the_environment_and_a_wrong_one_is_a_message(
    speaker: Speaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", "s3cret")
    with serving(speaker.chat, Behaviour(key="s3cret")) as server:
        found = answered(server, speaker, requests(speaker, 2), api_key_env="MY_KEY")
        assert len(found) == 2
        assert set(server.keys) == {"Bearer s3cret"}
        monkeypatch.setenv("MY_KEY", "wrong")
        with pytest.raises(BackendError, match=r"refuses the key \(401\): who are you\?"):
            answered(server, speaker, requests(speaker, 2), api_key_env="MY_KEY")


def test_log_probabilities_are_those_of_the_ids_that_were_sent(speaker: Speaker) -> None:
    ids = requests(speaker, 1)[0].prompt_ids
    request = Request(purpose="score", prompt_ids=ids, sampling=PLAN, top_k=3)
    with serving(speaker.chat) as server:
        (found,) = answered(server, speaker, [request])
    assert found.logprobs is not None
    assert found.logprobs.given_T.tolist() == [0.0, *[-3.0] * (len(ids) - 1)]
    assert found.logprobs.top_values_TK[1:].tolist() == [[-1.0, -2.0, -3.0]] * (len(ids) - 1)
    assert found.logprobs.top_ids_TK[0].tolist() == [-1, -1, -1]
    size = len(speaker.chat.tokenizer)
    assert found.logprobs.top_ids_TK[1].tolist() == [(ids[1] + n) % size for n in (1, 2, 3)]


def test_several_servers_share_the_work_and_must_be_equal(speaker: Speaker) -> None:
    with serving(speaker.chat) as one, serving(speaker.chat) as two:
        backend = OpenAI(base_url=(one.url, two.url), concurrency=4)
        with backend.open(speaker) as generator:
            plan = requests(speaker, 60)
            found = [g for together in generator.answers(plan, {r.key for r in plan}) for g in together]
        assert sorted(g.key for g in found) == sorted(r.key for r in plan)
        assert min(one.requests, two.requests) > 10
        assert max(one.most_at_once, two.most_at_once) <= 4
    with serving(speaker.chat) as one, serving(speaker.chat, Behaviour(can=("text",))) as two:
        backend = OpenAI(base_url=(one.url, two.url))
        with pytest.raises(BackendError, match="the servers differ"), backend.open(speaker):
            pass


def test_nobody_there_and_another_model_are_messages(speaker: Speaker) -> None:
    with (
        pytest.raises(BackendError, match=r"Start the server"),
        OpenAI(base_url=("http://127.0.0.1:9/v1",)).open(speaker),
    ):
        pass
    with serving(speaker.chat, Behaviour(models=("a", "b"))) as server:
        with pytest.raises(BackendError, match=r"serves a, b, not .*served_model"):
            answered(server, speaker, requests(speaker, 1))
        assert len(answered(server, speaker, requests(speaker, 1), served_model="b")) == 1
        assert server.bodies[-1]["model"] == "b"


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x/v1", "http://user:pass@host/v1", ""])
def test_what_is_no_address_is_refused(raw_config: dict[str, Any], url: str) -> None:
    raw_config["generate"]["backend"] = {"name": "openai", "base_url": url}
    with pytest.raises(ConfigError, match=r"generate\.backend"):
        config_from(raw_config)


def test_a_server_gets_twice_as_much_until_it_is_too_much_and_then_one_more(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("radistill.backends._http.time.monotonic", lambda: now)
    server = Server("u", most=100)
    for _ in range(16):
        server.went_well()
    assert server.limit == 32
    for _ in range(3):
        server.was_too_much(rest=2)
    assert server.limit == 16, "those that were on their way together count once"
    assert server.room(now) == 0
    now = 103.0
    assert server.room(now) == 16
    for _ in range(16):
        server.went_well()
    assert 16.9 < server.limit < 17.1
    for _ in range(20):
        now += 2
        server.was_too_much()
    assert server.limit == 1
    for _ in range(10_000):
        server.went_well()
    assert server.limit == 100


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert not [t for t in threading.enumerate() if t.name == "radistill-openai"]


def test_a_row_that_the_server_has_not_read_whole_is_a_failed_row(speaker: Speaker) -> None:
    with serving(speaker.chat) as server, OpenAI(base_url=(server.url,)).open(speaker) as generator:
        plan = requests(speaker, 3)
        server.behaviour.swallows = 1
        found = [g for together in generator.answers(plan, {r.key for r in plan}) for g in together]
    assert [g.finish_reason for g in found] == ["error"] * 3
    assert all("swallows a part" in str(g.error) for g in found)


def test_a_chat_server_is_never_sent_a_conversation_without_the_beginning_of_its_answer(speaker: Speaker) -> None:
    whole = requests(speaker, 1)[0]
    other = replace(whole, messages=(Message("user", "Something else."),))
    plan = [replace(whole, spans=()), other, replace(whole, messages=(), prompt_ids=whole.prompt_ids[:-1])]
    with serving(speaker.chat, Behaviour(can=("chat",))) as server:
        found = answered(server, speaker, plan)
        assert server.bodies[-1]["messages"][-1] == {"role": "assistant", "content": "Good day 0.\n\n"}
    assert sorted(str(g.error) for g in found) == [
        "None",
        "a request that is no conversation cannot be sent to a chat server",
        "its ids are not those of its conversation",
    ]


def test_a_server_that_cannot_take_seeds_gets_none(speaker: Speaker) -> None:
    with serving(speaker.chat) as server:
        answered(server, speaker, requests(speaker, 2))
        assert len({body["seed"] for body in server.bodies[-2:]}) == 2
    with serving(speaker.chat) as server:
        answered(server, speaker, requests(speaker, 2, Sampling(temperature=0.0)), seeded=False)
        assert not [body for body in server.bodies[-2:] if "seed" in body]


def test_near_the_end_of_the_context_a_row_writes_as_much_as_fits(speaker: Speaker) -> None:
    context = models.context_length(speaker.weights.folder)
    assert context is not None
    ids = (requests(speaker, 1)[0].prompt_ids * context)[: context + 1]
    plan = [
        Request(purpose="rationale", prompt_ids=ids[:n], sampling=PLAN) for n in (context - 3, context, context + 1)
    ]
    with serving(speaker.chat) as server:
        found = answered(server, speaker, plan, form="ids")
        assert server.bodies[-1]["max_tokens"] == 3
    assert [g.error for g in found] == [
        None,
        *(f"{n} prompt tokens leave no room in a context of {context}" for n in (context, context + 1)),
    ]
