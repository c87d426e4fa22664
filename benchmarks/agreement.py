"""Agreement: how many greedy answers are the same, to the last id, in every engine; and why the others are not.

The pocket model in fp32, 200 different prompts: openings of answers and questions, short and long. Each engine that is
there is compared with `transformers`: `vllm` where it is installed, `openai` with a server of --serve-with. Where two
answers part, the model's two most probable tokens are looked at: they are a tie if they lie within 0.001 nats.
With --adapter the model wears a LoRA adapter of random weights, which every engine loads from its folder.

    python benchmarks/agreement.py [--quick] [--adapter] [--serve-with vllm] [--serve-env DIR] [--json FILE]
"""

import argparse
import json
import platform
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from generate import requests_of

from radistill import models
from radistill.backends.base import Backend
from radistill.backends.openai import OpenAI
from radistill.backends.transformers import Transformers
from radistill.backends.vllm import VLLM
from radistill.chat import ChatSettings, load_chat
from radistill.records import Generation, Request, Sampling
from radistill.runs import versions
from radistill.speaker import Speaker
from radistill.stage_settings import LoraSettings

TIE = 1e-3
FP32: dict[str, Any] = {"dtype": "float32"}


@dataclass
class Agreement:
    """Of one engine with `transformers`."""

    prompts: int = 0
    equal: int = 0
    ties: int = 0
    """Of those that differ, the ones that part at a tie."""
    respelled: int = 0
    """Of those that differ, the ones whose text is the same: a server that gives no ids is read by the tokenizer, which
    spells some words in other tokens than the model did."""
    unexplained: list[str] = field(default_factory=list)
    """Keys of the others."""
    failed: int = 0


def answers(backend: Backend, speaker: Speaker, plan: Sequence[Request]) -> list[Generation]:
    """In the order of the plan."""
    with backend.open(speaker) as generator:
        found = {g.key: g for together in generator.answers(plan, {r.key for r in plan}) for g in together}
    return [found[request.key] for request in plan]


def gap(model: Any, ids: Sequence[int]) -> float:
    """Nats between the two tokens that are most probable after these ids."""
    import torch

    with torch.inference_mode():
        logits_V = model(input_ids=torch.tensor([list(ids)])).logits[0, -1].float()
    first, second = torch.log_softmax(logits_V, dim=-1).topk(2).values.tolist()
    return float(first - second)


def compared(model: Any, plan: Sequence[Request], ours: list[Generation], theirs: list[Generation]) -> Agreement:
    """How far two engines agree."""
    found = Agreement(prompts=len(plan))
    for request, a, b in zip(plan, ours, theirs, strict=True):
        if b.finish_reason == "error":
            found.failed += 1
        elif (a.token_ids, a.finish_reason) == (b.token_ids, b.finish_reason):
            found.equal += 1
        elif a.text == b.text:
            found.respelled += 1
        else:
            common = next((i for i, (x, y) in enumerate(zip(a.token_ids, b.token_ids, strict=False)) if x != y), None)
            same = min(a.n_tokens, b.n_tokens) if common is None else common
            if gap(model, request.prompt_ids + a.token_ids[:same]) <= TIE:
                found.ties += 1
            else:
                found.unexplained.append(request.key)
    return found


def adapted(folder: Path) -> models.Weights:
    """The pocket model with an adapter that changes what it says, in PEFT's format."""
    import torch

    base = models.resolve("pocket")
    settings = LoraSettings(r=8, target_modules=("q_proj", "v_proj", "down_proj"))
    model = models.adapt(models.load(base, dtype="float32"), settings, base_name=str(base.folder), seed=0)
    drawn = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if "lora_B" in name:
                weights.normal_(std=0.1, generator=drawn)
    model.save_pretrained(folder)
    return models.resolve(str(folder))


def engines(given: argparse.Namespace, place: Path) -> dict[str, Backend]:
    """Those that are there."""
    found: dict[str, Backend] = {}
    if find_spec("vllm"):
        found["vllm"] = VLLM(**FP32, engine_args={"enforce_eager": True})
    if given.serve_with:
        vllm = ("--dtype", "float32", "--enforce-eager") if given.serve_with == "vllm" else ("--dtype", "float32")
        forms = ("ids", "text") if given.serve_with == "vllm" else ("text",)
        for form in forms:
            found[f"{given.serve_with} server, {form}"] = OpenAI(
                serve_with=given.serve_with,
                serve_env=given.serve_env,
                serve_args=vllm,
                serve_log=str(place / "server.log"),
                form=form,
            )
    return found


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="24 prompts")
    parser.add_argument("--adapter", action="store_true", help="with a LoRA adapter")
    parser.add_argument("--serve-with", choices=("vllm", "transformers"), help="start a server of this kind")
    parser.add_argument("--serve-env", metavar="DIR", help="environment the server is installed in")
    parser.add_argument("--json", type=Path, help="where the counts are written")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        compare(given, Path(place))


def compare(given: argparse.Namespace, place: Path) -> None:
    """Ask all, print a table, write the counts."""
    plain = models.resolve("pocket")
    weights = adapted(place / "adapter") if given.adapter else plain
    speaker = Speaker(weights, load_chat(plain.tokenizer_folder, ChatSettings()), is_untouched=not given.adapter)
    wanted = 24 if given.quick else 200
    drawn = requests_of(speaker.chat, wanted + 20, Sampling(temperature=0.0, max_new_tokens=96))
    plan = list({request.key: request for request in drawn}.values())[:wanted]
    model = models.load(weights, dtype="float32")
    ours = answers(Transformers(**FP32, batch_size=64), speaker, plan)
    if given.adapter:
        bare = answers(Transformers(**FP32, batch_size=64), replace(speaker, weights=plain), plan)
        changed = sum(a.token_ids != b.token_ids for a, b in zip(ours, bare, strict=True))
        print(f"the adapter changes {changed} of {len(plan)} answers")
        assert changed > len(plan) / 2, "else nothing is shown"
    found = {
        name: compared(model, plan, ours, answers(backend, speaker, plan))
        for name, backend in engines(given, place).items()
    }
    for name, told in found.items():
        print(
            f"{name:28} {told.equal:4} of {told.prompts} equal, {told.ties} part at a tie, "
            f"{told.respelled} are spelt in other tokens, {len(told.unexplained)} unexplained, {told.failed} failed"
        )
    machine = {"machine": platform.machine(), "device": models.device_name(), **versions()}
    if given.json:
        told_all = {"engines": {name: asdict(told) for name, told in found.items()}, "on": machine}
        given.json.write_text(json.dumps(told_all, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
