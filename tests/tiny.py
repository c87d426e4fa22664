"""A small random Llama with sentences to learn from, for tests of the machinery: what it writes is noise."""

import json
from pathlib import Path

from radistill import seeds
from radistill.files import write_json, write_text
from radistill.models import without_bars

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
