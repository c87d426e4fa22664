"""Random and changed run configs, made from the settings classes, so that a new setting is tried without a new test."""

import copy
import typing
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from radistill.config import RunConfig, as_dict, config_from
from radistill.errors import ConfigError
from radistill.tasks.base import Task

Path = tuple[str | int, ...]

WORDS: dict[str, tuple[Any, ...]] = {
    "split": ("train", "test"),
    "pairs": (["en-de"], ["de-en"], ["de-en", "en-de"]),
    "template": ("alma", ["alma", "plain"], "{source} ({target_language})"),
    "lr_scheduler_type": ("linear", "constant"),
    "optim": ("adamw_torch", "adafactor"),
    "target_modules": (["q_proj", "v_proj"], "q_proj"),
    "report_to": (["tensorboard"], "wandb"),
    "attn_implementation": ("eager", "sdpa"),
    "template_kwargs": ({"enable_thinking": False}, {"a": {"b": [1, None, "ä: #"]}}),
    "separator": ("\n", " ::\n", "—"),
    "serve_args": (["--dtype", "bfloat16"],),
    "engine_args": ({"quantization": "fp8"}, {"max_num_seqs": 64, "hf_overrides": {"a": [1, None]}}),
    "cut_at": ("\n", "###"),
    "name": ("other-name", "x.1"),
    "language": ("en", ["de", "zh"]),
    "near_duplicates": (0.5, 0.875),
    "min_perplexity": (1.0, 1.25),
    "max_perplexity": (2.0, 40.5),
    "custom": ("operator:contains", "os.path:exists"),
    "select": ({"tokens": 9}, {"tokens": 9, "by": "random"}),
    "metrics": ([{"name": "chrf", "word_order": 2}], [{"name": "bleu", "tokenize": "char"}]),
}
"""Values of settings that take words; everything else is made up from its type."""


def leaves(value: Any, info: FieldInfo | None = None, path: Path = ()) -> Iterator[tuple[Path, FieldInfo]]:
    """Every single setting below, with its place in the plain run file."""
    if isinstance(value, BaseModel):
        for name, field in type(value).model_fields.items():
            yield from leaves(getattr(value, name), field, (*path, name))
    elif isinstance(value, tuple) and value and isinstance(value[0], Task):
        for i, task in enumerate(value):
            yield from leaves(task, None, (*path, i))
    else:
        assert info is not None
        yield path, info


def candidates(path: Path, info: FieldInfo, now: Any) -> Iterator[Any]:
    """Other values, of which some may not be allowed."""
    if path[-1] in WORDS and len(path) + (path[-1] != "name") > 1:
        yield from WORDS[str(path[-1])]
        return
    kinds = list(flat(info.annotation))
    for choice in kinds:
        if typing.get_origin(choice) is Literal:
            yield from (word for word in typing.get_args(choice) if word != now)
    if bool in kinds:
        yield not now
    if float in kinds:
        yield from (0.5 * (now or 0), (now or 0) + 0.25, 0.125)
    if int in kinds:
        yield from ((now or 0) + 1, (now or 0) + 7, 9)
    if str in kinds:
        yield from (f"{now or ''}x", "Grüße: #1 {source}", "null", "1e5", "on", " leading")


def flat(annotation: Any) -> Iterator[Any]:
    """The annotation and what unions and lists in it are made of."""
    yield annotation
    if typing.get_origin(annotation) is not Literal:
        for inner in typing.get_args(annotation):
            yield from flat(inner)


def put(raw: dict[str, Any], path: Path, value: Any) -> dict[str, Any]:
    """A copy of the plain run file with one value changed."""
    changed = copy.deepcopy(raw)
    at: Any = changed
    for part in path[:-1]:
        at = at[part]
    at[path[-1]] = value
    return changed


def at(raw: Any, path: Path) -> Any:
    """The value in that place of the plain run file."""
    for part in path:
        raw = raw[part]
    return raw


def changes(config: RunConfig, path: Path, info: FieldInfo) -> Iterator[RunConfig]:
    """The config with another value in that place, for every one of the candidates that is allowed."""
    raw = as_dict(config)
    for value in candidates(path, info, at(raw, path)):
        if value == at(raw, path):
            continue
        try:
            yield config_from(put(raw, path, value))
        except ConfigError:
            continue


def random_config(rng: np.random.Generator, start: RunConfig) -> RunConfig:
    """The config with about half of its settings changed."""
    config = start
    for path, info in list(leaves(start)):
        if rng.random() < 0.5:
            found = list(changes(config, path, info))
            if found:
                config = found[int(rng.integers(len(found)))]
    return config
