"""The data that flow between the stages, and how they are written and read back.

Rows that flow by the million are slotted frozen dataclasses. Ids are the truth: what is trained on is exactly the
token ids that were shown to and produced by the model; `text` fields are for people.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from radistill.settings import Settings

if TYPE_CHECKING:
    from radistill.logprobs import LogProbs

Role = Literal["system", "user", "assistant"]
Purpose = Literal["rationale", "response", "rewrite", "free", "prediction", "score"]
Origin = Literal["prompt", "reference", "separator", "rationale", "model", "replay", "free", "end"]
Labels = Literal["hard", "stored", "live"]
FinishReason = Literal["stop", "length", "error"]
SELF: frozenset[Origin] = frozenset({"rationale", "model", "free"})
"""Origins of what the untouched model wrote itself."""
TASK: tuple[Origin, ...] = ("reference", "model")
"""Origins of what teaches the task."""


BASE = "base"
"""Name of the untouched model in every file."""


# Made once: `json.dumps` makes an encoder for every call that has options.
_SPACED = json.JSONEncoder(ensure_ascii=False)
_COMPACT = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
_DIGESTED = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), sort_keys=True, default=str)


def digest(*parts: object) -> str:
    """32 hexadecimal digits (128 bits) that name the parts; equal parts give equal digests on every machine."""
    return hashlib.blake2b(_DIGESTED.encode(parts).encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def json_line(row: Mapping[str, Any], *, compact: bool = False) -> bytes:
    """The row as one line of JSON Lines; valid UTF-8 that gives back the same strings, half surrogate pairs too."""
    try:
        return (_COMPACT if compact else _SPACED).encode(row).encode() + b"\n"
    except UnicodeEncodeError:
        return json.dumps(row, separators=(",", ":") if compact else None).encode() + b"\n"


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A task's instruction with its reference answer. Make it with `Example.of`, which gives it its id."""

    id: str
    task: str
    messages: tuple[Message, ...]
    reference: str
    tags: Mapping[str, str] = field(default_factory=dict)
    """For breakdowns (pair, split, source …); never read by training."""

    @classmethod
    def of(
        cls, task: str, messages: Iterable[Message], reference: str, tags: Mapping[str, str], ordinal: int = 0
    ) -> "Example":
        """The example named by its content; `ordinal` counts equal ones, so that a doubled row has its own id."""
        turns = tuple(messages)
        name = digest(task, [(m.role, m.content) for m in turns], reference, ordinal)
        return cls(id=name, task=task, messages=turns, reference=reference, tags=dict(tags))


class Sampling(Settings):
    """How text is drawn from a model."""

    temperature: float = Field(0.7, ge=0.0)
    """0 is greedy decoding."""
    top_p: float = Field(0.95, gt=0.0, le=1.0)
    """Only the smallest set of tokens that holds this probability is drawn from."""
    max_new_tokens: int = Field(512, ge=1)
    """At most so many tokens are written; one that is cut here gets no end-of-turn."""
    n: int = Field(1, ge=1)
    """So many answers to each request."""
    seed: int = 0
    """Part of every request's key; the run's `seed` is put here."""


@dataclass(frozen=True, slots=True)
class Span:
    """Ids `start` to `stop` (exclusive) and where they come from."""

    origin: Origin
    start: int
    stop: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Ids the model is to continue."""

    purpose: Purpose
    prompt_ids: tuple[int, ...]
    sampling: Sampling
    example_id: str | None = None
    spans: tuple[Span, ...] = ()
    messages: tuple[Message, ...] = ()
    """The conversation that the ids of the span `prompt` were rendered from, for servers that take no ids."""
    model: str = ""
    """Identity of what answers: model, engine, precision. Set by `addressed_to`; part of the key."""
    top_k: int = 0
    """For the purpose `score`: log-probabilities of so many most probable tokens are wanted at each place, beside those
    of the ids themselves."""
    _key: str = field(default="", init=False, repr=False, compare=False)

    def addressed_to(self, identity: str) -> "Request":
        """The same request, to be answered by the model of that identity."""
        return replace(self, model=identity)

    @property
    def key(self) -> str:
        """Hash of all that can change the answer; equal keys are answered once, whoever asks and whatever for.

        That is: the model's identity (weights, engine, precision, where an answer ends), the ids, which the template
        has made, and the sampling with its seed.
        """
        if not self._key:  # asked for many times a row, and a tenth of what a row costs without a model
            if self.purpose == "score":
                key = digest(self.model, "score", self.prompt_ids, self.top_k)
            else:
                key = digest(self.model, False, self.prompt_ids, sampling_key(self.sampling))
            object.__setattr__(self, "_key", key)
        return self._key


def sampling_key(sampling: Sampling) -> list[object]:
    """The settings that can change an answer, in a fixed order; greedy decoding ignores seed and top_p."""
    if sampling.temperature == 0:
        return [0.0, 1.0, sampling.max_new_tokens, sampling.n, 0]
    return [sampling.temperature, sampling.top_p, sampling.max_new_tokens, sampling.n, sampling.seed]


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """What the model wrote for one request, without the ids it was given and without the end-of-turn."""

    key: str
    index: int
    """Which of the request's `n`."""
    token_ids: tuple[int, ...]
    text: str
    finish_reason: FinishReason
    """`stop`: the model ended its turn by itself; `length`: it was cut; `error`: nothing was written."""
    error: str | None = None
    logprobs: "LogProbs | None" = None
    """Of the ids that were given, where the request's purpose was `score`; nothing is written then."""

    @property
    def n_tokens(self) -> int:
        """How many ids the model wrote."""
        return len(self.token_ids)

    @property
    def is_beyond_context(self) -> bool:
        """It was refused for its length, in the words of the backends or of a server; asking again changes nothing."""
        return self.error is not None and re.search(r"\bcontext (of|length)\b", self.error) is not None


