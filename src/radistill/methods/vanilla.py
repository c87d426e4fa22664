"""Vanilla supervised fine-tuning: cross-entropy on the reference, nothing else.

The baseline of every comparison. Loss: the mean of -log P(y | x, I) over the tokens of the reference and its
end-of-turn. Departures: none.
"""

from radistill.methods.base import Method


class Vanilla(Method):
    """Train on the reference alone."""
