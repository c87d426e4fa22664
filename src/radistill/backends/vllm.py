"""Text from vLLM's engine in this process: the fastest way on GPUs, without a server.

Ids in, ids out, prefix caching on: prompts that begin alike (a system message, the same source) are read once. The
engine works in processes of its own; what it has answered is committed while it goes on.

Determinism: each answer is drawn with a seed made of the request's key and its number, which vLLM keeps to as far as
its batches allow. Every key is stored exactly once, whatever the engine does.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, field_validator

from radistill.backends import _asking as asking
from radistill.backends._lora import rank_of
from radistill.backends.base import Backend, Flowing, Generator, Window
from radistill.errors import BackendError, did_you_mean
from radistill.records import Generation, Request
from radistill.speaker import Speaker

if TYPE_CHECKING:
    from radistill.logprobs import LogProbs

IN_FLIGHT = 2048
"""So many answers are at least asked for at once, more than an engine works on, so that it never waits."""
OURS = ("model", "tokenizer", "skip_tokenizer_init", "trust_remote_code", "enable_lora", "enable_prefix_caching")
"""Arguments of the engine that this backend sets itself."""
ROOM = frozenset({"max_num_seqs", "max_num_batched_tokens", "kv_cache_memory_bytes", "cpu_offload_gb", "download_dir"})
"""Arguments of the engine that change no answer."""
NOT_INSTALLED = (
    "generate.backend: vllm needs vLLM in the same environment, and it is not installed there: pip install "
    "'radistill[vllm]'. Or let radistill start a server from an environment of its own: radistill generate … "
    "--serve-with vllm."
)


class VLLM(Backend):
    """vLLM's offline engine, in the environment that radistill runs in."""

    speed_only: ClassVar[frozenset[str]] = frozenset({"gpu_memory_utilization", "data_parallel_size"})

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """`auto`: as the weights are stored."""
    tensor_parallel_size: int = Field(1, ge=1)
    """So many GPUs share each layer."""
    pipeline_parallel_size: int = Field(1, ge=1)
    """So many GPUs, or groups of them, share the layers."""
    data_parallel_size: int = Field(1, ge=1)
    """So many copies of the model work side by side."""
    gpu_memory_utilization: float | None = Field(None, gt=0, le=1)
    """Share of a GPU's memory that the engine takes; null = vLLM's choice."""
    max_model_len: int | None = Field(None, ge=1)
    """Longest prompt and answer together, in tokens; null = the model's context."""
    seeded: bool = True
    """Whether each answer is drawn with a seed of its own. Without seeds vLLM is faster on some devices."""
    engine_args: dict[str, Any] = Field(default_factory=dict)
    """Anything else that vLLM's engine takes, by vLLM's name: `{quantization: fp8, max_num_seqs: 512}`."""

    @field_validator("engine_args")
    @classmethod
    def _not_ours(cls, given: dict[str, Any]) -> dict[str, Any]:
        for name in given:
            if name in cls.model_fields:
                raise ValueError(f"{name} is a setting of its own: set generate.backend.{name}")
            if name in OURS:
                raise ValueError(f"{name} is set by radistill and cannot be given")
        return given

    @property
    def telling(self) -> dict[str, Any]:
        """Without the engine's arguments that are about room and speed alone."""
        given = super().telling
        return given | {"engine_args": {k: v for k, v in given["engine_args"].items() if k not in ROOM}}

    def missing(self) -> str | None:
        """VLLM itself."""
        return None if find_spec("vllm") else NOT_INSTALLED

    @contextmanager
    def open(self, speaker: Speaker) -> Iterator[Generator]:
        """Start the engine; end its processes on exit.

        Raises:
            BackendError: vLLM is not installed, or cannot be started with this model and these settings.
        """
        with _guarded():
            yield from self._opened(speaker)

    def _opened(self, speaker: Speaker) -> Iterator[Generator]:
        generator = VLLMGenerator(self, speaker, _started(self, speaker))
        with generator.loop:
            try:
                yield generator
            finally:
                generator.loop.run(generator.close())


