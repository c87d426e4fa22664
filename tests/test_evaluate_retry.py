"""Stage 4: predictions that failed are asked for once more before they are scored."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from radistill import pipeline
from radistill.backends import echo
from radistill.config import config_from
from radistill.errors import BackendError
from radistill.records import Generation, Request
from radistill.runs import RunFolder
from radistill.tables import read_predictions

STAGES = ("generate", "assemble", "train", "evaluate")
whole = echo.EchoGenerator.answer


@pytest.mark.parametrize("times", [1, 9])
def test_a_prediction_that_failed_is_asked_for_once_more(
    raw_config: dict[str, Any], monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    tries: Counter[str] = Counter()

    def answer(self: echo.EchoGenerator, unit: Sequence[Request]) -> list[Generation]:
        predictions = {r.key for r in unit if r.purpose == "prediction" and int(r.key, 16) % 2}
        tries.update(predictions)
        bad = sorted(key for key in predictions if tries[key] <= times)
        failed = [
            Generation(key=k, index=0, token_ids=(), text="", finish_reason="error", error="HTTP 503") for k in bad
        ]
        return [*(g for g in whole(self, unit) if g.key not in bad), *failed]

    monkeypatch.setattr(echo.EchoGenerator, "answer", answer)
    raw_config["generate"]["backend"] = {"name": "echo", "empty_share": 0.0}
    raw_config["generate"]["max_attempts"] = 2  # both systems are one echo, with the same requests
    raw_config["train"]["max_steps"] = 1
    config = config_from(raw_config)
    pipeline.run(config, stages=STAGES)
    assert len(tries) > 4
    assert set(tries.values()) == {2}
    predictions = read_predictions(RunFolder(Path(config.output_dir)).predictions("translation"))
    failed = sum(p.finish_reason == "error" for p in predictions)
    assert (failed > 0) == (times > 1)


def test_an_engine_that_cannot_be_opened_does_not_bind_the_folder(raw_config: dict[str, Any]) -> None:
    raw_config["generate"]["backend"] = {"name": "echo", "empty_share": 0.0}
    raw_config["train"]["max_steps"] = 1
    pipeline.run(config_from(raw_config), stages=STAGES[:3])
    raw_config["generate"]["backend"] = {"name": "openai", "base_url": "http://localhost:1/v1"}
    with pytest.raises(BackendError, match="does not answer"):
        pipeline.run(config_from(raw_config), stages=STAGES[3:])
    raw_config["generate"]["backend"] = {"name": "echo", "empty_share": 0.0}
    pipeline.run(config_from(raw_config), stages=STAGES[3:])
