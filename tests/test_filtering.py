"""Filters applied to a run: whose rationale is taken away, what stands in its place, and what is counted."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fakes_filtering import (
    BROKEN,
    LONG,
    LOOP,
    LOOPS,
    OFF,
    ROWS,
    WRITTEN,
    Assembly,
    bare,
    counts,
    number_in,
    only,
    prepared,
    without,
)
from radistill import pipeline, refresh
from radistill.chat import Chat
from radistill.config import config_from
from radistill.errors import ConfigError, RunFolderError
from radistill.filtering import Filtering, Rationale
from radistill.methods.radis import RaDis
from radistill.records import Example, Generation, Request, Sampling, TrainingRecord
from radistill.runs import RunFolder
from radistill.speaker import untouched
from radistill.tables import read_jsonl, read_records
from radistill.terminal import outcome_line


@pytest.fixture
def raw(raw_config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    return prepared(raw_config, tmp_path, monkeypatch)


@pytest.fixture
def assembled(raw: dict[str, Any], tmp_path: Path) -> Assembly:
    return Assembly(raw, tmp_path)


def test_a_new_run_filters_what_is_broken_or_degenerate_and_no_example_is_lost(assembled: Assembly) -> None:
    run, records = assembled()
    _, all_of_them = assembled(OFF)
    _, plain = assembled(method={"name": "vanilla"})
    assert set(records) == set(range(ROWS))
    assert without(run) == bare(records) == BROKEN | LOOPS
    for n, record in records.items():
        assert record == (plain[n] if n in BROKEN | LOOPS else all_of_them[n])
    assert bare(all_of_them) == {1}
    assert not list(read_jsonl(run.rejects))


def test_what_each_filter_takes_away_is_counted_and_a_rationale_that_fails_two_is_counted_once_in_all(
    assembled: Assembly,
) -> None:
    run, records = assembled({"max_tokens": LONG, "refusal": True})
    found = counts(run)
    long = {n for n, (text, _) in WRITTEN.items() if text == LOOP}
    assert found.pop("total") == {
        "filtered": 5,
        "rate": 5 / ROWS,
        "kept": ROWS - 5,
        "kept_tokens": sum(s.stop - s.start for r in records.values() for s in r.segments if s.origin == "rationale"),
    }
    assert {name: row["filtered"] for name, row in found.items()} == {
        "broken": 2, "degenerate": 2, "max_tokens": len(long), "refusal": 1,
    }  # fmt: skip
    assert all(row["rate"] == row["filtered"] / ROWS for row in found.values())
    rows = {number_in(row["reference"]): row for row in read_jsonl(run.filtered)}
    assert rows[4]["filters"] == ["degenerate", "max_tokens"]
    assert rows[2]["text"] == "The old man sees the"
    assert rows[2].keys() == {"example_id", "key", "index", "filters", "tokens", "reference", "text"}


def test_without_filters_nothing_is_counted_and_no_file_is_written(assembled: Assembly) -> None:
    run, _ = assembled(OFF)
    assert counts(run) == {}
    assert not run.filtered.exists()
    assert "filtered_share" not in run.stages()["assemble"].facts


def test_the_list_of_an_earlier_assembly_does_not_stay(raw: dict[str, Any]) -> None:
    pipeline.run(config_from(raw), stages=("generate", "assemble"))
    run = RunFolder(Path(raw["output_dir"]))
    assert run.filtered.exists()
    raw["generate"]["filters"] = OFF
    pipeline.run(config_from(raw), stages=("assemble",), redo="assemble")
    assert not run.filtered.exists()


def test_filters_that_find_nothing_leave_every_byte_as_it_was(assembled: Assembly) -> None:
    off, _ = assembled(OFF)
    on, _ = assembled(only(max_tokens=500, new_turn=False, near_duplicates=None, retranslation=100, min_tokens=None))
    assert off.records.read_bytes() == on.records.read_bytes()
    assert counts(on)["total"]["filtered"] == 0
    assert on.filtered.read_bytes() == b""


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"broken": True}, BROKEN),
        ({"degenerate": True}, LOOPS),
        ({"language": "en"}, {6, 10}),
        ({"language": ["en", "de"]}, set()),
        ({"retranslation": 70}, {10}),
        ({"refusal": True}, {7}),
        ({"leaked_template": True}, {9}),
        ({"new_turn": True}, {8}),
        ({"min_tokens": 2}, {1}),
        ({"max_tokens": LONG}, LOOPS),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_each_filter_takes_away_what_is_its_own(
    assembled: Assembly, filters: dict[str, Any], expected: set[int]
) -> None:
    run, records = assembled(only(**filters))
    assert without(run) == expected
    assert bare(records) == expected | {1}
    assert counts(run)[next(iter(filters))]["filtered"] == len(expected)


def test_what_the_user_had_cut_is_not_broken_but_what_the_model_was_cut_in_is(assembled: Assembly) -> None:
    run, records = assembled(only(broken=True), generate={"keep_tokens": 3})
    assert without(run) == BROKEN
    kept = [s for r in records.values() for s in r.segments if s.origin == "rationale"]
    assert {s.stop - s.start for s in kept} == {3}
    run, _ = assembled(only(max_tokens=LONG), generate={"keep_tokens": LONG})
    assert without(run) == set(), "what is trained on is not too long"


def test_of_near_duplicates_the_first_in_the_order_of_the_examples_stays(assembled: Assembly) -> None:
    pytest.importorskip("datasketch", reason="near-duplicates need datasketch (the extra `filters`)")
    filters = {"near_duplicates": 0.9, "refusal": True}
    run, records = assembled(filters)
    pair = sorted((0, 11), key=list(records).index)
    assert counts(run)["near_duplicates"]["filtered"] == 1
    assert bare(records) == BROKEN | LOOPS | {7, pair[1]}
    assert without(run) == BROKEN | LOOPS | {7, pair[1]}


def test_a_broken_copy_does_not_take_the_place_of_the_whole_one(
    assembled: Assembly, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("datasketch", reason="near-duplicates need datasketch (the extra `filters`)")
    _, records = assembled(OFF)
    first, second = list(records)[:2]
    monkeypatch.setitem(WRITTEN, first, ("The old man sees the dogs and says", "length"))
    monkeypatch.setitem(WRITTEN, second, ("The old man sees the dogs and says", "stop"))
    _, records = assembled({"near_duplicates": 0.9}, generate={"ledger": str(tmp_path / "another")})
    assert first in bare(records)
    assert second not in bare(records)


@pytest.mark.parametrize("by", ["coverage", "random"])
def test_a_budget_selects_and_what_is_not_selected_is_counted_but_not_listed(assembled: Assembly, by: str) -> None:
    run, records = assembled({"select": {"tokens": 160, "by": by}})
    found = counts(run)
    assert 100 < found["total"]["kept_tokens"] <= 160
    assert found["total"]["filtered"] == 4 + found["select"]["filtered"]
    assert found["select"]["filtered"] == len(bare(records) - BROKEN - LOOPS) > 0
    assert without(run) == BROKEN | LOOPS
    assert assembled({"select": {"tokens": 160, "by": by}})[1] == records


def test_records_do_not_hang_on_the_order_of_the_ledger(assembled: Assembly, tmp_path: Path) -> None:
    filters = {"select": {"tokens": 150, "by": "coverage"}, "refusal": True}
    first, _ = assembled(filters)
    small = {"ledger": str(tmp_path / "other"), "backend": {"name": "echo", "empty_share": 0.0, "batch_size": 1}}
    rows = json.loads((tmp_path / "own" / "train.en-de.json").read_text(encoding="utf-8"))
    (tmp_path / "reversed").mkdir()
    (tmp_path / "reversed" / "train.en-de.json").write_text(json.dumps(rows[::-1]), encoding="utf-8")
    backwards = {"train": {"path": str(tmp_path / "reversed"), "pairs": ["en-de"]}, "template": "{source}"}
    assembled(OFF, generate=small, data=backwards)
    second, _ = assembled(filters, generate=small)
    assert first.records.read_bytes() == second.records.read_bytes()
    assert first.filtered.read_bytes() == second.filtered.read_bytes()


def test_shuffled_rows_are_made_of_the_same_rationales(assembled: Assembly) -> None:
    filters = {"retranslation": 70, "select": {"tokens": 150, "by": "coverage"}}
    own_run, own = assembled(filters)
    run, records = assembled(filters, method={"name": "radis", "pairing": "shuffled"})
    assert counts(run) == counts(own_run)
    assert without(run) == without(own_run)

    def rationales(of: dict[int, TrainingRecord]) -> list[str]:
        return sorted(
            t for r in of.values() for t, s in zip(r.texts, r.segments, strict=True) if s.origin == "rationale"
        )

    assert rationales(records) == rationales(own)
    assert bare(records) != bare(own)


@pytest.mark.parametrize(
    "method",
    [
        [{"name": "radis"}, {"name": "context_free", "ratio": 0.5, "max_new_tokens": 4}],
        {"name": "self_rehearsal", "texts": 0.5, "messages": 0.5, "max_new_tokens": 4},
    ],
    ids=["composed", "self_rehearsal"],
)
def test_it_is_the_rationales_alone_that_are_filtered(assembled: Assembly, method: Any) -> None:
    run, records = assembled({"max_tokens": LONG}, method=method, train={"bf16": False, "weighting": "segments"})
    other, _ = assembled(OFF, method=method, train={"bf16": False, "weighting": "segments"})
    assert bare(records) == without(run) == BROKEN | LOOPS
    beside, all_beside = ([r for r in read_records(x.records) if r.example_id is None] for x in (run, other))
    assert beside == all_beside != []


@pytest.mark.parametrize("method", ["vanilla", "seqkd", "sdft", "kl"])
def test_methods_without_rationales_are_left_alone(assembled: Assembly, method: str) -> None:
    on, _ = assembled({"min_tokens": 400, "refusal": True}, method={"name": method})
    off, _ = assembled(OFF, method={"name": method})
    assert on.records.read_bytes() == off.records.read_bytes()
    assert counts(on) == {}
    assert on.stages()["assemble"].settings == off.stages()["assemble"].settings


@pytest.mark.parametrize("filters", [{}, {"max_perplexity": 100, "select": {"tokens": 10_000}}], ids=["few", "many"])
def test_what_another_model_wrote_is_filtered_too(assembled: Assembly, folder: Path, filters: dict[str, Any]) -> None:
    run, records = assembled(filters, generate={"teacher": str(folder)})
    assert without(run) == bare(records) == BROKEN | LOOPS


def test_what_is_written_while_training_hangs_on_the_filters(raw: dict[str, Any]) -> None:
    on = config_from(raw)
    raw["generate"]["filters"] = OFF
    off = config_from(raw)
    speaker = untouched(on)
    assert refresh.settings(on, speaker) == {"filters": on.generate.filters.plain(), **refresh.settings(off, speaker)}


class Both(RaDis):
    """Lets a rationale be written, and an answer that nobody trains on."""

    def plan(self, example: Example, chat: Chat, sampling: Sampling) -> Sequence[Request]:
        prompt = chat.prompt(example.messages)
        other = Request(
            purpose="response",
            prompt_ids=prompt.ids,
            messages=example.messages,
            sampling=sampling,
            example_id=example.id,
        )
        return [other, *super().plan(example, chat, sampling)]

    def assemble(self, example: Example, chat: Chat, generations: Sequence[Generation]) -> Sequence[TrainingRecord]:
        return super().assemble(example, chat, generations[1:])


def test_of_what_a_method_plans_only_rationales_are_judged(assembled: Assembly) -> None:
    _, alone = assembled({"select": {"tokens": 300}})
    run, records = assembled({"select": {"tokens": 300}}, method=Both())
    assert records == alone
    total = counts(run)["total"]
    assert total["kept"] + total["filtered"] == ROWS


def test_all_rationales_are_gone_through_once_a_stage(assembled: Assembly, monkeypatch: pytest.MonkeyPatch) -> None:
    times: list[int] = []
    usual = Filtering.judge_all

    def counted(self: Filtering, rows: Iterable[Sequence[Rationale]]) -> None:
        times.append(1)
        usual(self, rows)

    monkeypatch.setattr(Filtering, "judge_all", counted)
    assembled({"select": {"tokens": 300}}, method=[{"name": "radis"}, {"name": "flow"}])
    assert len(times) == 2, "when records are scored, and when they are assembled"


def test_a_changed_filter_is_named_and_needs_no_new_generation(raw: dict[str, Any]) -> None:
    config = config_from(raw)
    pipeline.run(config, stages=("generate", "assemble"))
    changed = config_from({**raw, "generate": {**raw["generate"], "filters": {"max_tokens": LONG}}})
    with pytest.raises(RunFolderError, match=r"stage `assemble` .*\n *filters.max_tokens: null there, 59 now"):
        pipeline.run(changed, stages=("generate", "assemble"))
    outcomes = pipeline.run(changed, stages=("generate", "assemble"), redo="assemble")
    assert [outcome.reused for outcome in outcomes] == [True, False]


def test_a_run_from_before_there_were_filters_goes_on_without_and_is_refused_with(raw: dict[str, Any]) -> None:
    raw["generate"]["filters"] = OFF
    config = config_from(raw)
    pipeline.run(config, stages=("generate", "assemble"))
    manifest = RunFolder(Path(config.output_dir)).manifest
    assert "filters" not in manifest.read_text(encoding="utf-8")
    assert [o.reused for o in pipeline.run(config, stages=("generate", "assemble"))] == [True, True]
    del raw["generate"]["filters"]
    with pytest.raises(RunFolderError, match=r'filters: null there, \{"broken": true, "degenerate": true\} now'):
        pipeline.run(config_from(raw), stages=("generate", "assemble"))


def test_the_line_of_the_stage_says_what_share_was_filtered(raw: dict[str, Any]) -> None:
    outcome = pipeline.run(config_from(raw), stages=("generate", "assemble"))[-1]
    assert outcome_line(outcome).endswith(f", {4 / ROWS:.1%} of the rationales filtered)")
    old = replace(outcome, record=replace(outcome.record, facts={"records": 3}))
    assert outcome_line(old).endswith("(records 3)")


def test_perplexity_and_writing_anew_do_not_go_together(raw: dict[str, Any]) -> None:
    raw["generate"] |= {"refresh_every": 4, "filters": {"max_perplexity": 50}}
    with pytest.raises(ConfigError, match=r"generate.filters.*leave refresh_every out"):
        config_from(raw)
