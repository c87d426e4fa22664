"""Rows from actors of Ray Data are those of the backend they hold, and what goes wrong there is told here."""

import itertools
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from fakes_ray import BAD_SEED, Fragile, Moody
from radistill import models
from radistill.backends._hired import Group, Job, Reply
from radistill.backends.base import Generator, Window
from radistill.backends.echo import Echo
from radistill.backends.ray import Ray, RayGenerator
from radistill.backends.transformers import Transformers
from radistill.chat import ChatSettings, load_chat
from radistill.errors import BackendError
from radistill.records import Generation, Message, Request, Sampling
from radistill.speaker import Speaker

pytest.importorskip("ray", reason="the backend ray needs radistill[ray]")
pytestmark = pytest.mark.slow

TEXTS = ["The old dog sees the tree.", "Hello", "a " * 30, "The cat knows the tree, and the dog does not."]


@pytest.fixture(scope="module")
def speaker() -> Speaker:
    weights = models.resolve("pocket")
    return Speaker(weights=weights, chat=load_chat(weights.tokenizer_folder, ChatSettings()))


def requests(speaker: Speaker, count: int, **sampling: Any) -> list[Request]:
    ids = [speaker.chat.prompt([Message("user", text)]).ids for text in TEXTS]
    return [
        Request(purpose="rationale", prompt_ids=ids[i % len(ids)], sampling=Sampling(seed=i, **sampling))
        for i in range(count)
    ]


def answered(generator: Generator, plan: Sequence[Request], lacking: Sequence[Request]) -> list[list[Generation]]:
    return [list(together) for together in generator.answers(plan, {r.key for r in lacking})]


def by_place(committed: Sequence[Sequence[Generation]]) -> dict[tuple[str, int], Generation]:
    rows = {(g.key, g.index): g for together in committed for g in together}
    assert len(rows) == sum(map(len, committed)), "nothing is answered twice"
    return rows


def test_rows_texts_and_scores_are_those_of_the_backend_without_ray(speaker: Speaker, ray_cluster: None) -> None:
    plan = requests(speaker, 40, n=2, max_new_tokens=9)
    plan += [Request(purpose="score", prompt_ids=r.prompt_ids, sampling=Sampling(), top_k=3) for r in plan[:4]]
    with Echo().open(speaker) as plain:
        identity = plain.identity
        expected = by_place(answered(plain, plan, plan))
    with Ray(backend=Echo(), rows_per_task=10, num_cpus=0.5, actors=2).open(speaker) as generator:
        assert generator.identity == identity
        whole = answered(generator, plan, plan)
        assert by_place(whole) == expected
        assert len(whole) == 5, "a group is committed together"
        assert by_place(answered(generator, plan, plan[3:5])) == {
            place: row for place, row in expected.items() if place[0] in {r.key for r in plan[3:5]}
        }


def test_a_model_writes_the_same_in_actors_and_without(speaker: Speaker, ray_cluster: None) -> None:
    inner = Transformers(dtype="float32", batch_size=4)
    plan = requests(speaker, 12, temperature=1.0, max_new_tokens=12)
    plan += requests(speaker, 4, temperature=0.0, max_new_tokens=12)[:4]
    plan = list({r.key: r for r in plan}.values())
    plan += [Request(purpose="score", prompt_ids=r.prompt_ids, sampling=Sampling(), top_k=4) for r in plan[:3]]
    with inner.open(speaker) as plain:
        identity, expected = plain.identity, by_place(answered(plain, plan, plan))
    with Ray(backend=inner, rows_per_task=5, num_cpus=0.5, actors=2).open(speaker) as generator:
        assert generator.identity == identity
        found = by_place(answered(generator, plan, plan))
    assert found.keys() == expected.keys()
    for place, row in expected.items():
        if row.logprobs is None:
            assert found[place] == row
        else:
            scored = found[place].logprobs
            assert scored is not None
            assert (scored.top_ids_TK == row.logprobs.top_ids_TK).mean() > 0.99
            assert abs(scored.given_T - row.logprobs.given_T).max() < 1e-4


