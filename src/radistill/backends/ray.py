"""Any of the other backends on many machines: actors of Ray Data, each with a generator of its own.

Ray Data gives groups of requests to the actors, and takes a group away again from a worker or node that dies. Only this
process writes into the ledger, so what was committed is safe whatever becomes of the cluster, and a group that was
answered twice is committed once.

Determinism: a group is a fixed slice of the plan, answered as the inner backend answers a plan. The rows and their keys
are those of the inner backend without Ray.
"""

import logging
import os
import re
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Generator as PythonGenerator
from collections.abc import Set as AbstractSet
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import count, islice
from typing import Any, ClassVar

from pydantic import Field, SerializerFunctionWrapHandler, field_serializer, field_validator

from radistill import plugins
from radistill.backends._hired import (
    Group,
    Hired,
    Job,
    Reply,
    Tally,
    likeness_here,
    lost_again,
    packed,
    refuse_differences,
    tell_likeness,
    tell_scoring_problem,
    unpacked,
)
from radistill.backends.base import Backend, Flowing, Generator, MayNotScore, Window, kind
from radistill.errors import BackendError, ConfigError, MissingPackageError
from radistill.records import Generation, Request
from radistill.speaker import Speaker

NOT_INSTALLED = "generate.backend: ray needs Ray, which is not installed here: pip install 'radistill[ray]'"
WINDOWS = 8
"""So many windows of a plan (131,072 requests, a gigabyte where prompts have 200 tokens) go into one run of Ray Data,
because each run begins with new actors, which load the model anew."""
INNER = "transformers"
"""What the actors hold where the run file says nothing."""


