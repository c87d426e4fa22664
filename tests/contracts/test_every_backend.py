"""What every backend must do, whoever wrote it."""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from fakes_server import serving
from radistill import models, plugins
from radistill.backends.base import Backend, Generator, InUnits
from radistill.backends.openai import OpenAI
from radistill.chat import ChatSettings, load_chat
from radistill.records import Generation, Message, Request, Sampling
from radistill.speaker import Speaker

SETTINGS: dict[str, dict[str, object]] = {
    "echo": {"batch_size": 5},
    "openai": {"concurrency": 4},
    "ray": {"backend": {"name": "echo", "batch_size": 5}, "rows_per_task": 5, "num_cpus": 0.5},
    "transformers": {"batch_size": 5, "dtype": "float32"},
    "vllm": {"dtype": "float32", "engine_args": {"enforce_eager": True}},
}
"""How a backend is opened here."""
SENTENCES = ["The old dog sees the tree.", "Hello", "Die schöne Katze hört den König. 🙂", "a " * 30, "日本語"]
DRAWN = Sampling(temperature=1.0, top_p=0.9, max_new_tokens=7, n=3, seed=1)
PLANS = {
    "sampled": DRAWN,
    "greedy": Sampling(temperature=0.0, max_new_tokens=9, n=2),
    "one token": Sampling(temperature=0.7, max_new_tokens=1),
}


def backend(name: str) -> Backend:
    made = plugins.load("backends", name)(**SETTINGS[name])
    assert isinstance(made, Backend)
    return made


@pytest.fixture
def speaker(name: str, tiny_model: Path) -> Speaker:
    # vLLM's attention on CPUs knows no heads as small as those of the tiny model.
    weights = models.resolve("pocket" if name == "vllm" else str(tiny_model))
    return Speaker(weights=weights, chat=load_chat(weights.tokenizer_folder, ChatSettings()))


SLOW = {"ray": pytest.mark.slow}
"""It starts processes for every plan."""


@pytest.fixture(params=[pytest.param(name, marks=SLOW.get(name, ())) for name in plugins.available("backends")])
def name(request: pytest.FixtureRequest) -> str:
    if request.param not in SETTINGS:
        pytest.fail(f"no test says how the backend {request.param} is opened: add it to SETTINGS")
    if request.param == "ray":
        pytest.importorskip("ray", reason="the backend ray needs radistill[ray]")
        request.getfixturevalue("ray_cluster")
    return str(request.param)


def requests(speaker: Speaker, *samplings: Sampling) -> list[Request]:
    prompts = [speaker.chat.prompt([Message("user", text)]).ids for text in SENTENCES]
    prompts += [speaker.chat.opening([Message("user", text)], "Good day.", "\n\n").ids for text in SENTENCES]
    return [Request(purpose="rationale", prompt_ids=ids, sampling=s) for s in samplings for ids in prompts]


@contextmanager
def opened(name: str, speaker: Speaker) -> Iterator[Generator]:
    with ExitStack() as server:
        settings = backend(name)
        if missing := settings.missing():
            pytest.skip(missing)
        if isinstance(settings, OpenAI):
            url = server.enter_context(serving(speaker.chat)).url
            settings = settings.model_copy(update={"base_url": (url,)})
        with settings.open(speaker) as generator:
            yield generator


def answers(generator: Generator, plan: Sequence[Request]) -> dict[tuple[str, int], Generation]:
    """Every answer of a plan."""
    found = [g for together in generator.answers(plan, {r.key for r in plan}) for g in together]
    assert len(found) == sum(r.sampling.n for r in plan)
    return {(g.key, g.index): g for g in found}


def test_a_backend_needs_no_settings_and_describes_those_it_has(name: str) -> None:
    cls = plugins.load("backends", name)
    assert cls.__doc__
    assert all(field.description for field in cls.model_fields.values())
    assert cls.model_validate(cls().model_dump()) == cls()


