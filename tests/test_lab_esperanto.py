"""The language that is taught is Esperanto: by an independent reader, and by hand-written pairs.

Rules are those of the *Fundamenta Gramatiko* in Zamenhof, *Fundamento de Esperanto* (1905); see `esperanto_grammar`.
"""

from typing import Any, get_args

import pytest

from esperanto_grammar import Noun, Sentence, Ungrammatical, read
from lab_checks import world
from radistill.lab import english
from radistill.lab.clauses import Clause, Phrase
from radistill.lab.esperanto import Morphology, NewLanguage, WordOrder
from radistill.lab.lexicon import AFFIXES, Word, named, of_kind, opposites, roots, words

NAMES = frozenset({*world().people, *world().cities})
ESPERANTO = NewLanguage()
PRONOUNS = ("I", "he", "she", "we", "they", "you")


def np(text: str) -> Phrase:
    """`the big dogs`, `a dog`, `three dogs`, `we`: as a phrase of the lab."""
    first, *rest = text.split()
    if first in PRONOUNS:
        return Phrase(named(first, "pronoun"), is_plural=first in ("we", "they", "you"), is_definite=True)
    numbers = {word.english: word for word in of_kind("number")}
    number = numbers.get(first)
    if number is None and first not in ("the", "a", "an"):
        rest = [first, *rest]
    singular = {word.english: (word, False) for word in of_kind("person", "animal", "food", "thing", "place")}
    plural = {english.plural(word): (word, True) for word, _ in singular.values()}
    noun, is_plural = (singular | plural)[rest[-1]]
    adjective = named(rest[0], "adjective") if len(rest) > 1 else None
    return Phrase(noun, "", adjective, number, is_plural=is_plural, is_definite=first == "the")


def said(subject: str, verb: str, obj: str = "", where: tuple[str, str] | None = None, **more: Any) -> Clause:
    """A clause with a verb; `where` is a preposition with its noun."""
    return Clause(
        np(subject),
        named(verb, "verb", "motion"),
        object=np(obj) if obj else None,
        preposition=named(where[0], "where", "company") if where else None,
        place=np(where[1]) if where else None,
    ).said(**more)


def was(subject: str, quality: str, **more: Any) -> Clause:
    return Clause(np(subject), quality=named(quality, "adjective")).said(**more)


PAST: dict[str, Any] = {"tense": "past"}
FUTURE: dict[str, Any] = {"tense": "future"}
NOT: dict[str, Any] = {"is_negated": True}
ASKED: dict[str, Any] = {"is_question": True}
WELL: dict[str, Any] = {"adverb": named("well", "adverb")}
QUICKLY: dict[str, Any] = {"adverb": named("quickly", "adverb")}
PAIRS: list[tuple[str, str, Clause]] = [
    # Accusative: it tells who sees whom.
    ("The dog sees the cat.", "La hundo vidas la katon.", said("the dog", "see", "the cat")),
    ("The cat sees the dog.", "La kato vidas la hundon.", said("the cat", "see", "the dog")),
    ("A woman buys an apple.", "Virino aĉetas pomon.", said("a woman", "buy", "an apple")),
    # Plural.
    ("Dogs see cats.", "Hundoj vidas katojn.", said("dogs", "see", "cats")),
    ("The wolves hear the mice.", "La lupoj aŭdas la musojn.", said("the wolves", "hear", "the mice")),
    # Adjectives agree.
    (
        "The good king loves the beautiful queens.",
        "La bona reĝo amas la belajn reĝinojn.",
        said("the good king", "love", "the beautiful queens"),
    ),
    (
        "The small children ate a red apple.",
        "La malgrandaj infanoj manĝis ruĝan pomon.",
        said("the small children", "eat", "a red apple", **PAST),
    ),
    # Tenses.
    ("The teacher sings.", "La instruisto kantas.", said("the teacher", "sing")),
    ("The teacher sang.", "La instruisto kantis.", said("the teacher", "sing", **PAST)),
    ("The teacher will sing.", "La instruisto kantos.", said("the teacher", "sing", **FUTURE)),
    # Negation.
    ("The bird does not sleep.", "La birdo ne dormas.", said("the bird", "sleep", **NOT)),
    (
        "The thieves did not find the crown.",
        "La ŝtelistoj ne trovis la kronon.",
        said("the thieves", "find", "the crown", **PAST, **NOT),
    ),
    # Questions.
    (
        "Does the soldier guard the castle?",
        "Ĉu la soldato gardas la kastelon?",
        said("the soldier", "guard", "the castle", **ASKED),
    ),
    ("Will they not wait?", "Ĉu ili ne atendos?", said("they", "wait", **FUTURE, **NOT, **ASKED)),
    # Places and company.
    (
        "The mouse sleeps under the table.",
        "La muso dormas sub la tablo.",
        said("the mouse", "sleep", "", ("under", "the table")),
    ),
    (
        "The friends danced in the forest.",
        "La amikoj dancis en la arbaro.",
        said("the friends", "dance", "", ("in", "the forest"), **PAST),
    ),
    (
        "The boy plays in front of the houses.",
        "La knabo ludas antaŭ la domoj.",
        said("the boy", "play", "", ("in front of", "the houses")),
    ),
    (
        "The prince travels with a sister.",
        "La princo vojaĝas kun fratino.",
        said("the prince", "travel", "", ("with", "a sister")),
    ),
    # Predicates.
    ("The house is big.", "La domo estas granda.", was("the house", "big")),
    ("The houses were not big.", "La domoj ne estis grandaj.", was("the houses", "big", **PAST, **NOT)),
    (
        "Will the new lamp be important?",
        "Ĉu la nova lampo estos grava?",
        was("the new lamp", "important", **FUTURE, **ASKED),
    ),
    # Pronouns.
    ("I am tired.", "Mi estas laca.", was("I", "tired")),
    ("We are tired.", "Ni estas lacaj.", was("we", "tired")),
    ("Does she laugh?", "Ĉu ŝi ridas?", said("she", "laugh", **ASKED)),
    ("Do I not help you?", "Ĉu mi ne helpas vin?", said("I", "help", "you", **NOT, **ASKED)),
    # Numerals.
    ("He sold three horses.", "Li vendis tri ĉevalojn.", said("he", "sell", "three horses", **PAST)),
    ("You need twelve white eggs.", "Vi bezonas dek du blankajn ovojn.", said("you", "need", "twelve white eggs")),
    (
        "Twenty wolves followed the hunter.",
        "Dudek lupoj sekvis la ĉasiston.",
        said("twenty wolves", "follow", "the hunter", **PAST),
    ),
    # Adverbs.
    ("The donkey runs quickly.", "La azeno kuras rapide.", said("the donkey", "run", **QUICKLY)),
    (
        "The girls repaired the boat well near the bridge.",
        "La knabinoj riparis la boaton bone apud la ponto.",
        said("the girls", "repair", "the boat", ("near", "the bridge"), **PAST, **WELL),
    ),
]


