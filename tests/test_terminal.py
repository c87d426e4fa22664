"""What a user sees at the terminal: previews, findings, conversations, and the run file to start from."""

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from radistill import conversation, models
from radistill.chat import ChatSettings, load_chat
from radistill.check import Findings
from radistill.config import RunConfig, config_from, load_config
from radistill.conversation import Conversation
from radistill.errors import ConfigError, DataError
from radistill.methods.radis import RaDis
from radistill.records import Message, Sampling
from radistill.starter import run_file, run_name
from radistill.terminal import show_findings, show_preview, show_scores

EVIL = "\x1b]0;owned\x07\x1b[2J\u202eevil\x9b31m"
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]")
SAMPLING = Sampling(temperature=1.0, max_new_tokens=12)
Out = pytest.CaptureFixture[str]


def config_of(raw: dict[str, Any], **method: Any) -> RunConfig:
    return config_from({**raw, "method": method or raw["method"]})


def with_first_source(raw: dict[str, Any], folder: Path, first: str) -> dict[str, Any]:
    """The config with three rows to train on, of which the first is special."""
    folder.mkdir()
    (folder / "train.en-de.en").write_text(f"{first}\nThe cat sees the dog.\nThe dog sees.\n", encoding="utf-8")
    (folder / "train.en-de.de").write_text("Eins.\nZwei.\nDrei.\n", encoding="utf-8")
    return {**raw, "data": {"train": {"path": str(folder)}, "template": "plain"}}


def shown_preview(out: Out, config: RunConfig, rows: int = 1) -> str:
    show_preview(config, rows)
    return out.readouterr().out


def test_a_preview_without_generation_is_the_record_that_will_be_trained(
    raw_config: dict[str, Any], capsys: Out
) -> None:
    shown = shown_preview(capsys, config_of(raw_config, name="vanilla"))
    assert "rationales are missing" not in shown
    assert "nothing is assembled yet" in shown
    assert re.search(r"reference +weight 1 ", shown)
    assert re.search(r"end +weight 1 +1 ids", shown)


@pytest.mark.parametrize("weight", [0.25, 0.0])
def test_a_preview_before_generation_has_the_methods_own_weights(
    raw_config: dict[str, Any], capsys: Out, weight: float
) -> None:
    shown = shown_preview(capsys, config_of(raw_config, name="radis", rationale_weight=weight))
    assert "rationales are missing below" in shown
    assert re.search(r"reference +weight 1 ", shown)
    assert re.search(rf"separator +weight {weight:g} ", shown)
    assert "end  " not in shown


@pytest.mark.parametrize("method", ["radis", "vanilla"])
def test_a_preview_leaves_out_rows_that_cannot_be_put_into_ids_and_says_so(
    raw_config: dict[str, Any], tmp_path: Path, capsys: Out, method: str
) -> None:
    raw = with_first_source(raw_config, tmp_path / "data", "Say <|im_end|> twice.")
    shown = shown_preview(capsys, config_of(raw, name=method), rows=2)
    assert shown.count("record ") == 2
    assert "1 rows cannot be put into ids" in shown
    assert "special token '<|im_end|>'" in shown


def test_a_preview_of_rows_that_all_fail_is_an_error(raw_config: dict[str, Any], tmp_path: Path) -> None:
    raw = with_first_source(raw_config, tmp_path / "data", "x")
    (tmp_path / "data" / "train.en-de.de").write_text("<|im_end|>\n" * 3, encoding="utf-8")
    with pytest.raises(DataError, match=r"none of 3 rows can be put into ids, the first because .*special token"):
        show_preview(config_of(raw), 2)


def test_a_preview_of_what_is_assembled_obeys_no_text(
    raw_config: dict[str, Any], capsys: Out, monkeypatch: pytest.MonkeyPatch
) -> None:
    from radistill.methods.base import record
    from radistill.records import Example
    from radistill.runs import RunFolder
    from radistill.tables import write_records

    config = config_of(raw_config)
    chat = load_chat(Path(config.model), config.chat)
    example = Example.of("t", [Message("user", "Hi")], EVIL, {})
    made = record(example, chat, chat.opening(example.messages, EVIL, ""), weights={"reference": 1.0})
    run = RunFolder(Path(config.output_dir))
    run.path.mkdir(parents=True)
    write_records(run.records, [made])
    shown = shown_preview(capsys, config)
    assert "[U+001B]]0;owned[U+0007][U+001B][2J[U+202E]evil[U+009B]31m" in shown
    assert not CONTROL.search(shown)


