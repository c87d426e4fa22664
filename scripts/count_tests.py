"""Prints `N passed, N failed, N skipped` from pytest's JUnit file; exit code 1 when no test passed or one failed.

An error in a fixture or at import counts as a failure.
"""

import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path


def count(junit: Path) -> tuple[int, int, int]:
    """Passed, failed and skipped tests; all zero when pytest did not get as far as writing the file."""
    if not junit.is_file():
        return 0, 0, 0
    suites = list(ElementTree.parse(junit).getroot().iter("testsuite"))
    total, failed, skipped = (
        sum(int(suite.get(name, 0)) for suite in suites for name in names)
        for names in (("tests",), ("failures", "errors"), ("skipped",))
    )
    return total - failed - skipped, failed, skipped


def main() -> int:
    """Print the line; the exit code says whether it is a good one."""
    passed, failed, skipped = count(Path(sys.argv[1]))
    print(f"{passed} passed, {failed} failed, {skipped} skipped")
    return 0 if passed and not failed else 1


if __name__ == "__main__":
    sys.exit(main())
