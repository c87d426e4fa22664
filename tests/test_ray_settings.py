"""A backend that holds another: how it is written in a run file, what is wrong with it, and how a plan is cut."""

import json
import pickle
import re
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from radistill import models
from radistill.backends._hired import Group, Hired, Job, Reply, packed, refuse_differences, unpacked
from radistill.backends.echo import Echo
from radistill.backends.openai import OpenAI
from radistill.backends.ray import Ray, RayGenerator
from radistill.backends.transformers import Transformers
from radistill.chat import ChatSettings, load_chat
from radistill.config import RunConfig, as_dict, as_yaml, config_from, load_config
from radistill.errors import BackendError, ConfigError, MissingPackageError, ModelError
from radistill.records import Generation, Message, Request, Sampling
from radistill.schema import schema_of
from radistill.speaker import Speaker

SMALL = "model: m\ndata: {train: {path: d}}\n"


def load(tmp_path: Path, text: str, *overrides: str) -> RunConfig:
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return load_config(path, overrides)


def backend(tmp_path: Path, written: str, *overrides: str) -> object:
    return load(tmp_path, f"{SMALL}generate: {{backend: {written}}}\n", *overrides).generate.backend


def told(tmp_path: Path, written: str, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as error:
        backend(tmp_path, written, *overrides)
    return [line.strip() for line in str(error.value).splitlines()[1:]]


@pytest.fixture
def speaker(tiny_model: Path) -> Speaker:
    return Speaker(weights=models.resolve(str(tiny_model)), chat=load_chat(tiny_model, ChatSettings()))


def test_what_the_actors_hold_is_written_as_where_there_is_no_ray(tmp_path: Path) -> None:
    assert backend(tmp_path, "ray") == Ray(backend=Transformers())
    assert backend(tmp_path, "{name: ray, backend: echo}") == Ray(backend=Echo())
    assert backend(tmp_path, "{name: ray, backend: {name: openai, concurrency: 3}}") == Ray(
        backend=OpenAI(concurrency=3)
    )
    assert backend(tmp_path, "{name: ray, actors: 4, backend: }") == Ray(actors=4)


def test_overrides_reach_what_the_actors_hold(tmp_path: Path) -> None:
    inner = "generate.backend.backend"
    assert backend(tmp_path, "ray", f"{inner}.batch_size=8") == Ray(backend=Transformers(batch_size=8))
    assert backend(tmp_path, "echo", "generate.backend=ray", f"{inner}=echo", f"{inner}.batch_size=8") == Ray(
        backend=Echo(batch_size=8)
    )
    assert backend(tmp_path, "{name: ray, backend: {name: echo, batch_size: 2}}", f"{inner}=echo") == Ray(
        backend=Echo()
    )


def test_a_run_file_with_a_nested_backend_comes_back_from_its_own_yaml(tmp_path: Path) -> None:
    config = load(tmp_path, SMALL + "generate: {backend: {name: ray, backend: {name: echo, batch_size: 7}}}\n")
    written = as_dict(config)["generate"]["backend"]
    assert (written["name"], written["backend"]["name"], written["backend"]["batch_size"]) == ("ray", "echo", 7)
    assert load(tmp_path, as_yaml(config)) == config == config_from(as_dict(config))
    jsonschema.validate(yaml.safe_load(as_yaml(config)), schema_of("config"))


def test_settings_come_back_from_their_dump_with_what_they_hold() -> None:
    for settings in (Ray(), Ray(backend=Echo(batch_size=3), actors=2)):
        assert Ray.model_validate(settings.model_dump()) == settings
        assert Ray.model_validate_json(settings.model_dump_json()) == settings
    made: Any = Ray
    assert made(backend="echo") == made(backend={"name": "echo"}) == Ray(backend=Echo())


def test_all_mistakes_are_told_at_once_where_they_stand(tmp_path: Path) -> None:
    problems = told(tmp_path, "{name: ray, actors: 0, patiance: 1, backend: {name: echo, batch_size: 0, bach: 1}}")
    assert [problem.partition("` ")[0].partition("`")[2] for problem in problems] == [
        "generate.backend.backend.batch_size",
        "generate.backend.backend.bach",
        "generate.backend.actors",
        "generate.backend.patiance",
    ]


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("{name: ray, backend: eco}", "`generate.backend.backend.name` unknown backend 'eco'; known: "),
        ("{name: ray, backend: 3}", "`generate.backend.backend` needs a name, or `name:` with settings, not 3; known"),
        ("{name: ray, backend: {batch_size: 3}}", "`generate.backend.backend` needs a name, or `name:` with settings"),
        ("{name: ray, backend: ray}", "`generate.backend.backend` is ray itself: name what its actors hold"),
        (
            "{name: ray, backend: {name: echo, batch_size: true}}",
            "`generate.backend.backend.batch_size` must be a numb",
        ),
        ("{name: echo, backend: echo}", "`generate.backend.backend` is no key of this section"),
    ],
)
def test_a_mistake_in_what_the_actors_hold_is_one_problem(tmp_path: Path, written: str, message: str) -> None:
    (problem,) = told(tmp_path, written)
    assert problem.startswith(f"run.yaml:3: {message}")


