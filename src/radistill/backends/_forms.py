"""The three ways to let a server continue an answer that has been begun, and how it is seen whether it does.

- ids: `/v1/completions` with an integer prompt and `return_token_ids`. What is trained on is what was written.
- text: `/v1/completions` with the prompt's text. The server tokenizes it once more, so it is compared with our ids by
  `usage.prompt_tokens`, and its answer is tokenized here, after the prompt; what that does not give back is refused.
- chat: `/v1/chat/completions` with `continue_final_message`. The server renders the template too; the same comparison.

A form is used only if two rows, sent before all others, show that prompts arrive whole: nothing swallowed, no second
BOS, no new turn. Servers that refuse words they do not know are asked again in fewer.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from radistill.backends._asking import seed_of, written
from radistill.backends._http import Client, Refused, Unusable
from radistill.chat import Chat, RowError
from radistill.records import Generation, Message, Request, Sampling

PROBES = (
    ([Message("user", "Say hello.")], "Good day."),
    (
        [Message("user", "Which river is long?"), Message("assistant", "None."), Message("user", "And wide?")],
        "None is.",
    ),
)
"""Conversations with the beginning of an answer, which the server is to go on from."""


SECOND_BOS = "it puts a second BOS before a prompt"
GREEDY = "yes, but it draws nothing at a temperature"
DRAWN = 4
"""So often a probe is drawn to see whether the answers differ."""


@dataclass
class Form(ABC):
    """One way to ask."""

    chat: Chat
    model: str
    """What the server calls it."""
    seeded: bool = True
    """Whether a seed is sent."""
    dialect: str = "vllm"
    """In which words the server is told what the standard has none for."""
    strips_bos: bool = False
    """The server puts a BOS before a text by itself."""

    name = ""
    path = ""

    @cached_property
    def ids(self) -> range:
        """Those that the tokenizer knows; some have gaps."""
        return range(max(self.chat.tokenizer.get_vocab().values()) + 1)

    @abstractmethod
    def prompt(self, request: Request) -> dict[str, Any]:
        """The part of the body that says what is continued.

        Raises:
            Refused: it cannot be said in this form.
        """

    @abstractmethod
    def text(self, choice: Mapping[str, Any]) -> str:
        """What was written, from a choice that holds no ids.

        Raises:
            Unusable: there is none.
        """

    def special(self) -> dict[str, Any]:
        """What vLLM is told about the tokens it would add to a prompt."""
        return {"add_special_tokens": self.strips_bos}

    def words(self, sampling: Sampling, stops: Sequence[int]) -> dict[str, Any]:
        """What the standard has no words for, in the server's dialect."""
        stops = list(stops)
        match self.dialect:
            case "vllm":
                shown = {"skip_special_tokens": False, "spaces_between_special_tokens": False}
                # Else a server takes these from the model's generation_config.json.
                plain = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
                none = {"presence_penalty": 0.0, "frequency_penalty": 0.0}
                words = {"stop_token_ids": stops, "return_token_ids": True, **shown, **self.special()}
                return words | plain | none
            case "transformers":
                # It draws only if its generation config says so, and would cut off what is not among the first 50.
                config = {"do_sample": sampling.temperature > 0, "top_k": 0}
                ends = {"eos_token_id": stops, "pad_token_id": self.chat.end_id}
                return {"generation_config": json.dumps(config | ends)}
            case _:
                return {"stop": [self.chat.spell((), [stop]) for stop in stops[:4]]}  # as texts, and no more than four

    def body(self, request: Request, index: int, *, stops: Sequence[int] | None = None) -> dict[str, Any]:
        """One answer to a request; each of several is asked for by itself, because some servers ignore `n`.

        Args:
            request: what is continued.
            index: number of the answer.
            stops: ids at which it ends; None = the model's own.
        """
        sampling = request.sampling
        return {
            "model": self.model,
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p if sampling.temperature else 1.0,
            "n": 1,
            "stream": False,
            **({"seed": seed_of(request, index)} if self.seeded else {}),
            **self.words(sampling, self.chat.stop_ids if stops is None else stops),
            **self.prompt(request),
        }

    def read(self, request: Request, index: int, answer: Any) -> Generation:
        """The generation in an answer.

        Raises:
            Unusable: it is not what was asked for.
        """
        choice = choice_of(answer)
        if problem := self.arrived(request, answer):
            raise Refused(problem)
        given = choice.get("token_ids")
        if isinstance(given, list) and not all(type(token) is int and token in self.ids for token in given):
            raise Unusable(f"it gives token_ids that are none: {str(given)[:80]}")
        ids = given if isinstance(given, list) else _tokenized(self.chat, request, self.text(choice))
        told = choice.get("finish_reason")
        found = written(self.chat, request, index, ids, has_stopped=told == "stop")
        if found.finish_reason == "length" and told not in ("length", None):
            raise Unusable(f"the server ended an answer because of {told!r}")
        return found

    async def fault(self, client: Client) -> str | None:
        """Why this form cannot be used with this server; None if it can."""
        for request in self.probes(Sampling(temperature=0.0, max_new_tokens=4)):
            try:
                answer = await client.post(self.path, self.body(request, 0), check=_with_choice)
                self.read(request, 0, answer)
            except (Refused, Unusable) as problem:
                if str(problem) == SECOND_BOS:
                    self.strips_bos = True  # of use where the form is text: it is looked at again
                return str(problem)
        return None

    def probe_body(self) -> dict[str, Any]:
        """A request that every server of this form answers."""
        return self.body(self.probes(Sampling(temperature=0.0, max_new_tokens=4))[0], 0)

    async def stops(self, client: Client) -> str:
        """Whether an answer ends at the tokens that are named: what a greedy answer begins with must end it."""
        request = self.probes(Sampling(temperature=0.0, max_new_tokens=4))[0]
        try:
            free = self.read(request, 0, await client.post_once(self.path, self.body(request, 0), check=_with_choice))
            if not free.token_ids:
                return "yes"  # it has ended at one
            body = self.body(request, 0, stops=free.token_ids[:1])
            choice = choice_of(await client.post_once(self.path, body))
        except (Refused, Unusable) as problem:
            return str(problem)
        return "yes" if choice.get("finish_reason") == "stop" else "ignored, so answers run on and are cut here"

    async def draws(self, client: Client) -> bool:
        """Whether answers are drawn at a temperature; some servers go on choosing the most probable token."""
        request = self.probes(Sampling(temperature=2.0, top_p=1.0, max_new_tokens=12))[0]
        bodies = [self.body(request, index) for index in range(DRAWN)]
        try:
            found = [await client.post(self.path, body, check=_with_choice) for body in bodies]
            return len({self.read(request, 0, answer).token_ids for answer in found}) > 1
        except (Refused, Unusable):
            return True  # it does not show; rows that come back so will be told by themselves

    def probes(self, sampling: Sampling) -> list[Request]:
        """Two conversations with the beginning of an answer."""
        openings = [self.chat.opening(messages, begun, "\n\n") for messages, begun in PROBES]
        return [
            Request(
                purpose="rationale",
                prompt_ids=opening.ids,
                spans=opening.spans,
                messages=tuple(messages),
                sampling=sampling,
            )
            for opening, (messages, _) in zip(openings, PROBES, strict=True)
        ]

    def arrived(self, request: Request, answer: Mapping[str, Any]) -> str | None:
        """Why the model has not read what was sent; None if it has."""
        ids, usage = choice_of(answer).get("prompt_token_ids") or answer.get("prompt_token_ids"), answer.get("usage")
        ids = ids if isinstance(ids, list) else None
        if ids is not None and tuple(ids) == request.prompt_ids:
            return None
        read, sent = usage.get("prompt_tokens") if isinstance(usage, dict) else None, len(request.prompt_ids)
        read = len(ids) if ids is not None else read
        if not isinstance(read, int):
            return "its answers have no usage.prompt_tokens, so nothing tells whether a prompt arrives whole"
        if read == sent:
            return None if ids is None else f"it has read other ids than were sent: {ids[:8]} …"
        if read == sent + 1 and self.chat.tokenizer.bos_token_id is not None:
            return SECOND_BOS
        what = "swallows a part of a prompt" if read < sent else "adds to a prompt, as a new turn does"
        return f"it {what}: {sent} tokens were sent, and it has read {read}"


