"""On policy: the model in training answers the prompts of a micro-batch, and a teacher reads the same answers.

Draws are made as in the `transformers` backend: the token at a place depends on the run's seed, the optimizer step, the
example and the place alone, beside the weights. So a training that was resumed draws what an uninterrupted one does.

Shapes: T ids of a row, N trained tokens of a batch, M of them that the teacher is asked about, V vocabulary.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from radistill.backends.transformers import Transformers, TransformersGenerator
from radistill.chat import RowError
from radistill.errors import ConfigError
from radistill.losses import ORIGINS
from radistill.packing import Collator, Row
from radistill.records import Example, Generation, Message, Request, Sampling, digest
from radistill.training_parts import Start

if TYPE_CHECKING:
    from collections.abc import Iterator

PROMPT, MODEL, END = (ORIGINS.index(origin) for origin in ("prompt", "model", "end"))


@dataclass(frozen=True, slots=True)
class View:
    """What is before an answer."""

    student: tuple[int, ...]
    """Ids of the prompt."""
    teacher: tuple[int, ...]
    """Ids of the prompt with the demonstration."""


def views(start: Start, shown: Callable[[Example], Sequence[Message]]) -> dict[str, View]:
    """Both views of every example that is trained on, by id.

    Args:
        start: the training before its first step.
        shown: the conversation as the teacher sees it.

    Raises:
        ConfigError: a view cannot be put into ids.
    """
    examples, chat = start.examples(), start.chat
    found = {}
    for example_id in dict.fromkeys(row.example_id for row in start.rows if row.example_id is not None):
        example = examples[example_id]
        try:
            found[example_id] = View(chat.prompt(example.messages).ids, chat.prompt(shown(example)).ids)
        except RowError as error:
            raise ConfigError(f"the teacher cannot be shown the example {example_id}: {error}") from error
    return found


@dataclass
class OnPolicy:
    """See `training_parts.Rollout`."""

    start: Start
    views: Mapping[str, View]
    sampling: Sampling
    skip: int
    """So many tokens at the beginning of each answer are not trained on."""
    divergence: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

    def __post_init__(self) -> None:
        context = self.generator.context
        tight = [name for name, view in self.views.items() if len(view.teacher) >= context]
        if tight:
            raise ConfigError(
                f"the prompts of {len(tight)} examples, with the reference in them, leave no room for an answer in the "
                f"model's context of {context} tokens (for example {tight[0]}). Set train.max_length so that they are "
                "dropped, or shorten method.teacher_template."
            )

    @cached_property
    def generator(self) -> TransformersGenerator:
        """Draws answers as the `transformers` backend does."""
        assert self.start.weights is not None, "where the model lies says how long its context is"
        return TransformersGenerator(Transformers(), self.start.model, self.start.chat, self.start.weights)

    def __call__(self, model: Any, rows: Sequence[Row], *, step: int) -> tuple[dict[str, torch.Tensor], int]:
        """Rows of examples get answers; rows that belong to none stay as they are."""
        requests = {row.index: self._request(row.example_id, step) for row in rows if row.example_id is not None}
        answers = self._answers(model, list(requests.values()))
        students: list[Row] = []
        teachers: dict[int, Row] = {}
        tokens = 0
        for row in rows:
            if row.example_id is None:
                students.append(row)
                continue
            view = self.views[row.example_id]
            for generation in answers[requests[row.index].key]:
                teachers[len(students)] = self._row(row, view.teacher, generation)
                students.append(self._row(row, view.student, generation))
                tokens += len(view.student) + generation.n_tokens
        return self._batch(students, teachers), tokens

    def compare(self, logits_MV: torch.Tensor, teacher_MV: torch.Tensor) -> torch.Tensor:
        """The divergence of each token, (M,)."""
        return self.divergence(logits_MV, teacher_MV)

    def _request(self, example_id: str, step: int) -> Request:
        view = self.views[example_id]
        room = self.generator.context - max(len(view.student), len(view.teacher))
        sampling = self.sampling.model_copy(update={"max_new_tokens": min(self.sampling.max_new_tokens, room)})
        # The draws depend on the request's key, and this on all that is named here.
        return Request(
            purpose="response",
            prompt_ids=view.student,
            sampling=sampling,
            example_id=example_id,
            model=digest("rollout", self.start.seed, step, example_id),
        )

    def _answers(self, model: Any, requests: Sequence[Request]) -> dict[str, list[Generation]]:
        unique = list({request.key: request for request in requests}.values())
        self.generator.model = model
        was_training = model.training
        model.eval()
        try:
            written = self.generator.answer(unique)
        finally:
            model.train(was_training)
        return {request.key: [g for g in written if g.key == request.key] for request in unique}

    def _row(self, row: Row, prompt: Sequence[int], answer: Generation) -> Row:
        end = [self.start.chat.end_id] if answer.finish_reason == "stop" else []
        ids = np.asarray([*prompt, *answer.token_ids, *end], dtype=np.int32)
        origins = np.full(len(ids), MODEL, dtype=np.int8)
        origins[: len(prompt)] = PROMPT
        pools = origins.copy()  # the end counts with the answer it closes, an empty one too
        if end:
            origins[-1] = END
        weights = np.zeros(len(ids), dtype=np.float32)
        weights[len(prompt) + self.skip :] = 1.0
        return Row(ids, weights, origins, pools, np.zeros(len(ids), dtype=np.int8), row.example_id, row.index)

    def _batch(self, students: Sequence[Row], teachers: Mapping[int, Row]) -> dict[str, torch.Tensor]:
        """The students' rows as a batch, with what the teacher reads beside them."""
        collate = self.start.collate
        batch = collate(students)
        if not teachers:
            return batch
        read = collate(list(teachers.values()))
        places = dict(_places(collate, students))
        of_teacher = list(teachers)
        at = [places[of_teacher[i]] for i, _ in _places(collate, list(teachers.values()))]
        return batch | {
            "teacher_input_ids": read["input_ids"],
            "teacher_position_ids": read["position_ids"],
            "teacher_places_M": read["places_N"],
            "teacher_n_tokens": read["n_tokens"],
            "teacher_at_M": torch.from_numpy(np.concatenate(at)),
        }


def _places(collate: Collator, rows: Sequence[Row]) -> "Iterator[tuple[int, np.ndarray[Any, np.dtype[np.int64]]]]":
    """Each row's number, in the order of the batch, and which of the batch's N tokens are its own."""
    lengths = [len(row) for row in rows]
    order = [i for members in collate.bins(lengths, max(lengths)) for i in members]
    start = 0
    for i in order:
        stop = start + int((rows[i].weights_T > 0).sum())
        yield i, np.arange(start, stop)
        start = stop