@dataclass(frozen=True, slots=True)
class Segment:
    """Ids `start` to `stop` of a record: where they come from and what predicting each of them weighs."""

    origin: Origin
    start: int
    stop: int
    weight: float
    """0 = read, not learned."""
    labels: Labels = "hard"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRecord:
    """One row to train on. The segments lie in order, without gaps, and cover all ids."""

    id: str
    example_id: str | None
    token_ids: tuple[int, ...]
    segments: tuple[Segment, ...]
    texts: tuple[str, ...]
    """For people: what the ids of each segment spell."""
    token_weights: tuple[float, ...] = ()
    """What multiplies the weight of each id; empty = 1 for all."""
    soft: "LogProbs | None" = None
    """What the untouched model expects at each id, where a segment's labels are `stored`."""

    @property
    def text(self) -> str:
        """The whole row as text, for people."""
        return "".join(self.texts)

    def __post_init__(self) -> None:
        assert len(self.texts) == len(self.segments)
        assert len(self.token_weights) in (0, len(self.token_ids))
        at = 0
        for segment in self.segments:
            assert segment.start == at <= segment.stop, f"segments of {self.id} have a gap or overlap at {at}"
            at = segment.stop
        assert at == len(self.token_ids), f"segments of {self.id} cover {at} of {len(self.token_ids)} ids"


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What one system answered to one test example, kept with all that is needed to score it again."""

    system: str
    """`base` for the untouched model, otherwise the run's name."""
    example_id: str
    key: str
    source: str
    """The last user message's raw input (the sentence to translate), not the instruction around it."""
    reference: str
    raw: str
    """Everything the model wrote."""
    answer: str
    """`raw` after the task's rule has cut what is not the answer."""
    finish_reason: FinishReason
    n_tokens: int
    labels: tuple[str, ...]
    """Pathologies: `empty`, `off_target`, `loop`, `copied`, `truncated`, `leaked_rationale`."""
    tags: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        system: str,
        example: Example,
        generation: Generation,
        *,
        source: str,
        answer: str,
        labels: tuple[str, ...],
    ) -> "Prediction":
        """What a task has read out of a generation."""
        return cls(
            system=system,
            example_id=example.id,
            key=generation.key,
            source=source,
            reference=example.reference,
            raw=generation.text,
            answer=answer,
            finish_reason=generation.finish_reason,
            n_tokens=generation.n_tokens,
            labels=labels,
            tags=dict(example.tags),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """One number with all that says how far to trust it."""

    system: str
    task: str
    metric: str
    group: str
    """A tag's value such as `de-en`, or `macro`: the unweighted mean over the groups."""
    value: float
    low: float
    high: float
    """95 % interval."""
    n: int
    n_failed: int
    """Predictions that could not be had (engine errors); they are scored as empty answers."""
    unit: str
    higher_is_better: bool
    signature: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRecord:
    """What one stage did, in the manifest."""

    stage: str
    status: Literal["started", "finished"]
    settings: Mapping[str, Any]
    inputs: Mapping[str, str] = field(default_factory=dict)
    """Path → sha256."""
    outputs: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    device: str = ""
    started_at: str = ""
    seconds: float = 0.0
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Counts for the report: rows, tokens, rates."""


def pools(segments: Sequence[Segment]) -> list[Origin]:
    """For each segment the origin it is averaged with: a separator with what follows, an end with what it closes."""
    pooled: list[Origin] = [s.origin for s in segments]
    filled = [i for i, s in enumerate(segments) if s.stop > s.start and s.origin not in ("prompt", "separator", "end")]
    for i, segment in enumerate(segments):
        if segment.origin == "separator":
            pooled[i] = next((segments[j].origin for j in filled if j > i), "rationale")
        elif segment.origin == "end":
            pooled[i] = next((segments[j].origin for j in reversed(filled) if j < i), "reference")
    return pooled


def only(generations: Sequence[Generation]) -> Generation:
    """The single generation a method planned for; anything else is a bug of ours."""
    assert len(generations) == 1, f"expected one generation, got {len(generations)}"
    return generations[0]
