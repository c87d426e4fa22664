"""Everything that can be found without loading weights, all problems at once."""

import contextlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from radistill import check_training, contamination, data, devices, held_out, models, seeds, validation
from radistill import lengths as record_lengths
from radistill.chat import Opening, RowError
from radistill.config import RunConfig
from radistill.data import Loaded, Part
from radistill.errors import RadistillError
from radistill.filtering import refuse_unusable
from radistill.filters import OFF, FilterSettings
from radistill.generate import plan, rehearse
from radistill.lab.home_world import refuse_other_world
from radistill.making import Making, filters_of
from radistill.records import Example, Request
from radistill.runs import RunFolder
from radistill.speaker import Speaker, untouched
from radistill.training_arguments import refuse_unusable_settings

SAMPLE = 1000
"""So many examples are put into ids; the lengths of all are estimated from them."""
MUCH = 0.1
"""A larger share of rows than this that cannot be used is a problem, not a note."""
BYTES_PER_TOKEN = 12
"""In the ledger: an id of 5 digits with its comma, and the text it spells."""


@dataclass
class Findings:
    """What `check` found."""

    problems: list[str] = field(default_factory=list)
    """The run would fail or mislead."""
    notes: list[str] = field(default_factory=list)
    """Good to know."""
    facts: dict[str, Any] = field(default_factory=dict)

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Collect what a user can repair, and go on."""
        try:
            yield
        except RadistillError as error:
            self.problems.append(str(error))


def check(config: RunConfig, *, shown: Callable[[str], None] = lambda _: None) -> Findings:
    """Look at model, template, data, lengths, contamination, disk space and cost.

    Args:
        config: a config that was read without errors.
        shown: called with the name of each step before it begins.
    """
    found = Findings()
    shown("data")
    train, test = _load(config, "train", found), None
    if config.data.test is not None:
        test = _load(config, "test", found)
    elif any(task.examples() is None for task in config.evaluate):
        found.notes.append("data.test is not set: `radistill run` needs it, and so does `evaluate`")
    if train and test:
        with found.looking():
            found.facts["contamination"] = contamination.facts(config.data, train, test)
    tests = _tests(config, test, found)
    _validation(config, found)
    shown("model and chat template")
    speaker = None
    with found.looking():
        speaker = untouched(config)
        found.facts["model"] = {"identity": speaker.weights.identity, "folder": str(speaker.weights.folder)}
    with found.looking():
        refuse_unusable_settings(config)
    if missing := config.generate.backend.missing():
        found.problems.append(missing)
    with found.looking():
        refuse_unusable(filters_of(config))
    if config.generate.filters != FilterSettings() and filters_of(config) is OFF:
        found.notes.append("generate.filters: the method lets no rationales be written, so there is nothing to filter")
    if speaker:
        with found.looking():
            refuse_other_world(config, speaker.weights)
        with found.looking():
            models.refuse_adapter(speaker.weights)
    if speaker and config.train.lora is not None:
        with found.looking():
            models.refuse_unknown_targets(
                speaker.weights, config.train.lora, trust_remote_code=config.trust_remote_code
            )
    if speaker and train:
        with found.looking():
            _template(config, speaker, train, found)
        shown("lengths")
        with found.looking():
            _lengths(config, speaker, train, found, shown)
    if speaker and tests:
        with found.looking():
            _test_prompts(config, speaker, tests, found)
    _run_folder(config, found)
    return found


def _load(config: RunConfig, part: Part, found: Findings) -> Loaded | None:
    with found.looking():
        loaded = data.load(config.data, part, seed=config.seed)
        found.facts[part] = {
            "examples": len(loaded.examples),
            "rejected": len(loaded.rejects),
            "files": [str(f) for f in loaded.files],
            "pairs": loaded.pairs,
        }
        found.notes += [f"{part}: {note}" for note in loaded.notes]
        first = [f"{r.file}:{r.line}: {r.reason}" for r in loaded.rejects[:3]]
        if first:
            found.notes.append(f"{part}: {len(loaded.rejects)} rows are refused, for example " + "; ".join(first))
        return loaded
    return None


def _validation(config: RunConfig, found: Findings) -> None:
    """What a training would be judged by; `refuse_unusable_settings` says what is wrong with it."""
    if config.train.eval_steps is None:
        if config.data.validation is not None:
            found.notes.append("data.validation is not used, because train.eval_steps is not set")
        return
    with contextlib.suppress(RadistillError):
        items = validation.usable_items(config)
        found.facts["validation"] = {task.title: len(examples) for task, examples in items.all}
        if items.left_out:
            found.notes.append(f"{items.left_out} validation items are left out: they are trained or tested on")


def _template(config: RunConfig, speaker: Speaker, train: Loaded, found: Findings) -> None:
    chat = speaker.chat
    found.notes += rehearse(config, chat, train.examples)
    prompt = chat.prompt(train.examples[0].messages)
    bos = chat.tokenizer.bos_token_id
    found.facts["template"] = {
        "prompt": prompt.text,
        "bos": "none" if bos is None or bos not in prompt.ids else "one",
        "end_of_turn": chat.tokenizer.convert_ids_to_tokens(chat.end_id),
        "stops_at": chat.tokenizer.convert_ids_to_tokens(list(chat.stop_ids)),
    }


def _lengths(config: RunConfig, speaker: Speaker, train: Loaded, found: Findings, shown: Callable[[str], None]) -> None:
    draw = seeds.generator(config.seed, "check").permutation(len(train.examples))[:SAMPLE]
    sample = [train.examples[i] for i in sorted(draw)]
    making = Making(config, speaker.chat, sample)
    requests, refused = plan(making)
    beside = config.method.plan_more(replace(making.whole, examples=len(train.examples)), [])
    lost = [file for file in config.method.files() if not file.exists()]
    found.problems += [f"method: {file} does not exist." for file in lost]
    if refused:
        reason = refused[0]["reason"]
        found.notes.append(f"{len(refused)} of {len(sample)} sampled rows cannot be put into ids: {reason}")
    lengths = [len(r.prompt_ids) for r in requests]
    openings: list[Opening] = []
    if not lengths:  # the method lets the model write nothing
        openings = [speaker.chat.opening(e.messages, e.reference, "") for e in sample[:200]]
        lengths = [len(opening.ids) for opening in openings]
    context = models.length_limit(speaker.weights.folder, config.train.max_length)
    quantiles = np.quantile(lengths, [0.5, 0.95, 1.0])
    found.facts["lengths"] = {
        "sampled": len(lengths),
        "median": float(quantiles[0]),
        "p95": float(quantiles[1]),
        "max": float(quantiles[2]),
        "context": context,
        "histogram": record_lengths.histogram(lengths),
    }
    new = config.generate.sampling.max_new_tokens if requests else 0
    too_long = sum(length >= context for length in lengths) if context else 0
    is_refused = config.train.on_long == "error"
    if too_long > (0 if is_refused else len(lengths) * MUCH):
        found.problems.append(
            f"{too_long} of {len(lengths)} sampled rows are longer than the {context} tokens that fit (the model's "
            f"context or train.max_length) and would {'stop the run' if is_refused else 'be dropped'} (train.on_long). "
            "Split them, or take a model with a longer context."
        )
    over = sum(length + new > context for length in lengths) if context else 0
    if over:
        found.notes.append(
            f"{over} of {len(lengths)} sampled rows leave less than {new} tokens (generate.sampling.max_new_tokens) of "
            f"the {context} that fit; {record_lengths.BECOMES[config.train.on_long]}"
        )
    if not found.problems:  # what cannot be trained takes neither
        shown("memory and time of training")
        told = check_training.Lengths.of(requests, openings, context, new)
        check_training.look(config, speaker, told, total=len(train.examples), found=found)
    _cost(
        config,
        requests,
        sample_size=len(sample),
        total=len(train.examples),
        lengths=lengths,
        beside=beside,
        found=found,
    )


def _tests(config: RunConfig, test: Loaded | None, found: Findings) -> list[Example]:
    """All that is asked by any task, each once."""
    asked: dict[str, Example] = {}
    with found.looking():
        for task, examples in held_out.by_task(config, test.examples if test else None):
            asked |= {example.id: example for example in examples or ()}
            task.refuse_unusable(examples or ())
    return list(asked.values())


def _test_prompts(config: RunConfig, speaker: Speaker, tests: Sequence[Example], found: Findings) -> None:
    draw = seeds.generator(config.seed, "check", "test").permutation(len(tests))[:SAMPLE]
    refused = []
    for i in sorted(draw):
        try:
            speaker.chat.prompt(tests[i].messages)
        except RowError as error:
            refused.append(str(error))
    if refused:
        said = f"{len(refused)} of {len(draw)} sampled tests cannot be put into ids, nor scored: {refused[0]}"
        (found.problems if len(refused) > len(draw) * MUCH else found.notes).append(said)


def _cost(
    config: RunConfig,
    requests: Sequence[Request],
    *,
    sample_size: int,
    total: int,
    lengths: list[int],
    beside: Sequence[Request],
    found: Findings,
) -> None:
    share = total / max(1, sample_size)
    new = config.generate.sampling.max_new_tokens * config.generate.sampling.n
    most_beside = sum(r.sampling.max_new_tokens * r.sampling.n for r in beside)
    most_written = round(len(requests) * share * new) + most_beside
    batch = config.train.per_device_train_batch_size * config.train.gradient_accumulation_steps
    batch *= devices.count(config.train)
    rows = (
        config.train.max_steps * batch if config.train.max_steps > 0 else round(total * config.train.num_train_epochs)
    )
    read = round(sum(lengths) / max(1, len(lengths)) * total)
    found.facts["cost"] = {
        "requests": round(len(requests) * share),
        "requests_beside": len(beside),
        "prompt_tokens": read if requests else 0,
        "generated_tokens_at_most": most_written,
        "training_rows": rows,
    }
    need = most_written * BYTES_PER_TOKEN
    for place in {Path(config.output_dir), Path(config.generate.ledger)}:
        free = shutil.disk_usage(_existing(place)).free
        found.facts.setdefault("disk", {})[str(place)] = {"free_bytes": free, "needed_at_most_bytes": need}
        if need > free:
            found.problems.append(
                f"the disk of {place} has {free / 1e9:.1f} GB free; the generations may need {need / 1e9:.1f} GB. "
                "Lower generate.sampling.max_new_tokens or data.train.limit, or name another place."
            )


def _run_folder(config: RunConfig, found: Findings) -> None:
    run = RunFolder(Path(config.output_dir))
    with found.looking():
        stages = run.stages()
        found.facts["run"] = {name: record.status for name, record in stages.items()}
    place = _existing(run.path)
    if not place.is_dir():
        found.problems.append(f"output_dir: {place} is a file, so {run.path} cannot be made.")


def _existing(path: Path) -> Path:
    path = path.resolve()
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def as_dict(found: Findings) -> dict[str, Any]:
    """For `--json`."""
    return asdict(found)
