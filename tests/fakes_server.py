"""An OpenAI-compatible server on this machine's loopback: one that is well, and all the ways in which one is not.

As a program it is a process of its own, which can be killed: `python tests/fakes_server.py --port N`.
"""

import argparse
import json
import socket
import struct
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from radistill import seeds
from radistill.chat import Chat
from radistill.records import Message

STANDARD = {"model", "prompt", "messages", "max_tokens", "temperature", "top_p", "n", "stream", "seed", "stop"}
FAULTS = ("429", "503", "500", "502", "malformed", "cut", "truncated", "empty", "hang", "drip", "drop", "reset")
WORDS = ["note", "the", "word", "means", "bread", "and", "water", "in", "this", "sentence", "here"]


@dataclass
class Behaviour:
    """What the server can do, and what it does wrong."""

    can: tuple[str, ...] = ("ids", "text", "chat")
    doubles_bos: bool = False
    """It puts a BOS before every text."""
    swallows: int = 0
    """So many ids of a prompt are lost."""
    opens_a_new_turn: bool = False
    without_usage: bool = False
    ends_turns: bool = True
    """The stop token is among the ids it gives, as in vLLM."""
    fault: Callable[[int], str | None] = lambda _: None
    """The number of a request → what goes wrong with it: one of FAULTS, a status, `status seconds` with that
    Retry-After, or the JSON that is sent in the place of an answer."""
    key: str = ""
    delay: float = 0.0
    strict: tuple[str, ...] | None = None
    """It refuses words beside those of the standard and these, as `transformers serve` does."""
    greedy: bool = False
    """It draws nothing, whatever the temperature."""
    lists: bool = True
    """It can say which models it has."""
    models: tuple[str, ...] = ("served",)
    limit: int | None = None
    """It never writes more tokens, as the model's own file may say."""
    context: int | None = None
    """What it says that prompt and answer may come to together."""
    most_scores: int | None = None
    """It tells no more log-probabilities at each place of a prompt."""
    guards_its_list: bool = False
    """It tells nobody without its key which models it has."""


