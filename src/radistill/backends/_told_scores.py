"""Log-probabilities of the ids of a prompt, as vLLM's server tells them (`prompt_logprobs`)."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from radistill.backends._forms import Form, choice_of
from radistill.backends._http import Client, Post, Refused, Unusable
from radistill.records import Generation, Request, Sampling

if TYPE_CHECKING:
    from radistill.logprobs import LogProbs


async def scores(client: Client, form: Form, top_k: int, *, patiently: bool) -> str:
    """Whether the server tells the `top_k` most probable tokens at each place of a prompt: `yes`, or why not.

    Args:
        client: knows the server.
        form: it can do.
        top_k: that many are asked for.
        patiently: the answer is needed; else what does not come at once is not there.
    """
    probe = form.probes(Sampling(temperature=0.0, max_new_tokens=1))[0]
    ask = client.post if patiently else client.post_once
    try:
        await score(ask, form, replace(probe, purpose="score", top_k=top_k))
    except (Refused, Unusable) as problem:
        return str(problem)
    return "yes"


async def score(post: Post, form: Form, request: Request) -> Generation:
    """The log-probabilities of a request's ids.

    Args:
        post: a way of the client's to send it.
        form: the server can do.
        request: for scores.

    Raises:
        Refused: the server gives none.
    """
    if form.name != "ids":
        raise Refused("a server that takes no ids cannot tell their log-probabilities")
    body = {"model": form.model, "max_tokens": 1, "temperature": 0.0, **form.prompt(request)}
    body["prompt_logprobs"] = max(1, request.top_k)
    found: Generation = await post(form.path, body, check=lambda answer: scored(answer, request))
    return found


def scored(answer: Any, request: Request) -> Generation:
    """Log-probabilities of the ids of a request, from `prompt_logprobs`.

    Raises:
        Unusable, Refused: the server gives none.
    """
    places = choice_of(answer).get("prompt_logprobs")
    if not isinstance(places, list) or len(places) != len(request.prompt_ids):
        raise Refused("the server gives no prompt_logprobs, which soft labels are made of")
    try:
        top = _top(places, request)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise Unusable(f"its prompt_logprobs cannot be read: {type(error).__name__} {error}") from error
    made = Generation(key=request.key, index=0, token_ids=(), text="", finish_reason="stop")
    return replace(made, logprobs=top)


def _top(places: Sequence[Any], request: Request) -> "LogProbs":
    import numpy as np

    from radistill.logprobs import LogProbs

    size, k = len(places), request.top_k
    given = np.zeros(size, np.float32)
    ids, values = np.full((size, k), -1, np.int32), np.zeros((size, k), np.float16)
    for at, (token, told) in enumerate(zip(request.prompt_ids, places, strict=True)):
        if told is None:
            continue
        ranked = sorted((v["rank"], int(i), v["logprob"]) for i, v in told.items())
        given[at] = told[str(token)]["logprob"]
        for n, (_, i, value) in enumerate(ranked[:k]):
            ids[at, n], values[at, n] = i, value
    return LogProbs(given, ids, values)
