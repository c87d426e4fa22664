"""What is particular to vanilla and to RaDis."""

import pytest
from pydantic import ValidationError

from fixtures_chat import chat_like, example
from radistill import seeds
from radistill.chat import Chat
from radistill.config import config_from
from radistill.errors import ConfigError
from radistill.methods.radis import RaDis
from radistill.methods.vanilla import Vanilla
from radistill.records import FinishReason, Generation, Sampling, TrainingRecord


@pytest.fixture(params=["llama-2", "llama-3"])
def chat(request: pytest.FixtureRequest) -> Chat:
    return chat_like(request.param)


def rationale(chat: Chat, text: str = "Note: Good", *, finish_reason: FinishReason = "stop") -> Generation:
    ids = tuple(chat.tokenizer(text, add_special_tokens=False).input_ids)
    return Generation(key="k", index=0, token_ids=ids, text=text, finish_reason=finish_reason)


def weights(record: TrainingRecord) -> dict[str, float]:
    assert len({s.origin for s in record.segments}) == len(record.segments)
    return {s.origin: s.weight for s in record.segments}


def test_vanilla_learns_the_reference_and_its_end_and_asks_for_nothing(chat: Chat) -> None:
    row = example("the house")
    assert Vanilla().plan(row, chat, Sampling()) == ()
    (record,) = Vanilla().assemble(row, chat, [])
    assert weights(record) == {"prompt": 0, "reference": 1, "end": 1}
    assert record.token_ids == (*chat.opening(row.messages, "the house", "").ids, chat.end_id)
    assert record.text == chat.prompt(row.messages).text + chat.shape.lead + "the house" + record.texts[-1]
    assert record.example_id == row.id


def test_vanilla_that_is_given_generations_is_a_bug(chat: Chat) -> None:
    with pytest.raises(AssertionError):
        Vanilla().assemble(example("the house"), chat, [rationale(chat)])


def test_radis_as_published_weighs_reference_and_rationale_alike(chat: Chat) -> None:
    (record,) = RaDis().assemble(example("the house"), chat, [rationale(chat)])
    assert weights(record) == {"prompt": 0, "reference": 1, "separator": 1, "rationale": 1, "end": 1}
    lead = chat.shape.lead
    assert record.texts[1:4] == (f"{lead}the house", "\n\n", "Note: Good")


@pytest.mark.parametrize("weight", [0.0, 0.25, 2.0])
def test_separator_rationale_and_end_have_the_rationales_weight(chat: Chat, weight: float) -> None:
    row = example("the house")
    (record,) = RaDis(rationale_weight=weight).assemble(row, chat, [rationale(chat)])
    assert weights(record) == {
        "prompt": 0,
        "reference": 1,
        "separator": weight,
        "rationale": weight,
        "end": weight,
    }
    (usual,) = RaDis().assemble(row, chat, [rationale(chat)])
    assert (record.token_ids, record.texts, record.id) == (usual.token_ids, usual.texts, usual.id)


def test_an_end_right_after_the_reference_has_the_references_weight(chat: Chat) -> None:
    (record,) = RaDis(rationale_weight=0.25).assemble(example("the house"), chat, [rationale(chat, "")])
    assert weights(record) == {"prompt": 0, "reference": 1, "end": 1}


@pytest.mark.parametrize("text", ["Note: Good", ""])
def test_an_end_that_is_not_to_be_learned_is_there_but_weighs_nothing(chat: Chat, text: str) -> None:
    (record,) = RaDis(train_end=False).assemble(example("the house"), chat, [rationale(chat, text)])
    (usual,) = RaDis().assemble(example("the house"), chat, [rationale(chat, text)])
    assert record.token_ids == usual.token_ids
    assert weights(record) == {**weights(usual), "end": 0}


@pytest.mark.parametrize("train_end", [True, False])
def test_a_rationale_that_was_cut_has_no_end(chat: Chat, train_end: bool) -> None:
    cut = rationale(chat, finish_reason="length")
    (record,) = RaDis(train_end=train_end).assemble(example("the house"), chat, [cut])
    assert weights(record) == {"prompt": 0, "reference": 1, "separator": 1, "rationale": 1}
    assert record.token_ids[-cut.n_tokens :] == cut.token_ids


def test_a_bare_continuation_has_no_separator(chat: Chat) -> None:
    (record,) = RaDis(separator="").assemble(example("the house"), chat, [rationale(chat, " is")])
    assert weights(record) == {"prompt": 0, "reference": 1, "rationale": 1, "end": 1}
    assert record.text.removeprefix(chat.prompt(example("x").messages).text).startswith(
        f"{chat.shape.lead}the house is"
    )


