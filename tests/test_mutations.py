"""The tests that say that training is right fail when it is not: each is run on a source in which one line is wrong."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TRAIN, TWO = "tests/test_train.py::test_", "tests/end_to_end/test_two_processes.py::test_"
MUTATIONS = {
    "packed records read one another": (
        "packing.py",
        "positions[b, start:stop] = np.arange(len(row))",
        "positions[b, start:stop] = np.arange(start, stop)",
        "tests/test_packing.py::test_packed_records_give_the_same_log_probabilities_as_separate_ones",
    ),
    "a packed training reads across records": (
        "packing.py",
        "positions[b, start:stop] = np.arange(len(row))",
        "positions[b, start:stop] = np.arange(start, stop)",
        f"{TRAIN}a_packed_training_equals_a_padded_one",
    ),
    "each forward pass has a mean of its own": (
        "trainer.py",
        "share = _Share(self, model, self.extras.tokens(inputs), total)",
        'total = losses.totals(inputs["weights_N"], inputs["pools_N"])\n'
        "        share = _Share(self, model, self.extras.tokens(inputs), total)",
        f"{TRAIN}a_batch_of_four_equals_four_accumulated_batches_of_one",
    ),
    "transformers divides once more": (
        "trainer.py",
        "self.loss_is_scaled_for_ga = True",
        "self.loss_is_scaled_for_ga = False",
        f"{TRAIN}a_batch_of_four_equals_four_accumulated_batches_of_one",
    ),
    "each process has a mean of its own": (
        "trainer.py",
        "        if self.args.world_size > 1:\n            total = self.accelerator.reduce(",
        "        if self.args.world_size > 9:\n            total = self.accelerator.reduce(",
        f"{TWO}two_processes_of_two_and_four_of_one_learn_what_one_of_four_does",
    ),
    "gradients are averaged over processes": (
        "trainer.py",
        "loss = loss * self.trainer.args.world_size",
        "loss = loss * 1",
        f"{TWO}two_processes_of_two_and_four_of_one_learn_what_one_of_four_does",
    ),
    "a checkpoint forgets the random numbers": (
        "trainer.py",
        "super()._save_rng_state(output_dir)",
        "pass",
        f"{TRAIN}a_resumed_training_has_the_losses_and_weights_of_an_uninterrupted_one",
    ),
    "a killed training forgets the random numbers": (
        "trainer.py",
        "super()._save_rng_state(output_dir)",
        "pass",
        "tests/faults/test_killed_while_training.py::test_a_training_killed_at_any_moment_ends_as_if_nothing_had_happened",
    ),
    "a torn checkpoint counts as whole": (
        "train.py",
        "    except (OSError, ValueError):\n        return False",
        "    except (OSError, ValueError):\n        return True",
        f"{TRAIN}a_checkpoint_that_was_torn_while_saving_is_passed_over",
    ),
    "the adapter stays on in the untouched model": (
        "training_parts.py",
        "self.model.disable_adapter() if self.is_adapter else nullcontext()",
        "nullcontext()",
        "tests/test_reference.py::test_with_its_adapter_off_the_model_in_training_is_the_untouched_one_to_the_last_bit",
    ),
    "a merge changes both ends of a tied pair": (
        "merge_weights.py",
        "    if first.weight is last.weight:",
        "    if first.weight is None:",
        "tests/test_merge_kinds.py::test_merged_is_unmerged_whatever_is_adapted",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(("file", "line", "wrong", "test"), MUTATIONS.values(), ids=MUTATIONS.keys())
def test_a_wrong_line_is_found(tmp_path: Path, file: str, line: str, wrong: str, test: str) -> None:
    for name in ("src", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    source = tmp_path / "src" / "radistill" / file
    text = source.read_text(encoding="utf-8")
    assert text.count(line) == 1, "the line is another now"
    source.write_text(text.replace(line, wrong), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", test, "-m", "not slow", "-p", "no:cacheprovider", "-x"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "src"), "OMP_NUM_THREADS": "1", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stdout[-2000:]
    assert re.search(r"^FAILED ", done.stdout, flags=re.MULTILINE), done.stdout[-2000:]