@pytest.mark.parametrize(("in_english", "in_esperanto", "clause"), PAIRS, ids=[pair[0] for pair in PAIRS])
def test_a_clause_is_said_as_a_person_would(in_english: str, in_esperanto: str, clause: Clause) -> None:
    assert english.sentence(clause) == in_english
    assert ESPERANTO.sentence(clause) == in_esperanto
    read(in_esperanto, NAMES)


def clauses(count: int, number: int = 0) -> list[Clause]:
    here = world(number)
    rng = here.rng("clauses to be read")
    return [here.clause(rng, test=at % 2 == 0) for at in range(count)]


def meant(phrase: Phrase | None, *, is_accusative: bool = False) -> Noun | None:
    """What a reader should find, from what the clause says."""
    if phrase is None:
        return None
    if phrase.name:
        return Noun(phrase.name)
    assert phrase.noun is not None
    return Noun(
        "".join(phrase.noun.roots),
        is_plural=phrase.is_plural,
        is_accusative=is_accusative,
        is_definite=phrase.is_definite,
        numeral=stem(phrase.number),
        adjective=stem(phrase.adjective),
    )


def stem(word: Word | None) -> str:
    return "".join(word.roots) if word else ""


def misread(language: NewLanguage, found: list[Clause]) -> list[str]:
    """Sentences that break a rule or say something else than the clause."""
    wrong = []
    for clause in found:
        text = language.sentence(clause)
        try:
            parsed = read(text, NAMES)
        except Ungrammatical as error:
            wrong.append(f"{text} {error}")
            continue
        subject = meant(clause.subject)
        assert subject is not None
        wanted = Sentence(
            subject,
            verb=stem(clause.verb) or "est",
            tense=clause.tense,
            is_negated=clause.is_negated,
            is_question=clause.is_question,
            quality=stem(clause.quality),
            object=meant(clause.object, is_accusative=True),
            adverb=stem(clause.adverb),
            preposition=stem(clause.preposition),
            place=meant(clause.place),
        )
        wrong += [f"{text} {parsed} instead of {wanted}"] if parsed != wanted else []
    return wrong


