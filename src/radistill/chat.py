"""Chat template → ids, and the continuation of an answer that has been begun, to the token.

The one rule: ids are made once. The prompt is rendered by the tokenizer's chat template and tokenized; reference and
separator are tokenized *in that context*, after the prompt; what the model writes is appended as the ids it wrote.
Nothing is ever decoded and tokenized again, so what is trained on is what was generated from.

What this module does not do: it never passes an unfinished answer through the template (`continue_final_message`),
because templates trim it, and it never guesses: a template that cannot hold the answer is refused with both texts.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from radistill.errors import ChatTemplateError, RadistillError
from radistill.records import Message, Span, digest
from radistill.settings import Settings
from radistill.text import any_of, nfkc, squeezed

PROBE = "Radistill-probe-7"
NEUTRAL = "a"
"""Ids are decoded after this, because SentencePiece drops the blank of a text's first token."""
ANCHORS = ("\n", NEUTRAL, "")
"""What stands before an answer that would merge with the end of its prompt; the first that leaves it whole is taken."""
LOST = "\ufffd"
SURROGATE = re.compile("[\ud800-\udfff]")
RESERVED_KWARGS = frozenset({"conversation", "tokenize", "add_generation_prompt", "continue_final_message", "messages"})


class RowError(RadistillError, ValueError):
    """One example cannot be put into ids; the row is refused with this reason and the others go on."""


class ChatSettings(Settings):
    """How conversations are rendered."""

    template_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Passed to the chat template, for example `{enable_thinking: false}`."""
    on_mismatch: Literal["error", "warn"] = "error"
    """What to do when the template renders a finished conversation otherwise than prompt + answer."""

    @field_validator("template_kwargs")
    @classmethod
    def _not_ours(cls, value: dict[str, Any]) -> dict[str, Any]:
        taken = sorted(RESERVED_KWARGS & value.keys())
        if taken:
            raise ValueError(f"{', '.join(taken)} may not be set: radistill decides what is rendered")
        return value


@dataclass(frozen=True, slots=True)
class Prompt:
    """A conversation up to the place where the assistant begins to write."""

    text: str
    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Opening:
    """A prompt with the beginning of the answer; `spans` cover all ids, in order, without gaps."""

    ids: tuple[int, ...]
    spans: tuple[Span, ...]
    texts: tuple[str, ...]
    """What each span spells."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What a template writes around an answer."""

    lead: str
    """White space between the generation prompt and the answer; the model is to write it."""
    tail: str
    """Everything after the answer; begins with the end-of-turn, but for white space."""
    end_id: int
    """The end-of-turn token."""
    notes: tuple[str, ...] = ()


