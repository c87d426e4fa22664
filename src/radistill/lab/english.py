"""English by rule: what the lab's clauses are in English."""

from radistill.lab.clauses import Clause, Phrase
from radistill.lab.lexicon import Word

NAME = "English"
CODE = "en"


def sentence(clause: Clause) -> str:
    """The clause as an English sentence, capitalised, with its full stop or question mark."""
    rest = [phrase(clause.object)] if clause.object else []
    rest += [clause.adverb.english] if clause.adverb else []
    if clause.preposition and clause.place:
        rest += [clause.preposition.english, phrase(clause.place)]
    subject = phrase(clause.subject)
    helper, verb = _predicate(clause)
    if clause.is_question:
        parts = [helper, subject, *(["not"] if clause.is_negated else []), verb, *rest]
    else:
        parts = [subject, helper, *(["not"] if clause.is_negated else []), verb, *rest]
    text = " ".join(part for part in parts if part)
    return text[0].upper() + text[1:] + ("?" if clause.is_question else ".")


def phrase(found: Phrase) -> str:
    """A noun phrase: article or number, adjective, noun."""
    if found.name:
        return found.name
    assert found.noun is not None, "a phrase without name has a noun"
    if found.noun.kind == "pronoun":
        return found.noun.english
    noun = plural(found.noun) if found.is_plural else found.noun.english
    words = [*([found.adjective.english] if found.adjective else []), noun]
    if found.number:
        return " ".join([found.number.english, *words])
    if found.is_definite:
        return " ".join(["the", *words])
    return " ".join(words) if found.is_plural else with_article(" ".join(words))


def with_article(text: str) -> str:
    """`a` or `an` before it."""
    return f"{'an' if text[0] in 'aeiou' and not text.startswith('us') else 'a'} {text}"


def plural(noun: Word) -> str:
    """Plural of a noun."""
    return noun.irregular or _with_s(noun.english)


def past(verb: Word) -> str:
    """Past tense of a verb."""
    if verb.irregular:
        return verb.irregular
    base = verb.english
    if base.endswith("e"):
        return base + "d"
    if base.endswith("y") and base[-2] not in "aeiou":
        return base[:-1] + "ied"
    return base + "ed"


def third_person(verb: Word) -> str:
    """Third person singular of the present tense; of `look for`, `looks for`."""
    head, _, tail = verb.english.partition(" ")
    return _with_s(head) + (f" {tail}" if tail else "")


def _with_s(base: str) -> str:
    if base.endswith(("s", "sh", "ch", "x")):
        return base + "es"
    if base.endswith("y") and base[-2] not in "aeiou":
        return base[:-1] + "ies"
    return base + "s"


def _predicate(clause: Clause) -> tuple[str, str]:
    """Helping verb (or none) and verb."""
    is_plural = clause.subject.is_plural
    is_first = clause.subject.noun is not None and clause.subject.noun.english == "I"
    if clause.verb is None:
        assert clause.quality is not None, "a clause without verb says what something is like"
        now = "am" if is_first else "are" if is_plural else "is"
        be = {"present": now, "past": "were" if is_plural else "was", "future": "will"}[clause.tense]
        return be, f"be {clause.quality.english}" if clause.tense == "future" else clause.quality.english
    base = clause.verb.english
    if clause.tense == "future":
        return "will", base
    if clause.is_negated or clause.is_question:
        does = "do" if is_plural or is_first else "does"
        return {"present": does, "past": "did"}[clause.tense], base
    if clause.tense == "past":
        return "", past(clause.verb)
    return "", base if is_plural or is_first else third_person(clause.verb)
