"""Text from any OpenAI-compatible server: vLLM, SGLang, `transformers serve`, llama.cpp, and many more.

Ids go in and come out where the server can do that; otherwise texts do, and are compared (`_forms.py`). What a server
can do is found out before the first row, and it is refused if it cannot go on from a prefix.

Determinism: each answer is asked for with a seed made of the request's key and its number, which servers honour as far
as their batches allow. Every key is stored exactly once, whatever the server does.
"""

import asyncio
import os
import queue
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from radistill import models
from radistill.backends import _forms as forms
from radistill.backends._http import Client, Refused, Server
from radistill.backends.base import Backend, Generator
from radistill.errors import BackendError
from radistill.records import Generation, Request
from radistill.speaker import Speaker

TOGETHER = 256
"""At most so many answers are committed together."""
SOON = 0.5
"""Seconds after which what has come is committed, though more comes all the time: a kill costs no more than that."""


class OpenAI(Backend):
    """One or several servers with the same model; the tokenizer is read from the run's `model`."""

    base_url: tuple[str, ...] = Field(("http://localhost:8000/v1",), min_length=1)
    """Of one server, or of several that share the work."""
    served_model: str | None = None
    """What the servers call the model; null = the run's `model` if they list it, or the only one they list."""
    api_key_env: str = Field("OPENAI_API_KEY", pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """Environment variable that holds the key, if the servers want one. A key is never read from anywhere else."""
    form: Literal["auto", "ids", "text", "chat"] = "auto"
    """How requests are put; `auto` takes the first of these that the server can do."""
    seeded: bool = True
    """Whether a seed is sent with each request; some servers know none, or fall over it."""
    concurrency: int = Field(256, ge=1)
    """At most so many requests at once to each server; how many it really gets is adapted to it."""
    timeout: float = Field(600.0, gt=0)
    """Seconds that an answer may take."""
    patience: float = Field(300.0, gt=0)
    """Seconds without any usable answer, after which the stage stops; what was written is kept."""
    tries: int = Field(5, ge=1)
    """So often a request is sent that comes back unusable; then it is a failed row."""

    @field_validator("base_url", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("base_url")
    @classmethod
    def _urls(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        for url in urls:
            parts = urlsplit(url)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise ValueError(f"{url!r} is no URL of a server; for example http://localhost:8000/v1")
            if parts.username or parts.password:
                raise ValueError("a URL with a password would be written down; put the key into the environment")
        return tuple(url.rstrip("/") for url in urls)

    @contextmanager
    def open(self, speaker: Speaker) -> Iterator[Generator]:
        """Ask the servers what they can do.

        Raises:
            BackendError: they cannot be reached, or cannot go on from a prefix.
        """
        found = asyncio.run(_looked_at(self, speaker))
        yield OpenAIGenerator(self, speaker, *found)


@dataclass
class OpenAIGenerator:
    """See `OpenAI`."""

    settings: OpenAI
    speaker: Speaker
    form: forms.Form
    engine: str
    capabilities: dict[str, str]
    """For each form that was tried, `yes` or what is wrong with it."""

    @property
    def identity(self) -> str:
        """Weights, engine, what the server calls the model, how it is asked, and where an answer ends."""
        parts = (self.engine, self.form.model, self.form.name, f"stops {list(self.speaker.chat.stop_ids)}")
        return "|".join((self.speaker.weights.identity, "openai", *parts))

    @cached_property
    def context(self) -> int:
        """Positions the model was made for."""
        return models.context_length(self.speaker.weights.folder) or 1 << 30

    def room(self, request: Request) -> int:
        """So many tokens may be written before the context is full.

        Raises:
            Refused: none.
        """
        read = len(request.prompt_ids)
        if read >= self.context:
            raise Refused(f"{read} prompt tokens leave no room in a context of {self.context}")
        return self.context - read

    def answers(self, plan: Sequence[Request], lacking: AbstractSet[str]) -> Iterator[Sequence[Generation]]:
        """See `Generator.answers`; requests are on their way until the answers are committed."""
        todo = [request for request in plan if request.key in lacking]
        if not todo:
            return
        work = _Work(self, todo)
        thread = threading.Thread(target=work.run, name="radistill-openai", daemon=True)
        thread.start()
        try:
            yield from work.results()
        finally:
            work.stop()
            thread.join()


@dataclass
class _Work:
    """Requests on their way, in a thread of their own; answers come through a queue."""

    generator: OpenAIGenerator
    todo: Sequence[Request]
    done: "queue.Queue[list[Generation] | BaseException | None]" = field(default_factory=queue.Queue)
    loop: asyncio.AbstractEventLoop | None = None
    main: "asyncio.Task[None] | None" = None
    stopped: bool = False

    def run(self) -> None:
        """The thread."""
        try:
            asyncio.run(self._all())
            self.done.put(None)
        except asyncio.CancelledError:
            self.done.put(None)
        except BaseExceptionGroup as group:  # one of many requests said that the engine is lost, and so will all
            self.done.put(group.exceptions[0])
        except BaseException as error:
            self.done.put(error)

    def stop(self) -> None:
        """Send no more; what is on its way is given up."""
        self.stopped = True
        if self.loop is not None and self.main is not None and not self.main.done():
            self.loop.call_soon_threadsafe(self.main.cancel)

    def results(self) -> Iterator[list[Generation]]:
        """What has come, several requests together where they come fast."""
        while True:
            found = self.done.get()
            until = time.monotonic() + SOON
            together: list[Generation] = []
            while found is not None and not isinstance(found, BaseException):
                together += found
                left = until - time.monotonic()
                if len(together) >= TOGETHER or left <= 0:
                    break
                try:
                    found = self.done.get(timeout=left)
                except queue.Empty:
                    found = []
                    break
            if together:
                yield together
            if isinstance(found, BaseException):
                raise found
            if found is None:
                return

    async def _all(self) -> None:
        self.loop, self.main = asyncio.get_running_loop(), asyncio.current_task()
        settings = self.generator.settings
        waiting = iter(self.todo)
        async with _client(settings) as client, asyncio.TaskGroup() as group:
            # So many tasks as may ever be on their way: a task for each of millions of requests would be too many.
            for _ in range(min(len(self.todo), settings.concurrency * len(settings.base_url))):
                group.create_task(self._worker(client, waiting))

    async def _worker(self, client: Client, waiting: Iterator[Request]) -> None:
        for request in waiting:
            if self.stopped:
                return
            self.done.put(await self._one(client, request))

    async def _one(self, client: Client, request: Request) -> list[Generation]:
        return [await self._answer(client, request, index) for index in range(request.sampling.n)]

    async def _answer(self, client: Client, request: Request, index: int) -> Generation:
        form = self.generator.form
        try:
            if request.purpose == "score":
                return await _score(client, form, request)
            body = form.body(request, index)
            body["max_tokens"] = min(body["max_tokens"], self.generator.room(request))
            if not self.generator.settings.seeded:
                del body["seed"]
            return await _posted(client, form, body, lambda answer: form.read(request, index, answer))
        except Refused as refused:
            return Generation(
                key=request.key, index=index, token_ids=(), text="", finish_reason="error", error=str(refused)
            )


async def _posted(client: Client, form: forms.Form, body: dict[str, Any], check: Any) -> Generation:
    found: Generation = await client.post(form.path, body, check=check)
    return found


async def _score(client: Client, form: forms.Form, request: Request) -> Generation:
    if form.name != "ids":
        raise Refused("a server that takes no ids cannot tell their log-probabilities")
    body = {"model": form.model, "max_tokens": 1, "temperature": 0.0, **form.prompt(request)}
    body["prompt_logprobs"] = max(1, request.top_k)
    return await _posted(client, form, body, lambda answer: forms.scored(answer, request))


@asynccontextmanager
async def _client(settings: OpenAI) -> AsyncIterator[Client]:
    import httpx2

    key = os.environ.get(settings.api_key_env, "")
    most = settings.concurrency * len(settings.base_url)
    async with httpx2.AsyncClient(
        headers={"Authorization": f"Bearer {key}"} if key else {},
        timeout=httpx2.Timeout(settings.timeout, connect=min(10.0, settings.timeout), pool=None),
        limits=httpx2.Limits(max_connections=most, max_keepalive_connections=most),
        trust_env=False,
    ) as http:
        servers = [Server(url, settings.concurrency) for url in settings.base_url]
        yield Client(servers, http, settings.timeout, settings.patience, settings.tries)


async def _looked_at(settings: OpenAI, speaker: Speaker) -> tuple[forms.Form, str, dict[str, str]]:
    """The form that all servers can do, their engine, and what came of the others."""
    seen: list[tuple[forms.Form, str, dict[str, str]]] = []
    for url in settings.base_url:
        alone = settings.model_copy(update={"base_url": (url,)})
        async with _client(alone) as client:
            model, engine = await _model(client, settings, speaker)
            form, found = await forms.find(client, speaker.chat, model, settings.form)
        if form is None:
            tried = "\n".join(f"  {name}: {problem}" for name, problem in found.items())
            raise BackendError(
                f"{url} cannot go on from the beginning of an answer, which radistill needs:\n{tried}\nServe the model "
                "with vLLM or SGLang, or use generate.backend=transformers."
            )
        seen.append((form, engine, found))
    kinds = {(form.name, engine, form.model) for form, engine, _ in seen}
    if len(kinds) > 1:
        shown = ", ".join(" ".join(kind) for kind in sorted(kinds))
        raise BackendError(f"the servers differ ({shown}); rows of one run must come from equal ones.")
    return seen[0]


async def _model(client: Client, settings: OpenAI, speaker: Speaker) -> tuple[str, str]:
    """What the server calls the model, and what it says it is itself."""
    import httpx2

    url = client.servers[0].url
    try:
        response = await client.http.get(f"{url}/models")
        response.raise_for_status()
        listed = [(str(m["id"]), str(m.get("owned_by", ""))) for m in response.json()["data"]]
    except (httpx2.HTTPError, ValueError, LookupError, TypeError) as error:
        raise BackendError(
            f"{url}/models does not answer as an OpenAI-compatible server: {type(error).__name__} {error}. Start the "
            "server, or name it with generate.backend.base_url."
        ) from error
    wanted = settings.served_model or speaker.weights.name
    for name, owner in listed:
        if name == wanted or (settings.served_model is None and len(listed) == 1):
            return name, owner
    names = ", ".join(name for name, _ in listed) or "none"
    raise BackendError(f"{url} serves {names}, not {wanted!r}. Name one with generate.backend.served_model.")