def test_a_token_that_reference_and_separator_share_weighs_as_the_reference() -> None:
    chat = chat_like("llama-3")
    (record,) = RaDis(rationale_weight=0.25).assemble(example("Hello."), chat, [rationale(chat)])
    assert weights(record) == {"prompt": 0, "reference": 1, "rationale": 0.25, "end": 0.25}
    assert record.texts[1] == "Hello.\n\n"


def test_a_plan_shows_reference_and_separator_and_changes_with_either(chat: Chat) -> None:
    row = example("the house")
    (request,) = RaDis().plan(row, chat, Sampling(seed=4))
    assert request.purpose == "rationale"
    assert request.example_id == row.id
    assert request.sampling == Sampling(seed=4)
    assert request.prompt_ids == chat.opening(row.messages, "the house", "\n\n").ids
    others = [
        RaDis(separator="\n").plan(row, chat, Sampling(seed=4)),
        RaDis().plan(example("the word"), chat, Sampling(seed=4)),
        RaDis().plan(row, chat, Sampling(seed=5)),
    ]
    assert len({request.key, *(other.key for (other,) in others)}) == 4


def test_what_changes_only_the_loss_changes_no_request(chat: Chat) -> None:
    row = example("the house")
    settings = [{}, {"rationale_weight": 0.5}, {"train_end": False}, {"pairing": "shuffled"}]
    plans = [RaDis.model_validate(s).plan(row, chat, Sampling()) for s in settings]
    assert len({request.key for (request,) in plans}) == 1


@pytest.mark.parametrize("separator", [" ", "\n ", "\t", "## \u00a0", "\n\nNote: "])
def test_a_separator_that_ends_in_a_blank_is_refused_with_what_to_use(separator: str) -> None:
    with pytest.raises(ValidationError, match=r"may not end in a blank.*use '\\n\\n'"):
        RaDis(separator=separator)


@pytest.mark.parametrize("separator", ["\n\n", "", "\n", " ##", "\n\nNote:"])
def test_other_separators_are_taken_as_they_are(separator: str) -> None:
    assert RaDis(separator=separator).separator == separator


@pytest.mark.parametrize("weight", [-0.1, float("inf"), float("nan")])
def test_a_weight_that_is_no_weight_is_refused(weight: float) -> None:
    with pytest.raises(ValidationError):
        RaDis(rationale_weight=weight)


def test_wrong_settings_are_named_with_their_key_in_the_run_file() -> None:
    raw = {
        "name": "x",
        "model": "m",
        "output_dir": "o",
        "data": {"train": {"path": "d"}},
        "method": {"name": "radis", "separator": "\n ", "rationale_wieght": 1},
    }
    with pytest.raises(ConfigError) as caught:
        config_from(raw)
    message = str(caught.value)
    assert "method.separator" in message
    assert "Did you mean 'rationale_weight'?" in message


def test_more_than_one_rationale_is_refused_before_anything_is_written(chat: Chat) -> None:
    with pytest.raises(ConfigError, match=r"generate\.sampling\.n is 3"):
        RaDis().plan(example("the house"), chat, Sampling(n=3))


@pytest.mark.parametrize("count", [2, 3, 10, 101])
@pytest.mark.parametrize("seed", range(5))
def test_shuffled_pairing_gives_everybody_anothers_rationale(count: int, seed: int) -> None:
    names = [f"e{i}" for i in range(count)]
    donors = RaDis(pairing="shuffled").donors(names, seeds.generator(seed, "donors"))
    assert sorted(donors) == sorted(donors.values()) == sorted(names)
    assert all(donors[name] != name for name in names)


def test_shuffled_pairing_depends_on_the_seed() -> None:
    names = [f"e{i}" for i in range(30)]
    draws = [RaDis(pairing="shuffled").donors(names, seeds.generator(seed, "donors")) for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]


def test_a_single_example_has_nobody_to_exchange_with() -> None:
    with pytest.raises(ConfigError, match="at least two examples"):
        RaDis(pairing="shuffled").donors(["alone"], seeds.generator(0, "donors"))
    assert RaDis(pairing="shuffled").donors([], seeds.generator(0, "donors")) == {}


def test_own_pairing_leaves_everybody_its_own() -> None:
    assert RaDis().donors(["a", "b"], seeds.generator(0, "donors")) == {"a": "a", "b": "b"}