def faulty(share: float, seed: int = 7, note: Callable[[str], None] = lambda _: None) -> Callable[[int], str | None]:
    """So many requests go wrong, in any of the ways, after the first few; `note` is told how."""

    def fault(number: int) -> str | None:
        draw = seeds.number(seed, number)
        if number <= 8 or draw % 1000 >= 1000 * share:
            return None
        found = FAULTS[draw // 1000 % len(FAULTS)]
        note(found)
        return found

    return fault


@dataclass
class Fake(ABC):
    """What all have."""

    behaviour: Behaviour = field(default_factory=Behaviour)
    requests: int = 0
    most_at_once: int = 0
    at_once: int = 0
    keys: list[str] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    port: int = 0
    closing: threading.Event = field(default_factory=threading.Event)
    dead: bool = False
    """It was killed: connections that are open break."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @abstractmethod
    def completion(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        """Status and answer."""


class FakeOfIds(Fake):
    """Answers with ids of the prompt, by prompt and seed; it needs no tokenizer, and so starts at once."""

    def completion(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        ids = body.get("prompt")
        if path != "/v1/completions" or not isinstance(ids, list):
            return 404, {"error": {"message": "only ids are taken"}}
        draw = seeds.number(body["seed"], *ids)
        written = [ids[(draw >> n) % len(ids)] for n in range(draw % 20)][: body["max_tokens"]]
        choice = {"index": 0, "finish_reason": "stop", "token_ids": written, "prompt_token_ids": ids}
        return 200, {"choices": [choice], "usage": {"prompt_tokens": len(ids)}}


@dataclass
class FakeServer(Fake):
    """Answers with words that depend on the prompt and the seed alone."""

    chat: Chat = field(kw_only=True)

    def completion(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        """Status and answer."""
        chat, can = self.chat, self.behaviour.can
        strict = self.behaviour.strict
        if strict is not None and (unknown := body.keys() - STANDARD - {*strict}):
            return 422, {"detail": f"Unexpected fields in the request: {sorted(unknown)}"}
        if path == "/v1/chat/completions":
            if "chat" not in can:
                return 404, {"error": {"message": "no chat here"}}
            ids = self._of_conversation(body)
        elif isinstance(body["prompt"], str):
            if "text" not in can:
                return 400, {"error": {"message": "texts are not taken"}}
            ids = list(chat.tokenizer(body["prompt"], add_special_tokens=False).input_ids)
            if self.behaviour.doubles_bos and chat.tokenizer.bos_token_id is not None:
                ids = [chat.tokenizer.bos_token_id, *ids]
        else:
            if "ids" not in can:
                return 422, {"error": {"message": "prompt: not a string"}}
            ids = list(body["prompt"])
        ids = ids[self.behaviour.swallows :]
        most = self.behaviour.most_scores
        if most is not None and body.get("prompt_logprobs", 0) > most:
            return 400, {"error": {"message": f"no more than {most} prompt_logprobs"}}
        if "prompt_logprobs" in body:
            return 200, self._scored(ids, body)
        written, reason = self._written(ids, body)
        text = chat.spell(ids, written)
        if reason == "stop" and self.behaviour.ends_turns:
            written = [*written, chat.end_id]
        choice: dict[str, Any] = {"index": 0, "finish_reason": reason, "text": text}
        if path.endswith("chat/completions"):
            choice["message"] = {"role": "assistant", "content": text}
        if body.get("return_token_ids") and "ids" in can:
            choice |= {"token_ids": written, "prompt_token_ids": ids}
        answer: dict[str, Any] = {"object": "text_completion", "choices": [choice]}
        if not self.behaviour.without_usage:
            answer["usage"] = {"prompt_tokens": len(ids), "completion_tokens": len(written)}
        return 200, answer

    def _of_conversation(self, body: dict[str, Any]) -> list[int]:
        turns = [Message(m["role"], m["content"]) for m in body["messages"]]
        if not body.get("continue_final_message") or self.behaviour.opens_a_new_turn:
            extra = self.chat.prompt([Message("user", "x")]).ids if self.behaviour.opens_a_new_turn else ()
            return [*self.chat.prompt([t for t in turns if t.role != "assistant"] or turns).ids, *extra]
        text = self.chat.prompt(turns[:-1]).text + turns[-1].content
        return list(self.chat.tokenizer(text, add_special_tokens=False).input_ids)

    def _written(self, ids: list[int], body: dict[str, Any]) -> tuple[list[int], str]:
        is_drawn = body["temperature"] > 0 and not self.behaviour.greedy
        if "generation_config" in body:
            is_drawn = is_drawn and json.loads(body["generation_config"])["do_sample"]
        seed = body.get("seed", 0) if is_drawn else 0
        draw = seeds.number(seed, *ids)
        words = [WORDS[draw // 16 // len(WORDS) ** n % len(WORDS)] for n in range(draw % 9)]
        written = list(self.chat.ids_of(" ".join(words), before=ids))
        most = min(body["max_tokens"], self.behaviour.limit or body["max_tokens"])
        return written[:most], "length" if len(written) >= most else "stop"

    def _scored(self, ids: list[int], body: dict[str, Any]) -> Any:
        k = body["prompt_logprobs"]
        places: list[Any] = [None]
        for token in ids[1:]:
            told = {str(token): {"logprob": -3.0, "rank": 7}}
            others = [(token + n + 1) % len(self.chat.tokenizer) for n in range(k)]
            told |= {str(other): {"logprob": -1.0 - n, "rank": n + 1} for n, other in enumerate(others)}
            places.append(told)
        choice = {"index": 0, "finish_reason": "length", "text": "x", "token_ids": [5], "prompt_logprobs": places}
        return {"choices": [choice], "usage": {"prompt_tokens": len(ids)}}


class _Sender(BaseHTTPRequestHandler):
    """Sends, rightly or wrongly."""

    protocol_version = "HTTP/1.1"
    closing: threading.Event

    def log_message(self, *_: object) -> None:
        pass

    def send(self, status: int, data: bytes, *, length: int | None = None, headers: Any = ()) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data) if length is None else length))
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def say(self, status: int, data: bytes, fault: str | None) -> None:
        self.close_connection = self.close_connection or fault in ("hang", "truncated", "drip", "drop", "reset")
        if fault == "hang":
            self.closing.wait(3)
        elif fault == "drip":  # always a little more, and never all
            self.send(200, b"", length=len(data) + 1000)
            while not self.closing.wait(0.05):
                self.wfile.write(b" ")
        elif fault == "drop":
            pass
        elif fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.rfile.close()
            self.connection.close()
        elif fault == "truncated":
            self.send(200, data[: len(data) // 2], length=len(data))
        elif fault == "cut":
            self.send(200, data[: len(data) // 2])
        elif fault == "malformed":
            self.send(200, data[:-3] + b"<html>")
        elif fault == "empty":
            self.send(200, b'{"choices": []}')
        elif fault is not None and fault[0].isdigit():
            code, _, after = fault.partition(" ")
            self.send(int(code), b'{"error": "too much"}', headers=[("Retry-After", after or "0.05")])
        elif fault is not None:
            self.send(200, fault.encode("latin-1"))
        else:
            self.send(status, data)


def handler(server: Fake) -> type[BaseHTTPRequestHandler]:
    class Handler(_Sender):
        closing = server.closing

        def do_GET(self) -> None:
            if not server.behaviour.lists:
                self.send(500, b"no cache")
                return
            told = server.behaviour
            if told.guards_its_list and self.headers.get("Authorization") != f"Bearer {told.key}":
                self.send(401, b'{"error": {"message": "who are you?"}}')
                return
            more = {} if told.context is None else {"max_model_len": told.context}
            models = [{"id": name, "owned_by": "fake", **more} for name in told.models]
            self.send(200, json.dumps({"data": models}).encode())

        def do_POST(self) -> None:
            if server.dead:
                self.close_connection = True
                return
            with server.lock:
                server.requests += 1
                server.times.append(time.monotonic())
                number = server.requests
                server.at_once += 1
                server.most_at_once = max(server.most_at_once, server.at_once)
            try:
                self.answer(number)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True
            finally:
                with server.lock:
                    server.at_once -= 1

        def answer(self, number: int) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            server.bodies.append(body)
            server.keys.append(self.headers.get("Authorization", ""))
            given = self.headers.get("Authorization", "")
            if server.behaviour.key and given != f"Bearer {server.behaviour.key}":
                self.send(401, json.dumps({"error": {"message": f"who are you? {given} is nobody"}}).encode())
                return
            time.sleep(server.behaviour.delay)
            status, answer = server.completion(self.path, body)
            self.say(status, json.dumps(answer).encode(), server.behaviour.fault(number))

    return Handler


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 512

    def handle_error(self, *_: object) -> None:
        pass


@contextmanager
def serving(chat: Chat, behaviour: Behaviour | None = None, *, port: int = 0) -> Iterator[FakeServer]:
    """A server that runs meanwhile."""
    server = FakeServer(behaviour or Behaviour(), chat=chat)
    http = _Quiet(("127.0.0.1", port), handler(server))
    server.port = http.server_address[1]
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        http.shutdown()
        http.server_close()
        thread.join()


def main() -> None:
    """Serve until killed; faults are noted in a file as they are given."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--faults", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--log", required=True)
    given = parser.parse_args()
    with open(given.log, "a", encoding="utf-8", buffering=1) as log:
        fault = faulty(given.faults, given.seed, lambda fault: print(fault, file=log))
        behaviour = Behaviour(fault=fault, delay=given.delay)
        http = _Quiet(("127.0.0.1", given.port), handler(FakeOfIds(behaviour)))
        print("ready", flush=True)
        http.serve_forever()


if __name__ == "__main__":
    main()
