"""`radistill demo`: the whole pipeline on a small Llama that is made on the spot.

The model is random: it was never taught anything, so what it writes is noise, and nothing here shows that RaDis keeps
an ability. What the demo shows is that every stage works on this machine, and what its report looks like.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from radistill import pipeline, seeds
from radistill.config import RunConfig, config_from
from radistill.errors import RunFolderError
from radistill.files import write_json, write_text
from radistill.models import without_bars
from radistill.pipeline import StageOutcome
from radistill.report import write_report
from radistill.runs import RunFolder

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
NOUNS = {
    "man": ("der", "Mann"), "dog": ("der", "Hund"), "tree": ("der", "Baum"), "king": ("der", "König"),
    "woman": ("die", "Frau"), "cat": ("die", "Katze"), "flower": ("die", "Blume"), "town": ("die", "Stadt"),
    "child": ("das", "Kind"), "house": ("das", "Haus"), "book": ("das", "Buch"), "horse": ("das", "Pferd"),
}  # fmt: skip
ADJECTIVES = {"old": "alt", "small": "klein", "big": "groß", "good": "gut", "new": "neu", "beautiful": "schön"}
VERBS = {"sees": "sieht", "hears": "hört", "finds": "findet", "loves": "liebt", "knows": "kennt"}
ACCUSATIVE = {"der": "den", "die": "die", "das": "das"}


def demo(
    output_dir: Path, *, quick: bool, say: Callable[[str], None], done: Callable[[StageOutcome], None]
) -> list[Path]:
    """Run vanilla and RaDis on a random model and report both; returns the report's files.

    Args:
        output_dir: where everything goes; finished stages found there are reused.
        quick: fewer sentences and steps.
        say: told what is going on.
        done: called after each stage.
    """
    model = output_dir / "random-llama"
    if not model.exists():
        say("making a small Llama with random weights, and sentences to learn from")
        write_sentences(output_dir / "data")
        half_made = output_dir / ".random-llama.part"
        make_model(half_made, corpus=[side for pair in sentences(4000, "corpus") for side in pair])
        half_made.rename(model)
    runs = []
    for method in ("vanilla", "radis"):
        config = _config(output_dir, model, f"{method}-quick" if quick else method, quick=quick)
        say(f"{method}: generate, assemble, train, evaluate, report")
        try:
            pipeline.run(config, done=done)
        except RunFolderError as error:
            raise RunFolderError(
                f"{error}\nIf {output_dir} is of another version's demo, delete it, or name another place with "
                "--output-dir."
            ) from error
        runs.append(RunFolder(Path(config.output_dir)))
    title = "radistill demo: a random model, so its text is noise"
    return write_report(runs, output_dir, margin=0.02, seed=0, title=title)


def sentences(count: int, purpose: str) -> list[tuple[str, str]]:
    """English sentences with their German translation, drawn by rule; equal purposes give equal sentences."""
    rng = seeds.generator(0, "demo", purpose)
    pairs = []
    for _ in range(count):
        subject, thing = (str(w) for w in rng.choice(list(NOUNS), 2, replace=False))
        adjective, verb = str(rng.choice(list(ADJECTIVES))), str(rng.choice(list(VERBS)))
        (article, noun), (of_thing, german_thing) = NOUNS[subject], NOUNS[thing]
        subject_german = f"{article.capitalize()} {ADJECTIVES[adjective]}e {noun}"
        german = f"{subject_german} {VERBS[verb]} {ACCUSATIVE[of_thing]} {german_thing}."
        pairs.append((f"The {adjective} {subject} {verb} the {thing}.", german))
    return pairs


def make_model(
    folder: Path, *, corpus: list[str], hidden: int = 64, layers: int = 2, vocabulary: int = 600, context: int = 256
) -> None:
    """Write a random Llama with a byte-level BPE tokenizer and a ChatML template; always the same bytes."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(corpus, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.chat_template = CHATML
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seeds.number(0, "demo", "weights") % (1 << 32))
        model = LlamaForCausalLM(config)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(str(folder))
    with without_bars():
        model.save_pretrained(str(folder), safe_serialization=True)
    write_json(folder / "generation_config.json", {"eos_token_id": tokenizer.eos_token_id})


def write_sentences(folder: Path) -> None:
    """Write training sentences as aligned lines, and for each direction a test file of sentences not among them."""
    train = sentences(300, "train")
    taught = {side for pair in train for side in pair}
    test = [pair for pair in dict.fromkeys(sentences(400, "test")) if not taught.intersection(pair)]
    write_text(folder / "train.en-de.en", "".join(f"{en}\n" for en, _ in train))
    write_text(folder / "train.en-de.de", "".join(f"{de}\n" for _, de in train))
    for pair in ("en-de", "de-en"):
        rows = [{"translation": {"en": en, "de": de}} for en, de in test]
        write_text(folder / f"test.{pair}.json", json.dumps(rows, ensure_ascii=False))


def _config(output_dir: Path, model: Path, method: str, *, quick: bool) -> RunConfig:
    limit = 120 if quick else 600
    source = {"path": str(output_dir / "data"), "pairs": ["en-de", "de-en"]}
    raw: dict[str, Any] = {
        "name": method,
        "model": str(model),
        "output_dir": str(output_dir / "runs" / method),
        "data": {
            "train": {**source, "limit": limit},
            "test": {**source, "limit": 60 if quick else 200},
            "template": "alma",
        },
        "method": {"name": method.removesuffix("-quick")},
        "generate": {
            "backend": {"name": "transformers", "dtype": "float32"},
            "sampling": {"max_new_tokens": 24},
            "ledger": str(output_dir / "runs" / "ledger"),
        },
        "train": {
            "learning_rate": 3e-3,
            "num_train_epochs": 1 if quick else 6,
            "per_device_train_batch_size": 8,
            "bf16": False,
            "lora": None,
            "logging_steps": 5,
        },
        "evaluate": [{"task": "translation", "max_new_tokens": 32}],
    }
    return config_from(raw)