def test_rows_that_kill_their_worker_are_given_out_so_often_and_no_more(speaker: Speaker, ray_cluster: None) -> None:
    plan = requests(speaker, 24)
    settings = Ray(backend=Fragile(), rows_per_task=4, num_cpus=0.5, tries=2)
    with settings.open(speaker) as generator:
        kept: list[list[Generation]] = []
        with pytest.raises(BackendError, match="has lost a worker or a node 2 times over the same rows"):
            kept.extend(list(together) for together in generator.answers(plan, {r.key for r in plan}))
        (bad,) = (r for r in plan if r.sampling.seed == BAD_SEED)
        assert bad.key not in {g.key for together in kept for g in together}


def fails_first(times: int, *, giving: int) -> Callable[..., Iterator[Reply]]:
    """In place of Ray Data, which so often gives up after some answers."""
    from ray.exceptions import RaySystemError

    begun = itertools.count(1)

    def replies(_: RayGenerator, groups: Sequence[Group]) -> Iterator[Reply]:
        fails = next(begun) <= times
        for group in groups[:giving] if fails else groups:
            yield Reply(group.number, [_answer(request) for request in group.requests])
        if fails:
            raise RaySystemError("what it had made is lost")

    return replies


def _answer(request: Request) -> Generation:
    return Generation(key=request.key, index=0, token_ids=(), text="", finish_reason="stop")


