r"""On-policy SDFT: the model answers by itself, and learns what it would have thought had it seen the reference.

Source: Shenfeld, Damani, Hübotter, Agrawal: "Self-Distillation Enables Continual Learning", arXiv 2601.19897. With x
the prompt, y the reference (the demonstration), q the model in training, p the teacher, and an answer a ~ q(. | x)
drawn anew in every step, the loss is the mean over the tokens of all answers of

    D( p(. | x with y in context, a_<t),  q(. | x, a_<t) ),

over the whole vocabulary, in nats, at temperature 1; no gradient flows through the draw. D is a divergence:
`forward` KL(p || q) by default, although the paper's text speaks of the reverse one, because its author has said that
all its results were made with the forward one (github.com/idanshen/Self-Distillation, issue 5, as reported by others).

Departures: the teacher is the untouched model alone (readers of the paper say it used a moving average; TRL's trainer
has the untouched model as its default). One answer a prompt and step, where TRL draws 8. Every answer is trained on
once, so no correction by importance is needed; TRL has one. Tokens of all answers count alike (`train.weighting`); TRL
averages over each answer first. TRL also divides logits by the sampling temperature in the loss; here it is 1.

What the stored records hold is no target. They carry the example (its prompt and reference, with the weights and
counts of `vanilla`) to the training, which replaces the reference by the answer before any loss is taken: the
references are read by the teacher alone. What was trained on stands in train_log.jsonl (`loss/model`, `tokens_trained`,
`tokens_rolled_out` for the answers, `tokens_reference` for what the teacher read).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, field_validator

from radistill.chat import Chat
from radistill.methods._wording import reworded
from radistill.methods.base import Method, reference_alone
from radistill.records import Example, Generation, Message, Sampling, TrainingRecord

if TYPE_CHECKING:
    from radistill.training_parts import Rollout, Start


class OnPolicySDFT(Method):
    """Train on the model's own new answers, towards what the untouched model expects when it is shown the reference."""

    uses_reference: ClassVar[bool] = True

    divergence: Literal["forward", "reverse", "jsd"] = "forward"
    """`forward`: KL(teacher || model); `reverse`: KL(model || teacher); `jsd`: between both, see `alpha`."""
    alpha: float = Field(0.5, gt=0, lt=1)
    """Of `jsd`: the teacher's share in the mixture; near 0 it goes the way of `forward`, near 1 of `reverse`."""
    teacher_template: str = "{prompt}\n\n{demonstration}"
    """The last user message as the teacher sees it: free text with `{prompt}` and `{demonstration}`."""
    temperature: float = Field(1.0, gt=0)
    """At which the model in training draws its answers, from the whole vocabulary."""
    max_new_tokens: int = Field(128, ge=1)
    """An answer that is not finished after so many tokens is cut, and gets no end-of-turn."""
    skip_tokens: int = Field(0, ge=0)
    """The first so many tokens of each answer are not trained on: there a teacher may speak of its demonstration."""
    samples: int = Field(1, ge=1)
    """So many answers to each prompt in a step; a batch grows by as much."""

    @field_validator("teacher_template")
    @classmethod
    def _shows_both(cls, value: str) -> str:
        lacking = [name for name in ("{prompt}", "{demonstration}") if name not in value]
        if lacking:
            raise ValueError(f"lacks {' and '.join(lacking)}; the teacher must be shown both")
        return value

    def assemble(
        self,
        example: Example,
        chat: Chat,
        generations: Sequence[Generation],
    ) -> Sequence[TrainingRecord]:
        """Prompt and reference, which carry the example to the training; the answer takes the reference's place."""
        return [reference_alone(example, chat)]

    def rollout(self, start: "Start") -> "Rollout":
        """Answers of the model in training, and the teacher's view of them.

        Raises:
            ConfigError: the teacher's prompts cannot be put into ids, or leave no room for an answer.
        """
        from functools import partial

        from radistill import losses
        from radistill.rollouts import OnPolicy, views

        sampling = Sampling(
            temperature=self.temperature, top_p=1.0, max_new_tokens=self.max_new_tokens, n=self.samples
        )  # fmt: skip
        return OnPolicy(
            start=start,
            views=views(start, self.messages),
            sampling=sampling,
            skip=self.skip_tokens,
            divergence=partial(losses.divergence, kind=self.divergence, alpha=self.alpha),
        )

    def messages(self, example: Example) -> list[Message]:
        """The conversation as the teacher sees it: the template, filled, is the last user message.

        Raises:
            RowError: there is none.
        """
        return reworded(example, self.teacher_template, prompt="prompt", reference="demonstration")
