"""Rows beyond those that are held in memory come back as they were, in any order, while more are added."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from radistill.data import DataSettings, DataSource, _packed, _unpacked, load
from radistill.generate import _requests
from radistill.records import Example, Message, Request, Sampling, Span
from radistill.spool import Picked, Spool


def numbers(in_memory: int) -> Spool[int]:
    return Spool(lambda n: (n, "x" * (n % 50)), lambda row: int(row[0]), in_memory=in_memory)


@pytest.mark.parametrize("in_memory", [0, 1, 7, 100])
def test_a_spool_is_a_list_that_grows(in_memory: int) -> None:
    spool, plain = numbers(in_memory), list(range(0, 40, 2))
    for n in plain[:15]:
        spool.append(n)
    assert list(spool) == plain[:15]
    spool.extend(plain[15:])
    assert len(spool) == 20
    assert [spool[i] for i in range(-20, 20)] == plain + plain
    assert list(spool[3:17:5]) == plain[3:17:5]
    assert list(spool[-2:]) == plain[-2:]
    for at in (20, -21):
        with pytest.raises(IndexError):
            spool[at]


def test_rows_that_are_added_while_it_is_read_are_read_too() -> None:
    spool = numbers(2)
    spool.extend([1, 2, 3])
    found = []
    for n in spool:
        found.append(n)
        if len(found) < 6:
            spool.append(n + 10)
    assert found == [1, 2, 3, 11, 12, 13, 21, 22]


def test_picked_rows_are_those_of_the_spool_in_their_own_order() -> None:
    spool = numbers(3)
    spool.extend(range(10))
    picked = Picked(spool, [9, 0, 4])
    assert (len(picked), list(picked), list(picked[1:]), picked[-1]) == (3, [9, 0, 4], [0, 4], 4)


def test_an_example_survives_the_spool_whatever_its_text() -> None:
    example = Example.of(
        "translation",
        [Message("system", ""), Message("user", "half \ud83d, 🙂 \0 \u2028")],
        "Ä\n",
        {"pair": "en-eo", "source": "x"},
        2,
    )
    spool = Spool(_packed, _unpacked, in_memory=0)
    spool.append(example)
    assert spool[0] == example


def test_a_request_survives_the_spool_and_keeps_its_key() -> None:
    plan = [
        Request(
            purpose="rationale",
            prompt_ids=(3, 70_000, i),
            sampling=Sampling(temperature=i % 3, seed=i % 2),
            example_id=f"e{i}",
            spans=(Span("prompt", 0, 2), Span("reference", 2, 3)),
        )
        for i in range(8)
    ]
    spool = _requests()
    spool._in_memory = 2
    spool.extend(plan)
    assert list(spool) == plan
    assert [r.addressed_to("m").key for r in spool] == [r.addressed_to("m").key for r in plan]


def test_data_that_do_not_fit_into_memory_are_the_same_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [f"The dog sees {n % 17} trees.\tDer Hund sieht {n % 17} Bäume." for n in range(60)]
    (tmp_path / "train.en-de.tsv").write_text("\n".join([*rows, "one side only"]) + "\n", encoding="utf-8")
    sources = [DataSource(path=str(tmp_path), pairs=("en-de", "de-en"), limit=limit) for limit in (None, 1, 33)]

    def found() -> list[tuple[list[Example], object, Mapping[str, int], dict[str, int]]]:
        every = [load(DataSettings(train=source), "train", seed=3) for source in sources]
        return [(list(e.examples), e.rejects, e.counts, e.pairs) for e in every]

    whole = found()
    monkeypatch.setattr("radistill.spool.IN_MEMORY", 5)
    monkeypatch.setattr(Spool.__init__, "__kwdefaults__", {"in_memory": 5})
    assert found() == whole
    examples, _, counts, _ = whole[0]
    assert (len(examples), counts["rejected"], counts["equal"], counts["rows"]) == (120, 1, 120 - 34, 61)
    assert len({example.id for example in examples}) == 120
