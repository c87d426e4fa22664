"""Is a rationale fit to train on? The settings of `generate.filters`, and one small pure function for each fault.

A rationale is what the untouched model wrote after the reference of an example. One that is filtered gives way to
nothing: the row is then what its method makes of an empty rationale, the plain reference. Each filter is asked by
itself; how they are applied to a run stands in `filtering.py`.

What no filter does: it does not judge whether a rationale is true.
"""

import re
import unicodedata
from collections.abc import Collection, Sequence
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from radistill.languages import can_guess, scripts, spaces_by_script
from radistill.pathologies import is_empty, is_off_target, says_over_and_over
from radistill.settings import Settings

CUSTOM = r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$"
OPENING = 240
"""So many characters are searched for a refusal: whoever refuses begins with it."""
MAX_COMPRESSION = 6.0
"""Notes and lists say similar things in similar words: of 12,000 pieces of documentation (1,000 characters on average)
85 compress more than fourfold, which running text does not, and 3 more than sixfold."""
LINE = 20
"""A shorter line of a prompt may well be said again by chance."""


class SelectSettings(Settings):
    """A budget of tokens for all rationales that are trained on."""

    tokens: int = Field(ge=1)
    """So many tokens of rationales are trained on at most."""
    by: Literal["coverage", "random"] = "coverage"
    """`coverage`: those that say most that is new, by their length; `random`: a seeded draw."""


