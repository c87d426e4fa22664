"""Text from any OpenAI-compatible server: vLLM, SGLang, `transformers serve`, llama.cpp, and many more.

Ids go in and come out where the server can do that; otherwise texts do, and are compared (`_forms.py`). What a server
can do is found out before the first row, and it is refused if it cannot go on from a prefix.

Determinism: each answer is asked for with a seed made of the request's key and its number, which servers honour as far
as their batches allow. Every key is stored exactly once, whatever the server does.
"""

import os
import shlex
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from radistill import models
from radistill.backends import _asking as asking
from radistill.backends import _forms as forms
from radistill.backends import _told_scores as told
from radistill.backends._http import Client, Refused, Server, key_refused, reason_of
from radistill.backends._serving import Serving, served, telling_args
from radistill.backends.base import Backend, Flowing, Generator, MayNotScore, Window
from radistill.errors import BackendError
from radistill.progress import say
from radistill.records import Generation, Request
from radistill.speaker import Speaker

SCORES, STOPS = "log-probabilities", "stop tokens"
"""Capabilities beside the forms."""
ONLY_UNTOUCHED = (
    "generate.backend: the server serves the untouched model, and `evaluate` asks the tuned one too, which is not "
    "there yet. Let radistill serve each of them itself (generate.backend.serve_with=vllm), or do the stages one by "
    "one: radistill generate, assemble and train, then serve both models, then radistill evaluate."
)
OURS = frozenset(
    f"--{name}" for name in ("host", "port", "model", "served-model-name", "api-key", "lora-modules", "uds")
)
"""What a server is told by radistill; a key in arguments would be written down."""


