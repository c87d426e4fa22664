"""Generation: tokens per second of radistill's backends against the loops that people write.

The rivals, on the same weights, prompts and limits, run in turn in one process each:
  vs_plain   `transformers` against `model.generate` with sampling on unsorted, left-padded batches of 8 (research code)
  vs_vllm    `vllm` with the ledger against vLLM's own `LLM.generate`       (where vLLM is installed)
  vs_client  `openai` against a bare asynchronous client of the same server that keeps nothing  (with --server URL)
The rows are the pocket model's own: rationales of sentences and of paragraphs, questions of all abilities, long and
short, until the model stops by itself. A token counts up to the first stop. What is not measured is null in the JSON.

    python benchmarks/generate.py [--quick] [--only RATIO] [--server URL] [--json FILE]
"""

import argparse
import asyncio
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from radistill import models, seeds
from radistill.ask import ask
from radistill.backends.base import Generator
from radistill.backends.openai import OpenAI, OpenAIGenerator
from radistill.backends.transformers import Transformers
from radistill.backends.vllm import VLLM, for_cpus
from radistill.chat import Chat, ChatSettings, load_chat
from radistill.lab.pairs import sentences
from radistill.lab.world import WorldSettings, world_of
from radistill.ledger import Ledger, open_ledger
from radistill.records import Message, Request, Sampling
from radistill.runs import versions
from radistill.speaker import Speaker
from radistill.tasks.lab import Lab

RATIOS = {
    "vs_plain": ("radistill", "plain"),
    "vs_vllm": ("radistill_vllm", "vllm"),
    "vs_client": ("radistill_server", "client"),
}
"""Ratio → whose tokens per second are divided by whose."""
PLAIN_BATCH = 8
DTYPE: Literal["auto"] = "auto"
"""As the weights are stored, for both."""
ABILITIES = ("knowledge", "definitions", "rewording", "counting", "lists", "strings", "formats", "stories", "refusal")


def requests_of(chat: Chat, count: int, sampling: Sampling) -> list[Request]:
    """Openings of answers and questions, in no order, as a corpus has them."""
    rng = seeds.generator(0, "benchmark", "lengths")
    texts = iter(sentences(world_of(WorldSettings()), "benchmark", count * 12))
    questions = [e for name in ABILITIES for e in Lab(ability=name, items=200).examples() or ()]
    found = []
    for n in range(count):
        if n % 3 == 0:
            ids = chat.prompt(questions[int(rng.integers(len(questions)))].messages).ids
            found.append(Request(purpose="response", prompt_ids=ids, sampling=sampling))
            continue
        pairs = [next(texts) for _ in range(1 if n % 3 == 1 else int(rng.integers(2, 12)))]
        text = " ".join(en for en, _ in pairs)
        messages = (Message("user", f"Translate from English into Esperanto: {text}"),)
        opening = chat.opening(messages, " ".join(eo for _, eo in pairs), "\n\n")
        found.append(Request(purpose="rationale", prompt_ids=opening.ids, messages=messages, sampling=sampling))
    return found


