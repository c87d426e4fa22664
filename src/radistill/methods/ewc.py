"""Elastic weight consolidation: weights that matter for what the model can do are pulled back harder than others.

Source: Kirkpatrick et al.: "Overcoming catastrophic forgetting in neural networks", PNAS 2017, arXiv 1612.00796:

    loss + weight / 2 x sum over trained parameters of F_i (theta_i - theta_0,i)^2,

F_i the diagonal of the Fisher matrix of the untouched model: the mean over examples of the squared gradient of the
log-likelihood of one example (never of a batch, whose gradients would cancel out).

Departures:

- The paper takes the data of the old task; what an instruction-tuned model was brought up on is not to be had. The
  untouched model's own words stand for it: samples at temperature 1 from its whole distribution, which is the
  expectation that the Fisher matrix is defined by. They have no context but what the chat template writes before an
  answer (after the BOS, where there is one), because what is to be kept is not what it says about the task. With a
  template that writes nothing there, the context is the BOS alone; without either, the end-of-turn token.
- `samples_of: records` takes what another method of the run has let the untouched model write, each token given all
  that stands before it in its record; of a rationale, also the reference. It costs no writing, and tells what the
  weights matter for where that method rehearses. A sample of another temperature than 1 is no draw from the whole
  distribution.
- `normalise` divides F by its mean over all trained weights, so that `weight` means the same for every model and for
  every length of the samples, and F = 1 would be L2-SP. The paper does not.

With LoRA, F is that of the frozen matrices under the adapters, and the change is scaling x B A, element by element.
That product is as large as the matrix; it is built for one matrix at a time, and again in the backward pass.

Memory: F in float32 for every trained weight, with LoRA for every adapted matrix in full; in full fine-tuning a copy of
the starting weights, and the difference from them while a step is computed. The samples are drawn again when a training
is continued; equal seeds give equal samples.
"""

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from radistill import seeds
from radistill.chat import Chat
from radistill.errors import ConfigError
from radistill.methods.base import Method
from radistill.records import Message

if TYPE_CHECKING:
    from radistill.penalties import Sample
    from radistill.training_parts import Penalty, Start


class EWC(Method):
    """Train on the reference, with weights pulled back to their start by how much the untouched model needs them."""

    weight: float = Field(0.1, ge=0)
    """Half of it multiplies the squared changes, each times its Fisher information."""
    samples: int = Field(256, ge=1)
    """So many samples of the untouched model tell what its weights matter for."""
    samples_of: Literal["own", "records"] = "own"
    """`own`: they are drawn for this alone; `records`: they are what another method of the run lets the untouched model
    write beside the references (`radis`, `context_free`, `pseudorehearsal`)."""
    max_new_tokens: int = Field(128, ge=1)
    """At most so many tokens are written for each of its own."""
    normalise: bool = True
    """Whether the Fisher information is divided by its mean; without it, `weight` has to be found for each model."""

    def penalty(self, start: "Start") -> "Penalty | None":
        """The Fisher-weighted squared distance from the start.

        Raises:
            ConfigError: the samples are to be those of the records, and the untouched model wrote nothing in them.
        """
        from radistill import penalties

        model = start.model
        was_training = model.training
        model.eval()
        try:
            samples, tokens = self._samples(start)
            changes = penalties.changes_of(model)
            found = penalties.fisher(model, [c.weight for c in changes], samples)
        finally:
            model.train(was_training)
        importances = penalties.with_mean_one(found) if self.normalise else found
        return penalties.Pull(changes, self.weight, importances, tokens)

    def _samples(self, start: "Start") -> "tuple[list[Sample], int]":
        """And how many ids are read and written for them: each is read when its gradient is taken."""
        from radistill import penalties

        if self.samples_of == "records":
            samples = penalties.written_in(start.rows, count=self.samples, seed=start.seed)
            if not samples:
                raise ConfigError(
                    "method ewc: samples_of is records, but the untouched model wrote nothing beside the references. "
                    "Name a method that lets it write (radis, context_free, pseudorehearsal), or set samples_of: own."
                )
            return samples, sum(len(sample.ids) for sample in samples)
        opening = empty_context(start.chat)
        drawn = penalties.draw(
            start.model, opening, count=self.samples, max_new_tokens=self.max_new_tokens,
            stop_ids=start.chat.stop_ids, seed=seeds.number(start.seed, "fisher") % (1 << 32),
        )  # fmt: skip
        samples = [penalties.Sample.after(opening, ids) for ids in drawn]
        return samples, 2 * sum(len(sample.ids) for sample in samples)


def empty_context(chat: Chat) -> list[int]:
    """Ids before an answer to nothing: the BOS, if there is one, and what the template writes to open an answer."""
    turn = Message("user", "a")
    asked = chat.prompt([turn])
    before = chat.tokenizer.apply_chat_template(
        [{"role": turn.role, "content": turn.content}],
        tokenize=False,
        add_generation_prompt=False,
        **chat.settings.template_kwargs,
    )
    opened = asked.text.removeprefix(before) if asked.text.startswith(before) else ""
    ids: list[int] = chat.tokenizer(opened, add_special_tokens=False).input_ids if opened else []
    bos = chat.tokenizer.bos_token_id
    is_begun = bos is None or bos in ids or asked.ids[0] != bos
    return [*([] if is_begun else [bos]), *ids] or [chat.end_id]
