"""On-policy SDFT: what is drawn, what the teacher is shown, and what a run comes to."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from fakes_on_policy import Setting, answers_in, setting, shaken
from radistill import pipeline, tables
from radistill.config import RunConfig, config_from
from radistill.errors import ConfigError
from radistill.losses import ORIGINS
from radistill.methods._composed import Composed
from radistill.methods.radis import RaDis
from radistill.methods.sdft_onpolicy import OnPolicySDFT
from radistill.methods.vanilla import Vanilla
from radistill.packing import Row
from radistill.pipeline import Interrupted
from radistill.records import Example, Message
from radistill.rollouts import views
from radistill.runs import RunFolder
from test_train import interrupt_at

# ---------------------------------------------------------------------------------------------- what is drawn


def test_an_answer_is_a_prompt_with_what_the_model_wrote_and_an_end_only_where_it_stopped(tiny_model: Path) -> None:
    made = setting(tiny_model, max_new_tokens=12)
    shaken(made.model)
    written = {}
    answer = made.rollout.generator.answer

    def noting(unit: Any) -> Any:
        answers = answer(unit)
        written.update({(r.example_id): g for r, g in zip(unit, answers, strict=True)})
        return answers

    made.rollout.generator.answer = noting  # type: ignore[method-assign]
    bits = {}
    for step in range(40):  # the tiny model rarely stops
        batch, tokens = made.rollout(made.model, [made.rows[0]], step=step)
        generation = written[made.examples[0].id]
        prompt = made.chat.prompt(made.examples[0].messages).ids
        end = [made.chat.end_id] if generation.finish_reason == "stop" else []
        assert batch["input_ids"].tolist() == [[*prompt, *generation.token_ids, *end]]
        assert answers_in(batch) == [*generation.token_ids, *end]
        assert batch["weights_N"].tolist() == [1.0] * len(batch["targets_N"])
        assert {ORIGINS[i] for i in batch["pools_N"].tolist()} == {"model"}
        assert [ORIGINS[i] for i in batch["origins_N"].tolist()] == ["model"] * generation.n_tokens + ["end"] * len(end)
        assert tokens == len(prompt) + generation.n_tokens
        bits[generation.finish_reason] = generation.n_tokens
    assert set(bits) == {"stop", "length"}
    assert bits["length"] == 12


def test_draws_depend_on_seed_step_and_example_but_not_on_the_batch(tiny_model: Path) -> None:
    made, again, other = setting(tiny_model), setting(tiny_model), setting(tiny_model, seed=1)
    rows = made.rows.rows

    def drawn(of: Setting, *, step: int, rows: Sequence[Row] = rows) -> list[list[int]]:
        return [answers_in(of.rollout(of.model, [row], step=step)[0]) for row in rows]

    together = answers_in(made.rollout(made.model, rows, step=4)[0])
    apart = drawn(made, step=4)
    assert sorted(together) == sorted(token for answer in apart for token in answer)
    assert apart == drawn(again, step=4) == drawn(again, step=4)
    assert apart != drawn(made, step=5)
    assert apart != drawn(other, step=4)
    assert len({tuple(answer) for answer in apart}) == len(apart)


def test_the_model_that_writes_is_the_model_in_training(tiny_model: Path) -> None:
    for lora in (False, True):
        made = setting(tiny_model, lora=lora)
        before = answers_in(made.rollout(made.model, made.rows.rows, step=0)[0])
        assert made.extras.reference is not None
        untouched = made.extras.reference.model if not lora else None
        shaken(made.model)
        after = answers_in(made.rollout(made.model, made.rows.rows, step=0)[0])
        assert before != after
        if lora:
            with made.model.disable_adapter():
                assert answers_in(made.rollout(made.model, made.rows.rows, step=0)[0]) == before
        else:
            assert answers_in(made.rollout(untouched, made.rows.rows, step=0)[0]) == before


def test_writing_leaves_the_model_training_and_without_gradients(tiny_model: Path) -> None:
    made = setting(tiny_model)
    made.model.train()
    seen = []
    handle = made.model.register_forward_pre_hook(
        lambda module, _: seen.append((module.training, torch.is_grad_enabled()))
    )
    batch, _ = made.rollout(made.model, made.rows.rows, step=0)
    handle.remove()
    assert made.model.training
    assert set(seen) == {(False, False)}
    assert not any(tensor.is_inference() for tensor in batch.values())


def test_several_answers_to_a_prompt_differ_and_all_are_trained_on(tiny_model: Path) -> None:
    one, three = setting(tiny_model), setting(tiny_model, samples=3)
    row = one.rows[1]
    single, read = one.rollout(one.model, [row], step=0)
    batch, tokens = three.rollout(three.model, [row], step=0)
    answers = batch["targets_N"].reshape(3, -1).tolist()
    assert answers_in(single) not in (answers[1], answers[2])
    assert len({tuple(answer) for answer in answers}) == 3
    assert tokens == 3 * read
    assert batch["indices_R"].tolist() == [1, 1, 1]


def test_the_first_tokens_can_be_left_out(tiny_model: Path) -> None:
    whole, skipping = setting(tiny_model), setting(tiny_model, skip_tokens=2)
    row = whole.rows[0]
    full, rest = (answers_in(s.rollout(s.model, [row], step=0)[0]) for s in (whole, skipping))
    assert rest == full[2:]
    none = setting(tiny_model, skip_tokens=50)
    trainer = none.trainer(Path("unused"))
    batch, _ = none.rollout(none.model, none.rows.rows, step=0)
    loss = trainer.compute_loss(none.model, batch)
    loss.backward()
    assert loss.item() == 0.0


def test_rows_that_belong_to_no_example_stay_as_they_are(tiny_model: Path) -> None:
    made = setting(tiny_model)
    free = Row(*(getattr(made.rows[0], name) for name in ("ids_T", "weights_T", "origins_T", "pools_T", "labels_T")))
    batch, _ = made.rollout(made.model, [made.rows[1], free, made.rows[2]], step=0)
    own = [i for i in range(len(batch["targets_N"])) if i not in batch["teacher_at_M"].tolist()]
    trained = free.ids_T[free.weights_T > 0].tolist()
    assert [answers_in(batch)[i] for i in own] == trained
    taught, _ = made.rollout(made.model, [made.rows[1], made.rows[2]], step=0)
    trainer = made.trainer(Path("unused"))
    found = []
    for inputs in (batch, made.start.collate([free]), taught):
        made.model.zero_grad()
        loss = trainer.compute_loss(made.model, inputs)
        loss.backward()
        grads = torch.cat([p.grad.flatten() for p in made.model.parameters()])
        found.append(torch.cat([loss.detach().reshape(1), grads]))
    n, m = len(trained), len(taught["targets_N"])
    both, nll, divergence = found
    assert torch.allclose(both, (n * nll + m * divergence) / (n + m), rtol=1e-4, atol=1e-6)
    assert all(part.abs().max() > 1e-4 for part in found)
    alone, tokens = made.rollout(made.model, [free], step=0)
    assert "teacher_at_M" not in alone
    assert tokens == 0


# ---------------------------------------------------------------------------------------------- settings and refusals


def test_the_teacher_is_shown_the_demonstration_in_the_last_user_turn() -> None:
    turns = [
        Message("system", "Be good."),
        Message("user", "a"),
        Message("assistant", "b"),
        Message("user", "{prompt}?"),
    ]
    row = Example.of("any", turns, " so {demonstration} \n", {})
    method = OnPolicySDFT(teacher_template="{prompt} [{demonstration}] {x}")
    assert method.messages(row) == [*turns[:3], Message("user", "{prompt}? [so {demonstration}] {x}")]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"teacher_template": "{prompt}"}, r"lacks \{demonstration\}"),
        ({"teacher_template": "{demonstration}"}, r"lacks \{prompt\}"),
        ({"alpha": 1.0}, "less than 1"),
        ({"temperature": 0.0}, "greater than 0"),
        ({"divergence": "both"}, "forward"),
    ],
)
def test_settings_that_mean_nothing_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        OnPolicySDFT(**fields)


def test_it_takes_the_references_place_and_so_goes_with_no_method_that_trains_on_text_about_it() -> None:
    with pytest.raises(ValidationError, match="radis and sdft_onpolicy both say what is trained on"):
        Composed(listed=(RaDis(), OnPolicySDFT()))
    assert Composed(listed=(Vanilla(), OnPolicySDFT())).parts


def test_a_demonstration_that_leaves_no_room_is_refused_before_the_first_step(tiny_model: Path) -> None:
    with pytest.raises(ConfigError, match=r"prompts of 6 examples.*no room.*context of 256 tokens.*train.max_length"):
        setting(tiny_model, teacher_template="{prompt} {demonstration}" + " a" * 300)
    with pytest.raises(ConfigError, match=r"cannot be shown the example .* special token '<\|im_end\|>'"):
        setting(tiny_model, teacher_template="{prompt}<|im_end|>{demonstration}")


def test_an_answer_is_cut_where_the_teachers_context_ends(tiny_model: Path) -> None:
    def lengths(of: Setting) -> dict[str, int]:
        return {name: len(view.teacher) for name, view in of.rollout.views.items()}

    ten, none = (
        lengths(setting(tiny_model, teacher_template="{prompt}" + n * " a" + "{demonstration}")) for n in (10, 0)
    )
    longest = max(none, key=lambda name: none[name])
    filler = (253 - none[longest]) * 10 // (ten[longest] - none[longest]) * " a"
    made = setting(tiny_model, teacher_template="{prompt}" + filler + "{demonstration}", max_new_tokens=40)
    room = {name: 256 - length for name, length in lengths(made).items()}
    assert 0 < room[longest] < 6 < max(room.values())
    for row in made.rows.rows:
        batch, _ = made.rollout(made.model, [row], step=0)
        assert row.example_id is not None
        assert len(batch["targets_N"]) <= min(40, room[row.example_id])
        assert batch["teacher_input_ids"].shape[1] <= 256


def test_views_are_made_of_what_is_trained_on_alone(tiny_model: Path) -> None:
    made = setting(tiny_model)
    some = replace(made.start, rows=made.rows.rows[1:3])
    assert list(views(some, OnPolicySDFT().messages)) == [e.id for e in made.examples[1:3]]


# ---------------------------------------------------------------------------------------------- runs


def raw_on_policy(raw: dict[str, Any], out: Path, **train: Any) -> dict[str, Any]:
    method = {"name": "sdft_onpolicy", "max_new_tokens": 6}
    return {**raw, "output_dir": str(out), "method": method, "train": {**raw["train"], **train}}


def prepared(raw: dict[str, Any]) -> RunConfig:
    config = config_from(raw)
    pipeline.run(config, stages=("generate", "assemble"))
    return config


def log_of(config: RunConfig) -> list[dict[str, Any]]:
    rows = tables.read_jsonl(RunFolder(Path(config.output_dir)).train_log)
    return [{k: v for k, v in row.items() if k != "tokens_per_second"} for row in rows]


def weights_of(config: RunConfig) -> dict[str, bytes]:
    folder = RunFolder(Path(config.output_dir)).model
    return {file.name: file.read_bytes() for file in sorted(folder.glob("*.safetensors"))}


@pytest.mark.parametrize("lora", [None, {"r": 4, "dropout": 0.1}])
def test_a_resumed_training_draws_what_an_uninterrupted_one_does(
    raw_config: dict[str, Any], tmp_path: Path, lora: dict[str, Any] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = {"lora": lora, "num_train_epochs": 2, "gradient_accumulation_steps": 2}
    quiet = prepared(raw_on_policy(raw_config, tmp_path / "quiet", **train))
    pipeline.run(quiet, stages=("train",))
    torn = prepared(raw_on_policy(raw_config, tmp_path / "torn", **train))
    interrupt_at(monkeypatch, step=4)
    with pytest.raises(Interrupted):
        pipeline.run(torn, stages=("train",))
    monkeypatch.undo()
    assert [row["step"] for row in log_of(torn)] == [1, 2, 3, 4]
    pipeline.run(torn, stages=("train",))
    assert len(log_of(quiet)) == 6
    assert log_of(torn) == log_of(quiet)
    assert weights_of(torn) == weights_of(quiet)


def test_a_run_counts_what_was_written_and_read_and_trains_on_no_reference(
    raw_config: dict[str, Any], tmp_path: Path
) -> None:
    config = prepared(raw_on_policy(raw_config, tmp_path / "run"))
    pipeline.run(config, stages=("train",))
    rows, record = log_of(config), RunFolder(Path(config.output_dir)).stages()["train"]
    assert all("loss/reference" not in row and row["loss/model"] > 0 for row in rows)
    cut = [row for row in rows if "loss/end" not in row]
    assert cut
    for row in cut:
        assert row["loss"] == pytest.approx(row["loss/model"], rel=1e-5), "the means are not over what was written"
    facts = record.facts
    assert facts["tokens_trained"] <= 24 * 7
    assert facts["tokens_rolled_out"] == rows[-1]["tokens_rolled_out"] > facts["tokens_trained"]
    assert facts["tokens_reference"] > facts["tokens_processed"] >= facts["tokens_rolled_out"]
    assert not any(tables.read_jsonl(path) for path in Path(config.generate.ledger).glob("shards/*"))


def test_a_part_of_the_examples_is_refused_with_the_reason(raw_config: dict[str, Any], tmp_path: Path) -> None:
    raw = raw_on_policy(raw_config, tmp_path / "run")
    config = config_from({**raw, "data": {**raw["data"], "fraction": 0.5}})
    with pytest.raises(ConfigError, match=r"data.fraction is 0.5, but with sdft_onpolicy .* every example"):
        pipeline.run(config)
    assert not RunFolder(Path(config.output_dir)).stages()


def test_the_pocket_model_comes_nearer_to_its_teacher(tmp_path: Path) -> None:
    config = config_from(
        {
            "name": "pocket",
            "model": "pocket",
            "output_dir": str(tmp_path / "run"),
            "data": {"train": {"path": "pocket", "pairs": ["en-eo"], "limit": 16}},
            "method": {"name": "sdft_onpolicy", "max_new_tokens": 24},
            "generate": {"ledger": str(tmp_path / "ledger")},
            "train": {
                "lora": None,
                "bf16": False,
                "learning_rate": 1e-3,
                "per_device_train_batch_size": 8,
                "max_steps": 8,
                "logging_steps": 1,
            },
        }
    )
    pipeline.run(config, stages=("generate", "assemble", "train"))
    losses_seen = [row["loss"] for row in log_of(config)]
    assert sum(losses_seen[-2:]) < 0.8 * sum(losses_seen[:2])
    card = json.dumps(RunFolder(Path(config.output_dir)).stages()["train"].settings)
    assert "sdft_onpolicy" in card