def test_where_ray_gives_up_the_rest_is_given_out_anew(speaker: Speaker, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = requests(speaker, 40)
    generator = RayGenerator(Ray(rows_per_task=4, tries=2), Job.of(Echo(), speaker), {"identity": "x"}, tally=None)
    monkeypatch.setattr("radistill.backends.ray._replies", fails_first(7, giving=1))
    assert len(by_place(answered(generator, plan, plan))) == 40, "it has always come a little further"
    monkeypatch.setattr("radistill.backends.ray._replies", fails_first(1, giving=0))
    assert len(by_place(answered(generator, plan, plan))) == 40
    monkeypatch.setattr("radistill.backends.ray._replies", fails_first(2, giving=0))
    with pytest.raises(BackendError, match=r"2 times over the same rows.*Ray said: .*what it had made is lost"):
        answered(generator, plan, plan)


def test_many_windows_go_into_one_run_whose_groups_are_those_of_each(
    speaker: Speaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run of Ray Data begins with loading the model; and the batches of a window must not hang on the others."""
    monkeypatch.setattr("radistill.backends.ray.WINDOWS", 16)
    runs: list[list[frozenset[str]]] = []
    plain = fails_first(0, giving=0)

    def replies(generator: RayGenerator, groups: Sequence[Group]) -> Iterator[Reply]:
        runs.append([group.lacking for group in groups])
        return plain(generator, groups)

    monkeypatch.setattr("radistill.backends.ray._replies", replies)
    generator = RayGenerator(Ray(rows_per_task=4), Job.of(Echo(), speaker), {"identity": "x"}, tally=None)
    plan = requests(speaker, 170)
    windows = [plan[start : start + 10] for start in range(0, 170, 10)]
    flow = generator.flow(Window(window, {r.key for r in window}) for window in windows)
    assert len(by_place([list(together) for together in flow])) == 170
    together, last = runs
    assert last == [group.lacking for group in generator.groups(windows[16], {r.key for r in windows[16]})]
    assert together[:3] == [group.lacking for group in generator.groups(windows[0], {r.key for r in windows[0]})]


def test_a_bug_in_an_actor_keeps_its_traceback(speaker: Speaker, ray_cluster: None) -> None:
    with Ray(backend=Fragile(does="fail"), num_cpus=0.5).open(speaker) as generator:
        plan = requests(speaker, 24)
        with pytest.raises(Exception, match="the bug that was put in") as error:
            list(generator.answers(plan, {r.key for r in plan}))
        assert not isinstance(error.value, BackendError)
        assert "fakes_ray.py" in str(error.value)


def test_actors_that_are_not_like_each_other_are_refused(speaker: Speaker, ray_cluster: None) -> None:
    plan = requests(speaker, 4)
    with (
        Ray(backend=Moody(), num_cpus=0.5).open(speaker) as generator,
        pytest.raises(
            BackendError, match=r"on the node .*: it differs from the others: identity is 'process \d+', not"
        ),
    ):
        list(generator.answers(plan, {r.key for r in plan}))


class Unheard(Echo):
    """A backend of a module that no actor can import."""


def test_a_package_that_a_node_lacks_is_named(
    speaker: Speaker, ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "nowhere_else", sys.modules[__name__])
    monkeypatch.setattr(Unheard, "__module__", "nowhere_else")
    with (
        pytest.raises(BackendError, match="a node of the cluster cannot import 'nowhere_else'"),
        Ray(backend=Unheard(), num_cpus=0.5).open(speaker),
    ):
        pass


def test_a_model_that_a_node_does_not_have_is_named_with_the_node(
    speaker: Speaker, ray_cluster: None, folder: Path
) -> None:
    gone = Speaker(weights=models.resolve(str(folder)), chat=load_chat(folder, ChatSettings()))
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    with (
        pytest.raises(BackendError, match=rf"on the node .*: no model at {folder}"),
        Ray(backend=Echo(), num_cpus=0.5).open(gone),
    ):
        pass


def test_a_cluster_without_room_for_an_actor_is_not_waited_for_without_end(speaker: Speaker, ray_cluster: None) -> None:
    wanted = r"no answer for 3 seconds .*Each actor wants num_cpus=1 and num_gpus=3; the nodes have .* CPUs and"
    with (
        pytest.raises(BackendError, match=wanted),
        Ray(backend=Echo(), num_gpus=3, patience=3).open(speaker),
    ):
        pass


def test_a_plan_that_is_left_early_leaves_a_cluster_that_goes_on(speaker: Speaker, ray_cluster: None) -> None:
    plan = requests(speaker, 40)
    with Ray(backend=Echo(rows_per_second=20), rows_per_task=4, num_cpus=0.5).open(speaker) as generator:
        left = iter(generator.answers(plan, {r.key for r in plan}))
        assert len(next(left)) == 4
        del left
        assert len(by_place(answered(generator, plan, plan[:3]))) == 3


def generate(run_file: Path, *overrides: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command = [sys.executable, "-m", "radistill.cli", "generate", str(run_file), *overrides]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=False, env={**kept, **environment}
    )


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    """Where Ray puts its sockets, whose paths may not be long."""
    with tempfile.TemporaryDirectory(prefix="r-", dir="/tmp") as folder:
        yield Path(folder)


def test_a_run_without_a_cluster_starts_one_and_ends_it_without_a_word(
    raw_config: dict[str, Any], write_config: Callable[[dict[str, Any]], Path], ray_folder: Path
) -> None:
    raw_config["generate"]["backend"] = {"name": "ray", "backend": "echo"}
    done = generate(write_config(raw_config), RAY_TMPDIR=str(ray_folder))
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert all(line.startswith("generate") for line in lines), done.stderr
    assert list(ray_folder.rglob("gcs_server*")), "it was there"
    assert not [pid for pid in Path("/proc").iterdir() if pid.name.isdecimal() and str(ray_folder) in _command(pid)]
    assert not list(ray_folder.rglob("usage_stats.json")), "what is used is told to nobody"


def _command(process: Path) -> str:
    try:
        return (process / "cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""


def test_a_cluster_that_is_not_there_is_told_with_its_address(
    raw_config: dict[str, Any], write_config: Callable[[dict[str, Any]], Path]
) -> None:
    raw_config["generate"]["backend"] = {"name": "ray", "backend": "echo", "address": "127.0.0.1:1"}
    done = generate(write_config(raw_config))
    assert done.returncode == 2, done.stderr
    assert "the Ray cluster '127.0.0.1:1' cannot be joined" in done.stderr
    assert "Traceback" not in done.stderr
