"""STM, DFT, EAFT, FLOW: the published weights, computed here again from the logits."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from transformers import TrainingArguments

from radistill import losses, models, pipeline
from radistill.config import RunConfig, config_from
from radistill.errors import ConfigError
from radistill.logprobs import LogProbs
from radistill.methods.dft import DFT
from radistill.methods.eaft import EAFT
from radistill.methods.flow import Flow
from radistill.methods.stm import STM
from radistill.packing import Collator, Row
from radistill.records import Labels, Origin, Segment, TrainingRecord
from radistill.runs import RunFolder
from radistill.speaker import untouched
from radistill.tables import read_records
from radistill.trainer import Extras, SegmentTrainer
from radistill.training_parts import logits_at

# Sizes of prompt, reference, separator, rationale, end.
ANSWERED: tuple[tuple[Origin, int, float], ...] = (
    ("prompt", 3, 0.0),
    ("reference", 4, 1.0),
    ("separator", 1, 0.5),
    ("rationale", 3, 0.5),
    ("end", 1, 0.5),
)
PLAIN: tuple[tuple[Origin, int, float], ...] = (("prompt", 3, 0.0), ("reference", 4, 1.0), ("end", 1, 1.0))


def record_of(
    parts: Sequence[tuple[Origin, int, float]], ids: Sequence[int], labels: dict[Origin, Labels] | None = None
) -> TrainingRecord:
    segments, at = [], 0
    for origin, size, weight in parts:
        segments.append(Segment(origin, at, at + size, weight, (labels or {}).get(origin, "hard")))
        at += size
    assert at == len(ids)
    return TrainingRecord(
        id="r", example_id="e", token_ids=tuple(ids), segments=tuple(segments), texts=("",) * len(segments)
    )


def scored(ids: Sequence[int], seed: int, *, sharpness: float = 3.0) -> tuple[list[float], np.ndarray[Any, Any]]:
    """The perplexity of each id, one softmax at a time, and the log-probabilities as a backend gives them."""
    logits = np.random.default_rng(seed).normal(scale=sharpness, size=(len(ids), 50))
    perplexities = [1.0]
    for place in range(1, len(ids)):
        total = sum(math.exp(x) for x in logits[place])
        perplexities.append(total / math.exp(logits[place][ids[place]]))
    return perplexities, np.array([-math.log(p) for p in perplexities], dtype=np.float32)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("threshold", [2.5, 8.0])
def test_stm_masks_what_has_a_perplexity_above_the_threshold(seed: int, threshold: float) -> None:
    ids = np.random.default_rng(100 + seed).integers(0, 50, 8).tolist()
    perplexities, logprobs = scored(ids, seed)
    weighed = STM(threshold=threshold).weigh(record_of(PLAIN, ids), logprobs, 0.0)
    assert weighed.token_weights == tuple(
        1.0 if place < 3 or perplexities[place] <= threshold else 0.0 for place in range(8)
    )


def test_stm_as_published_keeps_tokens_of_a_probability_of_at_least_two_fifths() -> None:
    logprobs = np.log(np.array([1, 1, 1, 0.9, 0.41, 0.39, 0.01, 0.7], dtype=np.float32))
    assert STM().weigh(record_of(PLAIN, range(8)), logprobs, 0.0).token_weights[3:] == (1, 1, 0, 0, 1)


def test_stm_masks_no_rationale_and_neither_its_separator_nor_its_end() -> None:
    logprobs = np.full(12, -9.0, dtype=np.float32)
    weighed = STM().weigh(record_of(ANSWERED, range(12)), logprobs, 0.0)
    assert weighed.token_weights == (1.0,) * 3 + (0.0,) * 4 + (1.0,) * 5


@pytest.mark.parametrize("mask_end", [True, False])
def test_stm_masks_an_improbable_end_like_any_other_token_unless_told_otherwise(mask_end: bool) -> None:
    logprobs = np.array([0, 0, 0, -0.1, -0.1, -0.1, -0.1, -5.0], dtype=np.float32)
    weighed = STM(mask_end=mask_end).weigh(record_of(PLAIN, range(8)), logprobs, 0.0)
    assert weighed.token_weights == (*(1.0,) * 7, 0.0 if mask_end else 1.0)


def test_stm_masks_what_the_model_answered_in_the_references_place_too() -> None:
    parts: tuple[tuple[Origin, int, float], ...] = (("prompt", 3, 0.0), ("model", 4, 1.0), ("end", 1, 1.0))
    weighed = STM().weigh(record_of(parts, range(8)), np.full(8, -9.0, dtype=np.float32), 0.0)
    assert weighed.token_weights == (*(1.0,) * 3, *(0.0,) * 5)


def test_weights_multiply_those_that_were_there_before() -> None:
    from dataclasses import replace

    record = replace(record_of(PLAIN, range(8)), token_weights=(1.0, 1.0, 1.0, 0.5, 0.25, 1.0, 0.0, 2.0))
    logprobs = np.array([0, 0, 0, -0.1, -5.0, -5.0, -0.1, -0.1], dtype=np.float32)
    assert STM().weigh(record, logprobs, 0.0).token_weights == (1, 1, 1, 0.5, 0, 0, 0, 2)
    halved = Flow().weigh(record, np.full(8, -math.log(2), dtype=np.float32), 1.0)
    assert halved.token_weights == pytest.approx((1, 1, 1, 0.25, 0.125, 0.5, 0, 1))


@pytest.mark.parametrize("temperature", [1.0, 0.5, 3.0])
@pytest.mark.parametrize("seed", range(3))
def test_flow_weighs_a_reference_by_its_mean_loss_over_the_median(seed: int, temperature: float) -> None:
    ids = np.random.default_rng(100 + seed).integers(0, 50, 8).tolist()
    perplexities, logprobs = scored(ids, seed, sharpness=1.0)
    loss = sum(math.log(p) for p in perplexities[3:]) / 5
    weighed = Flow(temperature=temperature).weigh(record_of(PLAIN, ids), logprobs, 2.2)
    expected = math.exp(-loss / (2.2 * temperature))
    assert weighed.token_weights == pytest.approx([1, 1, 1, *[expected] * 5])


def test_flow_at_the_level_of_tokens_weighs_each_by_its_own_loss_and_no_rationale() -> None:
    perplexities, logprobs = scored(list(range(12)), 1, sharpness=1.0)
    weighed = Flow(level="token").weigh(record_of(ANSWERED, range(12)), logprobs, 2.2)
    expected = [math.exp(-math.log(p) / 2.2) for p in perplexities[3:7]]
    assert weighed.token_weights == pytest.approx([1, 1, 1, *expected, 1, 1, 1, 1, 1])


def test_flow_weighs_all_alike_where_the_untouched_model_is_sure_of_everything() -> None:
    record = record_of(PLAIN, range(8))
    assert Flow().weigh(record, np.zeros(8, dtype=np.float32), 0.0) == record


@pytest.mark.parametrize("method", [STM(), STM(mask_end=False), Flow(), Flow(level="token")])
def test_weights_are_finite_and_never_negative_however_improbable_a_token_is(method: STM | Flow) -> None:
    logprobs = np.array([0, 0, 0, -3e38, -np.inf, -1e4, -1e-7, 0], dtype=np.float32)
    weights = method.weigh(record_of(PLAIN, range(8)), logprobs, 1.0).token_weights
    assert all(math.isfinite(w) and w >= 0 for w in weights)


def test_dft_weighs_each_token_by_its_probability() -> None:
    logits = torch.randn(6, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    targets = [3, 0, 8, 1, 1, 5]
    expected = [
        math.exp(row[t]) / sum(math.exp(x) for x in row) for row, t in zip(logits.tolist(), targets, strict=True)
    ]
    nll = losses.token_nll(logits, torch.tensor(targets))
    assert DFT().token_weights(logits, nll).tolist() == pytest.approx(expected)
    assert DFT(power=0.5).token_weights(logits, nll).tolist() == pytest.approx([math.sqrt(p) for p in expected])
    assert DFT(power=0).token_weights(logits, nll).tolist() == [1.0] * 6


def test_the_gradient_of_dft_is_that_of_the_probability_itself() -> None:
    targets = torch.tensor([3, 0, 8, 1, 1, 5])
    grads: list[torch.Tensor] = []
    for weighed in (True, False):
        logits = torch.randn(6, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        logits.requires_grad_()
        nll = losses.token_nll(logits, targets)
        p = torch.softmax(logits, dim=-1)[torch.arange(6), targets]
        grads += torch.autograd.grad((DFT().token_weights(logits, nll) * nll).sum() if weighed else -p.sum(), logits)
    assert torch.allclose(grads[0], grads[1], rtol=0, atol=1e-12)


def entropy_by_hand(row: list[float], k: int) -> float:
    best = sorted(row, reverse=True)[:k]
    total = sum(math.exp(x) for x in best)
    shares = [math.exp(x) / total for x in best]
    return -sum(p * math.log(p) for p in shares)


@pytest.mark.parametrize(("k", "used"), [(20, 20), (2, 2), (400, 60)])
@pytest.mark.parametrize("alpha", [1.0, 1 / 3])
def test_eaft_weighs_each_token_by_the_normalised_entropy_of_the_most_probable(k: int, used: int, alpha: float) -> None:
    logits = 4 * torch.randn(7, 60, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = [(entropy_by_hand(row, used) / math.log(used)) ** alpha for row in logits.tolist()]
    found = EAFT(k=k, alpha=alpha).token_weights(logits, torch.zeros(7))
    assert found.tolist() == pytest.approx(expected)
    assert not EAFT().token_weights(logits.requires_grad_(), torch.zeros(7)).requires_grad


def test_eaft_weighs_a_sure_model_by_nothing_and_an_unsure_one_by_one() -> None:
    logits = torch.zeros(3, 60)
    logits[0, 4] = 200.0
    logits[1, 5:] = float("-inf")
    weights = EAFT().token_weights(logits, torch.zeros(3)).tolist()
    assert weights == pytest.approx([0.0, math.log(5) / math.log(20), 1.0], abs=1e-6)
    assert EAFT().token_weights(logits.bfloat16(), torch.zeros(3)).dtype == torch.float32


@pytest.mark.parametrize(
    ("cls", "wrong"),
    [
        (STM, {"threshold": 1.0}),
        (Flow, {"temperature": 0}),
        (Flow, {"level": "word"}),
        (DFT, {"power": -1}),
        (EAFT, {"k": 1}),
        (EAFT, {"alpha": -1}),
    ],
)
def test_settings_that_make_no_sense_are_refused(cls: Any, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        cls(**wrong)


def assembled(raw: dict[str, Any]) -> tuple[RunConfig, list[TrainingRecord]]:
    config = config_from(raw)
    pipeline.run(config, stages=("generate", "assemble"))
    return config, list(read_records(RunFolder(Path(config.output_dir)).records))


def losses_by_hand(config: RunConfig, record: TrainingRecord) -> list[float]:
    """The untouched model's loss at each id, from one forward pass over the record alone."""
    model = models.load(untouched(config).weights, dtype="float32")
    with torch.no_grad():
        logits = model(torch.tensor([record.token_ids])).logits[0].double()
    return [0.0] + [
        float(torch.logsumexp(logits[i - 1], -1) - logits[i - 1, record.token_ids[i]])
        for i in range(1, len(record.token_ids))
    ]


