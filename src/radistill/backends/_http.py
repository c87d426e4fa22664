"""Many requests to servers that may be slow, overloaded, restarted or wrong: how many at once, and what is tried again.

How many requests a server gets at once is found as TCP does it (Jacobson 1988; additive increase, multiplicative
decrease): twice as many in every round until it has been too much once, then one more in every round; half of them when
the server says that it has too much (429, 503), does not answer in time, or takes more than half of that time.
"""

import asyncio
import email.utils
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from radistill.errors import BackendError

if TYPE_CHECKING:
    import httpx2

START = 16
"""Requests at once that a server gets first."""
SLOWEST_RETRY = 30.0
WRONG = 3
"""After so many unusable answers in a row a server rests, longer each time; another one is asked meanwhile."""
TIMES_LOST = 3
"""So many times `tries` is a request sent that gets no answer while others do: then it is at fault itself."""
BUSY = (429, 503)
GONE = (404, 502, 504, 520, 522, 524)
"""What is said in the place of a server that is not there, or of a model that it has had before."""


Post = Callable[..., Awaitable[Any]]
"""`Client.post`, or another way to send JSON."""


class Refused(Exception):
    """The server will never answer this request; `str()` is its reason."""


class Unusable(Exception):
    """The server answered, but not what was asked; trying again may help."""


@dataclass
class Server:
    """One base URL, and how much it bears."""

    url: str
    most: int
    limit: float = START
    running: int = 0
    resting_until: float = 0.0
    halved_at: float | None = None
    wrong: int = 0
    """Unusable answers in a row."""

    def room(self, now: float) -> float:
        """How many more requests it may get."""
        return min(self.limit, self.most) - self.running if now >= self.resting_until else 0.0

    def went_wrong(self) -> None:
        """It is not worth much more than one that is busy, and is asked rather less."""
        self.wrong += 1
        if self.wrong >= WRONG:
            self.was_too_much(rest=min(SLOWEST_RETRY, 0.1 * 2.0 ** (self.wrong - WRONG)))

    def went_well(self) -> None:
        """One more for every answer, so twice as many in a round; later one more in a round."""
        self.wrong = 0
        self.limit = min(self.most, self.limit + (1.0 if self.halved_at is None else 1 / self.limit))

    def was_too_much(self, *, rest: float = 0.0) -> None:
        """Half of it; once for all that were on their way."""
        now = time.monotonic()
        self.resting_until = max(self.resting_until, now + rest)
        if self.halved_at is None or now - self.halved_at > 1.0:
            self.limit, self.halved_at = max(1.0, self.limit / 2), now


