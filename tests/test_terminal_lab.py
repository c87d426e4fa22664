"""What the lab's commands print."""

from dataclasses import replace

import pytest

from radistill.lab.exam import Exam, Mark
from radistill.stats import Interval
from radistill.terminal_lab import show_exam


def test_the_table_of_an_exam_is_whole_in_eighty_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    known = Mark(
        name="known-language",
        value=100.0,
        low=98.9,
        high=100.0,
        n=1000,
        chance=50.0,
        metric="bleu",
        share=14.5,
        is_rehearsed=True,
        groups={"a-b": 99.0, "b-a": 98.0},
    )
    other = Mark(name="en-eo", value=4.4, low=2.7, high=5.7, n=250, metric="bleu")
    show_exam(
        Exam(
            abilities=(known,),
            general=Interval(value=97.2, low=96.7, high=97.6),
            new_language=(other,),
            rationales=replace(other, name="rationales", metric="well-formed"),
        )
    )
    said = capsys.readouterr().out
    assert "…" not in said
    for cell in ("known-language", "100.0 BLEU", "[98.9, 100.0]", "1,000", "touched", "yes", "a-b 99.0, b-a 98.0"):
        assert cell in said
    assert max(map(len, said.splitlines()[:12])) <= 80