def test_stm_in_a_run_masks_by_the_untouched_models_own_perplexities(raw_config: dict[str, Any]) -> None:
    raw_config["method"] = [{"name": "radis", "rationale_weight": 0.5}, {"name": "stm", "threshold": 430}]
    raw_config["data"]["train"]["limit"] = 8
    config, records = assembled(raw_config)
    masked = total = 0
    for record in records:
        by_hand = losses_by_hand(config, record)
        for segment in record.segments:
            for place in range(segment.start, segment.stop):
                kept = segment.origin != "reference" or math.exp(by_hand[place]) <= 430
                assert record.token_weights[place] == kept
                total += segment.origin == "reference"
                masked += not kept
    assert 0.1 * total < masked < 0.9 * total, "the threshold divides nothing, so the test would say little"


def test_a_row_of_which_stm_leaves_nothing_is_dropped_and_counted(raw_config: dict[str, Any]) -> None:
    raw_config["method"] = {"name": "stm", "threshold": 366}
    raw_config["data"]["train"]["limit"] = 60
    unmasked = {**raw_config, "method": "vanilla", "output_dir": raw_config["output_dir"] + "-vanilla"}
    _, everything = assembled(unmasked)
    config, records = assembled(raw_config)
    assert 0 < len(records) < len(everything)
    kept = {record.id for record in records}
    for record in everything:
        best = min(losses_by_hand(config, record)[record.segments[1].start :])
        assert (record.id in kept) == (math.exp(best) <= 366)
    stage = RunFolder(Path(config.output_dir)).stages()["assemble"]
    assert stage.facts["dropped"] == {"nothing to train": len(everything) - len(records)}