@dataclass
class Client:
    """Sends JSON to whichever server has room."""

    servers: list[Server]
    http: "httpx2.AsyncClient"
    timeout: float
    patience: float
    """So many seconds without any good answer, and the engine is lost."""
    tries: int
    """So often a request is sent whose answers cannot be used."""
    last_good: float = field(default_factory=time.monotonic)
    rng: random.Random = field(default_factory=lambda: random.Random(0))
    waiting: "deque[asyncio.Future[None]]" = field(default_factory=deque)
    secret: str = ""
    """The key, which a server may repeat and nobody may write down."""
    probe: tuple[str, Mapping[str, Any]] | None = None
    """Path and body of a request that the servers have answered before."""

    async def post(self, path: str, body: Mapping[str, Any], *, check: Any = None) -> Any:
        """The server's answer, or what `check` makes of it.

        Args:
            path: after the base URL.
            body: JSON.
            check: called with the answer; may raise Unusable.

        Raises:
            Refused: it will not be answered.
            BackendError: no server has answered anything for too long, or they refuse us altogether.
        """
        failures = attempt = lost = 0
        began = time.monotonic()
        server: Server | None = None
        while True:
            server = await self._server_with_room(server if failures or lost else None)
            server.running += 1
            try:
                found = await self._once(server, path, body)
                found = check(found) if check else found
            except Unusable as problem:
                server.went_wrong()
                failures += 1
                if failures >= self.tries:
                    raise Refused(f"{problem} ({failures} times)") from problem
                reason: object = problem
            except _Later as later:
                server.was_too_much(rest=later.after)
                lost += later.weight if self.last_good > began else 0
                if lost >= TIMES_LOST * self.tries:
                    raise Refused(f"{later}, again and again, while others are answered") from later
                reason = later
            else:
                server.went_well()
                self.last_good = time.monotonic()
                return found
            finally:
                server.running -= 1
                self._wake()
            if attempt:  # a request that hangs may be the last one, and the limit of its time longer than our patience
                await self._refuse_to_wait_for_ever(reason)
            await asyncio.sleep(self._pause(attempt))
            attempt += 1

    async def post_once(self, path: str, body: Mapping[str, Any], *, check: Any = None) -> Any:
        """As `post`, but for an answer that one can do without: the first server is asked one time.

        Raises:
            Refused, Unusable: there is none.
            BackendError: it refuses us altogether.
        """
        try:
            found = await self._once(self.servers[0], path, body)
        except _Later as later:
            raise Unusable(str(later)) from later
        return check(found) if check else found

    async def _once(self, server: Server, path: str, body: Mapping[str, Any]) -> Any:
        import httpx2

        started = time.monotonic()
        name = server.url if len(self.servers) > 1 else "the server"
        try:
            # The client's own limit is about silence; a server may send a little now and then, and never all.
            async with asyncio.timeout(self.timeout):
                response = await self.http.post(f"{server.url}{path}", json=body)
        except (TimeoutError, httpx2.TimeoutException) as error:
            raise _Later(f"{name}: {type(error).__name__} {error}".strip(), weight=TIMES_LOST) from error
        except httpx2.TransportError as error:
            raise _Later(f"{name}: {type(error).__name__} {error}".strip(), weight=1) from error
        if response.status_code in BUSY:
            raise _Later(f"{name} says {response.status_code}", after=_retry_after(response.headers))
        if response.status_code in GONE and (self.probe is not None or response.status_code != 404):
            raise _Later(f"{name} says {response.status_code}", after=_retry_after(response.headers), weight=1)
        if response.status_code >= 500 or response.status_code == 408:
            raise Unusable(f"{name} says {response.status_code}: {reason_of(response, self.secret)}")
        if response.status_code in (401, 403):
            raise BackendError(key_refused(server.url, response.status_code, reason_of(response, self.secret)))
        if response.status_code >= 400:
            raise Refused(f"the server says {response.status_code}: {reason_of(response, self.secret)}")
        if time.monotonic() - started > self.timeout / 2:
            server.was_too_much()
        try:
            return response.json()
        except (ValueError, RecursionError) as error:
            said = _without(self.secret, response.text)[:80]
            raise Unusable(f"{name} answered what is no JSON: {said!r}") from error

    async def _server_with_room(self, failed: Server | None = None) -> Server:
        """The one with most; any other than the one that has just failed a request, if there is another."""
        while True:
            now = time.monotonic()
            best = max(self.servers, key=lambda server: (server is not failed, server.room(now)))
            if best.room(now) < 1:
                best = max(self.servers, key=lambda server: server.room(now))
            if best.room(now) >= 1 or (best.running == 0 and now >= best.resting_until):
                if self.waiting and best.room(now) >= 2:
                    self._wake()  # an answer has made room for more than one
                return best
            mine = asyncio.get_running_loop().create_future()
            self.waiting.append(mine)
            # Nobody wakes those who wait for a server that rests.
            await asyncio.wait([mine], timeout=0.25)
            if not mine.done():
                self.waiting.remove(mine)

    async def _is_there(self) -> bool:
        """Whether a server answers what it has answered before."""
        for server in self.servers if self.probe is not None else ():
            with suppress(_Later, Unusable, Refused):
                assert self.probe is not None
                await self._once(server, *self.probe)
                self.last_good = time.monotonic()
                return True
        return False

    def _wake(self) -> None:
        """Let one of those look again that wait for room."""
        while self.waiting:
            if not (first := self.waiting.popleft()).done():
                first.set_result(None)
                return

    def _pause(self, attempt: int) -> float:
        """Longer each time, and different for each request, so that they do not all come back at once."""
        return min(SLOWEST_RETRY, 0.1 * 2.0**attempt) * self.rng.uniform(0.5, 1.0)

    async def _refuse_to_wait_for_ever(self, reason: object) -> None:
        if (silent := time.monotonic() - self.last_good) > self.patience:
            if await self._is_there():
                raise Refused(f"no answer in {silent:.0f} seconds, while others are answered; last: {reason}")
            raise BackendError(
                f"no server has given a usable answer for {silent:.0f} seconds; last: {reason}. What was written is "
                "kept: start the server again, and then the same command."
            )


def key_refused(url: str, status: int, reason: str) -> str:
    """The message for a user whose key a server does not take."""
    return (
        f"{url} refuses the key ({status}): {reason}. Put a valid one into the environment variable that "
        "generate.backend.api_key_env names."
    )


class _Later(Exception):
    def __init__(self, reason: str, *, after: float = 0.0, weight: int = 0) -> None:
        super().__init__(reason)
        self.after = after
        self.weight = weight
        """How much it speaks against the request, if others are answered."""


def _retry_after(headers: Mapping[str, str]) -> float:
    """Seconds, from a number of seconds or a date."""
    told = headers.get("retry-after", "")
    try:
        seconds = float(told)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(told).timestamp() - time.time()
        except (TypeError, ValueError):
            return 0.0
    return min(max(0.0, seconds), 10 * SLOWEST_RETRY)


def _without(secret: str, text: str) -> str:
    return text.replace(secret, "(the key)") if secret else text


def reason_of(response: "httpx2.Response", secret: str = "") -> str:
    """What an error's body says, in one line and without the key."""
    try:
        body = response.json()
        error = body.get("error", body) if isinstance(body, dict) else body
        text = str(error.get("message", error) if isinstance(error, dict) else error)
    except (ValueError, RecursionError):
        text = response.text
    return " ".join(_without(secret, text).split())[:300] or "nothing"