def test_the_page_shows_a_run_file_that_works(tmp_path: Path) -> None:
    page = Path(__file__).resolve().parents[1] / "docs" / "how-to" / "generate.md"
    shown = re.findall(r"^```yaml\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    held = [load(tmp_path, SMALL + text).generate.backend for text in shown]
    assert Ray(backend=Transformers(batch_size=64), address="head-node:6379", actors=8, num_gpus=1) in held


def test_without_ray_the_message_says_what_to_install(speaker: Speaker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'radistill\[ray\]'"), Ray(backend=Echo()).open(speaker):
        pass


def requests(n: int) -> list[Request]:
    """Of three lengths and two kinds."""
    hot, cold = Sampling(temperature=1.0), Sampling(temperature=0.0)
    return [
        Request(purpose="rationale", prompt_ids=(*range(5 + i % 3), i), sampling=(hot, cold)[i % 2]) for i in range(n)
    ]


def generator(job: Job, rows: int) -> RayGenerator:
    return RayGenerator(Ray(backend=Echo(), rows_per_task=rows), job, {"identity": "x"}, tally=None)


def test_groups_depend_on_the_plan_alone_and_hold_each_request_once(speaker: Speaker) -> None:
    job, plan = Job.of(Echo(), speaker), requests(50)
    keys = {r.key for r in plan}
    whole = list(generator(job, 8).groups(plan, keys))
    assert [len(group.requests) for group in whole] == [8] * 6 + [2]
    assert sorted(r.key for group in whole for r in group.requests) == sorted(keys)
    assert all(len({r.sampling for r in group.requests}) == 1 for group in whole[:3]), "kinds are kept together"
    assert [g.requests for g in generator(job, 8).groups(plan[::-1], keys)] == [g.requests for g in whole]
    some = {whole[1].requests[2].key, whole[6].requests[0].key}
    left = list(generator(job, 8).groups(plan, some))
    assert [group.requests for group in left] == [whole[1].requests, whole[6].requests]
    assert {key for group in left for key in group.lacking} == some
    assert list(generator(job, 8).groups(plan, set())) == []


def test_no_two_groups_of_a_generator_have_one_number(speaker: Speaker) -> None:
    asked, plan = generator(Job.of(Echo(), speaker), 8), requests(20)
    numbers = [group.number for _ in range(3) for group in asked.groups(plan, {r.key for r in plan})]
    assert len(set(numbers)) == len(numbers) == 9


def test_a_message_comes_back_whole() -> None:
    group = Group(3, tuple(requests(4)), frozenset({"a"}))
    assert unpacked(packed(group)) == group
    answer = Generation(key="k", index=0, token_ids=(1, 2), text="ä", finish_reason="stop")
    assert unpacked(packed(Reply(3, [answer]))) == Reply(3, [answer])


def test_a_key_is_not_sent_along_and_paths_are_those_of_every_node(
    speaker: Speaker, monkeypatch: pytest.MonkeyPatch, tiny_model: Path
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-never-send-this")
    monkeypatch.chdir(tiny_model.parent)
    near = Speaker(weights=models.resolve(tiny_model.name), chat=speaker.chat)
    job = Job.of(OpenAI(), near)
    sent = pickle.dumps(job)
    assert b"sk-never-send-this" not in sent
    monkeypatch.chdir("/")
    found: Job = pickle.loads(sent)
    assert found.speaker().weights.folder == tiny_model
    assert found.speaker().weights.identity == speaker.weights.identity
    assert found.speaker().chat.identity == speaker.chat.identity


def test_an_adapter_is_found_again_with_a_base_that_it_names_by_a_path_of_the_run(
    adapter: Path, folder: Path, speaker: Speaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = adapter / "adapter_config.json"
    named = json.loads(written.read_text(encoding="utf-8"))
    written.write_text(json.dumps({**named, "base_model_name_or_path": folder.name}), encoding="utf-8")
    monkeypatch.chdir(folder.parent)
    tuned = models.resolve(str(adapter))
    job = Job.of(Echo(), Speaker(weights=tuned, chat=speaker.chat))
    monkeypatch.chdir("/")
    assert job.speaker().weights == tuned.__class__(tuned.name, folder, tuned.identity, adapter)
    (adapter / models.ADAPTER).unlink()
    with pytest.raises(ModelError, match="no adapter at"):
        job.speaker()


def test_the_hub_and_the_pocket_model_are_found_by_name(tmp_path: Path, speaker: Speaker) -> None:
    hub = models.Weights(name="a/b", folder=tmp_path / "c0ffee", identity="a/b@c0ffee")
    job = Job.of(Echo(), Speaker(weights=hub, chat=speaker.chat))
    assert (job.base, job.revision) == ("a/b", "c0ffee")
    job = Job.of(Echo(), Speaker(weights=models.resolve("pocket"), chat=speaker.chat))
    assert (job.base, job.revision) == ("pocket", None)


def test_what_differs_between_nodes_is_named() -> None:
    refuse_differences({"identity": "a"}, {"identity": "a", "more": "b"})
    with pytest.raises(BackendError, match="identity is 'b', not 'a'"):
        refuse_differences({"identity": "a"}, {"identity": "b"})


class FakeTally:
    """Says that every group was begun so often; `begin.remote` as Ray has it."""

    def __init__(self, times: int) -> None:
        self.begin, self.remote = self, lambda _: times


@pytest.fixture
def hired(speaker: Speaker, monkeypatch: pytest.MonkeyPatch) -> Any:
    class FakeRay:
        @staticmethod
        def get(found: object) -> object:
            return found

    monkeypatch.setitem(sys.modules, "ray", FakeRay)

    def make(wanted: dict[str, str] | None = None, times: int = 1) -> Hired:
        return Hired(Job.of(Echo(), speaker), wanted or {"identity": "echo:0.05"}, FakeTally(times), 3)

    return make


def plan_of(speaker: Speaker) -> tuple[Request, ...]:
    ids = speaker.chat.prompt([Message("user", "The old dog sees the tree.")]).ids
    return tuple(Request(purpose="rationale", prompt_ids=ids, sampling=Sampling(seed=i)) for i in range(3))


def test_an_actor_answers_what_is_lacking(speaker: Speaker, hired: Any) -> None:
    rows = plan_of(speaker)
    reply: Reply = unpacked(hired()(packed(Group(5, rows, frozenset({rows[1].key})))))
    assert (reply.number, reply.refusal, [g.key for g in reply.answers]) == (5, "", [rows[1].key])


def test_an_actor_unlike_the_others_writes_nothing(speaker: Speaker, hired: Any) -> None:
    rows = plan_of(speaker)
    reply: Reply = unpacked(hired({"identity": "echo:0.5"})(packed(Group(5, rows, frozenset({rows[1].key})))))
    assert reply.answers == []
    assert "it differs from the others: identity is 'echo:0.05', not 'echo:0.5'" in reply.refusal


def test_a_group_that_was_lost_too_often_is_not_begun_again(speaker: Speaker, hired: Any) -> None:
    group = packed(Group(5, plan_of(speaker), frozenset({plan_of(speaker)[0].key})))
    assert unpacked(hired(times=3)(group)).answers
    lost: Reply = unpacked(hired(times=4)(group))
    assert lost.answers == []
    assert "has lost a worker or a node 3 times over the same rows" in lost.refusal
