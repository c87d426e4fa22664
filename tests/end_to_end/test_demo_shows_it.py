"""What the demo is there to show: at equal learning rate RaDis keeps more than vanilla, and both learn Esperanto."""

from pathlib import Path

import pytest

from radistill import stats
from radistill.demo import demo
from radistill.demo_words import seen
from radistill.records import BASE

SEEDS = 3


@pytest.mark.slow
@pytest.mark.parametrize("quick", [True, False], ids=["quick", "full"])
def test_in_each_of_three_seeds_radis_keeps_ten_points_more_and_both_gain_twenty_bleu(
    tmp_path: Path, quick: bool
) -> None:
    folders = demo(tmp_path, quick=quick, seeds=SEEDS)
    each = len(folders) // SEEDS
    for seed in range(SEEDS):
        measured = seen(folders[seed * each : (seed + 1) * each], seeds=[seed]).measured
        kept = stats.difference(measured["vanilla"].retention, measured["radis"].retention)
        assert kept.difference >= 10, (seed, kept)
        assert kept.low > 0, (seed, kept)
        for name in ("vanilla", "radis"):
            gained = stats.difference(measured[BASE].skill, measured[name].skill)
            assert gained.difference >= 20, (seed, name, gained)
            assert gained.low > 0, (seed, name, gained)
