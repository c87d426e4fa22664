"""Wordings: which there are, how they are filled, and how one is chosen."""

from collections import Counter

import pytest

from radistill.errors import DataError
from radistill.instructions import (
    WORDINGS,
    choose,
    is_language,
    language_name,
    names_languages,
    render,
    wordings,
)


def test_the_alma_wording_is_almas_to_the_letter() -> None:
    filled = render(WORDINGS["alma"], source="Guten Tag.", source_language="de", target_language="en")
    assert filled == "Translate this from German into English:\nGerman: Guten Tag.\nEnglish:"


def test_there_are_at_least_eight_wordings_each_naming_text_and_target() -> None:
    texts = wordings(None)
    assert len(set(texts)) == len(texts) >= 8
    for text in texts:
        filled = render(text, source="Guten Tag.", source_language="de", target_language="cs")
        assert "Guten Tag." in filled
        assert "Czech" in filled
        assert "{" not in filled


def test_braces_in_the_source_stay_what_they_are() -> None:
    source = "{target_language} {source} {} {{x}} \\1 \\g<0> %s"
    assert render("{source_language}: {source}", source=source, source_language="de", target_language="en") == (
        f"German: {source}"
    )


def test_other_braces_in_a_template_stay_what_they_are() -> None:
    (template,) = wordings('Answer as {"text": ...}: {source}')
    assert render(template, source="x", source_language="??", target_language="??") == 'Answer as {"text": ...}: x'


def test_a_wording_needs_the_languages_if_it_names_one_of_them() -> None:
    assert all(map(names_languages, wordings(None)))
    assert names_languages("Auf {target_language}: {source}")
    assert not names_languages('Answer as {"text": ...}, {source}')


def test_names_and_free_templates_can_be_mixed() -> None:
    assert wordings(["alma", "Say: {source}"]) == (WORDINGS["alma"], "Say: {source}")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("Say {text}", r"unknown placeholder \{text\}"),
        ("Say {source} in {target_lang}", r"unknown placeholder \{target_lang\}.*mean 'target_language'"),
        ("Translate into {target_language}", r"has no \{source\}"),
        ("Say {{source}}", "doubles its braces"),
        ("almo", "neither a built-in wording.*Did you mean 'alma'"),
        ([], "empty list"),
    ],
)
def test_a_wrong_template_is_refused(template: str | list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        wordings(template)


def test_the_choice_depends_on_seed_and_content_and_uses_every_wording() -> None:
    texts = wordings(None)
    chosen = [choose(texts, "de-en", f"sentence {n}", seed=0) for n in range(1000)]
    assert chosen == [choose(texts, "de-en", f"sentence {n}", seed=0) for n in range(1000)]
    assert chosen != [choose(texts, "de-en", f"sentence {n}", seed=1) for n in range(1000)]
    shares = Counter(chosen)
    assert set(shares) == set(texts)
    assert min(shares.values()) > 0.6 * 1000 / len(texts)


def test_languages_are_known_by_either_iso_code_and_by_their_first_part() -> None:
    assert [language_name(code) for code in ("de", "deu", "deu_Latn", "pt_BR", "zh", "eo", "DE")] == [
        "German",
        "German",
        "German",
        "Portuguese",
        "Chinese",
        "Esperanto",
        "German",
    ]
    assert not is_language("json")


def test_at_least_sixty_languages_are_named_without_a_slip_in_the_table() -> None:
    from radistill.instructions import _names

    two = {code: name for code, name in _names().items() if len(code) == 2}
    three = {code: name for code, name in _names().items() if len(code) == 3 and code != "qaa"}
    assert len(two) == len(three) >= 60
    assert len(two) + len(three) + 1 == len(_names()), "qaa is no language's; it stands for the lab's"
    assert len(set(two.values())) == len(two)
    assert all(name[0].isupper() and name == name.strip() for name in two.values())


def test_an_unknown_language_is_an_error_only_where_its_name_is_needed() -> None:
    assert render("Say {source}", source="x", source_language="xx", target_language="yy") == "Say x"
    with pytest.raises(DataError, match="no language has the code 'xx'"):
        render(WORDINGS["alma"], source="x", source_language="xx", target_language="en")