@dataclass
class VLLMGenerator(Flowing):
    """See `VLLM`."""

    settings: VLLM
    speaker: Speaker
    engine: Any
    loop: asking.EventLoop = field(default_factory=asking.EventLoop)

    def __post_init__(self) -> None:
        self._numbers = count()
        model = self.engine.model_config
        self.context = int(model.max_model_len)
        """Longest prompt and answer together."""
        self.vocabulary = int(model.get_vocab_size())
        self.adapter = _adapter(self.speaker)

    async def close(self) -> None:
        """End the engine, in the loop that its tasks run in."""
        self.engine.shutdown()
        self.engine = None

    @property
    def identity(self) -> str:
        """Weights, engine, precision, whatever else the engine was told, and where an answer ends."""
        precision = str(self.engine.model_config.dtype).removeprefix("torch.")
        arguments = self.settings.telling["engine_args"]
        told = [json.dumps(arguments, sort_keys=True)] if arguments else []
        drawn = [] if self.settings.seeded else ["unseeded"]
        ends = (f"context {self.context}", f"stops {list(self.speaker.chat.stop_ids)}")
        return "|".join((self.speaker.weights.identity, "vllm", precision, *told, *drawn, *ends))

    def flow(self, windows: Iterator[Window]) -> Iterator[Sequence[Generation]]:
        """See `Flowing.flow`."""
        at_once = int(self.engine.scheduler_config.max_num_seqs) * self.settings.data_parallel_size
        return self.loop.answers(windows, max(IN_FLIGHT, 4 * at_once), self._answers)

    async def _answers(self, request: Request) -> list[Generation]:
        if request.purpose == "score":
            return [await self._scored(request)]
        # Each of several by itself: they have seeds of their own.
        return [await self._answer(request, index) for index in range(request.sampling.n)]

    async def _answer(self, request: Request, index: int) -> Generation:
        from vllm import SamplingParams

        read = len(request.prompt_ids)
        if read >= self.context:
            reason = f"{read} prompt tokens leave no room in a context of {self.context}"
            return asking.failed(request, index, reason)
        sampling = request.sampling
        params = SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p if sampling.temperature else 1.0,
            max_tokens=min(sampling.max_new_tokens, self.context - read),
            seed=asking.seed_of(request, index) if self.settings.seeded and sampling.temperature else None,
            stop_token_ids=list(self.speaker.chat.stop_ids),
            ignore_eos=True,  # what ends an answer is in the stop ids; the model's own list may hold less or more
            detokenize=False,
            output_kind=_final_only(),
        )
        out = await self._asked(request, params)
        if isinstance(out, str):
            return asking.failed(request, index, out)
        ids = tuple(out.outputs[0].token_ids)
        return asking.written(self.speaker.chat, request, index, ids)

    async def _scored(self, request: Request) -> Generation:
        from vllm import SamplingParams

        size = len(request.prompt_ids)
        if size >= self.context:
            return asking.failed(request, 0, f"{size} tokens leave no room in a context of {self.context}")
        top_k = min(request.top_k, self.vocabulary)
        params = SamplingParams(
            temperature=0.0,
            max_tokens=1,
            prompt_logprobs=top_k,
            flat_logprobs=True,
            detokenize=False,
            output_kind=_final_only(),
        )
        out = await self._asked(request, params)
        if isinstance(out, str):
            return asking.failed(request, 0, out)
        made = Generation(key=request.key, index=0, token_ids=(), text="", finish_reason="stop")
        return replace(made, logprobs=_logprobs(out.prompt_logprobs, top_k))

    async def _asked(self, request: Request, params: Any) -> Any:
        """What the engine gives at last; a text that says why it does not, if it is the request that is at fault.

        Raises:
            BackendError: the engine is lost.
        """
        from vllm.v1.engine.exceptions import EngineDeadError

        prompt = {"prompt_token_ids": list(request.prompt_ids)}
        found = None
        try:
            stream = self.engine.generate(prompt, params, str(next(self._numbers)), lora_request=self.adapter)
            async for out in stream:
                found = out
        except EngineDeadError as error:
            raise BackendError(
                "vLLM's engine has died; what it said stands above. What was written is kept: run the same command "
                "again."
            ) from error
        except Exception as error:  # one request that vLLM refuses, by errors of many kinds, must not stop the others
            return f"vLLM: {error.__cause__ or error}"
        reason = found.outputs[0].finish_reason if found is not None else None
        return found if reason in ("stop", "length") else f"vLLM ended it because of {reason!r}"