class Ids(Form):
    """Token ids in, token ids out."""

    name, path = "ids", "/completions"

    def prompt(self, request: Request) -> dict[str, Any]:
        """The ids themselves."""
        return {"prompt": list(request.prompt_ids)}

    def text(self, choice: Mapping[str, Any]) -> str:
        """None is taken."""
        raise Unusable(f"it gives no token_ids, only {', '.join(sorted(choice))}")


class Text(Form):
    """Text in, text out; both are tokenized twice, and compared."""

    name, path = "text", "/completions"

    def prompt(self, request: Request) -> dict[str, Any]:
        """The text that the ids spell, without the BOS that the server adds."""
        ids = request.prompt_ids
        if self.strips_bos and ids[:1] == (self.chat.tokenizer.bos_token_id,):
            ids = ids[1:]
        text = self.chat.spell((), ids)
        if tuple(self.chat.tokenizer(text, add_special_tokens=False).input_ids) != ids:
            raise Refused("the prompt's text would be tokenized otherwise than it was")
        return {"prompt": text}

    def text(self, choice: Mapping[str, Any]) -> str:
        """As it is."""
        text = choice.get("text")
        if not isinstance(text, str):
            raise Unusable("it gives no text")
        return text


class Continued(Form):
    """A conversation whose last turn is the assistant's, begun."""

    name, path = "chat", "/chat/completions"

    def special(self) -> dict[str, Any]:
        """Nothing: the template has them."""
        return {}

    def prompt(self, request: Request) -> dict[str, Any]:
        """The turns as they were rendered, and the answer so far."""
        if not request.messages:
            raise Refused("a request that is no conversation cannot be sent to a chat server")
        turns = [{"role": m.role, "content": m.content} for m in request.messages]
        prompt = self.chat.prompt(request.messages).ids
        at = len(prompt)
        if request.prompt_ids[:at] != prompt:
            raise Refused("its ids are not those of its conversation")
        if at == len(request.prompt_ids):
            return {"messages": turns}
        begun = self.chat.spell(request.prompt_ids[:at], request.prompt_ids[at:])
        turns.append({"role": "assistant", "content": begun})
        return {"messages": turns, "continue_final_message": True, "add_generation_prompt": False}

    def text(self, choice: Mapping[str, Any]) -> str:
        """Of the message."""
        message = choice.get("message")
        text = message.get("content") if isinstance(message, dict) else None
        if not isinstance(text, str):
            raise Unusable("it gives no content")
        return text


