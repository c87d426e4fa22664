"""How a task is worded for the model: names of languages, wordings, and the choice between them.

A wording is text with the placeholders `{source}`, `{source_language}` and `{target_language}`. Which one an example
gets is drawn from the run's seed and the example's content, so that it depends neither on the order of the rows nor on
how many there are.
"""

import re
from collections.abc import Sequence
from functools import cache

from radistill.errors import DataError, did_you_mean

PLACEHOLDERS = ("source", "source_language", "target_language")
_PLACEHOLDER = re.compile(r"\{(\w+)\}")

WORDINGS: dict[str, str] = {
    # Xu et al. 2024, "A Paradigm Shift in Machine Translation" (arXiv 2309.11674), as in github.com/fe1ixxu/ALMA:
    # Translate this from {src_lang} into {tgt_lang}:\n{src_lang}: {text}\n{tgt_lang}:
    "alma": (
        "Translate this from {source_language} into {target_language}:\n{source_language}: {source}\n{target_language}:"
    ),
    "plain": "Translate the following text from {source_language} into {target_language}.\n\n{source}",
    "please": "Please translate this {source_language} text into {target_language}:\n{source}",
    "question": "How would you say this in {target_language}?\n\n{source}",
    "give": "Give the {target_language} translation of this {source_language} text:\n\n{source}",
    "after": "{source}\n\nTranslate the {source_language} text above into {target_language}.",
    "fields": "Task: translation\nFrom: {source_language}\nInto: {target_language}\nText: {source}",
    "translator": (
        "You are a professional translator from {source_language} into {target_language}. Translate:\n\n{source}"
    ),
    "need": "I need the following in {target_language}. It is written in {source_language}.\n\n{source}",
    "short": "{source_language} to {target_language}: {source}",
}

# ISO 639-1, ISO 639-3 (as FLORES uses it, `deu_Latn`) and the English name.
_LANGUAGES = """
af afr Afrikaans|am amh Amharic|ar arb Arabic|as asm Assamese|az azj Azerbaijani|be bel Belarusian|bg bul Bulgarian
bn ben Bengali|bo bod Tibetan|br bre Breton|bs bos Bosnian|ca cat Catalan|cs ces Czech|cy cym Welsh|da dan Danish
de deu German|dz dzo Dzongkha|el ell Greek|en eng English|eo epo Esperanto|es spa Spanish|et est Estonian|eu eus Basque
fa pes Persian|ff fuv Fulah|fi fin Finnish|fj fij Fijian|fo fao Faroese|fr fra French|fy fry West Frisian|ga gle Irish
gd gla Scottish Gaelic|gl glg Galician|gn grn Guarani|gu guj Gujarati|ha hau Hausa|he heb Hebrew|hi hin Hindi
hr hrv Croatian|ht hat Haitian Creole|hu hun Hungarian|hy hye Armenian|ia ina Interlingua|id ind Indonesian|ig ibo Igbo
is isl Icelandic|it ita Italian|ja jpn Japanese|jv jav Javanese|ka kat Georgian|kk kaz Kazakh|km khm Khmer
kn kan Kannada|ko kor Korean|ku kmr Kurdish|ky kir Kyrgyz|la lat Latin|lb ltz Luxembourgish|lg lug Ganda|ln lin Lingala
lo lao Lao|lt lit Lithuanian|lv lvs Latvian|mg plt Malagasy|mi mri Maori|mk mkd Macedonian|ml mal Malayalam
mn khk Mongolian|mr mar Marathi|ms zsm Malay|mt mlt Maltese|my mya Burmese|nb nob Norwegian Bokmål|ne npi Nepali
nl nld Dutch
nn nno Norwegian Nynorsk|no nor Norwegian|ny nya Chichewa|oc oci Occitan|om gaz Oromo|or ory Odia|pa pan Punjabi
pl pol Polish|ps pbt Pashto|pt por Portuguese|qu quy Quechua|ro ron Romanian|ru rus Russian|rw kin Kinyarwanda
sa san Sanskrit|sd snd Sindhi|se sme Northern Sami|si sin Sinhala|sk slk Slovak|sl slv Slovenian|sm smo Samoan
sn sna Shona|so som Somali|sq als Albanian|sr srp Serbian|ss ssw Swati|st sot Southern Sotho|su sun Sundanese
sv swe Swedish|sw swh Swahili|ta tam Tamil|te tel Telugu|tg tgk Tajik|th tha Thai|ti tir Tigrinya|tk tuk Turkmen
tl tgl Tagalog|tn tsn Tswana|tr tur Turkish|ts tso Tsonga|tt tat Tatar|ug uig Uyghur|uk ukr Ukrainian|ur urd Urdu
qaa qaa Conlang
uz uzn Uzbek|vi vie Vietnamese|wo wol Wolof|xh xho Xhosa|yi ydd Yiddish|yo yor Yoruba|zh zho Chinese|zu zul Zulu
"""


