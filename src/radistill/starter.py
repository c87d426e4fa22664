"""The run file that `radistill init` writes: the settings a user changes first, with a word on each."""

import json

TEMPLATE = """\
# A radistill run. `radistill check {name}.yaml` finds what is wrong, `radistill run {name}.yaml` does it all.
# All settings with their meaning: `radistill schema`, `radistill list`.
name: {name}
model: {model}             # hub id or folder of a chat model
seed: 0
data:
  task: translation
  train: {{path: {data}, pairs: [{pair}], limit: null}}
  test: {{path: {data}, split: test, pairs: [{pair}], limit: null}}
method: {{name: radis, rationale_weight: 1.0, separator: "\\n\\n"}}
generate:
  backend: {{name: transformers, batch_size: 32}}
  sampling: {{temperature: 0.7, top_p: 0.95, max_new_tokens: 512}}
train:
  learning_rate: 1.0e-4
  num_train_epochs: 1
  per_device_train_batch_size: 8
  gradient_accumulation_steps: 4
  bf16: true
  lora: {{r: 16, alpha: 32, dropout: 0.05, target_modules: all-linear}}   # null = full fine-tuning
evaluate:
  - {{task: translation, metrics: [bleu, chrf]}}
"""


def run_file(*, name: str, model: str, data: str, pair: str) -> str:
    """The text of a run file; values are quoted where YAML needs it."""
    return TEMPLATE.format(name=name, model=_quoted(model), data=_quoted(data), pair=pair)


def _quoted(value: str) -> str:
    plain = all(c.isalnum() or c in "._-/" for c in value) and value[:1].isalnum()
    return value if plain else json.dumps(value, ensure_ascii=False)
