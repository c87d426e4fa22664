"""Chat template → ids, and the continuation of an answer that has been begun, to the token.

The one rule: ids are made once. The prompt is rendered by the tokenizer's chat template and tokenized; reference and
separator are tokenized *in that context*, after the prompt; what the model writes is appended as the ids it wrote.
Nothing is ever decoded and tokenized again, so what is trained on is what was generated from.

What this module does not do: it never passes an unfinished answer through the template (`continue_final_message`),
because templates trim it, and it never guesses: a template that cannot hold the answer is refused with both texts.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from radistill.errors import ChatTemplateError, RadistillError
from radistill.records import Message, Origin, Span
from radistill.settings import Settings

PROBE = "Radistill-probe-7"
CONTEXT_IDS = 8
"""So many ids before a continuation are decoded with it, because SentencePiece drops the space of a first token."""


class RowError(RadistillError, ValueError):
    """One example cannot be put into ids; the row is refused with this reason and the others go on."""


class ChatSettings(Settings):
    """How conversations are rendered."""

    template_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Passed to the chat template, for example `{enable_thinking: false}`."""
    on_mismatch: Literal["error", "warn"] = "error"
    """What to do when the template renders a finished conversation otherwise than prompt + answer."""


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
                f"{self.name} has no fast tokenizer (tokenizer.json), which is needed to know where the reference ends. "
                "Convert it with transformers' AutoTokenizer and save it beside the model."
            )
        if not getattr(self.tokenizer, "chat_template", None):
            raise ChatTemplateError(
                f"{self.name} has no chat template. radistill tunes chat models: use an instruction-tuned model, or put "
                "a `chat_template.jinja` into its folder."
            )

    @cached_property
    def shape(self) -> Shape:
        """What the template does around an answer, found by rendering one.

        Raises:
            ChatTemplateError: it drops the answer, rewrites the prompt or writes text of its own before the answer.
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
        end_id, notes = self._end_of_turn(tail)
        return Shape(lead=lead, tail=tail, end_id=end_id, notes=tuple(notes))

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
            # Templates raise jinja2 errors of many kinds, some through `raise_exception`; all are the template's word.
            if type(error).__module__.partition(".")[0] not in ("jinja2", "transformers"):
                raise
            roles = [t["role"] for t in turns]
            raise ChatTemplateError(f"the chat template of {self.name} refuses the turns {roles}: {error}") from error
        return rendered

    def prompt(self, messages: Sequence[Message]) -> Prompt:
        """The conversation up to the assistant's turn; exactly one BOS where the model has one.

        Raises:
            RowError: a message holds a special token, which would be read as markup.
            ChatTemplateError: the template doubles the BOS.
        """
        for message in messages:
            self._refuse_special_tokens(message.content)
        text = self.render(messages, answer=None)
        ids = self._encode(text)
        return Prompt(text=text, ids=self._with_one_bos(ids))

    def opening(self, messages: Sequence[Message], reference: str, separator: str) -> Opening:
        """Prompt + reference + separator, tokenized once and in context.

        White space at the ends of the reference is not taught: templates trim it, and a prefix that ends in a blank
        would be continued by a token the model never writes there. A token that spells the end of the reference and
        the beginning of the separator (`.\\n\\n` in many vocabularies) belongs to the reference.

        Raises:
            RowError: this example's text holds a special token or does not survive the tokenizer.
        """
        reference = reference.strip()
        self._refuse_special_tokens(reference)
        prompt = self.prompt(messages)
        lead = self.shape.lead
        body = lead + reference + separator
        ids, starts = self._continue(prompt, body)
        reference_end = len(lead) + len(reference)
        cut = next((i for i, start in enumerate(starts) if start >= reference_end), len(ids))
        at = len(prompt.ids)
        spans = (Span("prompt", 0, at), Span("reference", at, at + cut), Span("separator", at + cut, at + len(ids)))
        texts = (prompt.text, self.spell(prompt.ids, ids[:cut]), self.spell([*prompt.ids, *ids[:cut]], ids[cut:]))
        kept = [(s, t) for s, t in zip(spans, texts, strict=True) if s.stop > s.start]
        return Opening(ids=(*prompt.ids, *ids), spans=tuple(s for s, _ in kept), texts=tuple(t for _, t in kept))

    def spell(self, before: Sequence[int], ids: Sequence[int]) -> str:
        """The text of `ids` where they follow `before`."""
        if not ids:
            return ""
        context = list(before[-CONTEXT_IDS:])
        return self._decode([*context, *ids])[len(self._decode(context)) :]

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
        if _squeezed(expected) == _squeezed(rendered):
            return (
                f"the chat template of {self.name} changes white space in an answer; the ids that are trained on keep it.\n"
                f"  trained on: {expected!r}\n  rendered:   {rendered!r}"
            )
        return self._mismatch(expected, rendered, "rewrites the finished answer")

    def _mismatch(self, expected: str, rendered: str, what: str) -> str:
        message = (
            f"the chat template of {self.name} {what}.\n  expected: {expected!r}\n  rendered: {rendered!r}\n"
            "Set chat.template_kwargs (for example {enable_thinking: false}) so that both agree, or chat.on_mismatch: warn "
            "to train on the first form, which is what the model was shown."
        )
        if self.settings.on_mismatch == "error":
            raise ChatTemplateError(message)
        return message

    def _end_of_turn(self, tail: str) -> tuple[int, list[str]]:
        found = self._special.search(tail) if self._special else None
        if found and not tail[: found.start()].strip():
            return int(self.tokenizer.convert_tokens_to_ids(found.group())), []
        eos = self.tokenizer.eos_token_id
        if eos is None:
            raise ChatTemplateError(
                f"the chat template of {self.name} writes no end-of-turn token after an answer ({tail!r}) and the "
                "tokenizer has no eos_token: the model could never learn to stop. Set eos_token in tokenizer_config.json."
            )
        return int(eos), [f"the template writes no end-of-turn after an answer; {self.tokenizer.eos_token!r} is used"]

    @cached_property
    def _special(self) -> re.Pattern[str] | None:
        added = self.tokenizer.added_tokens_decoder.values()
        words = {str(t) for t in added if t.special} | set(self.tokenizer.all_special_tokens)
        return (
            re.compile("|".join(map(re.escape, sorted(filter(None, words), key=len, reverse=True)))) if words else None
        )

    def _refuse_special_tokens(self, text: str) -> None:
        found = self._special.search(text) if self._special else None
        if found:
            raise RowError(f"the text holds the special token {found.group()!r}, which the model would read as markup")

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False).input_ids
        return ids

    def _decode(self, ids: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    def _with_one_bos(self, ids: Sequence[int]) -> tuple[int, ...]:
        bos = self.tokenizer.bos_token_id
        if bos is None or not self.adds_bos:
            doubled = bos is not None and list(ids[:2]) == [bos, bos]
        elif ids[:1] == [bos]:
            doubled = list(ids[1:2]) == [bos]
        else:
            return (bos, *ids)
        if doubled:
            raise ChatTemplateError(
                f"the chat template of {self.name} begins a conversation with two BOS tokens ({self.tokenizer.bos_token!r}). "
                "Remove one from its chat_template.jinja: models are trained with one."
            )
        return tuple(ids)

    def _continue(self, prompt: Prompt, body: str) -> tuple[list[int], list[int]]:
        """Ids of `body` after the prompt, and for each the place in `body` where its text starts."""
        joint = self.tokenizer(prompt.text + body, add_special_tokens=False, return_offsets_mapping=True)
        n_bos = len(prompt.ids) - len(self._encode(prompt.text))
        n = len(prompt.ids) - n_bos
        if tuple(joint.input_ids[:n]) == prompt.ids[n_bos:]:
            ids = list(joint.input_ids[n:])
            starts = [max(0, start - len(prompt.text)) for start, _ in joint.offset_mapping[n:]]
        else:
            # The last token of the prompt would merge with the answer's first letters. The prompt's ids are what
            # the model will be given, so they stay, and the answer is tokenized by itself.
            alone = self.tokenizer(body, add_special_tokens=False, return_offsets_mapping=True)
            ids, starts = list(alone.input_ids), [start for start, _ in alone.offset_mapping]
        spelled = self.spell(prompt.ids, ids)
        if spelled != body and len(spelled) == len(body) + 1 and spelled[1:] == body and ids and len(ids) > 1:
            # SentencePiece writes a blank before a text that stands alone; as a token of its own it can be left out.
            shorter = ids[1:]
            if self.spell(prompt.ids, shorter) == body:
                ids, starts, spelled = shorter, starts[1:], body
        if _nfkc(spelled) != _nfkc(body):
            raise RowError(f"the tokenizer does not give this text back: {body!r} became {spelled!r}")
        return ids, starts


def cover(spans: Iterable[Span], origin: Origin) -> Span | None:
    """The span of that origin, if there is one."""
    return next((s for s in spans if s.origin == origin), None)


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
    except (OSError, ValueError) as error:
        first_line = str(error).strip().partition("\n")[0]
        raise ChatTemplateError(f"no tokenizer can be read from {shown}: {first_line}") from error
    stored = Path(folder) / "generation_config.json"
    eos = json.loads(stored.read_text(encoding="utf-8")).get("eos_token_id") if stored.exists() else None
    stop = frozenset([eos] if isinstance(eos, int) else eos or [])
    return Chat(tokenizer=tokenizer, settings=settings, name=shown, extra_stop_ids=stop)


def _squeezed(text: str) -> str:
    return "".join(text.split())


def _nfkc(text: str) -> str:
    return unicodedata.normalize("NFKC", text)
