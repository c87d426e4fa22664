"""Which format a file has, from its first rows."""

from itertools import islice

from radistill import formats
from radistill.errors import DataError
from radistill.formats import _objects
from radistill.formats._find import Found
from radistill.formats.base import ObjectFormat

_PROBE = 20


def detect(found: Found) -> str:
    """Name of the format that fits the first rows.

    Raises:
        DataError: none does, or several do equally well; the message says what was seen.
    """
    if found.kind != "objects":
        return found.kind
    file = found.files[0]
    items = list(islice(_objects.items(file), _PROBE))
    rows = [item.value for item in items if isinstance(item.value, dict)]
    readers = {name: reader for name in formats.available() if isinstance(reader := formats.named(name), ObjectFormat)}
    fitting = {name: sum(reader.fits(row) for row in rows) for name, reader in readers.items()}
    best = [name for name, count in fitting.items() if count and count == max(fitting.values())]
    if len(best) == 1:
        return best[0]
    if not items:
        raise DataError(f"{file} holds no rows. Fill it, or name another file.")
    known = "; ".join(f"{name} {reader.shape}" for name, reader in readers.items())
    raise DataError(
        f"cannot tell the format of {file}: {_seen(items[0], rows)}, which fits "
        f"{' and '.join(best) if best else 'none'}. Known: {known}. Set format: NAME."
    )


def _seen(first: _objects.Item, rows: list[dict[str, object]]) -> str:
    if rows:
        return f"the first object has the keys {', '.join(map(repr, rows[0])) or '(none)'}"
    return f"its first row is {first.error or type(first.value).__name__}"
