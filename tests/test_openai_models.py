"""Which model a server is asked for, with what words, and what is learned about it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fakes_openai import answered, answers_of, requests
from fakes_server import Behaviour, serving
from radistill import models
from radistill.backends.openai import OpenAI, OpenAIGenerator
from radistill.chat import ChatSettings, load_chat
from radistill.config import config_from
from radistill.errors import BackendError, ConfigError
from radistill.speaker import Speaker


@pytest.fixture(scope="module")
def speaker(tiny_model: Path) -> Speaker:
    return Speaker(weights=models.resolve(str(tiny_model)), chat=load_chat(tiny_model, ChatSettings()))


def test_a_model_of_another_name_is_not_asked_for_what_was_trained_or_for_a_teacher(speaker: Speaker) -> None:
    tuned = replace(speaker, is_untouched=False)
    plan = requests(speaker, 2)
    with serving(speaker.chat) as server:
        named: dict[str, Any]
        for named in ({}, {"served_model": "served"}):
            assert len(answered(server, speaker, plan, **named)) == 2
            with pytest.raises(BackendError, match=r"serves served, not .* must not answer in its place.*serve_with"):
                answered(server, tuned, plan, **named)
    with serving(speaker.chat, Behaviour(models=("served", tuned.weights.name))) as server:
        assert len(answered(server, tuned, plan)) == 2
        assert server.bodies[-1]["model"] == tuned.weights.name


def test_what_a_models_own_file_says_about_generation_is_not_asked_for(speaker: Speaker) -> None:
    plain = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
    with serving(speaker.chat) as server:
        answered(server, speaker, requests(speaker, 1))
        assert plain.items() <= server.bodies[-1].items()
    with serving(speaker.chat, Behaviour(limit=3)) as server:
        found = answered(server, speaker, requests(speaker, 20))
    cut = [g for g in found if g.finish_reason == "error"]
    assert cut
    assert all("after 3 of 12 tokens" in str(g.error) and "generation_config.json" in str(g.error) for g in cut)
    assert all(g.n_tokens <= 3 for g in found)


def test_a_context_that_the_server_has_no_room_for_shortens_answers(speaker: Speaker) -> None:
    plan = requests(speaker, 10)
    room = 4
    context = max(len(r.prompt_ids) for r in plan) + room
    with serving(speaker.chat, Behaviour(context=context)) as server:
        found = answered(server, speaker, plan)
        assert {body["max_tokens"] for body in server.bodies[-len(plan) :]} <= {*range(room, 12)}
    assert not [g for g in found if g.error]


def test_a_lost_key_is_a_message_before_anything_else(speaker: Speaker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with serving(speaker.chat, Behaviour(key="s3cret", guards_its_list=True)) as server:
        with pytest.raises(BackendError, match=r"refuses the key \(401\)"):
            answered(server, speaker, requests(speaker, 1))
        assert server.requests == 0


@pytest.mark.parametrize("word", ["--port", "--api-key=abc", "--served-model-name"])
def test_what_radistill_tells_a_server_itself_cannot_be_given(raw_config: dict[str, Any], word: str) -> None:
    raw_config["generate"]["backend"] = {"name": "openai", "serve_with": "vllm", "serve_args": [word, "1"]}
    with pytest.raises(ConfigError, match=r"serve_args.*is said by radistill itself"):
        config_from(raw_config)


def test_what_is_learned_about_a_server_is_kept_between_two_plans(speaker: Speaker) -> None:
    plan = requests(speaker, 60)
    with serving(speaker.chat) as server, OpenAI(base_url=(server.url,)).open(speaker) as generator:
        assert isinstance(generator, OpenAIGenerator)
        answers_of(generator, plan[:40])
        learned = generator.client.servers[0].limit
        assert learned > 16
        answers_of(generator, plan[40:])
        assert generator.client.servers[0].limit >= learned
