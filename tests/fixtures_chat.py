"""Small tokenizers and chat templates in the shapes of well-known chat models, made on the spot without any hub.

Vocabularies are written by hand, so that the merges a test is about are known to be there: `.` + newlines, `]` + `(`,
three newlines, and whole words with and without the blank before them.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from radistill.chat import Chat, ChatSettings
from radistill.records import Example, Message, Origin, Span

WORDS = (
    "](", "]H", "]D", ">\n", ">H", ":H", " the", "the", " Hello", "Hello", " Good", "Good", " house", "house", " is",
    " Das", "Das", " Haus", "Haus", " ist", " Translate", "Translate", " into", " English", " Note", "Note", " word",
    "user", "assistant", "model", "INST", " 1", "12", "..", "...", ' "', '."', " ##", " (", "  ", "   ", ": ",
)  # fmt: skip
"""Merges that every vocabulary here holds."""
NEWLINES = (".\n", ".\n\n", "]\n", "]\n\n", "!\n\n", '"\n\n', ":\n\n", "\n\n", "\n\n\n")
"""Merges of byte-level vocabularies; those of SentencePiece hold no newline."""
LETTERS = "".join(chr(i) for i in range(0x21, 0x7F)) + "äöüßÄÖÜéñ«»„“”’–…你好世界шлюз"
GPT4_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
ALTERNATE = (
    "{% if (turn['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
)
CHATML_TURNS = (
    "{% for turn in messages %}{{ '<|im_start|>' + turn.role + '\n' + turn.content + '<|im_end|>\n' }}{% endfor %}"
)
CHATML_PROMPT = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
CHATML = CHATML_TURNS + CHATML_PROMPT


@dataclass(frozen=True)
class Imitation:
    """One model's habits. `special` and `added` are tokens beside BOS, EOS and unknown."""

    raw: Callable[[Sequence[str | AddedToken]], Tokenizer]
    template: str
    bos: str | None
    eos: str | None
    end: str
    """The end-of-turn."""
    lead: str = ""
    """White space between generation prompt and answer."""
    special: tuple[str | AddedToken, ...] = ()
    plain: tuple[str, ...] = ()
    """Added tokens that are not special."""
    adds: tuple[bool, bool] = (False, False)
    """Whether the tokenizer puts BOS before, EOS after any text by itself."""
    system: bool = True
    written: str | None = None
    """What the ids spell before the answer where the tokenizer has a mind of its own; None = the lead."""
    template_kwargs: dict[str, Any] = field(default_factory=dict)

    def tokenizer(self) -> Any:
        """A new fast tokenizer with the template."""
        names = [name for name in (self.bos, self.eos) if name]
        raw = self.raw([*dict.fromkeys(names), *self.special])
        raw.add_tokens([AddedToken(word, special=False, normalized=False) for word in self.plain])
        before, after = (name if add else None for add, name in zip(self.adds, (self.bos, self.eos), strict=True))
        if before or after:
            single = " ".join(filter(None, [before, "$A", after]))
            ids = [(name, raw.token_to_id(name)) for name in {before, after} if name]
            template = processors.TemplateProcessing(single=single, special_tokens=ids)
            kept = [raw.post_processor] if raw.post_processor else []
            raw.post_processor = processors.Sequence([*kept, template])
        unknown = "<unk>" if raw.token_to_id("<unk>") is not None else None
        fast: Any = PreTrainedTokenizerFast
        made = fast(tokenizer_object=raw, bos_token=self.bos, eos_token=self.eos, unk_token=unknown)
        made.chat_template = self.template
        return made

    def chat(self, **settings: Any) -> Chat:
        """The chat of a new tokenizer."""
        chosen = ChatSettings(**{"template_kwargs": self.template_kwargs, **settings})
        return Chat(tokenizer=self.tokenizer(), settings=chosen, name="models/imitation")


