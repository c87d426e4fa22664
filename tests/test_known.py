"""Ids that have come before are known, whatever their number."""

from radistill.known import Known
from radistill.records import digest


def test_what_was_added_is_known_and_nothing_else() -> None:
    known, names = Known(), [digest("id", n) for n in range(5000)]
    assert all(known.add(name) for name in names)
    assert len(known) == 5000
    assert not any(known.add(name) for name in names)
    assert known.add(digest("id", 5000))


def test_ids_that_fall_into_the_same_place_are_told_apart() -> None:
    known = Known()
    names = [f"{n:012x}0000{'0' * 16}" for n in range(700)]
    assert all(known.add(name) for name in names)
    assert not any(known.add(name) for name in names)
    assert known.add("0" * 31 + "1") is False, "its first half is that of the first"
