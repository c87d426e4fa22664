"""How numbers and other people's text are written in reports: plainly, and so that nothing can hide in them."""

import math
import re

_HIDDEN = re.compile(
    "["
    "\x00-\x08\x0b-\x1f\x7f-\x9f"  # controls but tab and line feed
    "\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"  # direction, unseen, line ends
    "\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff\U000e0000-\U000e0fff"  # half characters, non-characters, tags
    "]"
)
_MARKDOWN = re.compile(r"([\\`*_|~]|(?<=\])[(\[:])")
_HTML = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})
ABSENT = "not recorded"
SHOWN_CHARACTERS = 6000


def visible(text: str) -> str:
    """The text with everything that could hide, reorder or break text replaced by its code point in brackets.

    Joiners that scripts and emoji need (U+200C, U+200D) stay; so do tabs and line feeds.
    """
    return _HIDDEN.sub(lambda m: f"[U+{ord(m[0]):04X}]", text)


def shorten(text: str, limit: int = SHOWN_CHARACTERS) -> str:
    """The beginning of a long text, and how much was left out."""
    return text if len(text) <= limit else f"{text[:limit]} … [{len(text) - limit:,} more characters]"


def markdown(text: str) -> str:
    """Text that Markdown shows as it is, fit for a table cell."""
    plain = re.sub(r"\s+", " ", visible(text)).translate(_HTML)
    # A bare address would become a link; a code point in its place would be ugly, a word joiner would be hidden.
    return _MARKDOWN.sub(r"\\\1", plain).replace("://", ":&#47;/").replace("www.", "www&#46;").replace("@", "&#64;")


def number(value: float | None, digits: int = 1) -> str:
    """A number with so many decimals and a true minus sign; missing ones are said to be missing."""
    if value is None or math.isnan(value):
        return ABSENT
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    text = f"{value:,.{digits}f}"
    return text.replace("-", "−") if float(text.replace(",", "")) != 0 else text.removeprefix("-")


def signed(value: float, digits: int = 1) -> str:
    """A difference: always with its sign, but for zero."""
    text = number(value, digits)
    return text if text[0] == "−" or float(text.replace(",", "")) == 0 else f"+{text}"


def interval(low: float, high: float, digits: int = 1, *, difference: bool = False) -> str:
    """`[low, high]`, with signs if it is one of a difference."""
    write = signed if difference else number
    return f"[{write(low, digits)}, {write(high, digits)}]"


def p_value(p: float) -> str:
    """A p value to the precision that can be meant."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def count(value: float | None) -> str:
    """A whole number with thousands separators; missing ones are said to be missing."""
    return ABSENT if value is None else f"{value:,.0f}"


def tokens(n: int) -> str:
    """`1 token`, `2 tokens`."""
    return f"{count(n)} token{'' if n == 1 else 's'}"


def spaces_shown(text: str) -> str:
    """White space that stands alone, as signs: it is trained on like any other text."""
    return text if text.strip() else text.replace("\n", "⏎").replace("\t", "⇥").replace(" ", "␣")


def duration(seconds: float | None) -> str:
    """Seconds for people: `42.0 s`, `3 min 05 s`, `2 h 07 min`."""
    if seconds is None:
        return ABSENT
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def listed(words: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]])) if words else ""
