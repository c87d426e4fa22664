"""Which model a server is asked for, with what words, and what is learned about it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fakes_openai import answered, answers_of, requests
from fakes_server import Behaviour, serving
from radistill import models, pipeline
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


def test_a_key_that_the_server_repeats_is_not_shown(speaker: Speaker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "wr0ng-k3y")
    with serving(speaker.chat, Behaviour(key="s3cret")) as server:
        with pytest.raises(BackendError, match=r"who are you\? Bearer \(the key\) is nobody") as refused:
            answered(server, speaker, requests(speaker, 1))
        assert "wr0ng-k3y" not in str(refused.value)


@pytest.mark.parametrize(
    ("behaviour", "shown"),
    [
        (Behaviour(context=300), "serves served: context 256, ids: yes, stop tokens: yes, log-probabilities: yes"),
        (
            Behaviour(most_scores=0),
            "stop tokens: yes, log-probabilities: the server says 400: no more than 0 prompt_logprobs",
        ),
        (Behaviour(can=("chat",)), "chat: yes, stop tokens: yes, log-probabilities: a server that takes no ids"),
        (Behaviour(greedy=True), "ids: yes, but it draws nothing at a temperature"),
    ],
)
def test_what_a_server_can_do_is_shown(
    speaker: Speaker, behaviour: Behaviour, shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(speaker.chat, behaviour) as server, OpenAI(base_url=(server.url,)).open(speaker):
        said = capsys.readouterr().err
    assert said.startswith(server.url)
    assert shown in said


@pytest.mark.parametrize("soft", [True, False])
def test_log_probabilities_that_a_server_does_not_tell_are_missed_before_the_first_row(
    raw_config: dict[str, Any], speaker: Speaker, soft: bool
) -> None:
    raw_config["train"] |= {"labels": "stored", "label_top_k": 32} if soft else {}
    with serving(speaker.chat, Behaviour(most_scores=20)) as server:
        raw_config["generate"]["backend"] = {"name": "openai", "base_url": server.url}
        config = config_from(raw_config)
        if soft:
            with pytest.raises(BackendError, match=r"log-probabilities.*no more than 20.*--max-logprobs 32 or more"):
                pipeline.run(config, stages=("generate",))
            assert server.requests < 12  # a few looks at it, and no row
            raw_config["train"] |= {"label_top_k": 20}
        pipeline.run(config_from(raw_config), stages=("generate",))


def test_a_server_for_the_untouched_model_is_refused_before_hours_of_training(raw_config: dict[str, Any]) -> None:
    raw_config["generate"]["backend"] = {"name": "openai", "base_url": "http://localhost:1/v1"}
    with pytest.raises(ConfigError, match=r"the server serves the untouched model.*serve_with=vllm.*one by one"):
        pipeline.run(config_from(raw_config))
    nested = {"name": "ray", "backend": raw_config["generate"]["backend"]}
    for backend, is_refused in (
        (nested, True),
        ({"name": "openai", "serve_with": "vllm"}, False),
        ({"name": "echo"}, False),
    ):
        raw_config["generate"]["backend"] = backend
        assert (config_from(raw_config).generate.backend.only_untouched() is not None) == is_refused


def test_arguments_about_room_change_no_key_and_no_run(raw_config: dict[str, Any]) -> None:
    def told(*words: str, engine: str = "vllm") -> Any:
        raw_config["generate"]["backend"] = {"name": "openai", "serve_with": engine, "serve_args": list(words)}
        return config_from(raw_config).generate.backend.telling["serve_args"]

    room = ("--max-num-seqs", "8", "--gpu-memory-utilization=0.5")
    assert told(*room) == []
    assert told("--dtype", "float32", *room, "--enforce-eager") == ["--dtype", "float32", "--enforce-eager"]
    assert told(*room, engine="transformers") == list(room)  # another program, whose words may mean anything


@pytest.mark.parametrize(
    "word", ["--port", "--api-key=abc", "--served-model-name", "--api_key", "--api-k=abc", "--served_model_name"]
)
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
