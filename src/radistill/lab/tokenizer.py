"""The pocket model before it has learned anything: its tokenizer, its chat template, its random weights."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from radistill import models, seeds
from radistill.files import write_json

END, USER, ASSISTANT, SYSTEM = "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"
TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def make_tokenizer(corpus: Iterable[str], *, vocabulary: int) -> Any:
    """A byte-level BPE tokenizer with single digits, trained on the corpus; the same corpus gives the same one."""
    from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers, trainers
    from tokenizers import models as kinds
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(kinds.BPE())
    # Digits stand alone, or sums could not be learned.
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"\d"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END, USER, ASSISTANT, SYSTEM],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(corpus, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token=END, pad_token=END)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def make_model(
    folder: Path, tokenizer: Any, *, hidden: int, layers: int, heads: int, intermediate: int, context: int, seed: int
) -> None:
    """Write a Llama with random weights in float32, with its tokenizer; always the same bytes."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=context,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        tie_word_embeddings=True,
        dtype="float32",
    )
    with torch.random.fork_rng():
        torch.manual_seed(seeds.number(seed, "lab", "weights") % (1 << 32))
        model = LlamaForCausalLM(config)
    models.save(model, tokenizer, folder)
    write_json(folder / "generation_config.json", {"eos_token_id": tokenizer.eos_token_id})
