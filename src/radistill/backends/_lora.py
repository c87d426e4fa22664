"""What vLLM has to know about an adapter."""

import json
from pathlib import Path

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Those that vLLM has room for."""


def rank_of(adapter: Path) -> int:
    """The smallest rank that vLLM has room for and that holds the adapter's."""
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    largest = max([int(config["r"]), *map(int, (config.get("rank_pattern") or {}).values())])
    return next((size for size in RANKS if size >= largest), largest)
