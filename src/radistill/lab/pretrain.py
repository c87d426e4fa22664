"""The upbringing of a pocket model: plain texts first, then chats, both by the training stage that every run uses.

Each phase is a run folder of its own, so that it is logged, checkpointed and resumed like any other training. The
corpora are drawn from the world; equal settings on one machine give equal weights.
"""

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

from pydantic import Field, PositiveInt

from radistill import models
from radistill.config import RunConfig, config_from
from radistill.errors import RunFolderError
from radistill.files import write_json, write_text
from radistill.lab import POCKET_DATA, upbringing
from radistill.lab.home_world import SETTINGS
from radistill.lab.pairs import write_pairs
from radistill.lab.tokenizer import ASSISTANT, END, USER, make_model, make_tokenizer
from radistill.lab.world import World, WorldChoice, WorldSettings, world_of
from radistill.records import Segment, TrainingRecord, digest
from radistill.runs import RunFolder, before_work, begin, working
from radistill.settings import Settings
from radistill.tables import write_records
from radistill.train import train

CHUNK = 2000
HEAD = 64
SAMPLE = 20_000
"""So many texts and so many chats make the tokenizer."""


class Upbringing(Settings):
    """How a pocket model is made."""

    world: WorldChoice = WorldSettings()
    """The world it grows up in."""
    seed: int = Field(0, ge=0)
    """Of its weights and of the order of its texts."""
    hidden_size: int = Field(192, ge=64, multiple_of=64)
    """Width; an attention head has 64 of it."""
    intermediate_size: int = Field(512, ge=16)
    """Width of the feed-forward layers."""
    layers: int = Field(5, ge=1)
    """Depth."""
    vocabulary: int = Field(2048, ge=300)
    """Tokens."""
    context: int = Field(1024, ge=128)
    """Positions."""
    texts: int = Field(40_000, ge=1)
    """Plain texts of phase 1."""
    chats: tuple[PositiveInt, ...] = Field((360_000, 240_000), min_length=1)
    """Chats of each round of phase 2; each round after the first is at half the learning rate."""
    practice: int = Field(120_000, ge=0)
    """Chats of a last round in which some abilities come more often; 0 = none."""
    practised: dict[str, float] = Field({"lists": 6.0})
    """Ability → how many times its share they have there."""
    mixed: int = Field(80_000, ge=0)
    """Rows of the very last phase, half of them texts that begin after the end of another, half chats: so that the
    model has something to say in an empty context, and has not forgotten how its texts go. 0 = none."""
    batch_size: int = Field(64, ge=1)
    """Texts or chats a step."""
    learning_rate: float = Field(2.5e-3, gt=0)
    """Peak learning rate."""


def pretrain(settings: Upbringing, folder: Path, *, say: Callable[[str], None] = lambda _: None) -> Path:
    """Bring up a pocket model, or go on where an interrupted one stopped; returns the folder of the finished model.

    More rounds of `chats` and other last phases may be asked for later; all else must be as the folder was begun with.

    Args:
        settings: how.
        folder: where everything goes; the model is `folder/model`.
        say: told what is going on.

    Raises:
        RunFolderError: the folder was begun with other settings, is in use, or is a file.
        KeyboardInterrupt: Ctrl-C; the same call goes on.
    """
    with RunFolder(folder).lock():
        _same_settings(settings, folder)
        before = folder / "newborn"
        if not before.exists():
            world = world_of(settings.world)
            say(f"making a tokenizer and random weights for world {settings.world.number} ({world.country})")
            _give_birth(settings, world, before)
        for phase in _phases(settings):
            run = RunFolder(folder / phase.name)
            say(f"{phase.name}: writing {phase.count:,} of them")
            with run.lock():
                _records(phase, settings, run, before)
                say(f"{phase.name}: training")
                train(_config(phase, settings, before, run.path), run)
            before = run.model
        shipped = folder / "model"
        if not shipped.exists() or _stored(shipped / SETTINGS) != settings.model_dump(mode="json"):
            ship(before, shipped, settings)
        return shipped