class FilterSettings(Settings):
    """Which rationales are trained on; an example whose rationale is filtered is trained on its reference alone."""

    broken: bool = True
    """Filter what is empty, or was cut by length within a sentence."""
    degenerate: bool = True
    """Filter what says something over and over: n-grams in a loop, or text that compresses more than sixfold."""
    language: str | tuple[str, ...] | None = None
    """Filter what is in none of these languages (codes such as `en`); short texts are let pass. null = not asked."""
    retranslation: float | None = Field(None, gt=0, le=100)
    """Filter what is as near to the reference as this or nearer, by chrF in both directions. null = not asked."""
    refusal: bool = False
    """Filter what begins with the refusal to help."""
    leaked_template: bool = False
    """Filter what holds markup of a chat template, or a line of the instruction."""
    new_turn: bool = False
    """Filter what goes on as the user, or as an assistant that is asked anew."""
    near_duplicates: float | None = Field(None, ge=0.5, le=1)
    """Filter what shares this much of its word triples (Jaccard) with an earlier example's. null = not asked."""
    min_tokens: int | None = Field(None, ge=1)
    """Filter what has fewer tokens."""
    max_tokens: int | None = Field(None, ge=1)
    """Filter what has more tokens."""
    min_perplexity: float | None = Field(None, ge=1)
    """Filter what the untouched model finds more probable than this, per token, after prompt and reference."""
    max_perplexity: float | None = Field(None, ge=1)
    """Filter what the untouched model finds less probable than this, per token, after prompt and reference."""
    custom: str | None = Field(None, pattern=CUSTOM)
    """Filter what a function of your own does not keep, `package.module:function`; see the page on filters."""
    select: SelectSettings | None = None
    """Of what has passed all others, train on no more than a budget of tokens."""

    @field_validator("language")
    @classmethod
    def _is_known(cls, value: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        codes = [value] if isinstance(value, str) else list(value or ())
        if value is not None and not codes:
            raise ValueError("names no language; write a code such as en, or leave the key out")
        for code in codes:
            if not scripts(code) and not can_guess(code):
                raise ValueError(f"{code!r} is no language that can be told from others; write a code such as en")
        return value

    @model_validator(mode="after")
    def _bounds_leave_something(self) -> "FilterSettings":
        for what in ("tokens", "perplexity"):
            low, high = getattr(self, f"min_{what}"), getattr(self, f"max_{what}")
            if low is not None and high is not None and low > high:
                raise ValueError(f"min_{what} is {low:g} and max_{what} {high:g}: nothing lies between them")
        return self

    @property
    def active(self) -> tuple[str, ...]:
        """Names of the filters that are on, as they are counted."""
        return tuple(name for name in type(self).model_fields if getattr(self, name) not in (None, False))

    @property
    def needs_perplexity(self) -> bool:
        """Whether the untouched model is asked how probable each rationale is."""
        return self.min_perplexity is not None or self.max_perplexity is not None

    @property
    def is_corpus_wide(self) -> bool:
        """Whether a rationale's fate hangs on the others."""
        return self.near_duplicates is not None or self.select is not None

    def plain(self) -> dict[str, Any]:
        """What is on, as plain values; empty when nothing is, so that runs from before there were filters are equal."""
        plain = self.model_dump(mode="json")
        return {name: plain[name] for name in self.active}


OFF = FilterSettings(broken=False, degenerate=False)
"""No filter: as runs were before there were any, and as in the paper of RaDis."""


def is_broken(text: str, *, is_cut: bool) -> bool:
    """Nothing was written, or it was cut by length and stops within a sentence."""
    return is_empty(text) or (is_cut and not ends_whole(text))


def ends_whole(text: str) -> bool:
    """The text ends where a sentence, a row of a table, a block of code or a line of a list does.

    A line that only its line break ends is whole, unless it announces something. Scripts that write no sentence end
    (Thai, Lao) have only line breaks.
    """
    body = text.rstrip()
    line = body.rpartition("\n")[2].strip()
    if not line or _is_inside_code(body) or _LONE_MARKER.fullmatch(line):
        return False
    if line.startswith("```") or (line.startswith("|") and line.endswith("|") and len(line) > 1):
        return True
    said = line.rstrip("".join(c for c in set(line) if c in "*_~`\"'" or unicodedata.category(c) in ("Pe", "Pf", "Pi")))
    if said.endswith(_STOPS):
        return not _ABBREVIATION.search(said)
    return "\n" in text[len(body) :] and not said.endswith(_OPEN_ENDS)


def is_degenerate(text: str, reference: str = "") -> bool:
    """Something is said over and over that the reference does not repeat as well.

    Rules of tables, lines drawn under titles and blanks that fill columns are repetitions that nobody minds.
    """
    return _loops(_BLANKS.sub(" ", _RULE.sub("", text))) and not _loops(reference)


def is_in_other_language(text: str, languages: Sequence[str]) -> bool:
    """The running text is in none of the languages; code, quotations and what is too short to tell are let pass."""
    running = _QUOTED.sub(" ", _CODE.sub(" ", text))
    return all(is_off_target(running, language) for language in languages)


def likeness(text: str, reference: str) -> float:
    """How near two texts are to being copies, 0 to 100: the smaller of the chrF of either by the other.

    So a text that holds the reference and says much more is no copy, nor is one that holds a part of it.
    """
    from radistill.metrics.base import Pair
    from radistill.metrics.chrf import ChrF

    a, b, metric = text.strip(), reference.strip(), ChrF()
    pairs = [Pair(answer=x, reference=y, source="") for x, y in ((a, b), (b, a))]
    return min(metric.score(row_K) for row_K in metric.rows(pairs, ""))


def refuses(text: str, about: str = "") -> bool:
    """The text begins with the refusal to help, in one of sixteen languages, and not because it speaks of one.

    Args:
        text: what was written.
        about: prompt and reference: what refuses there is rendered, not said.
    """
    return bool(_REFUSAL.search(text[:OPENING])) and not _REFUSAL.search(about)


def leaks_template(text: str, lines: Collection[str] = (), about: str = "") -> bool:
    """The text holds markup of a chat template that prompt and reference do not hold, or a line of the instruction.

    Args:
        text: what was written.
        lines: of the instruction, without what it is about (`instruction_lines`).
        about: prompt and reference.
    """
    if any(found.group() not in about for found in _MARKUP.finditer(text)):
        return True
    plain = _squeezed(text)
    return any(line in plain for line in lines)


def instruction_lines(messages: Sequence[str], source: str) -> frozenset[str]:
    """The long lines of messages that do not come from the source, as `leaks_template` looks for them."""
    lines = (_squeezed(line) for message in messages for line in message.replace(source, "\n").splitlines())
    return frozenset(line for line in lines if len(line) >= LINE)


def opens_turn(text: str, about: str = "") -> bool:
    """A line of the text, code aside, begins with the name of a speaker and a colon, as `User:` does.

    Args:
        text: what was written.
        about: prompt and reference: where the word stands there, it is a word that is spoken of.
    """
    return any(found["who"].casefold() not in about.casefold() for found in _TURN.finditer(_CODE.sub(" ", text)))


def _loops(text: str) -> bool:
    return says_over_and_over(text, spaced=spaces_by_script(text), most=MAX_COMPRESSION)


def _is_inside_code(text: str) -> bool:
    return sum(line.lstrip().startswith("```") for line in text.splitlines()) % 2 == 1


def _squeezed(text: str) -> str:
    return " ".join(text.casefold().split())


_STOPS = tuple(".!?…‥。！？｡．‽⁇⁈⁉؟۔।॥։։។៕။༎།።፧᠃᠉꓿꛳﹒﹖﹗܀܁܂")
_OPEN_ENDS = tuple(":：,，、;；؛،–—-([{（「『«„“=/&+")
_LONE_MARKER = re.compile(r"(?:\d{1,3}[.)、]|[-*+•·#>]+|\(?[a-zA-Z][.)])")
_ABBREVIATION = re.compile(
    r"(?:^|[\s(])(?:e\.g|i\.e|cf|vs|Dr|Mr|Mrs|Ms|St|No|z\.\s?B|d\.\s?h|bzw|Nr|p\.\s?ej|např|tj)\.$"
)
_RULE = re.compile(r"^[ \t]*[-=*_|:+─═ \t]{3,160}$", re.MULTILINE)
_BLANKS = re.compile(r"[ \t]{2,}")
_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]+`|https?://\S+", re.DOTALL)
_QUOTED = re.compile(r"\"[^\"\n]{1,300}\"|[“„][^“”\n]{1,300}[“”]|«[^»\n]{1,300}»|‘[^’\n]{3,300}’|「[^」\n]{1,300}」")
_MARKUP = re.compile(
    r"<[|｜][^<>|｜\n]{1,40}[|｜]>"  # ChatML, Llama 3, Phi, Qwen, DeepSeek
    r"|\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS)\]|<</?SYS>>"  # Llama 2, Mistral
    r"|<(?:start|end)_of_turn>|</s>|<(?:bos|eos|pad|unk)>"  # Gemma, SentencePiece
    r"|^#{2,3} ?(?:Instruction|Response|Input|Human|Assistant|User|System)s?:",  # Alpaca, Vicuna
    re.MULTILINE,
)
_TURN = re.compile(
    r"^[ \t]*[#>*_\[<]{0,4}[ \t]*(?P<who>user|human|assistant|ai assistant|chatbot|benutzer|nutzer|assistent|"
    r"utilisateur|usuario|asistente|usuário|utente|gebruiker|uživatel|użytkownik|пользователь|человек|ассистент|"
    r"користувач|用户|使用者|助手|人类|ユーザー|アシスタント|사용자|المستخدم|notandi)"
    r"[ \t]*[*_\]>]{0,3}[ \t]*[:：]",
    re.MULTILINE | re.IGNORECASE,
)
_REFUSAL = re.compile(
    "|".join(
        (
            r"\bI(?:['’]m| am)? (?:can(?:not|['’]t| not)|(?:not able|unable) to|won['’]t|will not|(?:must|have to) "
            r"(?:decline|refuse) to|do(?:n['’]t| not) feel comfortable) (?:be able to )?(?:help|assist|comply|fulfil|"
            r"engage|participate|(?:do|answer|translate|provide|write|create|generate|produce|continue|discuss|"
            r"process|complete|respond to) (?:that|this|it|such|your|any|explicit|harmful|offensive|instructions|"
            r"information)\b)",
            r"\bas an? (?:AI|artificial intelligence|(?:large )?language model)\b[^.!?]{0,120}\b(?:can(?:not|['’]t)|"
            r"unable|not able|do(?:n['’]t| not))\b",
            r"\bich (?:kann|darf|möchte)\b[^.!?]{0,80}\b(?:nicht|keine?n?)\b[^.!?]{0,40}(?:helfen|unterstützen|"
            r"beantworten|nachkommen|erfüllen|behilflich)",
            r"\bje ne (?:peux|suis)\b[^.!?]{0,60}\b(?:aider|assister|répondre à (?:cette|votre)|donner suite)",
            r"\bno puedo\b[^.!?]{0,60}\b(?:ayudar|asistir|cumplir|responder a)",
            r"\bnon posso\b[^.!?]{0,60}\b(?:aiutar|assister|rispondere a)",
            r"\bnão posso\b[^.!?]{0,60}\b(?:ajudar|responder a|atender)",
            r"\bik kan\b[^.!?]{0,60}\bniet\b[^.!?]{0,20}\b(?:helpen|beantwoorden)",
            r"\b(?:nemohu|nemůžu)\b[^.!?]{0,60}\b(?:pomoci|vyhovět|odpovědět)",
            r"\bnie mogę\b[^.!?]{0,60}\b(?:pomóc|spełnić|odpowiedzieć)",
            r"\bя не (?:могу|в состоянии)\b[^.!?]{0,60}(?:помочь|выполнить|ответить)",
            r"\bя не можу\b[^.!?]{0,60}(?:допомогти|виконати|відповісти)",
            r"\bget ekki\b[^.!?]{0,40}(?:hjálpað|aðstoðað|svarað)",
            r"(?:我|抱歉)[^。！？\n]{0,12}(?:无法|不能|無法)[^。！？\n]{0,12}(?:帮助|協助|协助|回答|满足|滿足|继续)",
            r"(?:お手伝い|お答え|ご要望|お応え)[^。\n]{0,14}(?:できません|できかねます|いたしかねます)",
            r"(?:도와|도움|답변)[^.\n]{0,16}(?:수 없|어렵습니다)",
            r"لا (?:أستطيع|يمكنني)[^.!؟\n]{0,30}(?:مساعد|المساعدة|الإجابة)",
        )
    ),
    re.IGNORECASE,
)
"""Sorry or not: what counts is that help is refused."""
