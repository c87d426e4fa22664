"""From predictions to scores: every number has its interval, n, failures and signature."""

from pathlib import Path

import numpy as np
import pytest
from sacrebleu.metrics.bleu import BLEU as SacreBLEU

from radistill import scoring, stats
from radistill.errors import DataError
from radistill.metrics.bleu import BLEU
from radistill.metrics.chrf import ChrF
from radistill.records import Example, FinishReason, Generation, Message, Prediction
from radistill.scoring import Scored, compare, load_rows, retention, save_rows, score, score_files
from radistill.seeds import generator
from radistill.tasks.translation import Translation

NPY = b"\x93NUMPY\x01\x00v\x00" + b"{'descr': '<f8', 'fortran_order': False, 'shape': (0,), }".ljust(117) + b"\n"
NOTE = "\n\nNote: this sentence was translated with care."
WORDS = [
    "the",
    "a",
    "old",
    "new",
    "small",
    "house",
    "tree",
    "river",
    "sees",
    "finds",
    "near",
    "behind",
    "slowly",
    "today",
]


def sentence(*purpose: object) -> str:
    return " ".join(generator(0, "test", *purpose).choice(WORDS, size=9)).capitalize() + "."


def worsened(text: str, share: float, *purpose: object) -> str:
    random = generator(1, "test", *purpose)
    return " ".join("thing" if random.random() < share else word for word in text.split())


def prediction(
    system: str, pair: str, number: int, reply: str, *, reason: FinishReason = "stop", task: Translation | None = None
) -> Prediction:
    reference = sentence(pair, number)
    example = Example(
        id=f"{pair}-{number:03d}",
        task="translation",
        messages=(Message("user", f"Zdroj {pair} {number}"),),
        reference=reference,
        tags={"pair": pair},
    )
    ids = tuple(range(len(reply.split())))
    generation = Generation(key=f"{system}{number}", index=0, token_ids=ids, text=reply, finish_reason=reason)
    return (task or Translation()).read(system, example, generation)


def outputs(system: str, share: float, *, pairs: dict[str, int], note: str = "") -> list[Prediction]:
    return [
        prediction(system, pair, n, worsened(sentence(pair, n), share, system, pair, n) + note)
        for pair, size in pairs.items()
        for n in range(size)
    ]


@pytest.fixture(scope="module")
def scored() -> Scored:
    pairs = {"cs-en": 60, "de-en": 30}
    predictions = outputs("tuned", 0.1, pairs=pairs, note=NOTE) + outputs("base", 0.3, pairs=pairs)
    return score(predictions, Translation(), "translation", seed=0)


def test_there_is_a_score_for_every_system_metric_and_group(scored: Scored) -> None:
    names = {(s.system, s.metric, s.group) for s in scored.scores}
    rates = ("empty", "copied", "off_target", "loop", "truncated", "leaked_rationale", "cut")
    metrics = ("bleu", "bleu_raw", "chrf", "chrf_raw", "tokens_per_answer", *(f"rate_{label}" for label in rates))
    groups = ("cs-en", "de-en", "macro")
    assert names == {(s, m, g) for s in ("base", "tuned") for m in metrics for g in groups}
    assert len(scored.scores) == len(names)
    assert scored.scores[0].system == "base"


def test_a_score_is_that_of_sacrebleu_inside_its_interval(scored: Scored) -> None:
    found = scored.find(system="tuned", metric="bleu", group="de-en")
    assert found is not None
    answers = [worsened(sentence("de-en", n), 0.1, "tuned", "de-en", n) for n in range(30)]
    expected = SacreBLEU().corpus_score(answers, [[sentence("de-en", n) for n in range(30)]])
    assert found.value == expected.score
    assert found.low < found.value < found.high
    assert (found.n, found.n_failed, found.unit, found.higher_is_better) == (30, 0, "points of 100", True)
    assert found.signature.startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")
    assert found.signature.endswith("|cut:blank-line|bs:1000|rs:0")


def test_the_macro_is_the_unweighted_mean_of_the_groups(scored: Scored) -> None:
    value = {s.group: s.value for s in scored.scores if (s.system, s.metric) == ("base", "chrf")}
    assert value["macro"] == pytest.approx((value["cs-en"] + value["de-en"]) / 2)
    macro = scored.find(system="base", metric="chrf")
    assert macro is not None
    assert macro.n == 90


