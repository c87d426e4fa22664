"""What the methods share that weigh the tokens of the task by what the untouched model thought of them."""

import dataclasses
from collections.abc import Mapping

from radistill.records import TASK, TrainingRecord, pools


def task_places(record: TrainingRecord, *, ends: bool = True) -> list[int]:
    """Places of the trained ids that teach the task, in order.

    Args:
        record: as assembled.
        ends: whether the end-of-turn right after them is one of them.
    """
    pooled = zip(record.segments, pools(record.segments), strict=True)
    wanted = [s for s, pool in pooled if pool in TASK and s.weight > 0 and (ends or s.origin != "end")]
    # Nothing predicts the first id.
    return [place for s in wanted for place in range(max(1, s.start), s.stop)]


def times(record: TrainingRecord, factors: Mapping[int, float]) -> TrainingRecord:
    """The record whose ids at these places weigh so many times what they weighed."""
    before = record.token_weights or (1.0,) * len(record.token_ids)
    return dataclasses.replace(
        record, token_weights=tuple(weight * factors.get(place, 1.0) for place, weight in enumerate(before))
    )
