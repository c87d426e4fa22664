"""Pseudorehearsal: what the untouched model answers to messages of random tokens is learned beside the examples.

Source: Robins, "Catastrophic Forgetting, Rehearsal and Pseudorehearsal", Connection Science 7 (1995): items made at
random are shown to the network before it learns anything new, and its answers to them are rehearsed with the new items.
They need not be sensible: they tie down the function at many places of its input space, and so between them.

Departures, ours: the network is a chat model, so an item is a user's message of a few random tokens of its
vocabulary, rendered by its template, and the model's answer to it is drawn at temperature 1 with top_p 1; the message
itself is not learned. Robins takes the network's outputs for targets, which is what `train.labels: stored` or `live`
do: each token is compared with all that the model expected there. `hard` learns the tokens that it drew. Equal messages
are kept once.

A model of a closed world answers such a message with something of its world. What a model of the real world answers,
and so what is tied down, is another matter: look at the records (`radistill preview`) before relying on it.
"""

from collections.abc import Iterable, Iterator, Sequence

from pydantic import Field, model_validator

from radistill import seeds
from radistill.chat import LOST, Chat, Prompt, RowError
from radistill.errors import ModelError
from radistill.methods._beside import Part, end_of_turn, joined
from radistill.methods.base import Method, Rounds, Whole
from radistill.records import Message, Request, Sampling, Span, TrainingRecord

TRIES = 20
"""Draws per wanted message, after which a vocabulary is taken to have no more."""


class Pseudorehearsal(Method):
    """Train on the untouched model's answers to messages of random tokens too."""

    ratio: float = Field(0.5, gt=0)
    """Messages per training example."""
    weight: float = Field(1.0, gt=0)
    """Loss weight of each token that the model wrote, the end-of-turn included; a reference token weighs 1."""
    shortest: int = Field(3, ge=1)
    """A message has at least so many random tokens."""
    longest: int = Field(10, ge=1)
    """A message has at most so many."""
    max_new_tokens: int = Field(64, ge=1)
    """At most so many tokens are written in answer."""

    @model_validator(mode="after")
    def _in_order(self) -> "Pseudorehearsal":
        if self.longest < self.shortest:
            raise ValueError(f"longest is {self.longest}, less than shortest, which is {self.shortest}")
        return self

    def plan_more(self, whole: Whole, rounds: Rounds) -> Sequence[Request]:
        """One answer to each message; all have the same seed, as their prompts differ."""
        if rounds:
            return ()
        sampling = Sampling(temperature=1.0, top_p=1.0, max_new_tokens=self.max_new_tokens, n=1, seed=whole.seed)
        return [
            Request(
                purpose="free", prompt_ids=prompt.ids, spans=(Span("prompt", 0, len(prompt.ids)),), sampling=sampling
            )
            for prompt in self._prompts(whole)
        ]

    def assemble_more(self, whole: Whole, rounds: Rounds) -> Iterable[TrainingRecord]:
        """A record for each message that was answered."""
        for prompt, answer in zip(self._prompts(whole), rounds[0], strict=True):
            if answer.finish_reason == "error" or not answer.token_ids:
                continue
            is_ended = answer.finish_reason == "stop"
            end = [end_of_turn(whole.chat, answer.token_ids, self.weight)] if is_ended else []
            written = Part("free", answer.token_ids, answer.text, self.weight)
            yield joined([Part("prompt", prompt.ids, prompt.text), written, *end], "pseudorehearsal")

    def _prompts(self, whole: Whole) -> list[Prompt]:
        """So many different messages, rendered; always the same for a seed.

        Raises:
            ModelError: the vocabulary does not give so many.
        """
        wanted = max(1, round(self.ratio * whole.examples))
        found: dict[tuple[int, ...], Prompt] = {}
        for text in self._messages(whole, TRIES * wanted):
            try:
                prompt = whole.chat.prompt([Message("user", text)])
            except RowError:  # the tokens spell a special one together
                continue
            found.setdefault(prompt.ids, prompt)
            if len(found) == wanted:
                return list(found.values())
        raise ModelError(
            f"the vocabulary of {whole.chat.name} gives only {len(found)} different messages of {self.shortest} to "
            f"{self.longest} tokens, and pseudorehearsal needs {wanted}. Set its `longest` higher or its `ratio` lower."
        )

    def _messages(self, whole: Whole, count: int) -> Iterator[str]:
        rng = seeds.generator(whole.seed, "pseudorehearsal")
        plain = _plain_tokens(whole.chat)
        for _ in range(count if plain else 0):
            size = int(rng.integers(self.shortest, self.longest + 1))
            ids = [plain[i] for i in rng.integers(len(plain), size=size)]
            if text := whole.chat.tokenizer.decode(ids).strip():
                yield text


def _plain_tokens(chat: Chat) -> list[int]:
    """Tokens that spell letters or digits by themselves: no markup, no part of a character, no mere punctuation."""
    tokenizer = chat.tokenizer
    added = {*tokenizer.added_tokens_decoder, *tokenizer.all_special_ids, *chat.stop_ids}
    ids = [i for i in sorted(tokenizer.get_vocab().values()) if i not in added]
    spelled = tokenizer.batch_decode([[i] for i in ids])
    return [i for i, text in zip(ids, spelled, strict=True) if LOST not in text and any(map(str.isalnum, text))]
