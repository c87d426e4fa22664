"""`radistill chat`: a conversation at the terminal, streamed."""

import sys
from typing import Any

from radistill import models
from radistill.chat import Chat, ChatSettings, RowError, load_chat
from radistill.records import Message, Sampling

HELP = "Type a message. /reset begins anew, /quit (or Ctrl-D) ends."


def converse(model_name: str, *, system: str | None, sampling: Sampling, trust_remote_code: bool) -> None:
    """Read messages from standard input and stream the answers to standard output.

    Raises:
        RadistillError: the model cannot be found or loaded.
    """
    weights = models.resolve(model_name)
    # A template that renders finished turns its own way is no problem here: nothing is trained.
    settings = ChatSettings(on_mismatch="warn")
    chat = load_chat(weights.tokenizer_folder, settings, name=weights.name, trust_remote_code=trust_remote_code)
    model = models.load(weights, trust_remote_code=trust_remote_code)
    start = [Message("system", system)] if system else []
    turns = list(start)
    interactive = sys.stdin.isatty()
    _say(f"{weights.name} on {models.device_name()}. {HELP}\n" if interactive else "")
    while True:
        try:
            line = input("> " if interactive else "").strip()
        except EOFError:
            return
        if line in ("/quit", "/exit"):
            return
        if line == "/reset":
            turns = list(start)
            continue
        if not line:
            continue
        try:
            answer = _answer(model, chat, [*turns, Message("user", line)], sampling)
        except RowError as error:
            _say(f"({error})\n")
            continue
        turns += [Message("user", line), Message("assistant", answer)]


def _answer(model: Any, chat: Chat, turns: list[Message], sampling: Sampling) -> str:
    import torch
    from transformers import GenerationConfig, TextStreamer

    prompt = chat.prompt(turns)
    ids = torch.tensor([prompt.ids], device=model.device)
    torch.manual_seed(sampling.seed)
    config = GenerationConfig(
        max_new_tokens=sampling.max_new_tokens,
        do_sample=sampling.temperature > 0,
        **({"temperature": sampling.temperature, "top_p": sampling.top_p} if sampling.temperature > 0 else {}),
        eos_token_id=list(chat.stop_ids),
        pad_token_id=chat.end_id,
    )
    streamer = TextStreamer(chat.tokenizer, skip_prompt=True, skip_special_tokens=True)
    with torch.inference_mode():
        out = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config, streamer=streamer
        )
    written = [i for i in out[0, ids.shape[1] :].tolist() if i not in chat.stop_ids]
    return chat.spell(prompt.ids, written)


def _say(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()