def test_generated_sentences_are_grammatical_and_say_what_was_meant() -> None:
    found = clauses(1000)
    assert misread(ESPERANTO, found[:100]) == []
    assert misread(ESPERANTO, found) == []
    for holds in (
        [c.object is not None for c in found],
        [c.quality is not None for c in found],
        [c.is_negated and c.is_question for c in found],
        [bool(c.place and c.place.is_plural) for c in found],
        [bool(c.object and c.object.adjective and c.object.is_plural) for c in found],
        [bool(c.subject.number) for c in found],
        [bool(c.adverb) for c in found],
        [bool(c.subject.name) for c in found],
    ):
        assert 5 < sum(holds) < 900, "the sentences read are of every sort"


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("La hundo vidas la kato.", "accusative"),
        ("La hundon vidas la katon.", "nominative"),
        ("La granda hundoj kuras.", "agrees"),
        ("La hundo vidas la granda katon.", "agrees"),
        ("La domoj estas granda.", "agrees"),
        ("La domo estas grandan.", "predicate"),
        ("La hundo dormas sub la tablon.", "8:"),
        ("Tri hundo kuras.", "plural"),
        ("La hundo kuri.", "6:"),
        ("La hundo dormas ne.", "nothing may follow"),
        ("La hundo kuras?", "ĉu"),
        ("Ĉu la hundo kuras.", "ĉu"),
        ("La hundo kuras", "full stop"),
        ("la hundo kuras.", "capital"),
        ("La Hundo kuras.", "capitalised"),
        ("La hunde kuras.", "2:"),
        ("Mi estas lacaj.", "agrees"),
        ("Mi vidas li.", "accusative"),
    ],
)
def test_the_reader_refuses_what_is_wrong(text: str, rule: str) -> None:
    with pytest.raises(Ungrammatical, match=rule):
        read(text, NAMES)


@pytest.mark.parametrize(("right", "wrong"), [("n", ""), ("j", ""), ("as", "i"), ("a", "o"), ("e", "a")])
def test_a_language_with_a_wrong_ending_is_caught(monkeypatch: pytest.MonkeyPatch, right: str, wrong: str) -> None:
    form = NewLanguage._form

    def spoiled(self: NewLanguage, stem: str, *marks: str) -> str:
        return form(self, stem, *(wrong if mark == right else mark for mark in marks))

    monkeypatch.setattr(NewLanguage, "_form", spoiled)
    assert len(misread(ESPERANTO, clauses(200))) > 10


@pytest.mark.parametrize("morphology", get_args(Morphology))
def test_no_two_words_are_one_whatever_the_morphology(morphology: Morphology) -> None:
    language = NewLanguage(morphology=morphology)
    found: dict[str, list[str]] = {}
    for word in words():
        found.setdefault(language.base_form(word), []).append(word.english)
    assert {form: meant for form, meant in found.items() if len(meant) > 1} == {}


@pytest.mark.parametrize(
    ("morphology", "text", "word"),
    [
        ("suffixes", "La rapida azeno kuras rapide.", "rapide"),
        ("prefixes", "La arapid oazen askur erapid.", "erapid"),
        ("particles", "La rapid azen as kur e rapid.", "e rapid"),
    ],
)
def test_quickly_is_told_from_quick(morphology: Morphology, text: str, word: str) -> None:
    language = NewLanguage(morphology=morphology)
    assert language.sentence(said("the quick donkey", "run", **QUICKLY)) == text
    assert language.base_form(named("quickly", "adverb")) == word


def test_there_are_at_least_250_roots_of_all_kinds() -> None:
    assert len(roots()) >= 250
    assert not roots() & AFFIXES
    kinds = {word.kind for word in words()}
    assert kinds >= {"person", "adjective", "verb", "motion", "adverb", "where", "company", "number", "pronoun"}
    assert all(root.isalpha() and root.islower() for root in roots())
    assert not {letter for root in roots() for letter in root} & set("qwxy"), "letters Esperanto does not have"


def test_opposites_are_opposites_both_ways() -> None:
    found = opposites()
    assert found["big"] == "small"
    assert found["cold"] == "warm"
    assert all(found[found[word]] == word != found[word] for word in found)


CLAUSE = said("the big dogs", "see", "three cats", ("near", "the house"), **PAST, **NOT)


@pytest.mark.parametrize(
    ("order", "morphology", "text"),
    [
        ("svo", "suffixes", "La grandaj hundoj ne vidis tri katojn apud la domo."),
        ("sov", "suffixes", "La grandaj hundoj tri katojn apud la domo ne vidis."),
        ("vso", "suffixes", "Ne vidis la grandaj hundoj tri katojn apud la domo."),
        ("svo", "prefixes", "La jagrand johund ne isvid tri njokat apud la odom."),
        ("svo", "particles", "La j grand j hund ne is vid tri j n kat apud la dom."),
        ("vso", "particles", "Ne is vid la j grand j hund tri j n kat apud la dom."),
    ],
)
def test_order_and_morphology_are_options(order: WordOrder, morphology: Morphology, text: str) -> None:
    language = NewLanguage(order, morphology)
    assert language.sentence(CLAUSE) == text
    found = clauses(150)
    said_so = [language.sentence(clause) for clause in found]
    usual = [ESPERANTO.sentence(clause) for clause in found]
    if not language.is_esperanto:
        assert sum(a != b for a, b in zip(said_so, usual, strict=True)) > 130
        assert misread(language, found)
    if morphology == "suffixes":
        words_of = [sorted(text.rstrip(".?").lower().split()) for text in said_so]
        assert words_of == [sorted(text.rstrip(".?").lower().split()) for text in usual]
