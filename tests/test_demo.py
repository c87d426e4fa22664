"""The demo: what it says is computed, and its RaDis run is the one in configs/."""

import re
from pathlib import Path

import numpy as np
import pytest

from radistill import stats
from radistill.config import as_dict, load_config
from radistill.demo import ABILITIES, RUNS, run_config, run_name
from radistill.demo_words import Measured, Seen, sentences, table
from radistill.lab import abilities
from radistill.records import BASE

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


def around(value: float, seed: int) -> stats.Resampled:
    """A score whose interval is about one point to each side."""
    draws = np.random.default_rng(seed).normal(value, 0.5, stats.DRAWS)
    return stats.Resampled(value, draws)


def measured(**runs: tuple[float, float]) -> dict[str, Measured]:
    """BLEU and retention by name, `_` for `-`."""
    found = {BASE: (10.0, 100.0), **{name.replace("_", "-"): numbers for name, numbers in runs.items()}}
    return {
        name: Measured(
            skill=around(skill, 2 * i), retention=around(left, 2 * i + 1), learning_rate=RUNS[name][1] if i else 0.0
        )
        for i, (name, (skill, left)) in enumerate(found.items())
    }


def test_the_run_file_in_configs_is_the_demos_radis_run() -> None:
    ours, shipped = (
        as_dict(config)
        for config in (run_config("radis", Path("x"), quick=False), load_config(CONFIGS / "lab-esperanto.yaml"))
    )
    for plain in (ours, shipped):
        del plain["name"], plain["output_dir"], plain["generate"]["ledger"]
    assert ours == shipped


def test_every_ability_is_tested() -> None:
    assert tuple(ability.name for ability in abilities.ABILITIES) == ABILITIES


def test_the_runs_have_their_names_and_half_the_rate_is_half() -> None:
    assert list(RUNS) == ["vanilla", "vanilla-half-lr", "radis"]
    full, half, radis = (run_config(name, Path("x"), quick=True) for name in RUNS)
    assert full.train.learning_rate == 2 * half.train.learning_rate == radis.train.learning_rate
    assert full.train.model_copy(update={"learning_rate": 1.0}) == radis.train.model_copy(update={"learning_rate": 1.0})
    assert {
        run_config(name, Path("x"), quick=True, seed=s).output_dir for name in RUNS for s in range(3)
    }.__len__() == 9
    assert run_name("radis", 2) == "radis-seed2"


def test_the_sentences_say_what_the_numbers_say() -> None:
    learned, kept, beside = sentences(measured(vanilla=(60, 50), vanilla_half_lr=(40, 70), radis=(55, 80)))
    assert "10.0 BLEU" in learned
    assert "No gain" not in learned
    assert "radis keeps 80.0 %" in kept
    assert "30.0 points" in kept
    assert kept.endswith("more.")
    assert beside.endswith("it is better in both.")


def test_a_learning_rate_that_beats_radis_is_said_to() -> None:
    *_, beside = sentences(measured(vanilla=(60, 50), vanilla_half_lr=(58, 85), radis=(50, 80)))
    assert beside.endswith("a lower learning rate beats it in both.")


def test_losing_more_than_vanilla_is_said_too() -> None:
    _, kept, _ = sentences(measured(vanilla=(60, 50), vanilla_half_lr=(58, 85), radis=(50, 40)))
    found = re.search(r"radis keeps 10\.0 points \[([\d.]+), ([\d.]+)\] less", kept)
    assert found, kept
    assert float(found[1]) < 10 < float(found[2])


def test_a_difference_that_is_not_shown_keeps_its_sign() -> None:
    _, kept, _ = sentences(measured(vanilla=(60, 50.5), vanilla_half_lr=(58, 85), radis=(50, 50)))
    assert "the difference, −0.5 [−" in kept
    assert kept.endswith("is not shown to be one.")


def test_runs_that_got_worse_are_named() -> None:
    learned, *_ = sentences(measured(vanilla=(5, 50), vanilla_half_lr=(5, 85), radis=(5, 50)))
    assert learned.endswith("vanilla, vanilla-half-lr and radis got worse.")


def test_a_run_that_learned_nothing_is_named() -> None:
    learned, *_ = sentences(measured(vanilla=(60, 50), vanilla_half_lr=(10, 85), radis=(50, 80)))
    assert "No gain is shown for vanilla-half-lr." in learned


@pytest.mark.parametrize(
    ("half", "end"),
    [
        ((40, 90), "neither beats the other."),
        ((60, 70), "neither beats the other."),
        ((50, 70), "no difference in the new skill is shown."),
        ((40, 80), "no difference in retention is shown."),
        ((50, 90), "it beats radis here."),
        ((60, 80), "it beats radis here."),
        ((50, 80), "no difference is shown in either."),
    ],
)
def test_every_outcome_beside_half_the_rate_has_its_words(half: tuple[float, float], end: str) -> None:
    *_, beside = sentences(measured(vanilla=(60, 50), vanilla_half_lr=half, radis=(50, 80)))
    assert beside.endswith(end)


def test_the_table_has_a_row_for_the_untouched_model_and_every_run() -> None:
    found = measured(vanilla=(60, 50), vanilla_half_lr=(40, 70), radis=(55, 80))
    rows = table(Seen(measured=found, sentences=sentences(found)))
    assert [row[0] for row in rows] == [BASE, *RUNS]
    assert [row[1] for row in rows] == ["–", "0.001", "0.0005", "0.001"]