@contextmanager
def _guarded() -> Iterator[None]:
    """Whatever ends this process, the engine's processes end with it: alone they would go on, and fill a GPU."""
    import psutil

    others = [str(child.pid) for child in psutil.Process().children(recursive=True)]
    command = [sys.executable, "-m", "radistill.backends._watch", "--but", *others]
    guard = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    assert guard.stdin is not None
    try:
        yield
        guard.stdin.write(b"well")  # the engine has ended by itself
    finally:
        with suppress(BrokenPipeError):
            guard.stdin.close()
        guard.wait()


def _started(settings: VLLM, speaker: Speaker) -> Any:
    # Nothing phones home; and what vLLM tells about its start is for those who ask for it.
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    try:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.usage.usage_lib import UsageContext
        from vllm.v1.engine.async_llm import AsyncLLM
    except ImportError as error:
        raise BackendError(settings.missing() or f"vLLM cannot be loaded: {error}") from error
    arguments = _arguments(settings, speaker)
    known = AsyncEngineArgs.__dataclass_fields__
    for name in arguments:
        if name not in known:
            raise BackendError(
                f"generate.backend.engine_args.{name}: this vLLM has no such argument.{did_you_mean(name, known)}"
            )
    try:
        # Its limits on batches hang on what it is used for; by default they are the smallest.
        return AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments), usage_context=UsageContext.LLM_CLASS)
    except (ValueError, RuntimeError, OSError, TypeError, NotImplementedError) as error:
        raise BackendError(
            f"vLLM cannot be started with {speaker.weights.name}: {error}\nIf memory does not suffice, lower "
            "generate.backend.max_model_len or gpu_memory_utilization, or use more GPUs (tensor_parallel_size)."
        ) from error


def _arguments(settings: VLLM, speaker: Speaker) -> dict[str, Any]:
    named = settings.model_dump(exclude={"engine_args", "seeded"}, exclude_none=True)
    arguments: dict[str, Any] = {
        **named,
        "model": str(speaker.weights.folder),
        "skip_tokenizer_init": True,  # ids go in and come out
        "trust_remote_code": speaker.trust_remote_code,
        "enable_prefix_caching": True,
        "max_logprobs": -1,  # as many as labels ask for
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
        **for_cpus(),
        **_lora(speaker.weights.adapter),
    }
    return arguments | settings.engine_args


def for_cpus() -> Mapping[str, Any]:
    """Arguments that vLLM needs where it runs on CPUs."""
    from vllm.platforms import current_platform

    # On CPUs the engine of vLLM 0.32 dies of a seeded prompt that is read in two steps.
    return {"enable_chunked_prefill": False} if current_platform.is_cpu() else {}


def _lora(adapter: Path | None) -> Mapping[str, Any]:
    return {} if adapter is None else {"enable_lora": True, "max_loras": 1, "max_lora_rank": rank_of(adapter)}


def _adapter(speaker: Speaker) -> Any:
    if speaker.weights.adapter is None:
        return None
    from vllm.lora.request import LoRARequest

    return LoRARequest("adapter", 1, str(speaker.weights.adapter))


def _final_only() -> Any:
    from vllm.sampling_params import RequestOutputKind

    return RequestOutputKind.FINAL_ONLY


def _logprobs(flat: Any, top_k: int) -> "LogProbs":
    """Of vLLM's flat form: at each place but the first the id that stands there, then the `top_k` most probable."""
    import numpy as np

    from radistill.logprobs import LogProbs

    size = len(flat.start_indices)
    at_T = np.asarray(flat.start_indices[1:], dtype=np.int64)
    values, ids = np.asarray(flat.logprobs, dtype=np.float32), np.asarray(flat.token_ids, dtype=np.int32)
    given_T = np.zeros(size, np.float32)
    top_ids_TK, top_values_TK = np.full((size, top_k), -1, np.int32), np.zeros((size, top_k), np.float16)
    if size > 1:
        given_T[1:] = values[at_T]
        places_TK = at_T[:, None] + 1 + np.arange(top_k)
        top_ids_TK[1:], top_values_TK[1:] = ids[places_TK], values[places_TK]
    return LogProbs(given_T, top_ids_TK, top_values_TK)