@dataclass
class Chat:
    """A tokenizer with a chat template. `name` is what messages to the user call it."""

    tokenizer: Any
    settings: ChatSettings = field(default_factory=ChatSettings)
    name: str = "the tokenizer"
    extra_stop_ids: frozenset[int] = frozenset()
    """End-of-sequence ids of the model's generation config."""

    def __post_init__(self) -> None:
        if not getattr(self.tokenizer, "is_fast", False):
            raise ChatTemplateError(
                f"{self.name} has no fast tokenizer (tokenizer.json), which is needed to know where the reference ends."
                " Convert it with transformers' AutoTokenizer and save it beside the model."
            )
        if not getattr(self.tokenizer, "chat_template", None):
            raise ChatTemplateError(
                f"{self.name} has no chat template. radistill tunes chat models: use an instruction-tuned model, or "
                "put a `chat_template.jinja` into its folder."
            )

    @cached_property
    def shape(self) -> Shape:
        """What the template does around an answer, found by rendering one.

        Raises:
            ChatTemplateError: it drops the answer, rewrites the prompt, or writes text of its own around the answer.
        """
        user = [Message("user", "Hello")]
        prompt = self.render(user, answer=None)
        full = self.render(user, answer=PROBE)
        if PROBE not in full:
            raise ChatTemplateError(
                f"the chat template of {self.name} drops the assistant's answer, so no reference can be trained on.\n"
                f"  with the answer {PROBE!r} it renders: {full!r}\nRepair its chat_template.jinja."
            )
        before, _, tail = full.partition(PROBE)
        if not before.startswith(prompt):
            self._mismatch(prompt, before, "does not begin a finished conversation with its own generation prompt")
            before = prompt
        lead = before[len(prompt) :]
        if lead.strip():
            self._mismatch(prompt, before, f"writes {lead!r} before the answer, which its generation prompt lacks")
            lead = ""
        end = self._added.search(tail)
        after = tail[: end.start()] if end else tail
        if after.strip():
            tail = tail[len(after) :]
            self._mismatch(before + PROBE + tail, full, f"writes {after!r} after the answer, which no model is shown")
        end_id, notes = self._end_of_turn(end.group() if end else None, tail)
        return Shape(lead=lead, tail=tail, end_id=end_id, notes=notes)

    @cached_property
    def identity(self) -> str:
        """Hash of all that decides which ids a conversation becomes and where an answer ends."""
        files = self.tokenizer.backend_tokenizer.to_str()
        return digest(files, self.tokenizer.chat_template, self.end_id, self.stop_ids)

    @property
    def end_id(self) -> int:
        """The token that ends an assistant's turn in this template."""
        return self.shape.end_id

    @cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids at which the model has ended its turn by itself."""
        eos = self.tokenizer.eos_token_id
        return tuple(sorted({self.end_id, *self.extra_stop_ids, *([] if eos is None else [eos])}))

    @cached_property
    def adds_bos(self) -> bool:
        """Whether the tokenizer puts a BOS before any text by itself, and the template leaves that to it."""
        bos = self.tokenizer.bos_token_id
        by_itself: list[int] = self.tokenizer("a").input_ids
        return bos is not None and by_itself[:1] == [bos]

    def render(self, messages: Iterable[Message], *, answer: str | None) -> str:
        """The template's text: with the generation prompt if `answer` is None, otherwise with the finished answer."""
        turns = [{"role": m.role, "content": m.content} for m in messages]
        if answer is not None:
            turns.append({"role": "assistant", "content": answer})
        try:
            rendered: str = self.tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=answer is None, **self.settings.template_kwargs
            )
        except Exception as error:
            # A template is a program of its own: it can raise anything, by `raise_exception` or by a mistake in it.
            roles = [t["role"] for t in turns]
            raise ChatTemplateError(f"the chat template of {self.name} refuses the turns {roles}: {error}") from error
        return rendered

    def prompt(self, messages: Sequence[Message]) -> Prompt:
        """The conversation up to the assistant's turn; exactly one BOS where the model has one.

        Raises:
            RowError: a message holds a special token, which would be read as markup, or the template refuses the turns.
            ChatTemplateError: the template doubles the BOS, or cannot be used at all.
        """
        assert self.shape  # a template that fails for every row is reported as such, not row by row
        for message in messages:
            self._refuse_special_tokens(message.content)
        try:
            text = self.render(messages, answer=None)
        except ChatTemplateError as error:
            raise RowError(str(error)) from error
        ids = self._encode(text)
        return Prompt(text=text, ids=self._with_one_bos(text, ids))

    def opening(self, messages: Sequence[Message], reference: str, separator: str) -> Opening:
        r"""Prompt + reference + separator, tokenized once and in context.

        White space at the ends of the reference is not taught: templates trim it, and a prefix that ends in a blank
        would be continued by a token the model never writes there. A token that spells the end of the reference and
        the beginning of the separator (`.\n\n` in many vocabularies) belongs to the reference.

        Raises:
            RowError: this example's text holds a special token or does not survive the tokenizer.
        """
        reference = reference.strip()
        if not reference:
            raise RowError("the reference is empty")
        self._refuse_special_tokens(reference + separator)
        prompt = self.prompt(messages)
        lead = self.shape.lead
        ids, starts, spelled = self._continue(prompt, lead + reference + separator)
        reference_end = len(lead) + len(reference)
        cut = next((i for i, start in enumerate(starts) if start >= reference_end), len(ids))
        at = len(prompt.ids)
        taught = self.spell(prompt.ids, ids[:cut]) if cut < len(ids) else spelled
        parts = [
            (Span("prompt", 0, at), prompt.text),
            (Span("reference", at, at + cut), taught),
            (Span("separator", at + cut, at + len(ids)), spelled.removeprefix(taught)),
        ]
        kept = [(span, text) for span, text in parts if span.stop > span.start]
        return Opening(ids=(*prompt.ids, *ids), spans=tuple(s for s, _ in kept), texts=tuple(t for _, t in kept))

    def spell(self, before: Sequence[int], ids: Sequence[int]) -> str:
        """The text of `ids` where they follow `before`."""
        if not ids:
            return ""
        if not before:
            return self._decode(ids)
        context, known = self._context
        text = self._decode([*context, *ids])
        if text.endswith(2 * LOST):
            # Cut inside a character, a byte-fallback decoder gives up the whole characters before it as well.
            shorter = (self._decode([*context, *ids[:-n]]) for n in range(1, min(4, len(ids))))
            text = next((f"{t}{LOST}" for t in shorter if not t.endswith(LOST)), text)
        return text.removeprefix(known)

    def ids_of(self, text: str, *, before: Sequence[int] = (0,)) -> tuple[int, ...]:
        """Ids of a text that goes on after others, as another model wrote it.

        Raises:
            RowError: it holds a special token, or does not survive the tokenizer.
        """
        self._refuse_special_tokens(text)
        return tuple(self._anchored(before, text)[0]) if text else ()

    def check_rerendering(self, messages: Sequence[Message], answer: str) -> str | None:
        """Whether the template renders the finished conversation as prompt + answer + end-of-turn.

        Returns:
            None if it does; otherwise a message with both texts. White space that a template trims is only worth a
            note, because the ids do not pass through it; anything else is an error unless `chat.on_mismatch: warn`.

        Raises:
            ChatTemplateError: more than white space differs, and `chat.on_mismatch` is `error`.
        """
        shape = self.shape
        expected = self.render(messages, answer=None) + shape.lead + answer + shape.tail
        rendered = self.render(messages, answer=answer)
        if expected == rendered:
            return None
        if squeezed(expected) == squeezed(rendered):
            return (
                f"the chat template of {self.name} changes white space in an answer; the ids that are trained on keep "
                f"it.\n  trained on: {expected!r}\n  rendered:   {rendered!r}"
            )
        return self._mismatch(expected, rendered, "rewrites the finished answer")

    def _mismatch(self, expected: str, rendered: str, what: str) -> str:
        message = (
            f"the chat template of {self.name} {what}.\n  expected: {expected!r}\n  rendered: {rendered!r}\n"
            "Set chat.template_kwargs (for example {enable_thinking: false}) so that both agree, or chat.on_mismatch: "
            "warn to train on the first form, which is what the model was shown."
        )
        if self.settings.on_mismatch == "error":
            raise ChatTemplateError(message)
        return message

    def _end_of_turn(self, written: str | None, tail: str) -> tuple[int, tuple[str, ...]]:
        if written is not None:
            return int(self.tokenizer.convert_tokens_to_ids(written)), ()
        eos = self.tokenizer.eos_token_id
        if eos is None:
            raise ChatTemplateError(
                f"the chat template of {self.name} writes no end-of-turn token after an answer ({tail!r}) and the "
                "tokenizer has no eos_token: the model could never learn to stop. Set eos_token in "
                "tokenizer_config.json."
            )
        return int(eos), (f"the template writes no end-of-turn after an answer; {self.tokenizer.eos_token!r} is used",)

    @cached_property
    def _added(self) -> re.Pattern[str]:
        """Every token that is read whole; some models' end-of-turn is not marked as special."""
        added = map(str, self.tokenizer.added_tokens_decoder.values())
        return any_of({word for word in {*added, *self.tokenizer.all_special_tokens} if word.strip()})

    @cached_property
    def _special(self) -> re.Pattern[str]:
        added = self.tokenizer.added_tokens_decoder.values()
        end = str(self.tokenizer.convert_ids_to_tokens(self.end_id))
        return any_of({str(t) for t in added if t.special} | {*self.tokenizer.all_special_tokens, end})

    def _refuse_special_tokens(self, text: str) -> None:
        found = self._special.search(text)
        if found:
            raise RowError(f"the text holds the special token {found.group()!r}, which the model would read as markup")
        if not text.isascii() and SURROGATE.search(text):
            raise RowError(f"the text holds half a character (a lone surrogate): {text!r}")

    def _encode(self, text: str) -> list[int]:
        return self._encode_with_starts(text)[0]

    def _encode_with_starts(self, text: str) -> tuple[list[int], list[int]]:
        """Ids, and for each the place in `text` where what it spells begins."""
        found = self._engine.encode(text, add_special_tokens=False)
        return found.ids, [start for start, _ in found.offsets]

    @cached_property
    def _engine(self) -> Any:
        """The tokenizer's own, without what transformers does around it at every call."""
        engine = self.tokenizer.backend_tokenizer
        engine.no_truncation()  # a tokenizer.json may say otherwise; transformers takes it back at each call
        engine.no_padding()
        engine.encode_special_tokens = bool(getattr(self.tokenizer, "split_special_tokens", False))
        return engine

    def _decode(self, ids: Sequence[int]) -> str:
        text: str = self._engine.decode(list(ids), skip_special_tokens=False)
        return text

    @cached_property
    def _context(self) -> tuple[list[int], str]:
        ids = self._encode(NEUTRAL)
        return ids, self._decode(ids)

    def _with_one_bos(self, text: str, ids: Sequence[int]) -> tuple[int, ...]:
        bos, name = self.tokenizer.bos_token_id, self.tokenizer.bos_token
        if bos is None:
            return tuple(ids)
        if re.match(rf"\s*(?:{re.escape(name)}\s*){{2}}", text):
            raise ChatTemplateError(
                f"the chat template of {self.name} begins a conversation with two BOS tokens ({name!r}). "
                "Remove one from its chat_template.jinja: models are trained with one."
            )
        return (bos, *ids) if self.adds_bos and bos not in ids else tuple(ids)

    def _continue(self, prompt: Prompt, body: str) -> tuple[list[int], list[int], str]:
        """Ids of `body` after the prompt, for each the place in `body` where its text starts, and what they spell."""
        ids, starts = self._encode_with_starts(prompt.text + body)
        added = int(len(prompt.ids) > 0 and prompt.ids[0] == self.tokenizer.bos_token_id and ids[:1] != [prompt.ids[0]])
        n = len(prompt.ids) - added
        spelled = ""
        if tuple(ids[:n]) == prompt.ids[added:]:
            ids, starts = ids[n:], [max(0, start - len(prompt.text)) for start in starts[n:]]
            spelled = self.spell(prompt.ids, ids)
            # Some tokenizers write a blank after a special token, others swallow white space there. That is how the
            # model has always seen its answers, so it is kept.
            if nfkc(spelled).lstrip() == nfkc(body).lstrip():
                return ids, starts, spelled
        # The last token of the prompt would merge with the answer's first letters. The prompt's ids are what the
        # model will be given, so they stay, and the answer is tokenized after something it does not merge with.
        return self._anchored(prompt.ids, body)

    def _anchored(self, before: Sequence[int], body: str) -> tuple[list[int], list[int], str]:
        for anchor in ANCHORS:
            ids, starts = self._encode_with_starts(anchor + body)
            n = next((i for i, start in enumerate(starts) if start >= len(anchor)), len(ids))
            spelled = self.spell(before, ids[n:])
            if nfkc(spelled) == nfkc(body):
                return ids[n:], [start - len(anchor) for start in starts[n:]], spelled
        raise RowError(f"the tokenizer does not give this text back: {body!r} became {spelled!r}")


def load_chat(
    folder: Path | str, settings: ChatSettings, *, name: str | None = None, trust_remote_code: bool = False
) -> Chat:
    """The chat of a model folder: its tokenizer, template and the stop ids of its generation config.

    Raises:
        ChatTemplateError: there is no tokenizer, or it has no chat template.
    """
    import json

    from transformers import AutoTokenizer

    shown = name or str(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=trust_remote_code)
    except Exception as error:
        # A broken tokenizer.json raises a bare Exception, a missing package an ImportError, and so on.
        reason = str(error).strip().partition("\n")[0].rstrip(":").removesuffix(" from one of")
        raise ChatTemplateError(f"no tokenizer (tokenizer.json) can be read from {shown}: {reason}") from error
    stored = Path(folder) / "generation_config.json"
    try:
        eos = json.loads(stored.read_text(encoding="utf-8")).get("eos_token_id") if stored.exists() else None
    except ValueError as error:
        raise ChatTemplateError(f"{stored} is not JSON ({error}); it says where the model stops.") from error
    stop = frozenset([eos] if isinstance(eos, int) else eos or [])
    return Chat(tokenizer=tokenizer, settings=settings, name=shown, extra_stop_ids=stop)