def plain(model: Any, chat: Chat, requests: list[Request], sampling: Sampling) -> int:
    """The usual loop; returns the tokens written."""
    import torch

    written = 0
    for start in range(0, len(requests), PLAIN_BATCH):
        rows = [list(r.prompt_ids) for r in requests[start : start + PLAIN_BATCH]]
        longest = max(map(len, rows))
        ids = torch.tensor([[chat.end_id] * (longest - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
        out = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            do_sample=True,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_new_tokens=sampling.max_new_tokens,
            eos_token_id=list(chat.stop_ids),
            pad_token_id=chat.end_id,
        )
        for row in out[:, longest:].tolist():
            written += next((i for i, token in enumerate(row) if token in chat.stop_ids), len(row))
    return written


def ours(generator: Generator, requests: list[Request]) -> int:
    """The backend, as in a run."""
    lacking = {request.key for request in requests}
    return sum(a.n_tokens for together in generator.answers(requests, lacking) for a in together)


def _kept(requests: list[Request], generator: Generator, ledger: Ledger) -> int:
    return ask(requests, generator, ledger, title="radistill").tokens


def rate(work: Callable[[], int]) -> float:
    """Tokens per second of one run."""
    started = time.perf_counter()
    tokens = work()
    return tokens / (time.perf_counter() - started)


def against_plain(speaker: Speaker, size: "Size") -> dict[str, float]:
    """Median tokens per second of both, run in turn."""
    sampling = Sampling(max_new_tokens=size.new_tokens)
    requests = requests_of(speaker.chat, size.rows, sampling)
    model = models.load(speaker.weights, dtype=DTYPE)
    found: dict[str, list[float]] = {"plain": [], "radistill": []}
    with Transformers(dtype=DTYPE, batch_size=size.batch).open(speaker) as generator:
        for _ in range(size.repeats):
            found["plain"].append(rate(lambda: plain(model, speaker.chat, requests, sampling)))
            found["radistill"].append(rate(lambda: ours(generator, requests)))
    return {name: statistics.median(rates) for name, rates in found.items()}


def against_vllm(speaker: Speaker, size: "Size") -> dict[str, float]:
    """`LLM.generate` as people call it, and the backend, with and without a seed for each request."""
    from vllm import LLM, SamplingParams

    sampling = Sampling(max_new_tokens=size.new_tokens)
    requests = requests_of(speaker.chat, 3 * size.rows, sampling)  # an engine is through with fewer in a few seconds
    prompts = [{"prompt_token_ids": list(r.prompt_ids)} for r in requests]
    params = SamplingParams(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        max_tokens=sampling.max_new_tokens,
        stop_token_ids=list(speaker.chat.stop_ids),
    )
    # Both engines are there at once, and asked in turn. On CPUs the same part of vLLM has to be left out for both.
    backends = {
        "radistill_vllm": VLLM(gpu_memory_utilization=0.25, engine_args={"enforce_eager": True}),
        "radistill_vllm_unseeded": VLLM(gpu_memory_utilization=0.25, engine_args={"enforce_eager": True}, seeded=False),
    }
    theirs = LLM(
        model=str(speaker.weights.folder),
        gpu_memory_utilization=0.25,
        enforce_eager=True,
        enable_prefix_caching=True,
        **for_cpus(),
    )

    def rival() -> int:
        found = theirs.generate(prompts, params, use_tqdm=False)
        stops = set(speaker.chat.stop_ids)
        return sum(sum(token not in stops for token in out.outputs[0].token_ids) for out in found)

    found: dict[str, list[float]] = {"vllm": [], **{name: [] for name in backends}}
    with tempfile.TemporaryDirectory() as place, ExitStack() as opened:
        generators = {name: opened.enter_context(backend.open(speaker)) for name, backend in backends.items()}
        for repeat in range(size.repeats):
            found["vllm"].append(rate(rival))
            for name, generator in generators.items():
                addressed = [request.addressed_to(generator.identity) for request in requests]
                with open_ledger(Path(place) / f"{name}{repeat}") as ledger:
                    found[name].append(rate(partial(_kept, addressed, generator, ledger)))
    return {name: statistics.median(rates) for name, rates in found.items()}


def against_client(speaker: Speaker, size: "Size", url: str) -> dict[str, float]:
    """The same requests to the same server, by the backend and by a client that keeps nothing."""
    requests = requests_of(speaker.chat, size.rows, Sampling(max_new_tokens=size.new_tokens))
    found: dict[str, list[float]] = {"client": [], "radistill_server": []}
    with OpenAI(base_url=(url,)).open(speaker) as generator, tempfile.TemporaryDirectory() as place:
        assert isinstance(generator, OpenAIGenerator)
        addressed = [request.addressed_to(generator.identity) for request in requests]
        bodies = [generator.form.body(request, 0) for request in addressed]
        for repeat in range(size.repeats):
            found["client"].append(rate(lambda: asyncio.run(bare_client(f"{url}{generator.form.path}", bodies))))
            with open_ledger(Path(place) / str(repeat)) as ledger:
                found["radistill_server"].append(rate(partial(_kept, addressed, generator, ledger)))
    return {name: statistics.median(rates) for name, rates in found.items()}


async def bare_client(url: str, bodies: list[dict[str, Any]]) -> int:
    """All at once, 256 on their way, nothing kept."""
    import httpx2

    slots = asyncio.Semaphore(256)

    async def one(http: httpx2.AsyncClient, body: dict[str, Any]) -> int:
        async with slots:
            answer = (await http.post(url, json=body)).json()
        written = answer["choices"][0].get("token_ids")
        return len(written) if written is not None else int(answer["usage"]["completion_tokens"])

    limits = httpx2.Limits(max_connections=256, max_keepalive_connections=256)
    async with httpx2.AsyncClient(timeout=600, limits=limits, trust_env=False) as http:
        return sum(await asyncio.gather(*(one(http, body) for body in bodies)))


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    rows: int
    new_tokens: int
    repeats: int
    batch: int


def main() -> None:
    """Measure, print a table, write the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="fewer rows, one repeat")
    parser.add_argument("--json", type=Path, help="where the ratios are written")
    parser.add_argument("--server", metavar="URL", help="of a server with the pocket model: http://localhost:8000/v1")
    parser.add_argument("--only", choices=RATIOS, help="measure this ratio alone; the file keeps the others")
    given = parser.parse_args()
    size = Size(96, 128, 1, 64) if given.quick else Size(768, 256, 3, 64)
    weights = models.resolve("pocket")
    speaker = Speaker(weights, load_chat(weights.tokenizer_folder, ChatSettings()))
    rates: dict[str, float] = {}
    if given.only in (None, "vs_plain"):
        rates |= against_plain(speaker, size)
    if given.only in (None, "vs_vllm") and find_spec("vllm"):
        rates |= against_vllm(speaker, size)
    if given.only in (None, "vs_client") and given.server:
        rates |= against_client(speaker, size, given.server)
    ratios = {name: rates[ours] / rates[theirs] if ours in rates else None for name, (ours, theirs) in RATIOS.items()}
    for name, value in rates.items():
        print(f"{name:18} {value:10,.0f} tokens/s")
    for name, ratio in ratios.items():
        print(f"{name:18} {'-' if ratio is None else f'{ratio:.2f}':>10}")
    machine = {"machine": platform.machine(), "device": models.device_name(), **versions()}
    print(", ".join(f"{k} {v}" for k, v in machine.items()))
    if given.json:
        measured = {name: machine for name, ratio in ratios.items() if ratio is not None}
        found: dict[str, Any] = {"ratios": ratios, "rates": rates, "on": measured}
        if given.only and given.json.exists():
            before = json.loads(given.json.read_text(encoding="utf-8"))
            found["ratios"] = {**before["ratios"], given.only: ratios[given.only]}
            found["rates"] = before["rates"] | rates
            found["on"] = before["on"] | measured
        given.json.write_text(json.dumps(found, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