class OpenAI(Backend):
    """One or several servers with the same model; the tokenizer is read from the run's `model`."""

    speed_only: ClassVar[frozenset[str]] = frozenset(
        {"base_url", "api_key_env", "concurrency", "timeout", "patience", "tries"}
        | {"serve_with", "serve_env", "serve_log", "serve_timeout"}
    )

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
    serve_with: Literal["vllm", "transformers"] | None = None
    """Start and stop a server of this kind instead of asking one at `base_url`: radistill generate --serve-with."""
    serve_env: str | None = None
    """Virtual environment that the server is installed in; null = radistill's own."""
    serve_args: tuple[str, ...] = ()
    """More words for the server's command line: [--dtype, bfloat16, --tensor-parallel-size, 2]."""
    serve_log: str = Field("runs/server.log", min_length=1)
    """File that takes what the server says."""
    serve_timeout: float = Field(1200.0, gt=0)
    """Seconds that the server may take to start: large weights load slowly."""

    @field_validator("serve_args", mode="before")
    @classmethod
    def _numbers_are_words(cls, given: Any) -> Any:
        if not isinstance(given, list | tuple):
            return given
        return [str(word) if type(word) in (int, float) else word for word in given]

    @field_validator("serve_args")
    @classmethod
    def _not_ours(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        for word in given:
            name = word.partition("=")[0].replace("_", "-")
            if name == "--config":
                raise ValueError("--config may hold what radistill says itself: give its settings one by one")
            # Servers take names with underscores, and the beginnings of names.
            if name.startswith("--") and len(name) > 2 and any(ours.startswith(name) for ours in OURS):
                raise ValueError(f"{name} is said by radistill itself and cannot be given")
        return given

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

    @property
    def may_not_score(self) -> bool:
        """Some servers cannot."""
        return self.serve_with is None

    def only_untouched(self) -> str | None:
        """A server that was there before training serves nothing that comes of it."""
        return None if self.serve_with else ONLY_UNTOUCHED

    @property
    def telling(self) -> dict[str, Any]:
        """Without the server's arguments that are about room and speed alone."""
        return super().telling | {"serve_args": telling_args(self.serve_with, self.serve_args)}

    @contextmanager
    def open(self, speaker: Speaker) -> Iterator[Generator]:
        """Ask the servers what they can do, and say it on standard error.

        Raises:
            BackendError: they cannot be reached, or cannot go on from a prefix.
        """
        with self._served(speaker) as settings, asking.EventLoop() as loop:
            found = loop.run(_looked_at(settings, speaker))
            with loop.entered(_client(settings)) as client:
                generator = OpenAIGenerator(settings, speaker, loop, client, *found)
                client.probe = generator.form.path, generator.form.probe_body()
                say(generator.shown)
                yield generator

    @contextmanager
    def _served(self, speaker: Speaker) -> "Iterator[OpenAI]":
        """These settings, with the address of the server that is started for it, if one is."""
        if self.serve_with is None:
            yield self
            return
        serving = Serving(self.serve_with, self.serve_env, self.serve_args, Path(self.serve_log), self.serve_timeout)
        with served(serving, speaker) as server:
            yield self.model_copy(update={"base_url": (server.url,), "served_model": server.model})


@dataclass(frozen=True)
class Listed:
    """A model in a server's list."""

    name: str
    owner: str
    """What the server says it is itself."""
    context: int = 1 << 30
    """Longest prompt and answer together, where it is told."""

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> "Listed":
        """From the server's own words."""
        context = told.get("max_model_len")
        return cls(str(told["id"]), str(told.get("owned_by", "")), context if isinstance(context, int) else 1 << 30)


@dataclass
class OpenAIGenerator(Flowing, MayNotScore):
    """See `OpenAI`."""

    settings: OpenAI
    speaker: Speaker
    loop: asking.EventLoop
    client: Client
    """What it has learned about the servers serves all that is asked."""
    form: forms.Form
    listed: Listed
    capabilities: dict[str, str]
    """For each form that was tried, `yes` or what is wrong with it."""

    @property
    def identity(self) -> str:
        """Weights, engine, what the server calls the model, how it is asked, and where an answer ends."""
        arguments = telling_args(self.settings.serve_with, self.settings.serve_args)
        started = [shlex.join(arguments)] if arguments else []
        # What a server that was started calls the model says nothing but where its folder lies.
        named = [] if self.settings.serve_with else [self.form.model]
        drawn = [] if self.settings.seeded else ["unseeded"]
        ends = (f"context {self.context}", f"stops {list(self.speaker.chat.stop_ids)}")
        parts = (self.listed.owner, *named, self.form.name, *started, *drawn, *ends)
        return "|".join((self.speaker.weights.identity, "openai", *parts))

    @property
    def shown(self) -> str:
        """What the servers can do, for people."""
        can = ", ".join(f"{name}: {what}" for name, what in self.capabilities.items())
        context = f"context {self.context:,}, " if self.context < 1 << 30 else ""
        return f"{', '.join(self.settings.base_url)} serves {self.form.model}: {context}{can}"

    def scoring_problem(self, top_k: int) -> str:
        """See `MayNotScore`."""
        # So many, because servers have limits of their own; vLLM's is 20 unless it is told otherwise.
        problem = self.loop.run(told.scores(self.client, self.form, top_k, patiently=True))
        return "" if problem == "yes" else problem

    @cached_property
    def context(self) -> int:
        """Positions the model was made for, or fewer if the server has room for fewer."""
        return min(models.context_length(self.speaker.weights.folder) or 1 << 30, self.listed.context)

    def room(self, request: Request) -> int:
        """So many tokens may be written before the context is full.

        Raises:
            Refused: none.
        """
        read = len(request.prompt_ids)
        if read >= self.context:
            raise Refused(f"{read} prompt tokens leave no room in a context of {self.context}")
        return self.context - read

    def flow(self, windows: Iterator[Window]) -> Iterator[Sequence[Generation]]:
        """See `Flowing.flow`; requests are on their way until the answers are committed."""
        width = self.settings.concurrency * len(self.settings.base_url)
        return self.loop.answers(windows, width, self._one, self._begins)

    def _begins(self) -> None:
        # While nothing was asked, nothing could be answered well.
        self.client.last_good = time.monotonic()

    async def _one(self, request: Request) -> list[Generation]:
        return [await self._answer(request, index) for index in range(request.sampling.n)]

    async def _answer(self, request: Request, index: int) -> Generation:
        form, client = self.form, self.client
        try:
            if request.purpose == "score":
                return await told.score(client.post, form, request)
            if request.sampling.temperature and self.capabilities[form.name] == forms.GREEDY:
                raise BackendError(
                    "the server draws nothing: asked four times at temperature 2, it wrote the same. What is drawn at "
                    f"temperature {request.sampling.temperature} would be its most probable text: serve the model "
                    "with vLLM or SGLang, or set generate.sampling.temperature=0."
                )
            body = form.body(request, index)
            body["max_tokens"] = min(body["max_tokens"], self.room(request))
            found = await _posted(client, form, body, lambda answer: form.read(request, index, answer))
            if form.name == "ids" and found.finish_reason == "length" and found.n_tokens < body["max_tokens"]:
                raise Refused(
                    f"the server cut the answer after {found.n_tokens} of {body['max_tokens']} tokens: vLLM takes "
                    "limits from the model's generation_config.json unless it is started with --generation-config vllm"
                )
            return found
        except Refused as refused:
            return asking.failed(request, index, str(refused))


async def _posted(client: Client, form: forms.Form, body: dict[str, Any], check: Any) -> Generation:
    found: Generation = await client.post(form.path, body, check=check)
    return found


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
        yield Client(servers, http, settings.timeout, settings.patience, settings.tries, secret=key)


async def _looked_at(settings: OpenAI, speaker: Speaker) -> tuple[forms.Form, Listed, dict[str, str]]:
    """The form that all servers can do, what they say of the model, and what came of the other forms."""
    seen: list[tuple[forms.Form, Listed, dict[str, str]]] = []
    for url in settings.base_url:
        alone = settings.model_copy(update={"base_url": (url,)})
        async with _client(alone) as client:
            model = await _model(client, settings, speaker)
            form, found = await forms.find(client, speaker.chat, model.name, settings.form, seeded=settings.seeded)
            if form is not None:
                found[STOPS] = await form.stops(client)
                found[SCORES] = await told.scores(client, form, 1, patiently=False)
        if form is None:
            tried = "\n".join(f"  {name}: {problem}" for name, problem in found.items())
            raise BackendError(
                f"{url} cannot go on with {model.name} from the beginning of an answer, which radistill needs:\n"
                f"{tried}\n"
                "Serve it with vLLM or SGLang, or use generate.backend=transformers."
            )
        seen.append((form, model, found))
    kinds = {
        (form.name, form.dialect, model.owner, model.name, str(model.context), *(f"{k}: {v}" for k, v in can.items()))
        for form, model, can in seen
    }
    if len(kinds) > 1:
        shown = ", ".join(" ".join(kind) for kind in sorted(kinds))
        raise BackendError(f"the servers differ ({shown}); rows of one run must come from equal ones.")
    return seen[0]


async def _model(client: Client, settings: OpenAI, speaker: Speaker) -> Listed:
    """The model that is asked.

    Raises:
        BackendError: the server has another, or cannot be asked.
    """
    import httpx2

    url, name = client.servers[0].url, speaker.weights.name
    # Whoever names the server's model means the run's; a server that was started serves what it was started for.
    wanted = settings.served_model if speaker.is_untouched or settings.serve_with else None
    try:
        response = await client.http.get(f"{url}/models")
        if response.is_server_error and wanted is not None:
            # `transformers serve` stumbles where there is no hub cache.
            return Listed(wanted, settings.serve_with or "")
        if response.status_code in (401, 403):
            raise BackendError(key_refused(url, response.status_code, reason_of(response, client.secret)))
        response.raise_for_status()
        listed = [Listed.of(m) for m in response.json()["data"]]
    except (httpx2.HTTPError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise BackendError(
            f"{url}/models does not answer as an OpenAI-compatible server: {type(error).__name__} {error}. Start the "
            "server, or name it with generate.backend.base_url."
        ) from error
    for found in listed:
        if found.name == (wanted or name):
            return found
    if wanted is not None:
        return Listed(wanted, settings.serve_with or "")  # some list what they have loaded, and load what is asked for
    names = ", ".join(found.name for found in listed) or "none"
    if not speaker.is_untouched:
        raise BackendError(
            f"{url} serves {names}, not {name}, and another model must not answer in its place. Let radistill serve "
            f"each model itself (generate.backend.serve_with=vllm), serve it under the name {name}, or use "
            "generate.backend=transformers for this stage."
        )
    if len(listed) == 1:
        return listed[0]
    raise BackendError(
        f"{url} serves {names}, not {speaker.weights.name!r}. Name one with generate.backend.served_model."
    )
