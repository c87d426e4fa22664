"""The run file that `radistill init` writes: the settings a user changes first, with a word on each."""

import re
import shlex
import unicodedata
from pathlib import Path

TEMPLATE = """\
# A radistill run. `radistill check {file}` finds what is wrong, `radistill run {file}` does it all.
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


def run_file(path: Path, *, model: str, data: str, pair: str) -> str:
    """The text of a run file; values are quoted where YAML needs it.

    Args:
        path: where it will be written; the run is named after it.
        model: hub id or folder.
        data: folder or file with the examples.
        pair: direction of translation.

    Raises:
        DataError: the pair is none.
    """
    from radistill.formats.base import Pair

    file = shlex.quote(path.name) if path.name.isprintable() else "THIS_FILE"
    return TEMPLATE.format(
        file=file,
        name=_quoted(run_name(path.stem)),
        model=_quoted(model),
        data=_quoted(data),
        pair=_quoted(str(Pair.of(pair))),
    )


def run_name(stem: str) -> str:
    """A valid name for a run, as near as may be to that of its file."""
    # `base` is what reports call the untouched model.
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", stem):
        return "base-run" if stem == "base" else stem
    plain = unicodedata.normalize("NFKD", stem).encode("ascii", "ignore").decode()
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", plain).strip("._-")
    return run_name(name) if name else "run"


def _quoted(value: str) -> str:
    """The value as YAML that reads it back as this text: `2024` and `null` are text only in quotes."""
    import yaml

    if re.fullmatch(r"[^\W_][\w./-]*", value) and yaml.safe_load(value) == value:
        return value
    return str(yaml.safe_dump(value, default_style='"', allow_unicode=True, width=1 << 20)).strip()
