"""Runs a server for as long as whoever started it lives: `python -m radistill.backends._watch COMMAND ...`.

Standard input is a pipe from the starter. It ends when the starter closes it or dies, by whatever signal; then the
server and all its processes are ended. Otherwise a killed run would leave a GPU full.
"""

import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress

PATIENCE = 15.0
"""Seconds that a server gets to end by itself."""


def main(command: list[str]) -> int:
    """The server's exit code."""
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    over = threading.Thread(target=_when_left, args=(server,), daemon=True)
    over.start()
    code = server.wait()
    _signal(server, signal.SIGKILL)  # processes of its own that it has left behind
    return code if code >= 0 else 128 - code


def _when_left(server: "subprocess.Popen[bytes]") -> None:
    while os.read(0, 1):
        pass
    _signal(server, signal.SIGTERM)
    try:
        server.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        _signal(server, signal.SIGKILL)


def _signal(server: "subprocess.Popen[bytes]", number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(server.pid, number)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the starter, which closes the pipe in its own time
    sys.exit(main(sys.argv[1:]))
