"""Lets no engine outlive the run that started it: `python -m radistill.backends._watch [COMMAND ...]`.

Standard input is a pipe from the run. It ends when the run closes it or dies, by whatever signal; then the server that
COMMAND started is ended with all its processes. With `--but PIDS` it is the run's own children that are ended but for
those: engines that work in processes of their own. Otherwise a killed run would leave a GPU full.
"""

import os
import select
import signal
import subprocess
import sys
import threading
from contextlib import suppress

PATIENCE = 15.0
"""Seconds that an engine gets to end by itself."""
LOOK = 1.0
"""Seconds between two looks at which children there are."""


def serve(command: list[str]) -> int:
    """Run a server as long as the pipe is open; its exit code."""
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    threading.Thread(target=_when_left, args=(server,), daemon=True).start()
    code = server.wait()
    _signal(server, signal.SIGKILL)  # processes of its own that it has left behind
    return code if code >= 0 else 128 - code


def guard(run: int, others: set[int]) -> int:
    """Remember the children of a process as long as the pipe is open, and end them then, unless all is well.

    Args:
        run: the process.
        others: children that are none of ours.
    """
    others = others | {os.getpid()}
    import psutil

    children: list[psutil.Process] = []
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(run)
        while (said := _said(LOOK)) is None:
            children = [child for child in process.children(recursive=True) if child.pid not in others]
        if said:
            return 0
    for child in children:
        with suppress(psutil.NoSuchProcess):
            child.terminate()
    # Python's tracker of shared memory, which heeds no such signal, ends by itself when the others have.
    for child in psutil.wait_procs(children, timeout=PATIENCE)[1]:
        with suppress(psutil.NoSuchProcess):
            child.kill()
    return 0


def _said(timeout: float) -> bytes | None:
    """What came through the pipe within so many seconds; nothing if it has ended, None if it is silent."""
    readable, _, _ = select.select([0], [], [], timeout)
    return os.read(0, 16) if readable else None


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
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the run, which closes the pipe in its own time
    words = sys.argv[1:]
    sys.exit(guard(os.getppid(), {int(word) for word in words[1:]}) if words[:1] == ["--but"] else serve(words))
