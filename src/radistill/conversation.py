"""`radistill chat`: a conversation at the terminal, streamed."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from radistill import models, seeds
from radistill.chat import Chat, ChatSettings, RowError, load_chat
from radistill.records import Message, Sampling
from radistill.report_text import visible

if TYPE_CHECKING:
    from transformers import TextStreamer

HELP = "Type a message. /reset begins anew, /quit (or Ctrl-D) ends; Ctrl-C stops an answer."


def converse(model_name: str, *, system: str | None, sampling: Sampling, trust_remote_code: bool) -> None:
    """Read messages from standard input and stream the answers to standard output.

    Raises:
        RadistillError: the model cannot be found or loaded.
    """
    weights = models.resolve(model_name, trust_remote_code=trust_remote_code)
    template_kwargs, trained_with = _as_trained(Path(model_name))
    system = system if system is not None else trained_with
    # A template that renders finished turns its own way is no problem here: nothing is trained.
    settings = ChatSettings(on_mismatch="warn", template_kwargs=template_kwargs)
    chat = load_chat(weights.tokenizer_folder, settings, name=weights.name, trust_remote_code=trust_remote_code)
    model = models.load(weights, trust_remote_code=trust_remote_code)
    start = [Message("system", system)] if system else []
    talk = Conversation(model, chat, sampling, context=models.context_length(weights.folder), turns=list(start))
    interactive = sys.stdin.isatty()
    _say(f"{weights.name} on {models.device_name()}. {HELP}\n" if interactive else "")
    while True:
        try:
            line = input("> " if interactive else "").strip()
        except (EOFError, KeyboardInterrupt) as end:
            _say("\n" if interactive or isinstance(end, KeyboardInterrupt) else "")
            return
        if line in ("/quit", "/exit"):
            return
        if line == "/reset":
            talk.turns = list(start)
        elif line:
            try:
                talk.ask(line)
            except RowError as error:
                _say(f"({visible(str(error))})\n")


def _as_trained(folder: Path) -> tuple[dict[str, Any], str | None]:
    """Template settings and system message of a run folder, so that its model is asked as it was taught."""
    from radistill.config import load_config

    if not (folder / "config.yaml").exists() or not (folder / "manifest.json").exists():
        return {}, None
    config = load_config(folder / "config.yaml")
    return config.chat.template_kwargs, config.data.system


@dataclass
class Conversation:
    """What was said, and the model that goes on."""

    model: Any
    chat: Chat
    sampling: Sampling
    context: int | None
    """So many tokens fit into the model; None = it does not say."""
    turns: list[Message] = field(default_factory=list)

    def ask(self, line: str) -> None:
        """Stream the answer to one more message; Ctrl-C stops it, and what was written by then stays said.

        Raises:
            RowError: the message cannot be put into ids, or leaves no room for an answer. It is as if never sent.
        """
        turns = [*self.turns, Message("user", line)]
        prompt = self.chat.prompt(turns)
        room = self.sampling.max_new_tokens
        if self.context is not None:
            room = min(room, self.context - len(prompt.ids))
        if room < 1:
            raise RowError(
                f"this makes the conversation {len(prompt.ids)} tokens long, and the model reads and writes "
                f"{self.context} at most. Begin anew with /reset, or ask something shorter"
            )
        # Turns differ, or the model would answer alike to alike; begun anew, all is as it was.
        turn = sum(message.role == "user" for message in self.turns)
        seed = seeds.number(self.sampling.seed, "chat", turn) % (1 << 32)
        written = self._stream(prompt.ids, room=room, seed=seed)
        if not written:  # stopped before the first token
            return
        # Left in, as they are left out of what is shown, they would make every later prompt one that is refused.
        added = self.chat.tokenizer.added_tokens_decoder.items()
        markup = {*self.chat.stop_ids, *self.chat.tokenizer.all_special_ids, *(i for i, t in added if t.special)}
        answer = self.chat.spell(prompt.ids, [i for i in written if i not in markup])
        self.turns = [*turns, Message("assistant", answer)]

    def _stream(self, prompt_ids: tuple[int, ...], *, room: int, seed: int) -> list[int]:
        import torch
        from transformers import GenerationConfig

        ids = torch.tensor([prompt_ids], device=self.model.device)
        torch.manual_seed(seed)
        drawn = self.sampling.temperature > 0
        config = GenerationConfig(
            max_new_tokens=room,
            do_sample=drawn,
            **({"temperature": self.sampling.temperature, "top_p": self.sampling.top_p} if drawn else {}),
            eos_token_id=list(self.chat.stop_ids),
            pad_token_id=self.chat.end_id,
        )
        written: list[int] = []
        streamer = _streamer(self.chat.tokenizer, written)
        try:
            with torch.inference_mode():
                self.model.generate(
                    input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config, streamer=streamer
                )
        except KeyboardInterrupt:
            streamer.end()
        return written


def _streamer(tokenizer: Any, written: list[int]) -> "TextStreamer":
    """Shows the answer as it grows, and keeps its ids in `written`: they are all there is if it is stopped."""
    from transformers import TextStreamer

    class Shown(TextStreamer):  # type: ignore[misc]
        def put(self, value: Any) -> None:
            if not self.next_tokens_are_prompt:
                written.extend(value.tolist())
            super().put(value)

        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            super().on_finalized_text(visible(text), stream_end)

    return Shown(tokenizer, skip_prompt=True, skip_special_tokens=True)


def _say(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()