def test_whole_replies_are_scored_beside_the_answers(scored: Scored) -> None:
    value = {(s.system, s.metric): s.value for s in scored.scores if s.group == "macro"}
    assert value["tuned", "bleu_raw"] < value["tuned", "bleu"] - 10
    assert value["base", "bleu_raw"] == value["base", "bleu"]
    whole = [worsened(sentence("de-en", n), 0.1, "tuned", "de-en", n) + NOTE for n in range(30)]
    expected = SacreBLEU().corpus_score(whole, [[sentence("de-en", n) for n in range(30)]]).score
    raw = scored.find(system="tuned", metric="bleu_raw", group="de-en")
    assert raw is not None
    assert raw.value == expected
    assert "|cut:none|" in raw.signature


def test_only_the_replies_that_were_cut_differ_between_the_two_kinds_of_rows() -> None:
    mixed = [prediction("base", "de-en", n, sentence("de-en", n) + (NOTE if n % 3 == 0 else "")) for n in range(9)]
    rows = score(mixed, Translation(), "translation", seed=0).rows
    differ = (rows["bleu"]["base/de-en"] != rows["bleu_raw"]["base/de-en"]).any(axis=1)
    assert differ.tolist() == [n % 3 == 0 for n in range(9)]


def test_rates_are_percentages_with_wilson_intervals(scored: Scored) -> None:
    cut = scored.find(system="tuned", metric="rate_cut", group="de-en")
    none = scored.find(system="base", metric="rate_cut", group="de-en")
    assert cut is not None
    assert none is not None
    wilson = stats.wilson(30, 30)
    assert (cut.value, cut.low, cut.high) == (100.0, 100 * wilson.low, 100.0)
    assert (none.value, none.low) == (0.0, 0.0)
    assert none.high == pytest.approx(100 * stats.wilson(0, 30).high)
    assert (cut.unit, cut.higher_is_better, cut.n) == ("%", False, 30)


def test_the_mean_number_of_tokens_counts_the_whole_reply(scored: Scored) -> None:
    base, tuned = (scored.find(system=name, metric="tokens_per_answer") for name in ("base", "tuned"))
    assert base is not None
    assert tuned is not None
    assert base.value == 9
    assert tuned.value == 9 + len(NOTE.split())
    assert base.unit == "tokens"


def test_what_could_not_be_had_is_counted_scored_as_empty_and_kept_out_of_the_rates() -> None:
    good = [prediction("base", "de-en", n, sentence("de-en", n)) for n in range(8)]
    lost = [prediction("base", "de-en", n, "", reason="error") for n in (8, 9)]
    half_written = [prediction("base", "de-en", 10, "Half of", reason="error")]
    scored = score(good + lost + half_written, Translation(), "translation", seed=0)
    bleu, empty, tokens = (
        scored.find(system="base", metric=name, group="de-en") for name in ("bleu", "rate_empty", "tokens_per_answer")
    )
    assert bleu is not None
    assert empty is not None
    assert tokens is not None
    answers = [sentence("de-en", n) for n in range(8)] + ["", "", ""]
    expected = SacreBLEU().corpus_score(answers, [[sentence("de-en", n) for n in range(11)]]).score
    assert bleu.value == expected < 100
    assert (bleu.n, bleu.n_failed) == (11, 3)
    assert (empty.value, empty.n, empty.n_failed) == (0.0, 8, 3)
    assert (tokens.value, tokens.n) == (9.0, 8)


def test_a_system_that_answered_nothing_has_scores_but_no_rates() -> None:
    lost = [prediction("base", "de-en", n, "", reason="error") for n in range(3)]
    scored = score(lost, Translation(), "translation", seed=0)
    bleu = scored.find(system="base", metric="bleu")
    assert bleu is not None
    assert (bleu.value, bleu.n_failed) == (0.0, 3)
    assert not [s for s in scored.scores if s.metric.startswith("rate_")]


def test_scores_do_not_depend_on_the_order_of_the_predictions(scored: Scored) -> None:
    pairs = {"cs-en": 60, "de-en": 30}
    predictions = outputs("base", 0.3, pairs=pairs) + outputs("tuned", 0.1, pairs=pairs, note=NOTE)
    mixed = [predictions[i] for i in generator(0, "test", "order").permutation(len(predictions))]
    assert score(mixed, Translation(), "translation", seed=0).scores == scored.scores
    assert score(mixed, Translation(), "translation", seed=1).scores != scored.scores


def test_a_metric_with_several_settings_has_as_many_names() -> None:
    task = Translation(metrics=(BLEU(), ChrF(), ChrF(word_order=2)))
    found = score(outputs("base", 0.2, pairs={"de-en": 5}), task, "translation", seed=0)
    assert list(found.rows) == ["bleu", "bleu_raw", "chrf", "chrf_raw", "chrf-word_order=2", "chrf-word_order=2_raw"]


