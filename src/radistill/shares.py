"""A part of what a stage generates: `--shard 2/8`, `--limit 1000`."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from radistill.errors import ConfigError
from radistill.records import Request


@dataclass(frozen=True, slots=True)
class Share:
    """Requests whose key falls to one of several processes; of them, the first so many."""

    number: int = 0
    among: int = 1
    limit: int | None = None

    @classmethod
    def parse(cls, shard: str | None, limit: int | None) -> "Share | None":
        """What the command line says; None if it says nothing.

        Raises:
            ConfigError: it is no share.
        """
        if shard is None:
            return None if limit is None else cls(limit=limit)
        found = re.fullmatch(r"(\d+)/(\d+)", shard)
        if found is None or not int(found[1]) < int(found[2]):
            raise ConfigError(f"--shard {shard}: give its number and how many there are, counted from 0: 0/4 to 3/4.")
        return cls(int(found[1]), int(found[2]), limit)

    def of(self, requests: Iterable[Request]) -> Iterator[Request]:
        """Those of addressed requests that belong to it: by key, so that equal requests fall to the same share."""
        mine = (r for r in requests if int(r.key[:8], 16) % self.among == self.number)
        return islice(mine, self.limit)

    def size(self, total: int) -> int:
        """About how many of so many requests that is."""
        mine = round(total / self.among)
        return mine if self.limit is None else min(mine, self.limit)

    def __str__(self) -> str:
        shard = f"shard {self.number}/{self.among}" if self.among > 1 or self.limit is None else ""
        first = f"the first {self.limit:,}" if self.limit is not None else ""
        return ", ".join(part for part in (shard, first) if part)
