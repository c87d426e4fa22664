"""A checkout of llama.cpp that converts nothing, and a hub on this machine that remembers what it was given."""

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

CONVERTER = """
import argparse, json, os, sys
from pathlib import Path
parser = argparse.ArgumentParser()
parser.add_argument("model")
parser.add_argument("--outfile")
parser.add_argument("--outtype", choices=["f32", "f16", "bf16", "q8_0", "auto"])
given = parser.parse_args()
for n in range(40):
    print(f"INFO: tensor {n}", file=sys.stderr)
config = json.loads((Path(given.model) / "config.json").read_text())
told = {"type": given.outtype, "layers": config["num_hidden_layers"], "python": sys.executable,
        "model": given.model, "environ": dict(os.environ)}
BODY
"""
WRITES = 'Path(given.outfile).write_bytes(b"GGUF" + json.dumps(told).encode())'


def write_checkout(folder: Path, body: str = WRITES) -> Path:
    """A folder with a converter that ends in that code."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "convert_hf_to_gguf.py").write_text(CONVERTER.replace("BODY", body), encoding="utf-8")
    return folder


@dataclass
class Hub:
    """What was asked of it."""

    url: str = ""
    refuses: int = 0
    """HTTP status that everything is answered with; 0 = it takes what it is given."""
    asked: list[str] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)
    made: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    """Of all commits, by name."""


@contextmanager
def hub() -> Iterator[Hub]:
    """One that speaks as much of huggingface_hub's protocol as an upload of small files needs."""
    known = Hub()

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer(b"")

        def do_POST(self) -> None:
            self.answer(self.rfile.read(int(self.headers.get("Content-Length") or 0)))

        def answer(self, body: bytes) -> None:
            known.asked.append(f"{self.command} {self.path}")
            known.tokens.add(self.headers.get("Authorization", ""))
            status, told = (
                (known.refuses, {"error": "no", "url": f"{known.url}/owner/small"})
                if known.refuses
                else (200, reply(known, self.path, body))
            )
            sent = json.dumps(told).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(sent)))
            self.end_headers()
            self.wfile.write(sent)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    known.url = f"http://127.0.0.1:{server.server_port}"
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield known
    finally:
        server.shutdown()
        server.server_close()


def reply(known: Hub, path: str, body: bytes) -> dict[str, Any]:
    """What the real one says; every file is small enough to stand in the commit itself."""
    if path == "/api/repos/create":
        known.made.append(json.loads(body))
        return {"url": f"{known.url}/{known.made[-1].get('organization')}/{known.made[-1]['name']}"}
    if "/preupload/" in path:
        return {
            "files": [{**file, "uploadMode": "regular", "shouldIgnore": False} for file in json.loads(body)["files"]]
        }
    if "/commit/" in path:
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                known.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        return {"success": True, "commitOid": "0" * 40, "commitUrl": f"{known.url}/o/n/commit/{'0' * 40}"}
    return {"siblings": [], "sha": "0" * 40, "id": "o/n"}
