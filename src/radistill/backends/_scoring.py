"""Log-probabilities of given texts under a Hugging Face model: for soft labels, and for methods that weigh tokens."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from radistill.records import FinishReason, Generation, Request

if TYPE_CHECKING:
    from radistill.logprobs import LogProbs

LOGITS = 1 << 28
"""At most so many logits are held at once (1 GiB in float32)."""


def score(model: Any, requests: Sequence[Request], *, pad_id: int, context: int) -> list[Generation]:
    """What the model expects at each place of each request's ids; a text longer than the context is an error row."""
    found: dict[str, Generation] = {}
    fitting = []
    for request in requests:
        if len(request.prompt_ids) > context:
            reason = f"{len(request.prompt_ids)} tokens are more than the context of {context}"
            found[request.key] = _answer(request, error=reason)
        else:
            fitting.append(request)
    for batch in _batches(fitting, vocabulary=model.get_output_embeddings().weight.shape[0]):
        for request, logprobs in zip(batch, _logprobs(model, batch, pad_id), strict=True):
            found[request.key] = _answer(request, logprobs=logprobs)
    return [found[request.key] for request in requests]


def _batches(requests: Sequence[Request], *, vocabulary: int) -> Iterator[list[Request]]:
    """Cut so that no batch has more logits than may be held."""
    batch: list[Request] = []
    for request in sorted(requests, key=lambda r: (-len(r.prompt_ids), r.key)):
        longest = len(batch[0].prompt_ids) if batch else 0
        if batch and (len(batch) + 1) * longest * vocabulary > LOGITS:
            yield batch
            batch = []
        batch.append(request)
    if batch:
        yield batch


def _logprobs(model: Any, requests: Sequence[Request], pad_id: int) -> "Iterator[LogProbs]":
    import numpy as np
    import torch

    from radistill.logprobs import LogProbs

    longest = max(len(request.prompt_ids) for request in requests)
    ids_BT = torch.full((len(requests), longest), pad_id, dtype=torch.long)
    mask_BT = torch.zeros_like(ids_BT)
    for i, request in enumerate(requests):  # padded on the right: nothing of a text sees it
        ids_BT[i, : len(request.prompt_ids)] = torch.tensor(request.prompt_ids)
        mask_BT[i, : len(request.prompt_ids)] = 1
    with torch.inference_mode():
        out = model(input_ids=ids_BT.to(model.device), attention_mask=mask_BT.to(model.device), use_cache=False)
    for i, request in enumerate(requests):
        size, top_k = len(request.prompt_ids), min(request.top_k, out.logits.shape[-1])
        log_TV = torch.log_softmax(out.logits[i, : size - 1].float(), dim=-1)
        given = np.zeros(size, dtype=np.float32)
        given[1:] = log_TV.gather(1, ids_BT[i, 1:size, None].to(log_TV.device))[:, 0].cpu().numpy()
        top_ids = np.full((size, top_k), -1, dtype=np.int32)
        top_values = np.zeros((size, top_k), dtype=np.float16)
        if top_k:
            values_TK, indices_TK = log_TV.topk(top_k, dim=-1)
            top_ids[1:], top_values[1:] = indices_TK.cpu().numpy(), values_TK.cpu().numpy()
        yield LogProbs(given, top_ids, top_values)


def _answer(request: Request, *, logprobs: "LogProbs | None" = None, error: str | None = None) -> Generation:
    reason: FinishReason = "error" if error else "stop"
    return Generation(
        key=request.key, index=0, token_ids=(), text="", finish_reason=reason, error=error, logprobs=logprobs
    )
