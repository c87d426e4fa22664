"""Soft labels: the formulas, the numbers that are stored for them, and what they apply to."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from radistill import losses, models, pipeline
from radistill.backends import _scoring
from radistill.config import RunConfig, config_from
from radistill.logprobs import LogProbs
from radistill.records import Request, Sampling, TrainingRecord
from radistill.runs import RunFolder
from radistill.speaker import untouched
from radistill.tables import read_jsonl, read_records

VOCABULARY = 37
SCALES = (0.3, 3.0, 30.0)
"""Of logits: nearly uniform to very peaked."""


def both(seed: int, scale: float, *, rows: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of the model in training and of the untouched one, in float64."""
    rng = torch.Generator().manual_seed(seed)
    q, p = (scale * torch.randn(rows, VOCABULARY, generator=rng, dtype=torch.float64) for _ in range(2))
    return q, p


def kl_of(q: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """PyTorch's own KL(untouched || model)."""
    log_q, log_p = torch.log_softmax(q.double(), -1), torch.log_softmax(p.double(), -1)
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)


def top_of(p: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    values, ids = torch.log_softmax(p, -1).topk(k, dim=-1)
    return ids, values


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("seed", range(5))
def test_soft_labels_from_full_logits_are_the_kl_of_the_reference(seed: int, scale: float) -> None:
    q, p = both(seed, scale)
    assert torch.allclose(losses.soft_nll(q, p), kl_of(q, p), rtol=0, atol=1e-10)
    single = losses.soft_nll(q.float(), p.float())
    assert single.dtype == torch.float32
    assert torch.allclose(single.double(), kl_of(q.float(), p.float()), rtol=1e-5, atol=1e-5)
    assert torch.equal(losses.soft_nll(q.bfloat16(), p.bfloat16()), losses.soft_nll(q.bfloat16().float(), p.bfloat16()))


def test_the_kl_of_a_model_from_itself_is_nothing() -> None:
    q, _ = both(0, 3.0)
    assert losses.soft_nll(q, q).tolist() == [0.0] * len(q)
    assert losses.stored_nll(q, *top_of(q, 5)).abs().max() < 1e-12


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("seed", range(20))
def test_stored_labels_are_a_lower_bound_that_rises_with_k_and_is_reached_at_the_vocabulary(
    seed: int, scale: float
) -> None:
    q, p = both(seed, scale)
    full = kl_of(q, p)
    by_k = torch.stack([losses.stored_nll(q, *top_of(p, k)) for k in range(1, VOCABULARY + 1)])
    assert (by_k >= -1e-12).all()
    assert (by_k <= full + 1e-9).all()
    assert (by_k.diff(dim=0) >= -1e-9).all()
    assert torch.allclose(by_k[-1], full, rtol=0, atol=1e-10)
    assert torch.allclose(by_k[-2], full, rtol=0, atol=1e-9), "with one token left the tail is that token"
    assert (by_k[0] < full - 1e-6).any(), "nothing was left out, so the test would say nothing"


@pytest.mark.parametrize("k", [1, 4, 36])
def test_the_tail_counts_as_one_token_that_both_models_give_what_is_left(k: int) -> None:
    q, p = both(3, 2.0)
    ids, values = top_of(p, k)
    for row in range(len(q)):
        p_row, q_row = torch.softmax(p[row], -1).tolist(), torch.softmax(q[row], -1).tolist()
        kept = ids[row].tolist()
        cells = [(p_row[i], q_row[i]) for i in kept]
        cells.append((1 - sum(a for a, _ in cells), sum(b for i, b in enumerate(q_row) if i not in kept)))
        by_hand = sum(a * np.log(a / b) for a, b in cells)
        assert losses.stored_nll(q, ids, values)[row].item() == pytest.approx(by_hand, abs=1e-9)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("seed", range(5))
def test_rounding_to_float16_moves_a_stored_label_by_little(seed: int, scale: float) -> None:
    q, p = both(seed, scale)
    for k in (1, 8, VOCABULARY):
        ids, values = top_of(p, k)
        exact = losses.stored_nll(q, ids, values)
        rounded = losses.stored_nll(q.float(), ids.int(), values.half().float())
        assert rounded.isfinite().all()
        assert torch.allclose(rounded.double(), exact, rtol=3e-3, atol=3e-3)


def test_probabilities_of_nothing_and_of_everything_give_numbers() -> None:
    """Masked entries of a vocabulary, and models that are sure: no -inf times 0."""
    q, p = both(0, 1.0, rows=4)
    p[0, 7], p[1, 7], p[2, 3] = float("-inf"), -1e6, 300.0
    q[3, 5] = p[3, 5] = float("-inf")
    known = kl_of(q[:3], p[:3].clamp(min=-1e7))
    q = q.float().requires_grad_()
    full = losses.soft_nll(q, p.float())
    assert torch.allclose(full[:3].double(), known, rtol=1e-5, atol=1e-5)
    for k in (1, 5, VOCABULARY):
        ids, values = top_of(p, k)
        stored = losses.stored_nll(q, ids, values.half().float())
        assert (stored <= full + 5e-3).all()
        for loss in (stored, full):
            (grad,) = torch.autograd.grad(loss.sum(), q, retain_graph=True)
            assert loss.isfinite().all()
            assert grad.isfinite().all()


@pytest.mark.parametrize("scale", SCALES)
def test_at_the_whole_vocabulary_the_gradients_are_those_of_the_full_kl(scale: float) -> None:
    q, p = both(1, scale)
    q.requires_grad_()
    ids, values = top_of(p, VOCABULARY)
    (full,) = torch.autograd.grad(losses.soft_nll(q, p).sum(), q)
    (stored,) = torch.autograd.grad(losses.stored_nll(q, ids, values).sum(), q)
    (rounded,) = torch.autograd.grad(losses.stored_nll(q, ids, values.half()).sum(), q)
    assert full.abs().max() > 1e-3
    assert torch.allclose(full, torch.softmax(q, -1) - torch.softmax(p, -1), rtol=0, atol=1e-10)
    assert torch.allclose(stored, full, rtol=0, atol=1e-10)
    assert torch.allclose(rounded, full, rtol=0, atol=2e-3)


def test_a_tail_pulls_on_each_of_its_tokens_in_the_models_own_proportion() -> None:
    q, p = both(2, 1.0)
    q.requires_grad_()
    ids, values = top_of(p, 6)
    (grad,) = torch.autograd.grad(losses.stored_nll(q, ids, values).sum(), q)
    with torch.no_grad():
        share = torch.softmax(q, -1)
        expected = share - share / (1 - share.gather(1, ids).sum(-1, keepdim=True)) * (
            1 - values.exp().sum(-1, keepdim=True)
        )
        expected.scatter_(1, ids, share.gather(1, ids) - values.exp())
    assert torch.allclose(grad, expected, rtol=0, atol=1e-10)


def by_forward(folder: Path | str, ids: Sequence[int]) -> torch.Tensor:
    """Log-probabilities (T - 1, V) of the next token, from one plain forward pass."""
    model = models.load(models.resolve(str(folder)), dtype="float32")
    with torch.no_grad():
        return torch.log_softmax(model(torch.tensor([list(ids)])).logits[0, :-1].double(), -1)


def agrees(logprobs: LogProbs | None, folder: Path | str, ids: Sequence[int], top_k: int) -> None:
    assert logprobs is not None
    log = by_forward(folder, ids)
    given = log.gather(1, torch.tensor(ids)[1:, None])[:, 0]
    assert logprobs.given_T[0] == 0
    assert np.allclose(logprobs.given_T[1:], given.numpy(), rtol=0, atol=1e-4)
    assert logprobs.top_ids_TK.shape == logprobs.top_values_TK.shape == (len(ids), top_k)
    assert (logprobs.top_ids_TK[0] == -1).all()
    values, _ = log.topk(top_k, -1)
    at = log.gather(1, torch.from_numpy(logprobs.top_ids_TK[1:].astype(np.int64)))
    assert np.allclose(at.numpy(), values.numpy(), rtol=0, atol=1e-4), "other tokens than the most probable ones"
    assert np.allclose(logprobs.top_values_TK[1:], values.numpy(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("top_k", [0, 1, 16, 427])
def test_scores_are_raw_log_probabilities_at_temperature_one(tiny_model: Path, top_k: int) -> None:
    model = models.load(models.resolve(str(tiny_model)), dtype="float32")
    rng = np.random.default_rng(0)
    texts = [tuple(rng.integers(5, 400, size).tolist()) for size in (9, 2, 30, 17)]
    sampling = Sampling(temperature=0.1, top_p=0.2, max_new_tokens=1)
    requests = [Request(purpose="score", prompt_ids=ids, sampling=sampling, top_k=top_k) for ids in texts]
    for request, answer in zip(requests, _scoring.score(model, requests, pad_id=0, context=256), strict=True):
        assert answer.key == request.key
        agrees(answer.logprobs, tiny_model, request.prompt_ids, top_k)
    whole = _scoring.score(model, requests[:1], pad_id=0, context=256)[0].logprobs
    assert whole is not None
    if top_k == 427:
        assert np.exp(whole.top_values_TK[1:].astype(np.float64)).sum(-1) == pytest.approx([1.0] * 8, abs=2e-3)


def test_scores_do_not_depend_on_the_batch_or_on_how_it_is_cut(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = models.load(models.resolve(str(tiny_model)), dtype="float32")
    rng = np.random.default_rng(1)
    requests = [
        Request(purpose="score", prompt_ids=tuple(rng.integers(5, 400, n).tolist()), sampling=Sampling(), top_k=4)
        for n in (5, 40, 12, 12, 33)
    ]
    together = _scoring.score(model, requests, pad_id=0, context=256)
    monkeypatch.setattr(_scoring, "LOGITS", 427 * 40)
    apart = _scoring.score(model, requests, pad_id=0, context=256)
    for one, other in zip(together, apart, strict=True):
        assert one.logprobs is not None
        assert other.logprobs is not None
        assert np.allclose(one.logprobs.given_T, other.logprobs.given_T, rtol=0, atol=1e-5)
        assert np.allclose(one.logprobs.top_values_TK, other.logprobs.top_values_TK, rtol=1e-3, atol=0)


def test_a_text_longer_than_the_context_is_an_error_row_beside_the_others(tiny_model: Path) -> None:
    model = models.load(models.resolve(str(tiny_model)), dtype="float32")
    requests = [Request(purpose="score", prompt_ids=(7,) * n, sampling=Sampling()) for n in (8, 9, 3)]
    answers = _scoring.score(model, requests, pad_id=0, context=8)
    assert [a.finish_reason for a in answers] == ["stop", "error", "stop"]
    assert "9 tokens are more than the context of 8" in (answers[1].error or "")


def test_what_a_score_is_asked_for_does_not_change_with_the_runs_sampling() -> None:
    keys = {
        Request(purpose="score", prompt_ids=(1, 2), sampling=Sampling(**s), top_k=4).addressed_to("m").key
        for s in ({}, {"temperature": 0.0}, {"top_p": 0.5}, {"seed": 3}, {"max_new_tokens": 9})
    }
    assert len(keys) == 1


def assembled(raw: dict[str, Any], **changes: Any) -> tuple[RunConfig, list[TrainingRecord]]:
    """Generate and assemble, with some settings of `train`, `generate` or `data` changed."""
    raw = {
        **raw,
        **{part: {**raw[part], **changes.pop(part)} for part in ("train", "generate", "data") if part in changes},
    }
    name = f"{raw['output_dir']}-{len(list(Path(raw['output_dir']).parent.iterdir()))}"
    config = config_from({**raw, "output_dir": name, **changes})
    pipeline.run(config, stages=("generate", "assemble"))
    return config, list(read_records(RunFolder(Path(name)).records))


@pytest.mark.parametrize("sampling", [{"temperature": 0.2, "top_p": 0.3}, {"temperature": 1.7, "top_p": 1.0}])
def test_stored_labels_of_a_run_are_what_the_untouched_model_expects_there(
    raw_config: dict[str, Any], sampling: dict[str, float]
) -> None:
    raw_config["data"]["train"]["limit"] = 4
    sampled = {"sampling": {"max_new_tokens": 6, **sampling}}
    _, records = assembled(raw_config, train={"labels": "stored", "label_top_k": 16}, generate=sampled)
    for record in records:
        agrees(record.soft, raw_config["model"], record.token_ids, 16)


@pytest.mark.parametrize("labels", ["stored", "live"])
def test_soft_labels_are_those_of_the_rationale_with_its_separator_and_end_and_never_of_a_reference(
    raw_config: dict[str, Any], labels: str
) -> None:
    raw_config["generate"]["backend"] = {"name": "echo", "empty_share": 0.3}
    raw_config["generate"]["sampling"]["max_new_tokens"] = 30
    _, records = assembled(raw_config, train={"labels": labels, "label_top_k": 3})
    shapes = set()
    for record in records:
        is_answered = any(s.origin == "rationale" for s in record.segments)
        shapes.add((is_answered, record.segments[-1].origin))
        for segment in record.segments:
            is_soft = is_answered and segment.origin in ("separator", "rationale", "end")
            assert segment.labels == (labels if is_soft else "hard")
        assert (record.soft is not None) == (is_answered and labels == "stored")
    assert shapes == {(True, "end"), (False, "end")}


def test_hard_labels_and_rationales_that_weigh_nothing_are_stored_without_soft_ones(raw_config: dict[str, Any]) -> None:
    raw_config["generate"]["backend"] = {"name": "echo"}
    silent = {"method": {"name": "radis", "rationale_weight": 0}}
    for _, records in (
        assembled(raw_config),
        assembled(raw_config, train={"labels": "stored"}, **silent),
        assembled(raw_config, train={"labels": "stored"}, method={"name": "vanilla"}),
    ):
        assert {s.labels for r in records for s in r.segments} == {"hard"}
        assert {r.soft for r in records} == {None}


def losses_of(raw: dict[str, Any], labels: str, **train: Any) -> list[dict[str, Any]]:
    settings = {**raw["train"], "labels": labels, **train}
    config = config_from({**raw, "train": settings, "output_dir": f"{raw['output_dir']}-{labels}"})
    pipeline.run(config, stages=("generate", "assemble", "train"))
    return list(read_jsonl(RunFolder(Path(config.output_dir)).train_log))


@pytest.mark.parametrize("lora", [None, {"r": 4, "dropout": 0.0}])
@pytest.mark.parametrize("model", ["tiny", "pocket"])
def test_labels_stored_for_the_whole_vocabulary_teach_what_live_ones_teach(
    raw_config: dict[str, Any], model: str, lora: dict[str, Any] | None
) -> None:
    if model == "pocket":
        raw_config |= {"model": "pocket", "chat": {}}
        raw_config["data"] = {"train": {"path": "pocket", "pairs": ["en-eo"], "limit": 12}}
    config = config_from(raw_config)
    vocabulary = models.load(untouched(config).weights).config.vocab_size
    settings = {"lora": lora, "label_top_k": vocabulary, "max_steps": 3, "learning_rate": 0.01, "warmup_steps": 0}
    live, stored = (losses_of(raw_config, labels, **settings) for labels in ("live", "stored"))
    assert live[0]["loss"] == pytest.approx(stored[0]["loss"], abs=1e-3)
    assert live[0]["loss/rationale"] == pytest.approx(0, abs=1e-4)
    assert stored[0]["loss/rationale"] == pytest.approx(0, abs=1e-3)
    assert live[2]["loss"] == pytest.approx(stored[2]["loss"], rel=5e-3)  # stored values are rounded to float16
    assert live[2]["loss/rationale"] == pytest.approx(stored[2]["loss/rationale"], rel=0.02)
    assert live[2]["loss/rationale"] > 0.005, "nothing moved, so the test would say nothing"
    assert live[-1]["tokens_reference"] > 0 == stored[-1]["tokens_reference"]
