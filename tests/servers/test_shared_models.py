"""What radistill writes, others load: adapter and merged model in vLLM, merged model in lm-eval, with equal answers."""

import json
from pathlib import Path
from typing import Any

import pytest

from fakes_engines import environment, run
from radistill import models
from radistill.merge import merge
from radistill.stage_settings import LoraSettings

pytestmark = pytest.mark.servers

QUESTIONS = [
    "Translate into Esperanto: The old dog sees the tree.",
    "What is 17 + 25?",
    "Tell me a story.",
    "Reverse the list: red, blue, green.",
    "Translate into Esperanto: The teacher loves the small house.",
]
IN_VLLM = """
import json, sys
from transformers import AutoTokenizer
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest

def main():
    model, adapter, place, questions = sys.argv[1:]
    tokenizer = AutoTokenizer.from_pretrained(place)
    chats = [[{"role": "user", "content": q}] for q in json.loads(questions)]
    ids = [tokenizer.apply_chat_template(c, add_generation_prompt=True, return_dict=False) for c in chats]
    with_adapter = {"enable_lora": True, "max_lora_rank": 8} if adapter else {}
    engine = LLM(model, tokenizer=place, dtype="float32", enforce_eager=True, max_model_len=512, **with_adapter)
    greedy = SamplingParams(temperature=0.0, max_tokens=32)
    request = LoRARequest("tuned", 1, adapter) if adapter else None
    out = engine.generate([{"prompt_token_ids": i} for i in ids], greedy, lora_request=request)
    print("ANSWERS " + json.dumps([list(o.outputs[0].token_ids) for o in out]))

if __name__ == "__main__":
    main()
"""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An adapter of the pocket model that changes what it says, and the two merged in float32."""
    import torch

    place = tmp_path_factory.mktemp("shared")
    base = models.resolve("pocket")
    settings = LoraSettings(r=8, target_modules=("q_proj", "v_proj", "down_proj"))
    model = models.adapt(models.load(base, dtype="float32"), settings, base_name=str(base.folder), seed=0)
    drawn = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if "lora_B" in name:
                weights.normal_(std=0.1, generator=drawn)
    model.save_pretrained(place / "adapter")
    return place / "adapter", merge(str(place / "adapter"), output=place / "merged", dtype="float32").folder


def in_transformers(model: Any, folder: Path) -> list[list[int]]:
    """Greedy answers, up to and with the token that ends them."""
    import torch
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    found = []
    for question in QUESTIONS:
        chat = [{"role": "user", "content": question}]
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        with torch.inference_mode():
            out = model.generate(
                input_ids=torch.tensor([ids]),
                attention_mask=torch.ones(1, len(ids)),
                do_sample=False,
                max_new_tokens=32,
            )
        found.append(out[0, len(ids) :].tolist())
    return found


def in_vllm(model: Path, adapter: Path | None) -> list[list[int]]:
    tokenizer = models.resolve("pocket").folder if adapter else model
    python = environment("vllm") / "bin" / "python"
    done = run(python, "-c", IN_VLLM, model, adapter or "", tokenizer, json.dumps(QUESTIONS))
    assert done.returncode == 0, done.stderr[-3000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith("ANSWERS "))
    found: list[list[int]] = json.loads(line.removeprefix("ANSWERS "))
    return found


def test_adapter_and_merged_model_say_the_same_in_peft_transformers_and_vllm(shared: tuple[Path, Path]) -> None:
    import torch
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM

    environment("vllm")
    adapter, merged = shared
    base = models.resolve("pocket").folder
    tuned = AutoPeftModelForCausalLM.from_pretrained(str(adapter), dtype=torch.float32).eval()
    expected = in_transformers(tuned, merged)
    with tuned.disable_adapter():
        assert in_transformers(tuned, merged) != expected, "the adapter changes what is said"
    assert in_transformers(AutoModelForCausalLM.from_pretrained(str(merged)).eval(), merged) == expected
    assert in_vllm(merged, None) == expected
    assert in_vllm(base, adapter) == expected


def test_lm_eval_scores_the_merged_model_as_base_and_adapter(
    shared: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed: make env")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    adapter, merged = shared
    rows = [{"question": question, "choices": ["yes", "no"], "label": n % 2} for n, question in enumerate(QUESTIONS)]
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    (tmp_path / "small.yaml").write_text(
        f"""task: small
dataset_path: json
dataset_kwargs: {{data_files: {{test: {tmp_path / "rows.jsonl"}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: choices
doc_to_target: label
metric_list: [{{metric: acc}}]
""",
        encoding="utf-8",
    )
    tasks = TaskManager(include_path=str(tmp_path), include_defaults=False)

    def scored(**model: object) -> list[float]:
        given = {"dtype": "float32", "device": "cpu", "batch_size": 1, **model}
        found = simple_evaluate("hf", model_args=given, tasks=["small"], task_manager=tasks, bootstrap_iters=0)
        samples = found["samples"]["small"]
        return [float(answer[0][0]) for sample in samples for answer in sample["resps"]]

    whole = scored(pretrained=str(merged))
    assert len(whole) == 2 * len(QUESTIONS)
    parts = scored(pretrained=str(models.resolve("pocket").folder), peft=str(adapter))
    assert whole == pytest.approx(parts, abs=1e-4)
