"""What the `ray` backend sends to other machines, and what runs there: an actor that holds one generator.

A message is one pickled value in a table of one cell, so that a group of requests is one object of the cluster. Only
settings and names travel: weights, tokenizer and keys are found by each node on its own.
"""

import pickle
import socket
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

from radistill import models
from radistill.backends.base import Backend, Generator, scoring_problem
from radistill.chat import ChatSettings, load_chat
from radistill.errors import BackendError, ModelError, RadistillError
from radistill.lab import POCKET, POCKET_NAME
from radistill.models import Weights
from radistill.records import Generation, Request
from radistill.speaker import Speaker

CELL = "packed"
"""The only column of every table."""


@dataclass(frozen=True)
class Group:
    """Requests that are answered by one actor and committed together."""

    number: int
    requests: tuple[Request, ...]
    """A slice of the plan."""
    lacking: frozenset[str]
    """Keys of those that are asked."""


@dataclass(frozen=True)
class Reply:
    """What an actor made of a group."""

    number: int
    answers: list[Generation]
    refusal: str = ""
    """Why there are no more answers, in words for the user."""


@dataclass(frozen=True)
class Job:
    """All that an actor must know to become the generator that the run asks for."""

    backend: Backend
    weights: Weights
    """As they are where the run was started."""
    base: str
    """What the weights, or those below an adapter, are found by: a hub id, `pocket` or an absolute path."""
    revision: str | None
    chat: ChatSettings
    name: str
    """What messages call the model."""
    trust_remote_code: bool

    @classmethod
    def of(cls, backend: Backend, speaker: Speaker) -> "Job":
        """Paths are made absolute, because an actor works in another folder."""
        weights = speaker.weights
        folder, adapter = weights.folder.absolute(), weights.adapter and weights.adapter.absolute()
        below = weights.identity.rpartition("+")[0] if adapter else weights.identity
        hub_id, _, commit = below.rpartition("@")
        is_hub = bool(hub_id) and commit == folder.name
        base = hub_id if is_hub else POCKET_NAME if folder == POCKET.absolute() else str(folder)
        return cls(
            backend=backend,
            weights=replace(weights, folder=folder, adapter=adapter),
            base=base,
            revision=commit if is_hub else None,
            chat=speaker.chat.settings,
            name=speaker.chat.name,
            trust_remote_code=speaker.trust_remote_code,
        )

    def speaker(self) -> Speaker:
        """The same model, found on this machine.

        Raises:
            ModelError, ChatTemplateError: it is not here, or cannot be used.
        """
        weights = self._weights()
        chat = load_chat(weights.tokenizer_folder, self.chat, name=self.name, trust_remote_code=self.trust_remote_code)
        return Speaker(weights=weights, chat=chat, trust_remote_code=self.trust_remote_code)

    def _weights(self) -> Weights:
        """Identified anew: a folder of the same name may hold another model here."""
        found = models.resolve(self.base, revision=self.revision, trust_remote_code=self.trust_remote_code)
        adapter = self.weights.adapter
        if adapter is None:
            return replace(found, name=self.weights.name)
        # The base that the adapter names may be a path from the folder in which the run was started.
        if not (adapter / models.ADAPTER).exists():
            raise ModelError(f"no adapter at {adapter}: the folder or its {models.ADAPTER} does not exist.")
        identity = f"{found.identity}+{models.fingerprint(adapter)}"
        return Weights(name=self.weights.name, folder=found.folder, identity=identity, adapter=adapter)


def likeness(speaker: Speaker, generator: Generator) -> dict[str, str]:
    """What must be equal wherever rows of one run are written."""
    return {**likeness_here(speaker), "identity": generator.identity}


def likeness_here(speaker: Speaker) -> dict[str, str]:
    """Of it, what is known without a generator."""
    from radistill import __version__

    return {"version of radistill": __version__, "tokenizer and template": speaker.chat.identity}


def refuse_differences(wanted: Mapping[str, str], found: Mapping[str, str]) -> None:
    """Refuse a node that would write other rows under the same keys.

    Raises:
        BackendError: it names what differs.
    """
    differing = [f"{what} is {found[what]!r}, not {value!r}" for what, value in wanted.items() if found[what] != value]
    if differing:
        raise BackendError(
            f"it differs from the others: {'; '.join(differing)}. All nodes must have the same radistill, the same "
            "model and the same kind of device."
        )


def tell_likeness(job: Job) -> dict[str, str] | str:
    """What a generator on this node is like, or why there can be none."""
    try:
        speaker = job.speaker()
        with job.backend.open(speaker) as generator:
            return likeness(speaker, generator)
    except RadistillError as error:
        return _said_here(error)


def tell_scoring_problem(job: Job, top_k: int) -> str:
    """Why a generator on this node tells no log-probabilities; nothing if it does."""
    try:
        with job.backend.open(job.speaker()) as generator:
            return scoring_problem(generator, top_k)
    except RadistillError as error:
        return _said_here(error)


class Tally:
    """Counts how often each group was begun, because Ray Data would give out for ever what kills its worker."""

    def __init__(self) -> None:
        self._begun: Counter[int] = Counter()

    def begin(self, number: int) -> int:
        """So often was this group begun, this time included."""
        self._begun[number] += 1
        return self._begun[number]


class Hired:
    """An actor of Ray Data; called with one group at a time.

    What a user can repair is no exception here but a reply: Ray would wrap it, or try again.
    """

    def __init__(self, job: Job, wanted: Mapping[str, str], tally: Any, tries: int) -> None:
        self._open = ExitStack()
        self._tally, self._tries = tally, tries
        self._generator: Generator | None = None
        self._refusal = ""
        try:
            speaker = job.speaker()
            self._generator = self._open.enter_context(job.backend.open(speaker))
            refuse_differences(wanted, likeness(speaker, self._generator))
        except RadistillError as error:
            self._refusal = _said_here(error)

    def __call__(self, table: Any) -> Any:
        """Answer the group in that table."""
        return packed(self._reply(unpacked(table)))

    def __del__(self) -> None:
        # Ray deletes its actor's callable when the work is done; an engine may have processes of its own to end.
        self._open.close()

    def _reply(self, group: Group) -> Reply:
        answers: list[Generation] = []
        if self._refusal or self._generator is None:
            return Reply(group.number, answers, self._refusal)
        if self._begun(group) > self._tries:
            return Reply(group.number, answers, lost_again(self._tries))
        try:
            for together in self._generator.answers(group.requests, group.lacking):
                answers += together
        except RadistillError as error:
            return Reply(group.number, answers, _said_here(error))
        return Reply(group.number, answers)

    def _begun(self, group: Group) -> int:
        import ray

        times: int = ray.get(self._tally.begin.remote(group.number))
        return times


def packed(message: Group | Reply) -> Any:
    """A table of one cell."""
    import pyarrow

    return pyarrow.table({CELL: pyarrow.array([pickle.dumps(message, protocol=5)], pyarrow.large_binary())})


def unpacked(table: Any) -> Any:
    """What `packed` was given, by this run's own processes."""
    return pickle.loads(table.column(CELL)[0].as_py())


def lost_again(times: int) -> str:
    """What the user is told when work is lost again and again."""
    return (
        f"the cluster has lost a worker or a node {times} times over the same rows; what was written is kept. A worker "
        "that is killed again and again often has too little memory: lower the batch_size of generate.backend.backend, "
        "or let fewer actors share a node (generate.backend.num_cpus)."
    )


def _said_here(error: RadistillError) -> str:
    return f"on the node {socket.gethostname()}: {error}"