@pytest.mark.parametrize("level", ["sequence", "token"])
def test_flow_in_a_run_takes_the_median_over_all_references(raw_config: dict[str, Any], level: str) -> None:
    raw_config["method"] = {"name": "flow", "level": level}
    raw_config["data"]["train"]["limit"] = 7
    config, records = assembled(raw_config)
    by_hand = [losses_by_hand(config, r)[r.segments[1].start :] for r in records]
    means = [sum(each) / len(each) for each in by_hand]
    tau = sorted(means)[3]
    for record, mean, each in zip(records, means, by_hand, strict=True):
        expected = [math.exp(-(mean if level == "sequence" else loss) / tau) for loss in each]
        assert record.token_weights[record.segments[1].start :] == pytest.approx(expected, rel=1e-4)
    assert len({r.token_weights[-1] for r in records}) == 7


def test_methods_that_weigh_records_go_together_and_two_that_weigh_steps_do_not(raw_config: dict[str, Any]) -> None:
    both = {**raw_config, "method": [{"name": "stm", "threshold": 430}, {"name": "flow"}]}
    both["data"]["train"]["limit"] = 3
    _, records = assembled(both)
    weights = {w for r in records for w in r.token_weights[r.segments[1].start :]}
    assert 0.0 in weights
    assert all(0 < w < 1 for w in weights - {0.0})
    with pytest.raises(ConfigError, match="dft and eaft both weigh the tokens of a step"):
        config_from({**raw_config, "method": [{"name": "dft"}, {"name": "eaft"}]})