def test_nothing_is_cut_where_the_task_cuts_nothing() -> None:
    task = Translation(cut_at="")
    whole = [prediction("base", "de-en", n, sentence("de-en", n) + NOTE, task=task) for n in range(5)]
    found = score(whole, task, "translation", seed=0)
    assert list(found.rows) == ["bleu", "chrf"]
    assert found.find(system="base", metric="rate_cut") is None


def test_no_predictions_are_refused() -> None:
    with pytest.raises(DataError, match="no predictions for the task translation"):
        score([], Translation(), "translation", seed=0)


def test_an_example_answered_twice_is_refused() -> None:
    twice = outputs("base", 0.1, pairs={"de-en": 3}) + outputs("base", 0.2, pairs={"de-en": 1})
    with pytest.raises(DataError, match="base answered the example de-en-000 of the task translation twice"):
        score(twice, Translation(), "translation", seed=0)


# Comparing


def test_a_comparison_is_paired_and_agrees_with_the_scores(scored: Scored) -> None:
    found = {(c.metric, c.group): c for c in compare(scored, system="tuned")}
    assert set(found) == {(m, g) for m in scored.rows for g in ("cs-en", "de-en", "macro")}
    bleu = found["bleu", "macro"]
    base, tuned = (scored.find(system=name, metric="bleu") for name in ("base", "tuned"))
    assert base is not None
    assert tuned is not None
    assert (bleu.before, bleu.after) == pytest.approx((base.value, tuned.value))
    assert bleu.difference == pytest.approx(tuned.value - base.value)
    assert 0 < bleu.low < bleu.difference < bleu.high
    assert (bleu.n, bleu.n_left_out) == (90, 0)


def test_the_p_values_of_the_groups_are_corrected_for_being_many(scored: Scored) -> None:
    found = [c for c in compare(scored, system="tuned") if c.metric == "bleu"]
    assert {c.group: c.p_holm for c in found} == {
        "cs-en": pytest.approx(2 / 1001),
        "de-en": pytest.approx(2 / 1001),
        "macro": pytest.approx(1 / 1001),
    }


def test_a_system_compared_with_itself_differs_by_nothing(scored: Scored) -> None:
    for c in compare(scored, system="base"):
        assert (c.difference, c.low, c.high, c.p_value, c.p_holm) == (0.0, 0.0, 0.0, 1.0, 1.0)


def test_systems_that_answered_different_items_are_paired_on_the_common_ones() -> None:
    base = outputs("base", 0.3, pairs={"de-en": 20, "cs-en": 5})
    tuned = [p for p in outputs("tuned", 0.1, pairs={"de-en": 26}) if p.example_id >= "de-en-004"]
    scored = score(base + tuned, Translation(), "translation", seed=0)
    found = {c.group: c for c in compare(scored, system="tuned") if c.metric == "bleu"}
    assert set(found) == {"de-en", "macro"}
    assert (found["de-en"].n, found["de-en"].n_left_out) == (16, 4 + 6)
    assert (found["macro"].n, found["macro"].n_left_out) == (16, 4 + 6 + 5)
    same = [sentence("de-en", n) for n in range(4, 20)]
    answers = [worsened(text, 0.3, "base", "de-en", n) for n, text in enumerate(same, start=4)]
    assert found["de-en"].before == SacreBLEU().corpus_score(answers, [same]).score
    back = {c.group: c for c in compare(scored, system="base", baseline="tuned") if c.metric == "bleu"}
    assert (back["de-en"].before, back["de-en"].after) == (found["de-en"].after, found["de-en"].before)
    # The draws fall on the items in the order of their ids, so they are the same in every process.
    rows = scored.rows["bleu"]
    paired = stats.paired(
        rows["base/de-en"][4:], rows["tuned/de-en"][:16], BLEU().score, seed=0, name="translation/de-en"
    )
    assert (found["de-en"].low, found["de-en"].high) == (paired.low, paired.high)


def test_systems_without_a_common_item_are_not_compared(scored: Scored) -> None:
    apart = outputs("base", 0.1, pairs={"de-en": 3}) + outputs("tuned", 0.1, pairs={"cs-en": 3})
    with pytest.raises(DataError, match="no common example"):
        compare(score(apart, Translation(), "translation", seed=0), system="tuned")
    with pytest.raises(DataError, match="'tunde' for the task translation; scored were: base, tuned"):
        compare(scored, system="tunde")


def test_retention_is_that_of_the_first_metric_over_all_groups(scored: Scored) -> None:
    base, tuned = (scored.find(system=name, metric="bleu") for name in ("base", "tuned"))
    assert base is not None
    assert tuned is not None
    found = retention(scored, system="tuned", margin=0.02)
    assert found.value == pytest.approx(tuned.value / base.value)
    assert found.verdict == "improved"
    assert retention(scored, system="base", baseline="tuned", margin=0.02).verdict == "lost"
    assert retention(scored, system="base", margin=0.0).verdict == "retained"