def test_every_request_has_its_generations_and_only_what_is_lacking_is_asked(name: str, speaker: Speaker) -> None:
    plan = requests(speaker, DRAWN)[:8]
    with opened(name, speaker) as generator:
        for lacking in (plan, plan[2:3], [plan[1], plan[4], plan[0]], []):
            found = list(generator.answers(plan, {r.key for r in lacking}))
            assert all(found), "nothing is committed for nothing"
            indices: dict[str, list[int]] = {}
            for generation in (g for together in found for g in together):
                indices.setdefault(generation.key, []).append(generation.index)
            assert indices == {r.key: [0, 1, 2] for r in lacking}
        assert list(generator.answers([], set())) == []


@pytest.mark.parametrize("sampling", PLANS.values(), ids=PLANS.keys())
def test_an_answer_is_what_was_written_and_nothing_around_it(name: str, speaker: Speaker, sampling: Sampling) -> None:
    plan = requests(speaker, sampling)
    stops = set(speaker.chat.stop_ids)
    with opened(name, speaker) as generator:
        found = answers(generator, plan)
    for request in plan:
        for index in range(sampling.n):
            answer = found[request.key, index]
            assert answer.error is None
            assert not stops & set(answer.token_ids), "the end-of-turn is no part of an answer"
            assert answer.token_ids[: len(request.prompt_ids)] != request.prompt_ids, "the prefix is repeated"
            assert answer.text == speaker.chat.spell(request.prompt_ids, answer.token_ids)
            if answer.finish_reason == "length":
                assert answer.n_tokens == sampling.max_new_tokens
            else:
                assert answer.finish_reason == "stop"
                assert answer.n_tokens < sampling.max_new_tokens


def test_the_same_question_has_the_same_answer(name: str, speaker: Speaker) -> None:
    plan = requests(speaker, DRAWN, PLANS["greedy"])
    with opened(name, speaker) as generator:
        first, identity = answers(generator, plan), generator.identity
        assert answers(generator, plan) == first
    with opened(name, speaker) as generator:
        assert generator.identity == identity
        assert answers(generator, plan) == first


def test_an_answer_depends_on_its_own_request_alone(name: str, speaker: Speaker) -> None:
    plan = requests(speaker, DRAWN, PLANS["greedy"], PLANS["one token"])
    with opened(name, speaker) as generator:
        together = answers(generator, plan)
        assert answers(generator, plan[::-1]) == together
        for request in plan[::4]:
            alone = answers(generator, [request])
            assert alone == {key: together[key] for key in alone}


def test_other_seeds_and_other_indices_give_other_answers(name: str, speaker: Speaker) -> None:
    plan = requests(speaker, DRAWN, DRAWN.model_copy(update={"seed": 2}))
    with opened(name, speaker) as generator:
        written = [g.token_ids for g in answers(generator, plan).values() if g.n_tokens > 3]
    assert len(written) > 20
    assert len(set(written)) > 0.8 * len(written)


def test_the_cut_into_units_depends_on_the_plan_alone(name: str, speaker: Speaker) -> None:
    plan = requests(speaker, DRAWN, PLANS["greedy"])
    with opened(name, speaker) as generator:
        if not isinstance(generator, InUnits):
            pytest.skip("it works off no batches")
        units = [[r.key for r in unit] for unit in generator.units(plan)]
        for unit in list(generator.units(plan))[:2]:
            generator.answer(unit)
        assert [[r.key for r in unit] for unit in generator.units(plan)] == units
        assert list(generator.units([])) == []
    with opened(name, speaker) as generator:
        assert isinstance(generator, InUnits)
        assert [[r.key for r in unit] for unit in generator.units(plan)] == units
    assert sorted(key for unit in units for key in unit) == sorted(r.key for r in plan), "each request once"
    assert all(units)
    assert len(units) > 1


def test_no_backend_loads_an_engine_when_it_is_imported() -> None:
    names = [f"radistill.backends.{name}" for name in plugins.available("backends")]
    engines = {"torch", "transformers", "vllm", "ray", "httpx2"}
    code = f"import sys, {', '.join(names)}; print(*{engines} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