FORMS: tuple[type[Form], ...] = (Ids, Text, Continued)


DIALECTS = ("vllm", "transformers", "standard")
"""vLLM and SGLang, `transformers serve`, and what every server should know. Some refuse words they do not know."""


async def find(
    client: Client, chat: Chat, model: str, wanted: str, *, seeded: bool = True
) -> tuple[Form | None, dict[str, str]]:
    """The best form a server can do, and for each that was tried what came of it."""
    found: dict[str, str] = {}
    for kind in FORMS:
        if wanted not in ("auto", kind.name):
            continue
        for dialect in DIALECTS if kind is not Ids else ("vllm",):
            form = kind(chat, model, seeded, dialect)
            problem = await form.fault(client)
            if problem and form.strips_bos:
                problem = await form.fault(client)
            if problem is None:
                found[kind.name] = "yes" if await form.draws(client) else GREEDY
                return form, found
            found.setdefault(kind.name, problem)
    return None, found


def _tokenized(chat: Chat, request: Request, text: str) -> tuple[int, ...]:
    for stop in chat.stop_ids:  # some servers write it out
        text = text.removesuffix(chat.spell((), [stop]))
    try:
        return chat.ids_of(text, before=request.prompt_ids)
    except RowError as error:
        raise Refused(f"what the server wrote cannot be put into ids again: {error}") from error


def _with_choice(answer: Any) -> Any:
    choice_of(answer)
    return answer


def choice_of(answer: Any) -> Mapping[str, Any]:
    """The first choice of an answer.

    Raises:
        Unusable: there is none.
    """
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise Unusable(f"the answer has no choices: {str(answer)[:80]}")
    found: Mapping[str, Any] = choices[0]
    return found
