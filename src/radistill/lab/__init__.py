"""The lab: a closed world in which a skill can be learned and abilities lost, both measured exactly, in minutes.

It is a wind tunnel, not the sky: what it shows must be checked on larger models.
"""

from pathlib import Path

POCKET_NAME = "pocket"
"""What stands in a run file for the model, and for the data, that come with this package."""
POCKET = Path(__file__).parent / "pocket"
"""The pocket model: a Hugging Face folder."""
POCKET_DATA = POCKET / "sentences"
"""Sentences of its world in English and Esperanto, to learn from and to be tested on."""