def test_weights_of_a_step_are_for_hard_tokens_of_the_task_only(tiny_model: Path, tmp_path: Path) -> None:
    """References and answers with their ends; no rationale, separator or free sample, and nothing with soft labels."""
    model = models.load(models.resolve(str(tiny_model)), dtype="float32", attention="sdpa")
    rng = np.random.default_rng(0)
    free: tuple[tuple[Origin, int, float], ...] = (("prompt", 1, 0.0), ("free", 5, 2.0), ("end", 1, 2.0))
    answer: tuple[tuple[Origin, int, float], ...] = (("prompt", 2, 0.0), ("model", 4, 1.0), ("end", 1, 1.0))
    hard = [record_of(p, rng.integers(5, 300, sum(s for _, s, _ in p)).tolist()) for p in (ANSWERED, PLAIN, free)]
    hard.append(record_of(answer, rng.integers(5, 300, 7).tolist()))
    soft = record_of(answer, rng.integers(5, 300, 7).tolist(), {"model": "stored", "end": "stored"})
    top = LogProbs(
        np.zeros(7, np.float32), np.tile(np.arange(4, dtype=np.int32), (7, 1)), np.full((7, 4), -2.0, np.float16)
    )
    rows = [Row.of(record) for record in hard]
    rows.append(Row.of(TrainingRecord(**{**{n: getattr(soft, n) for n in type(soft).__slots__}, "soft": top})))
    batch = Collator(pad_id=0)(rows)
    found = trainer_of(model, tmp_path, Extras(token_weights=DFT().token_weights)).compute_loss(model, batch)
    top_loss = plain = 0.0
    for record in hard:
        by_hand = [float(x) for x in hand_losses(model, record)]
        pool = "reference"
        for segment in record.segments:
            pool = pool if segment.origin == "end" else segment.origin
            for place in range(segment.start, segment.stop):
                factor = math.exp(-by_hand[place]) if pool in ("reference", "model") else 1.0
                top_loss += segment.weight * factor * by_hand[place]
                plain += segment.weight * by_hand[place]
    with torch.no_grad():
        logits = model(torch.tensor([soft.token_ids])).logits[0]
    stored = losses.stored_nll(logits[1:6], torch.tensor(np.tile(np.arange(4), (5, 1))), torch.full((5, 4), -2.0)).sum()
    total = float(batch["weights_N"].sum())
    assert found.item() == pytest.approx((top_loss + float(stored)) / total, rel=1e-5)
    usual = trainer_of(model, tmp_path, Extras()).compute_loss(model, batch)
    assert usual.item() == pytest.approx((plain + float(stored)) / total, rel=1e-5)


def hand_losses(model: Any, record: TrainingRecord) -> list[Any]:
    with torch.no_grad():
        logits = model(torch.tensor([record.token_ids])).logits[0].double()
    log = torch.log_softmax(logits, dim=-1)
    return [0.0, *(-log[i - 1, token] for i, token in enumerate(record.token_ids) if i)]


def trainer_of(model: Any, folder: Path, extras: Extras) -> SegmentTrainer:
    return SegmentTrainer(
        weighting="tokens",
        extras=extras,
        model=model,
        args=TrainingArguments(output_dir=str(folder), use_cpu=True, report_to="none", label_names=[]),
        data_collator=Collator(pad_id=0),
    )


def test_places_of_the_batch_are_those_the_weights_are_asked_for(tiny_model: Path, tmp_path: Path) -> None:
    """The weights of a step see the logits of the model in training, one row for each trained token."""
    model = models.load(models.resolve(str(tiny_model)), dtype="float32", attention="sdpa")
    batch = Collator(pad_id=0)([Row.of(record_of(PLAIN, range(5, 13))), Row.of(record_of(ANSWERED, range(20, 32)))])
    seen = []

    def asked(logits: torch.Tensor, nll: torch.Tensor) -> None:
        seen.append((logits, nll, torch.is_grad_enabled(), logits.requires_grad))

    trainer_of(model, tmp_path, Extras(token_weights=asked)).compute_loss(model, batch)
    ((logits, nll, with_grad, requires_grad),) = seen
    expected = logits_at(model, batch["input_ids"], batch["position_ids"], batch["places_N"])
    assert torch.equal(logits, expected)
    assert torch.equal(nll, losses.token_nll(expected, batch["targets_N"]))
    assert not with_grad
    assert not requires_grad
