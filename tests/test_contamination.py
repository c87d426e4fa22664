"""Test data in the training data: what is found, what does not count, and when a run is refused."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from radistill.contamination import Overlap, is_long_enough, normalise, overlap, refuse_if_contaminated
from radistill.data import DataSettings, DataSource, load
from radistill.errors import DataError
from radistill.records import Example, Message

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
needs_alma = pytest.mark.skipif(not (SHARED / "alma").is_dir(), reason="needs ../shared/data/alma, which is not here")
LONG_DE, LONG_EN = "Das Wetter ist heute wirklich schön.", "The weather is really nice today."


def example(source: str, reference: str, pair: str = "de-en") -> Example:
    tags = {"source": source, **({"pair": pair} if pair else {})}
    return Example.of("translation", [Message("user", f"Translate: {source}")], reference, tags)


def settings(train: str = "news", test: str = "wmt22", **more: object) -> DataSettings:
    return DataSettings.model_validate({"train": {"path": train}, "test": {"path": test}, **more})


def test_width_case_space_punctuation_and_invisible_marks_do_not_tell_texts_apart() -> None:
    assert normalise("  „Ｈello“,\u00a0 WO\u00adRLD —  it's\tSTRASSE!\n") == "hello world it s strasse"
    assert normalise("hello world: it’s Straße") == "hello world it s strasse"
    assert normalise("नमस्ते दुनिया") == "नमस्ते दुनिया"
    assert normalise("你好，世界。") == "你好 世界"
    assert normalise("1 2") != normalise("12")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("thank you", False),
        ("international cooperation", False),
        ("a b c", False),
        ("that was it", True),
        ("谢谢", False),
        ("今天天气很好", True),
        ("สวัสดีครับผม", True),
        ("감사합니다", False),
    ],
)
def test_short_texts_do_not_count_and_unspaced_scripts_are_measured_by_character(text: str, expected: bool) -> None:
    assert is_long_enough(normalise(text)) is expected


def test_an_overlap_is_found_on_either_side_and_in_either_direction() -> None:
    train = [example(LONG_DE, LONG_EN)]
    forward = example(LONG_DE.upper(), "Something else entirely, my friend.")
    backward = example(f"“{LONG_EN}”", LONG_DE, "en-de")
    clean = example("Ein ganz anderer langer Satz.", "Quite another long sentence.")
    found = overlap(train, [forward, backward, clean])
    assert found.ids == (forward.id, backward.id)
    assert found.counts == {"de-en": {"source": 1}, "en-de": {"source": 1, "reference": 1}}
    assert (found.n_train, found.n_test) == (1, 3)
    assert found.share == pytest.approx(2 / 3)
    assert "2 of 3 test examples (66.67%)" in str(found)


def test_another_pair_with_the_same_language_contaminates_too() -> None:
    train = [example(LONG_DE, LONG_EN, "de-en")]
    assert overlap(train, [example("Počasí je dnes opravdu pěkné.", LONG_EN, "cs-en")]).ids
    assert overlap(train, [example("Počasí je dnes opravdu pěkné.", LONG_EN, "ces_Latn-eng_Latn")]).ids
    assert not overlap(train, [example(LONG_EN, "Počasí je dnes opravdu pěkné.", "fr-cs")]).ids


def test_short_segments_count_only_in_an_exact_comparison() -> None:
    train, test = [example("Erstaunlich.", "Amazing.")], [example("Amazing.", "Toll.", "en-de")]
    assert not overlap(train, test).ids
    assert overlap(train, test, exact=True).counts == {"en-de": {"source": 1}}
    assert not overlap(train, [example("amazing", "Toll.", "en-de")], exact=True).ids


def test_equal_labels_of_a_task_without_languages_are_no_contamination() -> None:
    label = "not enough information was given"
    train = [example("Is it true that cats bark?", label, "")]
    assert not overlap(train, [example("Is it true that dogs bark?", label, "")]).ids
    assert overlap(train, [example("is it true, that cats bark", "yes", "")]).ids


def test_no_test_data_have_no_share() -> None:
    assert overlap([], []).share == 0.0


def test_too_large_a_share_is_refused_unless_it_is_allowed() -> None:
    found = Overlap(n_train=10, n_test=100, ids=tuple(map(str, range(6))))
    with pytest.raises(DataError, match=r"6 of 100 test examples \(6\.00%\).*data\.allow_contamination=true"):
        refuse_if_contaminated(settings(), found)
    refuse_if_contaminated(settings(allow_contamination=True), found)
    refuse_if_contaminated(settings(max_contamination=0.06), found)


CLEAN, SOME = Overlap(10, 100, ()), Overlap(10, 100, ("a",))


@pytest.mark.parametrize(
    ("train", "test", "found"),
    [
        ("data/alma/deen", "data/flores200", CLEAN),
        ("ALMA-train.json", "FLORES-200/devtest", CLEAN),
        ("data/mine", "data/flores_devtest.json", SOME),
    ],
)
def test_flores_is_refused_as_a_test_of_almas_data(train: str, test: str, found: Overlap) -> None:
    with pytest.raises(DataError, match=r"ALMA's training data contain FLORES-200 dev and devtest.*WMT22"):
        refuse_if_contaminated(settings(train, test), found)
    refuse_if_contaminated(settings(train, test, allow_contamination=True), found)


def test_names_of_files_read_tell_flores_and_alma_as_paths_do() -> None:
    files = {"train_files": [Path("train.alma.json")], "test_files": [Path("x/flores.de-en.json")]}
    with pytest.raises(DataError, match="FLORES-200"):
        refuse_if_contaminated(settings(), CLEAN, **files)
    refuse_if_contaminated(settings(), CLEAN, train_files=files["train_files"])


@pytest.mark.parametrize(
    ("train", "test", "found"),
    [
        ("data/alma/deen", "data/alma/deen", SOME),
        ("data/mine", "data/flores200", CLEAN),
        ("data/palmares", "data/flores200", CLEAN),
    ],
)
def test_other_data_within_the_limit_are_not_refused(train: str, test: str, found: Overlap) -> None:
    refuse_if_contaminated(settings(train, test), found)


@pytest.fixture(scope="module")
def alma() -> tuple[DataSettings, Sequence[Example], Sequence[Example]]:
    pairs = ("de-en", "en-de", "cs-en", "en-cs", "ru-en", "en-ru", "zh-en", "en-zh")
    source = DataSource(path=str(SHARED / "alma"), pairs=pairs)
    train = source.model_copy(update={"pairs": pairs[::2]})  # the same texts as in both directions
    both = DataSettings(train=train, test=source, template="alma")
    return both, load(both, "train", seed=0).examples, load(both, "test", seed=0).examples


@needs_alma
def test_almas_english_overlaps_in_two_segments_within_their_pairs(
    alma: tuple[DataSettings, Sequence[Example], Sequence[Example]],
) -> None:
    english: dict[str, int] = {}
    normalised = 0
    for code in ("cs", "de", "ru", "zh"):
        train, test = ([e for e in part if code in e.tags["pair"].split("-")] for part in alma[1:])
        for pair, found in overlap(train, test, exact=True).counts.items():
            side = "source" if pair.startswith("en-") else "reference"
            english[pair] = found.get(side, 0)
        normalised += len(overlap(train, test).ids)
    assert english == {"en-cs": 1, "ru-en": 1}
    assert normalised == 0, "both are short: 'Amazing.' and 'So what?'"


@needs_alma
def test_almas_tests_are_clean_of_all_its_training_data_together(
    alma: tuple[DataSettings, Sequence[Example], Sequence[Example]],
) -> None:
    settings_, train, test = alma
    found = overlap(train, test)
    assert len(overlap(train, test, exact=True).ids) == 7
    assert found.counts == {"de-en": {"reference": 1}}, "'That was it.', in the training data of another pair"
    refuse_if_contaminated(settings_, found)
