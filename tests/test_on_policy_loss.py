"""On-policy SDFT: the loss is the divergence it says, whatever a batch is cut into; the teacher stays as it is."""

import math
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch

from fakes_on_policy import BLIND, Setting, setting, shaken
from radistill import losses
from radistill.records import Message

# ---------------------------------------------------------------------------------------------- divergences


P, Q = [0.7, 0.2, 0.1], [0.25, 0.25, 0.5]


def kl(p: Sequence[float], q: Sequence[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def of(kind: Any, teacher: Sequence[float], model: Sequence[float], alpha: float = 0.5) -> float:
    """The divergence of two distributions, whose logits are shifted to have another sum."""
    logits, taught = (torch.tensor([x], dtype=torch.float64).log() + 3.0 for x in (model, teacher))
    return losses.divergence(logits, taught, kind, alpha).item()


def test_divergences_equal_those_computed_by_hand() -> None:
    assert of("forward", P, Q) == pytest.approx(kl(P, Q), abs=1e-12)
    assert of("reverse", P, Q) == pytest.approx(kl(Q, P), abs=1e-12)
    for alpha in (0.5, 0.2):
        m = [alpha * p + (1 - alpha) * q for p, q in zip(P, Q, strict=True)]
        expected = alpha * kl(P, m) + (1 - alpha) * kl(Q, m)
        assert of("jsd", P, Q, alpha) == pytest.approx(expected, abs=1e-12)


def test_jsd_is_symmetric_at_one_half_and_alone_there() -> None:
    assert of("jsd", P, Q) == pytest.approx(of("jsd", Q, P), abs=1e-12)
    assert abs(of("jsd", P, Q, 0.2) - of("jsd", Q, P, 0.2)) > 1e-3
    assert of("jsd", P, Q, 0.2) == pytest.approx(of("jsd", Q, P, 0.8), abs=1e-12)
    assert of("forward", P, Q) == pytest.approx(of("reverse", Q, P), abs=1e-12)


@pytest.mark.parametrize("kind", ["forward", "reverse", "jsd"])
def test_divergences_are_zero_between_equals_and_bounded(kind: Any) -> None:
    random = torch.Generator().manual_seed(0)
    logits, teacher = (8 * torch.randn(50, 11, generator=random) for _ in range(2))
    values = losses.divergence(logits, teacher, kind)
    assert values.min() > 0
    assert losses.divergence(logits, logits + 2, kind).abs().max() < 1e-5
    if kind == "jsd":
        assert values.max() <= math.log(2)
        apart = torch.tensor([[60.0, 0.0]]), torch.tensor([[0.0, 60.0]])
        assert losses.divergence(*apart, kind).item() == pytest.approx(math.log(2), abs=1e-6)
        assert losses.divergence(*apart, kind, 0.1).item() == pytest.approx(
            -0.1 * math.log(0.1) - 0.9 * math.log(0.9), abs=1e-6
        )
    else:
        assert values.max() > math.log(2)


def test_jsd_goes_the_way_of_the_other_two_at_its_ends() -> None:
    assert of("jsd", P, Q, 1e-6) / 1e-6 == pytest.approx(of("forward", P, Q), rel=1e-3)
    assert of("jsd", P, Q, 1 - 1e-6) / 1e-6 == pytest.approx(of("reverse", P, Q), rel=1e-3)


# ---------------------------------------------------------------------------------------------- the loss


def hand_written(model: Any, teacher: Any, made: Setting, batch: dict[str, torch.Tensor], kind: str) -> torch.Tensor:
    """The mean divergence over the answers in a batch, each in a forward pass of its own, without anything of ours."""
    parts = []
    for e, row in zip(made.examples, answers_of(batch), strict=True):
        prompt = list(made.chat.prompt(e.messages).ids)
        shown = f"{e.messages[0].content}\n\n{e.reference}"
        context = list(made.chat.prompt([Message("user", shown)]).ids)
        student = model(input_ids=torch.tensor([prompt + row])).logits[0, len(prompt) - 1 : -1]
        with torch.no_grad():
            taught = teacher(input_ids=torch.tensor([context + row])).logits[0, len(context) - 1 : -1]
        q, p = student.softmax(-1), taught.softmax(-1)
        if kind == "forward":
            parts.append((p * (p / q).log()).sum(-1))
        elif kind == "reverse":
            parts.append((q * (q / p).log()).sum(-1))
        else:
            m = (p + q) / 2
            parts.append(((p * (p / m).log()).sum(-1) + (q * (q / m).log()).sum(-1)) / 2)
    return torch.cat(parts).mean()


def answers_of(batch: dict[str, torch.Tensor]) -> list[list[int]]:
    """Of a batch without packing: what follows each prompt."""
    width = batch["input_ids"].shape[1]
    answers: list[list[int]] = [[] for _ in batch["input_ids"]]
    for place, target in zip(batch["places_N"].tolist(), batch["targets_N"].tolist(), strict=True):
        answers[place // width].append(target)
    return answers


@pytest.mark.parametrize("kind", ["forward", "reverse", "jsd"])
def test_the_gradient_is_that_of_a_hand_written_divergence(tiny_model: Path, tmp_path: Path, kind: str) -> None:
    made = setting(tiny_model, double=True, packing=False, divergence=kind)
    teacher = deepcopy(made.model)
    shaken(made.model)
    batch, _ = made.rollout(made.model, made.rows.rows, step=0)
    loss = made.trainer(tmp_path).compute_loss(made.model, batch)
    loss.backward()
    ours = [p.grad.clone() for p in made.model.parameters()]
    made.model.zero_grad()
    expected = hand_written(made.model, teacher, made, batch, kind)
    expected.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == pytest.approx(expected.item(), rel=1e-10)
    assert loss.item() > 0.01
    largest = max(p.grad.abs().max().item() for p in made.model.parameters())
    for mine, parameter in zip(ours, made.model.parameters(), strict=True):
        assert (mine - parameter.grad).abs().max().item() < 1e-10 * max(1.0, largest)
    assert largest > 1e-3


def test_the_gradient_is_that_of_trl(tiny_model: Path, tmp_path: Path) -> None:
    """In an environment that has it; answers of one length, as TRL averages over each first."""
    pytest.importorskip("trl")
    pytest.importorskip("datasets")
    from datasets import Dataset  # type: ignore[import-not-found,unused-ignore]
    from trl.experimental.sdft import SDFTConfig, SDFTTrainer  # type: ignore[import-not-found,unused-ignore]

    for kind, alpha in (("forward", 0.0), ("jsd", 0.3), ("reverse", 1.0)):
        made = setting(tiny_model, packing=False, divergence=kind, alpha=alpha or 0.5)
        batch, _ = made.rollout(made.model, made.rows.rows, step=0)
        answers = answers_of(batch)
        assert {len(answer) for answer in answers} == {6}
        data = [
            {"prompt": [{"role": "user", "content": e.messages[0].content}], "privileged_context": e.reference}
            for e in made.examples
        ]
        trl = SDFTTrainer(
            model=made.model,
            args=SDFTConfig(
                output_dir=str(tmp_path),
                report_to="none",
                use_cpu=True,
                bf16=False,
                distillation_mode="full_logits",
                distillation_alpha=alpha,
                num_generations=1,
                per_device_train_batch_size=len(data),
            ),
            train_dataset=Dataset.from_list(data),
            processing_class=made.chat.tokenizer,
        )
        shaken(made.model)
        completion = torch.tensor(answers)
        prompts = [made.chat.prompt(e.messages).ids for e in made.examples]
        width = max(map(len, prompts))
        padded = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
        inputs = {
            "prompt_ids": padded,
            "prompt_mask": mask,
            "completion_ids": completion,
            "completion_mask": torch.ones_like(completion),
        }
        contexts = [row["privileged_context"] for row in data]
        asked = [row["prompt"] for row in data]
        inputs |= trl.teacher_context_builder.build(asked, contexts, completion, inputs["completion_mask"])
        trl.current_gradient_accumulation_steps = 1
        made.model.train()
        theirs = trl.compute_loss(made.model, inputs)
        theirs.backward()
        expected = [p.grad.clone() for p in made.model.parameters()]
        made.model.zero_grad()
        ours = made.trainer(tmp_path).compute_loss(made.model, batch)
        ours.backward()
        assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
        for parameter, grad in zip(made.model.parameters(), expected, strict=True):
            assert torch.allclose(parameter.grad, grad, rtol=1e-4, atol=1e-6)


def test_packing_and_accumulation_change_nothing(tiny_model: Path, tmp_path: Path) -> None:
    def after(*, packing: bool, batch: int, accumulation: int, drawn: list[int]) -> torch.Tensor:
        made = setting(tiny_model, packing=packing, double=True, max_new_tokens=24)
        shaken(made.model)
        rollout = made.rollout

        def counting(model: Any, rows: Any, *, step: int) -> Any:
            written, tokens = rollout(model, rows, step=step)
            drawn.append(len(written["targets_N"]))
            return written, tokens

        counting.compare = rollout.compare  # type: ignore[attr-defined]
        made.extras.rollout = counting  # type: ignore[assignment]
        trainer = made.trainer(
            tmp_path,
            max_steps=6,
            learning_rate=0.5,
            optim="sgd",
            lr_scheduler_type="constant",
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
        )
        trainer.train()
        return torch.cat([p.detach().flatten() for p in made.model.parameters()])

    counts: list[list[int]] = [[], [], []]
    whole = after(packing=True, batch=4, accumulation=1, drawn=counts[0])
    parts = after(packing=True, batch=1, accumulation=4, drawn=counts[1])
    padded = after(packing=False, batch=4, accumulation=1, drawn=counts[2])
    begun = setting(tiny_model, double=True)
    shaken(begun.model)
    start = torch.cat([p.detach().flatten() for p in begun.model.parameters()])
    assert (whole - parts).abs().max().item() < 1e-9
    assert (whole - padded).abs().max().item() < 1e-9
    assert (whole - start).abs().max().item() > 1e-3
    assert sum(counts[0]) == sum(counts[1]) == sum(counts[2])
    assert len(set(counts[1])) > 1, "all answers are of one length, so wrong totals would not be seen"


@pytest.mark.parametrize("lora", [False, True])
def test_before_the_first_step_a_teacher_that_sees_no_more_has_nothing_to_teach(
    tiny_model: Path, tmp_path: Path, lora: bool
) -> None:
    blind = setting(tiny_model, lora=lora, teacher_template=BLIND)
    seeing = setting(tiny_model, lora=lora)
    for step in range(3):
        for made, is_zero in ((blind, True), (seeing, False)):
            batch, _ = made.rollout(made.model, made.rows.rows, step=step)
            loss = made.trainer(tmp_path).compute_loss(made.model, batch).item()
            assert (abs(loss) < 1e-6) is is_zero
    shaken(blind.model)
    batch, _ = blind.rollout(blind.model, blind.rows.rows, step=0)
    assert blind.trainer(tmp_path).compute_loss(blind.model, batch).item() > 1e-3


def test_the_teacher_stays_untouched(tiny_model: Path, tmp_path: Path) -> None:
    for lora in (False, True):
        made = setting(tiny_model, lora=lora)
        batch, _ = made.rollout(made.model, made.rows.rows, step=0)

        def taught(batch: dict[str, torch.Tensor] = batch, made: Setting = made) -> torch.Tensor:
            found = made.extras.tokens(batch).teacher
            assert found is not None
            return found.logits()

        before = taught()
        made.trainer(tmp_path, max_steps=3, learning_rate=0.05, per_device_train_batch_size=3).train()
        assert torch.equal(before, taught())
        assert not before.requires_grad
        assert made.extras.reference is not None
        assert made.extras.reference.tokens > 0