class Ray(Backend):
    """Ray Data over a cluster; every node needs radistill and finds the model under the same path."""

    speed_only: ClassVar[frozenset[str]] = frozenset(
        {"address", "actors", "num_cpus", "num_gpus", "rows_per_task", "tries", "patience"}
    )

    backend: Backend = Field(default_factory=lambda: _named({"name": INNER}))
    """What each actor holds: a name, or `name:` with settings, as where there is no Ray."""
    address: str | None = Field(None, min_length=1)
    """Of a running cluster; null = that in the environment variable RAY_ADDRESS, or else a cluster of this machine
    alone, which ends with the stage."""
    actors: int = Field(1, ge=1)
    """So many work at once, each with a model of its own, as far as the cluster has room for them."""
    num_cpus: float = Field(1.0, ge=0)
    """CPUs that are reserved for each actor."""
    num_gpus: float = Field(0.0, ge=0)
    """GPUs that are reserved for each actor; with 0 it sees none."""
    rows_per_task: int = Field(256, ge=1)
    """Rows that one actor gets, and that are committed, together."""
    tries: int = Field(4, ge=1)
    """So often a group of rows is given out whose worker or node is lost; then the stage stops, and what was written is
    kept."""
    patience: float = Field(3600.0, gt=0)
    """Seconds without any answer, after which the stage stops; loading the model counts."""

    @field_validator("backend", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        return _named({"name": value} if isinstance(value, str) else value)

    @field_validator("backend")
    @classmethod
    def _no_ray_in_ray(cls, inner: Backend) -> Backend:
        if isinstance(inner, Ray):
            raise ValueError("is ray itself: name what its actors hold")
        return inner

    @field_serializer("backend", mode="wrap")
    def _with_its_name(self, inner: Backend, _: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {"name": plugins.name_of(inner), **inner.model_dump()}

    @property
    def may_not_score(self) -> bool:
        """What the inner backend says."""
        return self.backend.may_not_score

    def only_untouched(self) -> str | None:
        """What the inner backend says."""
        return self.backend.only_untouched()

    def missing(self) -> str | None:
        """Ray itself, on this machine; what its actors hold is missed on theirs."""
        return None if find_spec("ray") else NOT_INSTALLED

    @property
    def telling(self) -> dict[str, Any]:
        """What the inner backend tells: its rows are the same with and without Ray."""
        return self.backend.telling

    @contextmanager
    def open(self, speaker: Speaker) -> Iterator[Generator]:
        """Join or start a cluster, and ask one actor what it is; leave or end the cluster on exit.

        Raises:
            MissingPackageError: Ray is not installed.
            BackendError: the cluster cannot be reached, has no room for an actor, or the inner backend refuses to work.
        """
        job = Job.of(self.backend, speaker)
        with cluster(self.address):
            wanted = _asked_for_likeness(self, job)
            refuse_differences(likeness_here(speaker), wanted)
            yield RayGenerator(self, job, wanted, _tally())


@dataclass
class RayGenerator(Flowing, MayNotScore):
    """See `Ray`."""

    settings: Ray
    job: Job
    wanted: Mapping[str, str]
    """What every actor must be like."""
    tally: Any
    """A handle of the actor that counts how often a group was begun."""
    numbers: Iterator[int] = field(default_factory=count)
    """Of groups, no two of which have the same."""

    @property
    def identity(self) -> str:
        """That of the generators in the actors, so that rows are shared with runs without Ray."""
        return self.wanted["identity"]

    def scoring_problem(self, top_k: int) -> str:
        """What a generator on a node of the cluster says."""
        if not self.settings.may_not_score:
            return ""
        return str(_asked(self.settings, tell_scoring_problem, self.job, top_k))

    def groups(self, plan: Sequence[Request], lacking: AbstractSet[str]) -> Iterator[Group]:
        """A plan in slices of similar kind and length, but for those in which nothing is lacking.

        The longest come first: they take longest, and the last to end should be short.
        """
        ordered = sorted(plan, key=lambda r: (kind(r), -len(r.prompt_ids), r.key))
        for start in range(0, len(ordered), self.settings.rows_per_task):
            rows = tuple(ordered[start : start + self.settings.rows_per_task])
            if asked := frozenset(r.key for r in rows if r.key in lacking):
                yield Group(next(self.numbers), rows, asked)

    def flow(self, windows: Iterator[Window]) -> Iterator[Sequence[Generation]]:
        """See `Flowing.flow`."""
        while some := list(islice(windows, WINDOWS)):
            yield from self._answered([g for window in some for g in self.groups(window.plan, window.lacking)])

    def _answered(self, groups: Sequence[Group]) -> Iterator[Sequence[Generation]]:
        """One run of Ray Data, or more.

        Ray itself puts lost actors back and gives their groups out again. Where it gives up, because what an actor had
        made was lost with its node, the groups that are left are put to it anew.
        """
        from ray.data.exceptions import ExecutionTimeoutError
        from ray.exceptions import RayError, RayTaskError, UserCodeException

        left = {group.number: group for group in groups}
        losses = 0
        while left:
            lost: RayError | None = None
            try:
                with closing(_replies(self, list(left.values()))) as replies:
                    for reply in replies:
                        if left.pop(reply.number, None) and reply.answers:
                            losses = 0
                            yield reply.answers
                        if reply.refusal:
                            raise BackendError(reply.refusal)
            except (RayTaskError, UserCodeException):
                raise  # a bug, with the traceback of where it happened
            except ExecutionTimeoutError as error:
                raise _no_answer(self.settings) from error
            except RayError as error:
                lost = error
            losses += 1
            if left and losses >= self.settings.tries:
                raise _lost(lost, losses) from lost


def _replies(generator: RayGenerator, groups: Sequence[Group]) -> PythonGenerator[Reply, None, None]:
    """One run of Ray Data; its actors are let go when it ends or is closed."""
    import ray.data

    settings = generator.settings
    dataset = ray.data.from_arrow([packed(group) for group in groups]).map_batches(
        Hired,
        fn_constructor_args=(generator.job, dict(generator.wanted), generator.tally, settings.tries),
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=min(settings.actors, len(groups)), max_tasks_in_flight_per_actor=2),
        num_cpus=settings.num_cpus,
        num_gpus=settings.num_gpus,
    )
    dataset.context.execution_no_progress_timeout_s = settings.patience
    yield from map(unpacked, dataset.iter_batches(batch_size=None, batch_format="pyarrow"))


def _tally() -> Any:
    """On this process's own node, without which nothing goes on anyway."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=here)(Tally).remote()


def _asked_for_likeness(settings: Ray, job: Job) -> dict[str, str]:
    """What an actor will be like; the inner backend is opened once for it, where an actor would be."""
    found: dict[str, str] | str = _asked(settings, tell_likeness, job)
    if isinstance(found, str):
        raise BackendError(found)
    return found


def _asked(settings: Ray, what: Callable[..., Any], *about: Any) -> Any:
    """What a function says where an actor would be."""
    import ray
    from ray.exceptions import GetTimeoutError, RayError, RayTaskError

    asked = ray.remote(
        num_cpus=settings.num_cpus,
        num_gpus=settings.num_gpus,
        max_retries=settings.tries - 1,
        max_calls=1,  # else the process would stay, with what the model has left in its memory
    )(what)
    try:
        return ray.get(asked.remote(*about), timeout=settings.patience)
    except RayTaskError as error:
        if lacking := re.search(r"No module named '([\w.]+)'", str(error)):
            raise BackendError(
                f"a node of the cluster cannot import {lacking[1]!r}. Install the same radistill, and what its backend "
                "needs, into the environment that Ray was started from on every node."
            ) from error
        raise
    except GetTimeoutError as error:
        raise _no_answer(settings) from error
    except RayError as error:
        raise _lost(error, settings.tries) from error


def _no_answer(settings: Ray) -> BackendError:
    import ray

    wants = f"num_cpus={settings.num_cpus:g} and num_gpus={settings.num_gpus:g}"
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    there = ", ".join(f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in nodes)
    return BackendError(
        f"the cluster has given no answer for {settings.patience:,.0f} seconds (generate.backend.patience); what was "
        f"written is kept. Each actor wants {wants}; the nodes have {there or 'nothing: none is left'}."
    )


def _lost(error: Exception | None, tries: int) -> BackendError:
    what = str(error or "nothing").strip().partition("\n")[0]  # the rest is long, and speaks of Ray's inside
    return BackendError(f"{lost_again(tries)} Ray said: {what}")


@contextmanager
def cluster(address: str | None) -> Iterator[None]:
    """A cluster that is joined or started, and left or ended; one that the caller has joined before is only used.

    Raises:
        MissingPackageError: Ray is not installed.
        BackendError: there is no cluster at that address, or it does not let us in.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise MissingPackageError(f"{NOT_INSTALLED} ({error})") from error
    _be_quiet(ray)
    if ray.is_initialized():
        yield
        return
    where = address or os.environ.get("RAY_ADDRESS") or "local"
    # Without "local", Ray would join whatever cluster somebody has started on this machine.
    options: dict[str, Any] = {"include_dashboard": False} if where == "local" else {}
    try:
        _knock(where)
        with _hushed():
            ray.init(address=where, log_to_driver=False, logging_level=logging.ERROR, **options)
    except (OSError, RuntimeError, ValueError) as error:
        said = str(error).strip().partition("\n")[0]
        raise BackendError(
            f"the Ray cluster {where!r} cannot be joined: {said} Start it (`ray start --head`), or name another with "
            "generate.backend.address."
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Find out whether anybody is there, because Ray asks for many minutes.

    Raises:
        OSError: nobody is.
    """
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def _be_quiet(ray: Any) -> None:
    """Nothing is sent anywhere, and nothing is written between the lines of our own progress."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setLevel(logging.CRITICAL)  # what matters is raised


@contextmanager
def _hushed() -> Iterator[None]:
    """Ray's half in C++ says on standard error that it has been told to say nothing."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _named(value: Any) -> Any:
    """A backend from its name and settings.

    Raises:
        ConfigError: there is none of that name.
    """
    if not isinstance(value, Mapping):
        return value
    name = value.get("name")
    if not isinstance(name, str):
        raise ConfigError(f"needs a name, or `name:` with settings; known: {', '.join(plugins.available('backends'))}")
    return plugins.load("backends", name).model_validate({k: v for k, v in value.items() if k != "name"})