# Rows on disk


def test_rows_come_back_from_disk_with_their_ids_and_give_the_same_scores(scored: Scored, tmp_path: Path) -> None:
    file = tmp_path / "rows" / "translation.bleu.npz"
    save_rows(file, scored, "bleu")
    rows, ids = load_rows(file)
    assert ids == scored.ids
    assert rows.keys() == scored.rows["bleu"].keys()
    for key, array in rows.items():
        np.testing.assert_array_equal(array, scored.rows["bleu"][key])
        assert len(array) == len(ids[key])
    again = stats.bootstrap(rows["base/de-en"], BLEU().score, seed=0, name="translation/de-en")
    found = scored.find(system="base", metric="bleu", group="de-en")
    assert found is not None
    assert (again.value, again.low, again.high) == (found.value, found.low, found.high)


def test_the_same_rows_make_the_same_file(scored: Scored, tmp_path: Path) -> None:
    save_rows(tmp_path / "a.npz", scored, "chrf")
    save_rows(tmp_path / "b.npz", scored, "chrf")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 torn", NPY, b"\x80\x04K\x01."])
def test_a_missing_or_damaged_file_of_rows_is_named(content: bytes | None, tmp_path: Path) -> None:
    file = tmp_path / "rows.npz"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(DataError, match=r"rows\.npz holds no rows.*--redo evaluate"):
        load_rows(file)


# Line files


def lines(path: Path, rows: list[str]) -> Path:
    path.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
    return path


def test_line_files_are_scored_whole(tmp_path: Path) -> None:
    references = [sentence("file", n) for n in range(12)]
    answers = [worsened(text, 0.2, n) for n, text in enumerate(references)]
    answers[3] = ""
    found = score_files(
        lines(tmp_path / "hyp.en", answers), lines(tmp_path / "ref.en", references), language="en", metrics=[BLEU()]
    )
    value = {s.metric: s for s in found}
    assert list(value) == ["bleu", "rate_empty", "rate_off_target", "rate_loop"]
    assert value["bleu"].value == SacreBLEU().corpus_score(answers, [references]).score
    assert (value["bleu"].system, value["bleu"].group, value["bleu"].n) == ("hyp.en", "en", 12)
    assert value["rate_empty"].value == pytest.approx(100 / 12)


def test_copies_are_counted_where_sources_are_given_and_the_tokenizer_is_the_languages(tmp_path: Path) -> None:
    source, good = "The goods cost less than 20 euros.", "这件商品的价格不到20欧元。"
    found = score_files(
        lines(tmp_path / "hyp.zh", [source, good]),
        lines(tmp_path / "ref.zh", [good, good]),
        lines(tmp_path / "src.en", [source, source]),
        language="zh-Hans",
    )
    value = {s.metric: s for s in found}
    assert list(value) == ["bleu", "chrf", "rate_empty", "rate_copied", "rate_off_target", "rate_loop"]
    assert value["rate_copied"].value == value["rate_off_target"].value == 50
    assert "tok:zh" in value["bleu"].signature
    assert value["bleu"].group == "zh"


def test_unaligned_line_files_are_refused_with_both_counts(tmp_path: Path) -> None:
    hyp, ref = lines(tmp_path / "hyp", ["a", "b", "c"]), lines(tmp_path / "ref", ["a", "b"])
    with pytest.raises(DataError, match=r"hyp has 3 lines, .*ref has 2"):
        score_files(hyp, ref, language="en")
    with pytest.raises(DataError, match=r"hyp has 3 lines, .*src has 1"):
        score_files(hyp, hyp, lines(tmp_path / "src", ["x"]), language="en")


def test_a_line_ends_only_where_a_line_ends(tmp_path: Path) -> None:
    odd = ["form\x0cfeed", "next\x85line", "line\u2028separator", "carriage\rreturn", ""]
    hyp = lines(tmp_path / "hyp", odd)
    windows = tmp_path / "ref"
    windows.write_bytes("\r\n".join(["a", "b", "c", "d", "e"]).encode("utf-8-sig"))
    assert score_files(hyp, windows, language="en", metrics=[ChrF()])[0].n == 5
    assert scoring._lines(windows) == ["a", "b", "c", "d", "e"]


@pytest.mark.parametrize(("content", "message"), [(None, "does not exist"), (b"", "is empty"), (b"\xff\xfe", "UTF-8")])
def test_a_line_file_that_cannot_be_used_is_named(content: bytes | None, message: str, tmp_path: Path) -> None:
    file = tmp_path / "hyp"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(DataError, match=rf"hyp.*{message}"):
        score_files(file, lines(tmp_path / "ref", ["a"]), language="en")
