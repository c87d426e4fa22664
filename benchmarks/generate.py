"""Generation: tokens per second of the `transformers` backend against the loop that research code uses.

The rival is `model.generate` with sampling on unsorted, left-padded batches of 8. Same weights, prompts, precision and
limits, one process, one run each in turn, medians. A token counts up to the first stop. Engines that are not measured
here stand as null in the JSON.

    python benchmarks/generate.py [--quick] [--json FILE]
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from radistill import models, seeds
from radistill.backends.base import Generator
from radistill.backends.transformers import Transformers
from radistill.chat import Chat, ChatSettings, load_chat
from radistill.lab.pairs import sentences
from radistill.lab.tokenizer import make_model, make_tokenizer
from radistill.lab.world import WorldSettings, world_of
from radistill.models import Weights
from radistill.records import Message, Request, Sampling
from radistill.runs import versions
from radistill.speaker import Speaker

PLAIN_BATCH = 8


def requests_of(chat: Chat, count: int, sampling: Sampling) -> list[Request]:
    """Prompts of one to a dozen sentences, in no order, as a corpus has them."""
    rng = seeds.generator(0, "benchmark", "lengths")
    texts = iter(sentences(world_of(WorldSettings()), "benchmark", count * 12))
    found = []
    for _ in range(count):
        pairs = [next(texts) for _ in range(int(rng.integers(1, 12)))]
        messages = [Message("user", "Translate:\n" + " ".join(en for en, _ in pairs))]
        opening = chat.opening(messages, " ".join(eo for _, eo in pairs), "\n\n")
        found.append(Request(purpose="rationale", prompt_ids=opening.ids, sampling=sampling))
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


def rate(work: Callable[[], int]) -> float:
    """Tokens per second of one run."""
    started = time.perf_counter()
    tokens = work()
    return tokens / (time.perf_counter() - started)


def measured(folder: Path, *, rows: int, new_tokens: int, repeats: int, batch_size: int) -> dict[str, float]:
    """Median tokens per second of both, run in turn."""
    corpus = [side for pair in sentences(world_of(WorldSettings()), "corpus", 2000) for side in pair]
    tokenizer = make_tokenizer(corpus, vocabulary=2000)
    make_model(folder, tokenizer, hidden=192, layers=4, heads=3, intermediate=384, context=1024, seed=0)
    weights = Weights(name="benchmark", folder=folder, identity="benchmark")
    chat = load_chat(folder, ChatSettings())
    sampling = Sampling(max_new_tokens=new_tokens)
    requests = requests_of(chat, rows, sampling)
    model = models.load(weights, dtype="float32")
    found: dict[str, list[float]] = {"plain": [], "radistill": []}
    with Transformers(dtype="float32", batch_size=batch_size).open(Speaker(weights, chat)) as generator:
        for _ in range(repeats):
            found["plain"].append(rate(lambda: plain(model, chat, requests, sampling)))
            found["radistill"].append(rate(lambda: ours(generator, requests)))
    return {name: statistics.median(rates) for name, rates in found.items()}


def main() -> None:
    """Measure, print a table, write the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="fewer rows, one repeat")
    parser.add_argument("--json", type=Path, help="where the ratios are written")
    given = parser.parse_args()
    size = (
        {"rows": 64, "new_tokens": 48, "repeats": 1} if given.quick else {"rows": 256, "new_tokens": 96, "repeats": 3}
    )
    with tempfile.TemporaryDirectory() as place:
        rates = measured(Path(place) / "model", **size, batch_size=64)
    ratio = rates["radistill"] / rates["plain"]
    for name, value in rates.items():
        print(f"{name:12} {value:10,.0f} tokens/s")
    print(f"{'vs_plain':12} {ratio:10.2f}")
    machine = {"machine": platform.machine(), "device": models.device_name(), **versions()}
    print(", ".join(f"{k} {v}" for k, v in machine.items()))
    if given.json:
        ratios = {"vs_plain": ratio, "vs_vllm": None, "vs_client": None}
        given.json.write_text(json.dumps({"ratios": ratios, "rates": rates, "on": machine}, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