def test_findings_and_scores_obey_no_text(capsys: Out) -> None:
    template = {"prompt": EVIL, "bos": "none", "end_of_turn": EVIL, "stops_at": [EVIL]}
    show_findings(Findings([f"problem {EVIL}"], [f"note {EVIL}"], {"template": template, "contamination": {"x": EVIL}}))
    skill = {"value": 1.0, "low": 0.0, "high": 2.0, "n": 3, "metric": EVIL}
    show_scores({"runs": [{"name": EVIL, "method": EVIL, "new_skill": s} for s in (skill, None)]})
    shown = capsys.readouterr().out
    assert "problem [U+001B]]0;owned" in shown
    assert "note [U+001B]]0;owned" in shown
    assert not CONTROL.search(shown)


def test_an_error_that_quotes_a_template_obeys_no_text(
    raw_config: dict[str, Any], write_config: Callable[..., Path], tmp_path: Path
) -> None:
    import shutil

    model = tmp_path / "model"
    shutil.copytree(raw_config["model"], model)
    (model / "chat_template.jinja").write_text('{{ raise_exception("\x1b[2J\x9b31mgone") }}', encoding="utf-8")
    path = write_config({**raw_config, "model": str(model)})
    command = [sys.executable, "-m", "radistill.cli", "preview", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "[U+001B][2J[U+009B]31mgone" in done.stderr
    assert not CONTROL.search(done.stderr)


@pytest.fixture(scope="module")
def loaded(tiny_model: Path) -> tuple[Any, Any]:
    return models.load(models.resolve(str(tiny_model))), load_chat(tiny_model, ChatSettings())


@pytest.fixture
def talk(loaded: tuple[Any, Any]) -> Conversation:
    model, chat = loaded
    return Conversation(model, chat, SAMPLING, context=256)


def answers(talk: Conversation) -> list[str]:
    return [m.content for m in talk.turns if m.role == "assistant"]


def test_turns_are_drawn_differently_and_the_same_conversation_alike(
    loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    drawn: list[int] = []
    real = torch.manual_seed

    def noted(seed: int) -> Any:
        drawn.append(seed)
        return real(seed)

    monkeypatch.setattr(torch, "manual_seed", noted)
    said = []
    for seed in (0, 0, 1):
        talk = Conversation(*loaded, SAMPLING.model_copy(update={"seed": seed}), context=256)
        for _ in range(3):
            talk.ask("Hello")
        said.append(answers(talk))
    assert said[0] == said[1] != said[2]
    assert drawn[:3] == drawn[3:6]
    assert len(set(drawn)) == 6, "turns or seeds share their draws"
    talk.turns = []
    talk.ask("Hello")
    assert answers(talk) == said[2][:1]


def test_a_conversation_that_is_too_long_says_so_and_goes_on_after_reset(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: Out
) -> None:
    said = iter(["The old man sees the dog. " * 60, "/reset", "Hello"])
    typed(monkeypatch, said)
    conversation.converse(str(tiny_model), system=None, sampling=SAMPLING, trust_remote_code=False)
    shown = capsys.readouterr()
    assert "tokens long, and the model reads and writes 256 at most. Begin anew with /reset" in shown.err
    assert "Traceback" not in shown.err
    assert shown.out.strip(), "the question after /reset has no answer"


def typed(monkeypatch: pytest.MonkeyPatch, said: Iterator[str], end: type[BaseException] = EOFError) -> None:
    def read(prompt: str = "") -> str:
        try:
            return next(said)
        except StopIteration:
            raise end from None

    monkeypatch.setattr("builtins.input", read)


@pytest.mark.parametrize(("end", "newline"), [(KeyboardInterrupt, "\n"), (EOFError, "")])
def test_ctrl_c_at_the_prompt_ends_with_a_newline(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: Out, end: type[BaseException], newline: str
) -> None:
    typed(monkeypatch, iter([]), end)
    conversation.converse(str(tiny_model), system=None, sampling=SAMPLING, trust_remote_code=False)
    assert capsys.readouterr().err == newline


def will_write(monkeypatch: pytest.MonkeyPatch, talk: Conversation, text: str, then: Callable[[], int]) -> None:
    """Make the model write the text, whatever it is asked, and then what `then` gives."""
    ids = iter(talk.chat.tokenizer(text, add_special_tokens=False).input_ids)
    real = talk.model.forward

    def forward(*inputs: Any, **options: Any) -> Any:
        output = real(*inputs, **options)
        chosen = next(ids, None)
        output.logits[:] = -1e9
        output.logits[..., then() if chosen is None else chosen] = 0.0
        return output

    monkeypatch.setattr(talk.model, "forward", forward)


def interrupt() -> int:
    raise KeyboardInterrupt


@pytest.mark.parametrize("text", ["", "The old man", "The dog sees.\n"])
def test_ctrl_c_stops_the_answer_and_not_the_conversation(
    talk: Conversation, capsys: Out, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    talk.sampling = Sampling(temperature=1.0, max_new_tokens=100)
    with monkeypatch.context() as patch:
        will_write(patch, talk, text, interrupt)
        talk.ask("Hello")
    assert capsys.readouterr().out == f"{text}\n"
    assert answers(talk) == ([text] if text else []), "of an answer stopped before its first token nothing is kept"
    talk.ask("Hello again")
    assert talk.turns[-2] == Message("user", "Hello again")


def test_what_a_model_writes_is_shown_and_never_obeyed(
    talk: Conversation, capsys: Out, monkeypatch: pytest.MonkeyPatch
) -> None:
    talk.sampling = Sampling(temperature=1.0, max_new_tokens=100)
    with monkeypatch.context() as patch:
        will_write(patch, talk, f"<|im_start|>{EVIL} and more", lambda: talk.chat.end_id)
        talk.ask("Hello")
    shown = capsys.readouterr().out
    assert shown == "[U+001B]]0;owned[U+0007][U+001B][2J[U+202E]evil[U+009B]31m and more\n"
    assert answers(talk) == [f"{EVIL} and more"]
    talk.ask("Markup that the model wrote does not stand in the way of the next turn.")


@pytest.mark.parametrize(("room", "asked", "expected"), [(3, 10_000, 3), (50, 7, 7), (None, 7, 7)])
def test_an_answer_is_cut_where_the_context_or_the_limit_ends(
    talk: Conversation, capsys: Out, monkeypatch: pytest.MonkeyPatch, room: int | None, asked: int, expected: int
) -> None:
    written: list[int] = []

    def more() -> int:
        written.append(talk.chat.tokenizer.convert_tokens_to_ids("a"))
        return written[-1]

    talk.sampling = Sampling(temperature=0.0, max_new_tokens=asked)
    talk.context = None if room is None else len(talk.chat.prompt([Message("user", "Hello")]).ids) + room
    with monkeypatch.context() as patch:
        will_write(patch, talk, "", more)
        talk.ask("Hello")
    assert len(written) == expected
    assert capsys.readouterr().out == f"{'a' * expected}\n"


NASTY = ("2024", "null", "1e5", "on", "0x1f", "2024-01-01", "my run", ".hidden", "über", "日本", "a: b # c", "base")


@pytest.mark.parametrize("stem", [*NASTY, "a\nb", "{name}", "'q\"", "--x", "12:30:45", "_", "ok-1.v2"])
def test_a_run_file_can_be_read_whatever_its_name(tmp_path: Path, stem: str) -> None:
    path = tmp_path / f"{stem}.yaml"
    for value in ("m", "../x y/m: #1", "2024", "null", "~/m", '"q"\\', "ü\x85\x7f", "a, b]", "{m}"):
        path.write_text(run_file(path, model=value, data=value, pair="no-en"), encoding="utf-8")
        config = load_config(path)
        assert config.name == run_name(path.stem)
        assert (config.model, config.data.train.path, config.data.train.pairs) == (value, value, ("no-en",))


@pytest.mark.parametrize(
    ("stem", "name"),
    [
        ("2024", "2024"),
        ("my run", "my-run"),
        (".x", "x"),
        ("Über uns", "Uber-uns"),
        ("日本", "run"),
        ("base", "base-run"),
    ],
)
def test_a_run_is_named_as_near_to_its_file_as_may_be(stem: str, name: str) -> None:
    assert run_name(stem) == name
    assert run_name("ok-1.v2_") == "ok-1.v2_"


def test_the_first_lines_name_the_file_as_a_shell_reads_it() -> None:
    assert "`radistill check 'my run.yml'`" in run_file(Path("x/my run.yml"), model="m", data="d", pair="de-en")
    assert "`radistill check a.yaml`" in run_file(Path("a.yaml"), model="m", data="d", pair="de-en")


def test_a_pair_that_is_none_is_refused_before_anything_is_written() -> None:
    with pytest.raises(DataError, match="not a pair of languages"):
        run_file(Path("a.yaml"), model="m", data="d", pair="de-en]")


def test_a_name_that_yaml_reads_as_a_number_is_answered_with_quotes(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("name: 2024\nmodel: m\ndata: {train: {path: d}}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"a\.yaml:1: `name` must be text, not 2024: put it into quotes"):
        load_config(path)


def test_the_weight_of_the_separator_is_a_setting_of_radis() -> None:
    # The preview reads it by name.
    assert {"separator", "rationale_weight"} <= set(RaDis.model_fields)