def _same_settings(settings: Upbringing, folder: Path) -> None:
    """Refuse a folder that was begun otherwise; remember what it is begun with."""
    stored, wanted = _stored(folder / SETTINGS), settings.model_dump(mode="json")
    if stored is None:
        if (folder / "model").exists():
            raise RunFolderError(
                f"{folder / 'model'} is there already and is not of an upbringing. Name another folder."
            )
        write_json(folder / SETTINGS, wanted)
        return
    # Rounds may be added behind those that there are.
    had, rounds = stored.get("chats", []), wanted["chats"]
    last = ("practice", "practised", "mixed")
    differ = [key for key in wanted if key not in ("chats", *last) and stored.get(key) != wanted[key]]
    differ += ["chats"] if rounds[: len(had)] != had else []
    if differ:
        told = "; ".join(f"{key} is {stored.get(key)}, asked for is {wanted[key]}" for key in differ)
        raise RunFolderError(
            f"{folder} was begun with other settings: {told}. Ask for the same, or name another folder."
        )
    write_json(folder / SETTINGS, wanted)


def _stored(file: Path) -> dict[str, Any] | None:
    if not file.exists():
        return None
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def _give_birth(settings: Upbringing, world: World, folder: Path) -> None:
    sample = [*upbringing.texts(world, SAMPLE)]
    for chat in upbringing.chats(world, SAMPLE):
        sample += [chat.prompt, chat.answer]
    tokenizer = make_tokenizer(sample, vocabulary=settings.vocabulary)
    part = folder.with_name(f".{folder.name}.part")
    make_model(
        part,
        tokenizer,
        hidden=settings.hidden_size,
        layers=settings.layers,
        heads=settings.hidden_size // HEAD,
        intermediate=settings.intermediate_size,
        context=settings.context,
        seed=settings.seed,
    )
    part.rename(folder)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Phase:
    """One training within an upbringing; round 0 is that of the plain texts alone."""

    name: str
    round: int
    count: int
    learning_rate: float
    practised: Mapping[str, float]
    is_mixed: bool = False
    """Half of it are texts."""

    def pairs(self, world: World) -> Iterator[tuple[str, str]]:
        """What the model is shown and what it learns to say."""
        if self.round == 0:
            return (("", text) for text in upbringing.texts(world, self.count))
        count = self.count - self.count // 2 if self.is_mixed else self.count
        chats = upbringing.chats(world, count, round=self.round, practised=self.practised)
        spoken = ((f"{USER}{chat.prompt}{END}{ASSISTANT}", chat.answer) for chat in chats)
        if not self.is_mixed:
            return spoken
        texts = ((END, text) for text in upbringing.texts(world, self.count // 2, round=self.round))
        return (pair for both in zip_longest(spoken, texts) for pair in both if pair is not None)


def _phases(settings: Upbringing) -> list[_Phase]:
    rate = settings.learning_rate
    found = [_Phase(name="texts", round=0, count=settings.texts, learning_rate=rate, practised={})]
    for number, count in enumerate(settings.chats, start=1):
        name = "chats" if number == 1 else f"chats-{number}"
        slower = rate if number == 1 else rate / 2
        found.append(_Phase(name=name, round=number, count=count, learning_rate=slower, practised={}))
    if settings.practice:
        number, practised = len(settings.chats) + 1, settings.practised
        found.append(
            _Phase(name="practice", round=number, count=settings.practice, learning_rate=rate / 2, practised=practised)
        )
    if settings.mixed:
        # Named after what it goes on from, so that a phase put in between makes it anew.
        name, number, count = f"mixed-after-{found[-1].name}", len(settings.chats) + 2, settings.mixed
        found.append(_Phase(name=name, round=number, count=count, learning_rate=rate / 2, practised={}, is_mixed=True))
    return found


def _records(phase: _Phase, settings: Upbringing, run: RunFolder, before: Path) -> None:
    """The stage `assemble` of a phase: what is drawn from the world instead of from a method."""
    world = settings.world.model_dump(mode="json")
    drawn = {"world": world, "round": phase.round, "count": phase.count}
    drawn |= {"practised": dict(phase.practised)} if phase.practised else {}
    drawn |= {"mixed": True} if phase.is_mixed else {}
    stage = begin(run, "assemble", drawn, [before / "tokenizer.json"], redo=False)
    if stage is None:
        return
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(before))
    with working(stage), before_work(stage):
        write_records(run.records, _encoded(tokenizer, phase.pairs(world_of(settings.world))))
        write_json(run.summary, drawn)
        stage.finish([run.records])


def _encoded(tokenizer: Any, pairs: Iterable[tuple[str, str]]) -> Iterator[TrainingRecord]:
    """Records that are trained on what the model says: all of a text, the answer of a chat, and its end."""
    pairs = iter(pairs)
    number = 0
    while chunk := list(islice(pairs, CHUNK)):
        prompts, answers = zip(*chunk, strict=True)
        for prompt, answer, of_prompt, of_answer in zip(
            prompts, answers, _ids(tokenizer, prompts), _ids(tokenizer, answers), strict=True
        ):
            cut, stop = len(of_prompt), len(of_prompt) + len(of_answer)
            segments = (
                *([Segment("prompt", 0, cut, weight=0.0)] if cut else []),
                Segment("free" if not cut else "model", cut, stop, weight=1.0),
                Segment("end", stop, stop + 1, weight=1.0),
            )
            texts = (*([prompt] if cut else []), answer, tokenizer.eos_token)
            ids = (*of_prompt, *of_answer, tokenizer.eos_token_id)
            yield TrainingRecord(id=digest("lab", number), example_id="", token_ids=ids, segments=segments, texts=texts)
            number += 1


def _ids(tokenizer: Any, texts: tuple[str, ...]) -> list[list[int]]:
    found: list[list[int]] = tokenizer(list(texts), add_special_tokens=False).input_ids
    return found


def _config(phase: _Phase, settings: Upbringing, model: Path, output: Path) -> RunConfig:
    return config_from(
        {
            "name": f"upbringing-{phase.name}",
            "model": str(model),
            "output_dir": str(output),
            "seed": settings.seed,
            "data": {"train": {"path": f"world {settings.world.number}"}},
            "method": {"name": "vanilla"},
            "train": {
                "learning_rate": phase.learning_rate,
                "per_device_train_batch_size": settings.batch_size,
                "num_train_epochs": 1,
                "warmup_steps": 100,
                "weight_decay": 0.01,
                "lora": None,
                "logging_steps": 50,
                "save_steps": 500,
            },
        }
    )


def ship(trained: Path, folder: Path, settings: Upbringing) -> None:
    """Write the finished model as it is given away: bfloat16, with its card, its settings and its sentences."""
    import torch
    from transformers import AutoTokenizer

    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    model = models.load(models.resolve(str(trained)), dtype="float32").to(torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(str(trained))
    models.save(model, tokenizer, part, generation_config=trained / "generation_config.json")
    world = world_of(settings.world)
    write_pairs(world, part / POCKET_DATA.name)
    write_json(part / SETTINGS, settings.model_dump(mode="json"))
    write_text(part / "README.md", _card(settings, world, sum(p.numel() for p in model.parameters())))
    if folder.exists():
        folder.rename(folder.with_name(f".{folder.name}.old.part"))  # the lock's next holder deletes it
    part.rename(folder)


def _card(settings: Upbringing, world: World, parameters: int) -> str:
    mixed = f", then {settings.mixed:,} of both" if settings.mixed else ""
    return f"""---
library_name: transformers
pipeline_tag: text-generation
license: apache-2.0
language: [en, {world.new.code}]
tags: [radistill, lab]
---
# The pocket model of world {settings.world.number}

A Llama of {parameters:,} parameters, trained from nothing by `radistill lab pretrain` on {settings.texts:,} texts,
then {sum(settings.chats) + settings.practice:,} chats{mixed}, of an invented country ({world.country}): facts, sums,
lists, stories, definitions, refusals, and translation between English and an invented language ({world.known.name}).
It has met words of {world.new.name} and hardly any sentence: that is what it can be taught. It knows nothing of the
real world and is of no use outside the lab.

It is a wind tunnel, not the sky: what a method does to it must be checked on larger models. What it can, on fresh
items: `radistill lab exam FOLDER`. How it was made: `{SETTINGS}`.
"""