def merges_of(words: Sequence[str], vocabulary: list[str]) -> list[tuple[str, str]]:
    """Merges that build each word from the left; what they make is added to the vocabulary."""
    merges: dict[tuple[str, str], None] = {}
    known = dict.fromkeys(vocabulary)
    for word in words:
        for i in range(1, len(word)):
            merges[word[:i], word[i]] = None
            known[word[: i + 1]] = None
    vocabulary[:] = known
    return list(merges)


def sentencepiece(special: Sequence[str | AddedToken], *, prepend: str, newlines: bool = False) -> Tokenizer:
    """BPE over whole texts, `▁` for a blank, bytes for what is not in the vocabulary.

    Args:
        special: tokens beside <unk>.
        prepend: who writes the dummy blank: `first` or `always` (Metaspace), `normalizer` (legacy files), `never`.
        newlines: whether the vocabulary holds the newline, as Gemma's does.
    """
    names = [str(getattr(token, "content", token)) for token in special]
    vocabulary = ["<unk>", *names, *(f"<0x{i:02X}>" for i in range(256)), "▁", *LETTERS, *("\n" if newlines else "")]
    merges = merges_of([word.replace(" ", "▁") for word in WORDS if newlines or "\n" not in word], vocabulary)
    ids = {word: i for i, word in enumerate(vocabulary)}
    raw = Tokenizer(models.BPE(vocab=ids, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    blank = [normalizers.Replace(" ", "▁")]
    decode = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if prepend == "never":
        raw.normalizer = blank[0]
    elif prepend == "normalizer":
        raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), *blank])
    else:
        raw.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=prepend, split=False)
    if prepend != "never":
        decode.append(decoders.Strip(content=" ", left=1, right=0))
    raw.decoder = decoders.Sequence(decode)
    raw.add_special_tokens(["<unk>", *special])
    return raw


