"""The transformers backend against independent loops: the same ids whatever the batch, the right distribution."""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from radistill import models, seeds
from radistill.backends.transformers import Transformers, TransformersGenerator, _Row
from radistill.chat import ChatSettings, load_chat
from radistill.errors import BackendError
from radistill.records import Generation, Message, Request, Sampling
from radistill.speaker import Speaker

CONTEXT = 256
SAMPLED = Sampling(temperature=1.3, top_p=0.8, max_new_tokens=12, n=2, seed=3)
GREEDY = Sampling(temperature=0.0, max_new_tokens=12)
FULL = Sampling(temperature=0.9, top_p=1.0, max_new_tokens=9)
Answers = dict[tuple[str, int], Generation]


@pytest.fixture(scope="module")
def folder(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with many more stop ids, so that random text does stop."""
    copy = tmp_path_factory.mktemp("stops") / "model"
    shutil.copytree(tiny_model, copy)
    (copy / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, *range(100, 160)]}))
    return copy


def speaker(folder: Path) -> Speaker:
    return Speaker(weights=models.resolve(str(folder)), chat=load_chat(folder, ChatSettings()))


@contextmanager
def opened(folder: Path, **settings: Any) -> Iterator[TransformersGenerator]:
    with Transformers.model_validate({"dtype": "float32", **settings}).open(speaker(folder)) as generator:
        assert isinstance(generator, TransformersGenerator)
        yield generator


def plan(folder: Path, *samplings: Sampling) -> list[Request]:
    """Prompts of many lengths, some of them at the end of the context."""
    chat = speaker(folder).chat
    words = ["the", "old", "dog", "sees", "a", "tree", "and", "the", "king", "loves", "his", "small", "horse"]
    prompts = [chat.prompt([Message("user", " ".join(words[:n]))]).ids for n in (1, 2, 3, 5, 8, 13)]
    long = chat.prompt([Message("user", " ".join(words * 60))]).ids
    prompts += [long[:n] for n in (CONTEXT - 1, CONTEXT - 4, CONTEXT - 12, CONTEXT - 13, CONTEXT - 30)]
    return [Request(purpose="rationale", prompt_ids=ids, sampling=s) for s in samplings for ids in prompts]


def answers(generator: TransformersGenerator, requests: Sequence[Request]) -> Answers:
    return {(g.key, g.index): g for unit in generator.units(requests) for g in generator.answer(unit)}


def logits(generator: TransformersGenerator, ids: Sequence[int]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """What the model thinks of the next token, without cache, padding or batch."""
    import torch

    with torch.inference_mode():
        out = generator.model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0, -1]
    return np.asarray(out.double().numpy())


def by_hand(
    generator: TransformersGenerator, request: Request, choose: Callable[[Any, int], int]
) -> tuple[tuple[int, ...], str]:
    """One token after the other, each chosen from the logits and its position."""
    written: list[int] = []
    while len(written) < request.sampling.max_new_tokens and len(request.prompt_ids) + len(written) < CONTEXT:
        token = choose(logits(generator, [*request.prompt_ids, *written]), len(written))
        if token in generator.chat.stop_ids:
            return tuple(written), "stop"
        written.append(token)
    return tuple(written), "length"


def drawn(sampling: Sampling, uniform: float, scores: np.ndarray[Any, np.dtype[np.float64]]) -> int:
    """Nucleus sampling as in Holtzman et al. 2020, by inverting the distribution in the order of the vocabulary."""
    probabilities = np.exp((scores - scores.max()) / sampling.temperature)
    probabilities /= probabilities.sum()
    kept, total = set(), 0.0
    for token in sorted(range(len(probabilities)), key=lambda t: -probabilities[t]):
        if total >= sampling.top_p:
            break
        kept.add(token)
        total += probabilities[token]
    masses = [p if token in kept else 0.0 for token, p in enumerate(probabilities)]
    return int(np.searchsorted(np.cumsum(masses), uniform * sum(masses), side="right"))


def test_greedy_decoding_takes_the_most_probable_token_each_time(folder: Path) -> None:
    requests = plan(folder, GREEDY)
    with opened(folder, batch_size=4) as generator:
        found = answers(generator, requests)
        for request in requests:
            ids, reason = by_hand(generator, request, lambda scores, _: int(scores.argmax()))
            assert (found[request.key, 0].token_ids, found[request.key, 0].finish_reason) == (ids, reason)


@pytest.mark.parametrize("sampling", [SAMPLED, FULL], ids=["nucleus", "everything"])
def test_sampling_draws_by_key_and_position_from_the_nucleus(folder: Path, sampling: Sampling) -> None:
    requests = plan(folder, sampling)

    def chooser(key: str) -> Callable[[Any, int], int]:
        return lambda scores, position: drawn(sampling, seeds.uniform(key, position), scores)

    with opened(folder, batch_size=4) as generator:
        found = answers(generator, requests)
        for request in requests:
            for index in range(sampling.n):
                answer = found[request.key, index]
                expected = by_hand(generator, request, chooser(f"{request.key}/{index}"))
                assert (answer.token_ids, answer.finish_reason) == expected
    assert {g.finish_reason for g in found.values()} == {"stop", "length"}


def test_the_text_of_a_row_does_not_depend_on_its_batch(folder: Path) -> None:
    requests = plan(folder, SAMPLED, GREEDY, FULL)
    found: list[Answers] = []
    for batch_size in (1, 3, 8, 64):
        with opened(folder, batch_size=batch_size) as generator:
            found.append(answers(generator, requests))
            shuffled = [requests[i] for i in seeds.generator(batch_size, "test").permutation(len(requests))]
            found.append(answers(generator, shuffled))
            # In the order of the plan, so that long and short rows share a batch.
            for same in (requests[:11], requests[11:22], requests[22:]):
                found.append({(g.key, g.index): g for g in generator.answer(same)})
    assert len(found[0]) == 11 * 4
    for other in found[1:]:
        assert other == {key: found[0][key] for key in other}


def test_a_prompt_that_fills_the_context_is_an_error_row_and_leaves_the_others_alone(folder: Path) -> None:
    requests = plan(folder, SAMPLED)
    long = Request(purpose="rationale", prompt_ids=(5,) * CONTEXT, sampling=SAMPLED)
    longer = Request(purpose="rationale", prompt_ids=(5,) * (CONTEXT + 50), sampling=SAMPLED)
    with opened(folder) as generator:
        quiet = generator.answer(requests[:6])
        found = generator.answer([long, *requests[:3], longer, *requests[3:6]])
        assert generator.answer([long])[0].finish_reason == "error"
    failed = [g for g in found if g.finish_reason == "error"]
    assert [(g.key, g.index, g.token_ids, g.text) for g in failed] == [
        (r.key, i, (), "") for r in (long, longer) for i in range(2)
    ]
    assert failed[0].error == "256 prompt tokens leave no room in a context of 256"
    assert [g for g in found if g.finish_reason != "error"] == quiet
    assert [g.key for g in found[:2]] == [long.key] * 2


def test_a_row_at_the_end_of_the_context_writes_as_much_as_fits(folder: Path) -> None:
    (request,) = [r for r in plan(folder, FULL) if len(r.prompt_ids) == CONTEXT - 1]
    with opened(folder) as generator:
        (answer,) = generator.answer([request])
    assert answer.n_tokens <= 1
    assert answer.finish_reason == ("length" if answer.n_tokens else "stop")


def test_units_are_of_one_sampling_and_the_longest_rows_come_first(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(folder, batch_size=1) as generator:
        assert [len(unit) for unit in generator.units(plan(folder, GREEDY))] == [4, 4, 3], "four batches each"
    monkeypatch.setattr("radistill.backends.transformers.BATCHES", 1)
    with opened(folder, batch_size=4) as generator:
        units = list(generator.units(plan(folder, SAMPLED, GREEDY)))
    assert [len(unit) for unit in units] == [4, 4, 3] * 2
    for unit in units:
        assert len({r.sampling for r in unit}) == 1
    lengths = [len(r.prompt_ids) for unit in units[:3] for r in unit]
    assert lengths == sorted(lengths, reverse=True)


def test_a_batch_holds_no_more_tokens_than_it_may_and_short_rows_come_many_together(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = plan(folder, GREEDY)
    with opened(folder, batch_size=64) as generator:
        free = answers(generator, requests)
    areas: list[tuple[int, int]] = []
    whole = TransformersGenerator._batch

    def watched(self: TransformersGenerator, rows: list[Any], *, leave_at: int) -> list[Any]:
        areas.append((len(rows), len(rows) * max(len(row.ids) + row.left for row in rows)))
        return whole(self, rows, leave_at=leave_at)

    monkeypatch.setattr(TransformersGenerator, "_batch", watched)
    budget = 2 * CONTEXT
    with opened(folder, batch_size=64, batch_tokens=budget) as generator:
        assert answers(generator, requests) == free
    assert all(area <= budget for _, area in areas)
    assert max(rows for rows, _ in areas) > 2
    areas.clear()
    with opened(folder, batch_size=64, batch_tokens=1) as generator:
        assert answers(generator, requests) == free
    assert {rows for rows, _ in areas} == {1}


def test_a_batch_that_does_not_fit_into_memory_is_halved_until_it_does(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    requests, sizes = plan(folder, SAMPLED), []
    with opened(folder, batch_size=8) as generator:
        quiet = answers(generator, requests)
        really = generator._batch

        def small(rows: list[_Row], *, leave_at: int) -> list[_Row]:
            sizes.append(len(rows))
            if len(rows) > 3:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return really(rows, leave_at=leave_at)

        monkeypatch.setattr(generator, "_batch", small)
        assert answers(generator, requests) == quiet
    assert max(sizes) > 3
    assert sizes.count(1) < len(sizes), "it goes on with halves, not with single rows"


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")],
    ids=["python", "cpu"],
)
def test_a_single_row_that_does_not_fit_is_a_message(
    folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    with opened(folder) as generator:
        monkeypatch.setattr(generator, "_batch", lambda _, **__: (_ for _ in ()).throw(error))
        with pytest.raises(BackendError, match=r"a single row of \d+ tokens does not fit into memory"):
            generator.answer(plan(folder, GREEDY)[:3])


def test_any_other_error_of_the_engine_is_not_hidden(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(folder) as generator:
        monkeypatch.setattr(generator, "_batch", lambda _, **__: (_ for _ in ()).throw(RuntimeError("a bug")))
        with pytest.raises(RuntimeError, match="a bug"):
            generator.answer(plan(folder, GREEDY)[:3])


LEAKING = {
    "do_sample": True, "temperature": 0.01, "top_k": 1, "top_p": 0.1, "min_p": 0.5, "typical_p": 0.3,
    "repetition_penalty": 5.0, "no_repeat_ngram_size": 2, "encoder_no_repeat_ngram_size": 2, "num_beams": 3,
    "max_length": 20, "min_length": 15, "min_new_tokens": 11, "max_new_tokens": 2, "num_return_sequences": 2,
    "suppress_tokens": list(range(12, 90)), "begin_suppress_tokens": list(range(160, 500)), "bad_words_ids": [[7], [8]],
    "forced_bos_token_id": 9, "forced_eos_token_id": 10, "length_penalty": 3.0, "guidance_scale": 2.0,
    "sequence_bias": [[[11], 50.0]], "stop_strings": ["e", "a"], "pad_token_id": 7, "renormalize_logits": True,
}  # fmt: skip


@pytest.mark.parametrize("place", ["generation_config.json", "config.json"])
def test_what_a_model_says_about_generation_does_not_change_what_it_writes(
    folder: Path, tmp_path: Path, place: str
) -> None:
    copy = tmp_path / "model"
    shutil.copytree(folder, copy)
    stored = json.loads((copy / place).read_text())
    kept = {k: v for k, v in LEAKING.items() if place == "generation_config.json" or k != "pad_token_id"}
    (copy / place).write_text(json.dumps({**stored, **kept}))
    requests = plan(folder, SAMPLED, GREEDY)
    with opened(folder) as generator:
        quiet = answers(generator, requests)
    with opened(copy) as generator:
        assert answers(generator, requests) == quiet


def test_an_answer_ends_at_any_of_the_models_stop_ids(tiny_model: Path, folder: Path) -> None:
    requests = plan(folder, SAMPLED, GREEDY, FULL)
    with opened(tiny_model) as generator:
        unstopped, few = answers(generator, requests), generator.identity
    with opened(folder) as generator:
        found, many = answers(generator, requests), generator.identity
        stops = set(generator.chat.stop_ids)
    assert many != few, "other stop ids give other answers, and so other keys"
    assert {2, *range(100, 160)} == stops
    for key, answer in unstopped.items():
        if answer.finish_reason == "length":
            cut = next((i for i, token in enumerate(answer.token_ids) if token in stops), None)
            assert found[key].token_ids == answer.token_ids[:cut]
            assert found[key].finish_reason == ("length" if cut is None else "stop")


def test_nothing_is_computed_after_the_last_row_has_stopped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    widths: list[int] = []
    with opened(folder, batch_size=1) as generator:
        really = generator.model.generate

        def generate(**options: Any) -> Any:
            out = really(**options)
            widths[-1] += out.sequences.shape[1] - options["input_ids"].shape[1]
            return out

        monkeypatch.setattr(generator.model, "generate", generate)
        found = []
        for request in plan(folder, FULL):
            for at in range(request.sampling.n):
                widths.append(0)
                (row,) = generator._batch([_Row(request, at, generator._budget(request))], leave_at=0)
                found.append(generator._read(row))
    assert "stop" in {g.finish_reason for g in found}
    assert widths == [g.n_tokens + (g.finish_reason == "stop") for g in found]


@pytest.mark.parametrize("selects", [True, False])
def test_rows_that_have_ended_leave_the_batch_and_the_others_write_the_same(
    folder: Path, monkeypatch: pytest.MonkeyPatch, selects: bool
) -> None:
    from radistill.backends import transformers as module

    requests = plan(folder, SAMPLED, GREEDY, FULL)
    worked: list[list[tuple[int, int]]] = []
    with opened(folder) as generator:
        really = generator.model.generate

        def generate(**options: Any) -> Any:
            out = really(**options)
            before = options["input_ids"].shape
            worked[-1].append((before[0], before[0] * (out.sequences.shape[1] - before[1])))
            return out

        monkeypatch.setattr(generator.model, "generate", generate)
        found = []
        for look in (1 << 20, 2):
            worked.append([])
            monkeypatch.setattr(module, "LOOK", look)
            if not selects:
                monkeypatch.setattr(module, "_can_select", lambda _: False)
            found.append(answers(generator, requests))
    assert found[0] == found[1]
    whole, looked = worked
    assert len(looked) > len(whole), "it looked more than once"
    assert sum(tokens for _, tokens in looked) < sum(tokens for _, tokens in whole), "rows have left"


@pytest.mark.parametrize("few", [1, 2, 1 << 20])
def test_rows_that_are_set_aside_write_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch, few: int) -> None:
    from radistill.backends import transformers as module

    requests = plan(folder, SAMPLED, GREEDY, FULL)
    with opened(folder, batch_size=4) as generator:
        monkeypatch.setattr(module, "BATCHES", 1)
        quiet = answers(generator, requests)
        batches: list[int] = []
        really = generator._batch

        def counting(rows: list[_Row], *, leave_at: int) -> list[_Row]:
            batches.append(sum(bool(row.begun) for row in rows))
            return really(rows, leave_at=leave_at)

        monkeypatch.setattr(generator, "_batch", counting)
        monkeypatch.setattr(module, "BATCHES", 3)
        monkeypatch.setattr(module, "LOOK", 2)
        monkeypatch.setattr(module, "FEW", few)
        assert answers(generator, requests) == quiet
    assert (sum(batches) > 0) is (few <= 2)


def test_precision_is_part_of_the_identity_and_the_model_is_freed(folder: Path) -> None:
    with opened(folder) as generator:
        full = generator.identity
    assert generator.model is None
    with opened(folder, dtype="bfloat16") as generator:
        assert generator.identity != full
        assert "bfloat16" in generator.identity
    with opened(folder, dtype="auto") as generator:
        assert generator.identity == full, "the weights are stored so"


def test_a_size_that_did_not_fit_is_not_tried_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    sizes: list[int] = []
    with opened(folder) as generator:
        requests = [r for r in plan(folder, GREEDY) if generator._budget(r) == GREEDY.max_new_tokens][:6]
        really = generator._batch

        def small(rows: list[_Row], *, leave_at: int) -> list[_Row]:
            sizes.append(len(rows))
            if len(rows) > 3:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return really(rows, leave_at=leave_at)

        monkeypatch.setattr(generator, "_batch", small)
        first = generator.answer(requests)
        assert generator.answer(requests) == first
    assert sizes == [6, 3, 3, 3, 3]