def is_language(code: str) -> bool:
    """Whether the code names a language we know."""
    return _base(code) in _names()


def language_name(code: str) -> str:
    """English name of a language by its code: `de`, `deu`, `pt_BR` and `deu_Latn` are known by their first part.

    Raises:
        DataError: the code is unknown.
    """
    if not is_language(code):
        raise DataError(
            f"no language has the code {code!r}.{did_you_mean(code, _names())} Use ISO 639 codes, or a template "
            "without {source_language} and {target_language}."
        )
    return _names()[_base(code)]


def wordings(template: str | Sequence[str] | None) -> tuple[str, ...]:
    """The templates to choose from: names of built-in wordings replaced by their text, free text checked.

    Args:
        template: one or several, each a name such as `alma` or free text with placeholders; None for all built-in ones.

    Raises:
        DataError: a name or a placeholder is unknown, or a template has no place for the source.
    """
    if template is None:
        return tuple(WORDINGS.values())
    templates = (template,) if isinstance(template, str) else tuple(template)
    if not templates:
        raise DataError("template is an empty list. Leave it out for all built-in wordings, or name one.")
    return tuple(_checked(one) for one in templates)


def names_languages(template: str) -> bool:
    """Whether the template can only be filled by who knows the languages."""
    return any(name != "source" for name in _PLACEHOLDER.findall(template))


def render(template: str, *, source: str, source_language: str, target_language: str) -> str:
    """The template with its placeholders filled, in one pass: braces in the source stay what they are.

    Args:
        template: one of `wordings(…)`.
        source: the text to translate.
        source_language: its code.
        target_language: code of the language to translate into.
    """
    codes = {"source_language": source_language, "target_language": target_language}

    def value(match: re.Match[str]) -> str:
        return source if match[1] == "source" else language_name(codes[match[1]])

    return _PLACEHOLDER.sub(value, template)


def choose(templates: Sequence[str], *content: str, seed: int) -> str:
    """One of the templates, by a draw that depends on the seed and the content alone."""
    if len(templates) == 1:
        return templates[0]
    from radistill import seeds  # numpy: not needed to show the settings

    return templates[seeds.number(seed, "wording", *content) % len(templates)]


def _checked(template: str) -> str:
    if "{" not in template:
        if template in WORDINGS:
            return WORDINGS[template]
        raise DataError(
            f"{template!r} is neither a built-in wording nor a template with {{source}}. "
            f"Built in: {', '.join(WORDINGS)}.{did_you_mean(template, WORDINGS)}"
        )
    used = _PLACEHOLDER.findall(template)
    known = ", ".join(f"{{{name}}}" for name in PLACEHOLDERS)
    for name in used:
        if name not in PLACEHOLDERS:
            raise DataError(
                f"unknown placeholder {{{name}}} in the template {template!r}; known: {known}."
                f"{did_you_mean(name, PLACEHOLDERS)}"
            )
    if "source" not in used:
        raise DataError(
            f"the template {template!r} has no {{source}}, so every prompt would be the same; known: {known}."
        )
    if "{{" in template:
        raise DataError(f"the template {template!r} doubles its braces. Write {{source}}, with one brace on each side.")
    return template


def _base(code: str) -> str:
    return code.partition("_")[0].lower()


@cache
def _names() -> dict[str, str]:
    entries = (entry.split(" ", 2) for line in _LANGUAGES.strip().splitlines() for entry in line.split("|"))
    return {code: name for two, three, name in entries for code in (two, three)}