def byte_level(special: Sequence[str | AddedToken], *, normalizer: Any = None, trim: bool = False) -> Tokenizer:
    """Byte-level BPE behind the split of GPT-4, as Llama 3 and Qwen have it."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    spelled = [byte_word(word) for word in (*WORDS, *NEWLINES)]
    vocabulary = sorted(alphabet)
    merges = merges_of(spelled, vocabulary)
    raw = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(vocabulary)}, merges=merges))
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(GPT4_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    if normalizer is not None:
        raw.normalizer = normalizer
    raw.decoder = decoders.ByteLevel()
    raw.post_processor = processors.ByteLevel(trim_offsets=trim)
    raw.add_special_tokens(list(special))
    return raw


def byte_word(word: str) -> str:
    """The word in the letters that byte-level vocabularies write bytes with."""
    split = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return "".join(piece for piece, _ in split.pre_tokenize_str(word))


def of_sentencepiece(prepend: str, *, newlines: bool = False) -> Callable[[Sequence[str | AddedToken]], Tokenizer]:
    """A maker of that kind."""
    return lambda special: sentencepiece(special, prepend=prepend, newlines=newlines)


# Llama-2-7b-chat: every user turn begins with a BOS of its own; blanks around the answer; what it holds is stripped.
LLAMA_2 = Imitation(
    raw=of_sentencepiece("first"),
    template=(
        "{% if messages[0]['role'] == 'system' %}{% set turns = messages[1:] %}"
        "{% set system = messages[0]['content'] %}{% else %}{% set turns = messages %}"
        "{% set system = false %}{% endif %}{% for turn in turns %}"
        + ALTERNATE
        + "{% set content = '<<SYS>>\n' + system + '\n<</SYS>>\n\n' + turn['content'] if loop.first and system "
        "else turn['content'] %}"
        "{% if turn['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
        "{% else %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
    ),
    bos="<s>",
    eos="</s>",
    end="</s>",
    lead=" ",
    adds=(True, False),
)
# Mistral-7B-Instruct-v0.1: plain-text markers, nothing between marker and answer, a blank after the EOS.
MISTRAL_1 = Imitation(
    raw=of_sentencepiece("normalizer"),
    template=(
        "{{ bos_token }}{% for turn in messages %}"
        + ALTERNATE
        + "{% if turn['role'] == 'user' %}{{ '[INST] ' + turn['content'] + ' [/INST]' }}"
        "{% elif turn['role'] == 'assistant' %}{{ turn['content'] + eos_token + ' ' }}"
        "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
    ),
    bos="<s>",
    eos="</s>",
    end="</s>",
    adds=(True, False),
    system=False,
)
# Mistral-7B-Instruct-v0.2, as repaired later: a blank before the answer.
MISTRAL_2 = replace(
    MISTRAL_1,
    template=MISTRAL_1.template.replace("'[INST] '", "' [INST] '").replace(
        "turn['content'] + eos_token + ' '", "' ' + turn['content'] + eos_token"
    ),
    lead=" ",
)
# Mistral-7B-Instruct-v0.3: the markers are special tokens.
MISTRAL_3 = Imitation(
    raw=of_sentencepiece("first"),
    template=MISTRAL_1.template.replace("' [/INST]'", "'[/INST]'").replace(
        "turn['content'] + eos_token + ' '", "' ' + turn['content'] | trim + eos_token"
    ),
    bos="<s>",
    eos="</s>",
    end="</s>",
    lead=" ",
    special=("[INST]", "[/INST]"),
    adds=(True, False),
    system=False,
)
# Llama-3-8B-Instruct: the end-of-turn is not the EOS; what a turn holds is trimmed.
LLAMA_3 = Imitation(
    raw=lambda special: byte_level(special, trim=True),
    template=(
        "{% for turn in messages %}{% set content = '<|start_header_id|>' + turn['role'] + '<|end_header_id|>\n\n'"
        " + turn['content'] | trim + '<|eot_id|>' %}{% if loop.first %}{% set content = bos_token + content %}"
        "{% endif %}{{ content }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
    ),
    bos="<|begin_of_text|>",
    eos="<|end_of_text|>",
    end="<|eot_id|>",
    special=("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", *(f"<|reserved_{i}|>" for i in range(8))),
    adds=(True, False),
)
# Qwen2-7B-Instruct: ChatML, no BOS, a system message of its own, text in NFC.
QWEN_2 = Imitation(
    raw=lambda special: byte_level(special, normalizer=normalizers.NFC()),
    template=(
        "{% for turn in messages %}{% if loop.first and turn['role'] != 'system' %}"
        "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
        "{{ '<|im_start|>' + turn['role'] + '\n' + turn['content'] + '<|im_end|>' + '\n' }}{% endfor %}" + CHATML_PROMPT
    ),
    bos=None,
    eos="<|im_end|>",
    end="<|im_end|>",
    special=("<|im_start|>", "<|endoftext|>"),
)
# Qwen3-8B: an empty think block in the last finished turn, in the prompt only with enable_thinking=false.
QWEN_3 = replace(
    QWEN_2,
    template=(
        "{%- set ns = namespace(last=0) %}{%- for turn in messages %}{%- if turn.role == 'user' %}"
        "{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}{%- for turn in messages %}"
        "{%- set content = turn.content %}{%- if turn.role == 'assistant' %}{%- set thought = '' %}"
        "{%- if '</think>' in content %}"
        "{%- set thought = content.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
        "{%- set content = content.split('</think>')[-1].lstrip('\n') %}{%- endif %}{{- '<|im_start|>assistant\n' }}"
        "{%- if loop.index0 > ns.last %}{{- '<think>\n' + thought + '\n</think>\n\n' }}{%- endif %}"
        "{{- content.lstrip('\n') + '<|im_end|>\n' }}"
        "{%- else %}{{- '<|im_start|>' + turn.role + '\n' + content + '<|im_end|>\n' }}{%- endif %}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}"
        "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}"
        "{%- endif %}"
    ),
    plain=("<think>", "</think>", "<tool_call>"),
    template_kwargs={"enable_thinking": False},
)
# Gemma-2-it: other role names, no system role, runs of newlines are added tokens.
GEMMA = Imitation(
    raw=of_sentencepiece("never", newlines=True),
    template=(
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
        "{% endif %}{% for turn in messages %}"
        + ALTERNATE
        + "{% set role = 'model' if turn['role'] == 'assistant' else "
        "turn['role'] %}{{ '<start_of_turn>' + role + '\n' + turn['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
    ),
    bos="<bos>",
    eos="<eos>",
    end="<end_of_turn>",
    special=("<start_of_turn>", "<end_of_turn>"),
    plain=("\n\n", "\n\n\n", "▁▁", "<table>"),
    adds=(True, False),
    system=False,
)
# Zephyr-7b-beta and TinyLlama-Chat: plain-text role markers, no BOS in the template.
ZEPHYR = Imitation(
    raw=of_sentencepiece("normalizer"),
    template=(
        "{% for turn in messages %}\n{% if turn['role'] == 'user' %}\n"
        "{{ '<|user|>\n' + turn['content'] + eos_token }}\n"
        "{% elif turn['role'] == 'system' %}\n{{ '<|system|>\n' + turn['content'] + eos_token }}\n"
        "{% elif turn['role'] == 'assistant' %}\n{{ '<|assistant|>\n'  + turn['content'] + eos_token }}\n{% endif %}\n"
        "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"
    ),
    bos="<s>",
    eos="</s>",
    end="</s>",
    adds=(True, False),
)
# Phi-3-mini: special tokens that swallow the white space after them, and a blank before whatever follows one.
PHI_3 = Imitation(
    raw=of_sentencepiece("normalizer"),
    template=(
        "{{ bos_token }}{% for turn in messages %}{{ '<|' + turn['role'] + '|>\n' + turn['content'] + '<|end|>\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
    ),
    bos="<s>",
    eos="<|endoftext|>",
    end="<|end|>",
    special=tuple(
        AddedToken(f"<|{word}|>", rstrip=True, normalized=False) for word in ("system", "user", "assistant", "end")
    ),
    adds=(True, False),
    written=" ",
)
# SmolLM2-Instruct: the BOS is the marker that begins every turn.
SMOLLM_2 = replace(QWEN_2, raw=byte_level, template=CHATML, bos="<|im_start|>", special=("<|endoftext|>",))

IMITATIONS: dict[str, Imitation] = {
    "llama-2": LLAMA_2,
    "llama-2-always": replace(LLAMA_2, raw=of_sentencepiece("always")),
    "llama-2-legacy": replace(LLAMA_2, raw=of_sentencepiece("normalizer")),
    "mistral-v0.1": MISTRAL_1,
    "mistral-v0.2": MISTRAL_2,
    "mistral-v0.3": MISTRAL_3,
    "llama-3": LLAMA_3,
    "qwen2": QWEN_2,
    "qwen3": QWEN_3,
    "gemma": GEMMA,
    "zephyr": ZEPHYR,
    "phi-3": PHI_3,
    "smollm2": SMOLLM_2,
    # The newline of a finished turn is not in the generation prompt, and the token before it swallows it.
    "phi-3-tight": replace(
        PHI_3, template=PHI_3.template.replace("'<|assistant|>\n' }}", "'<|assistant|>' }}"), lead="\n"
    ),
    # The same with a vocabulary that joins the marker's last letter to the newline: the model is to write it.
    "tight-byte-level": replace(
        QWEN_2,
        template=(
            "{% for turn in messages %}{{ '<|' + turn.role + '|>\n' + turn.content + eos_token + '\n' }}{% endfor %}"
            "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
        ),
        lead="\n",
        special=(),
    ),
    # A tokenizer that also closes any text with an EOS, which no prompt may have.
    "adds-eos": replace(LLAMA_3, adds=(True, True)),
}


@cache
def chat_like(name: str) -> Chat:
    """The chat of one imitation; shared, so tests leave it as it is."""
    return IMITATIONS[name].chat()


def example(reference: str, source: str = "Translate into English: Das Haus ist alt.", **tags: str) -> Example:
    """One example with a single user turn."""
    return Example.of("translation", [Message("user", source)], reference, tags)


def cover(spans: Iterable[Span], origin: Origin) -> Span | None:
    """The span of that origin, if there is one."""
    return next((s for s in spans if s.origin == origin), None)
