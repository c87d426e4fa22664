"""A random generator for each named purpose of a run.

Two purposes never share a stream, so that adding a draw in one place leaves all others as they were.
"""

import hashlib

import numpy as np


def number(seed: int, *purpose: object) -> int:
    """A 64-bit number that depends on the run seed and on the words of the purpose, and on nothing else."""
    words = "\x1f".join([str(seed), *map(str, purpose)])
    return int.from_bytes(hashlib.blake2b(words.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def generator(seed: int, *purpose: object) -> np.random.Generator:
    """A numpy generator of its own for this purpose: `generator(0, "shuffle", "train")`."""
    return np.random.Generator(np.random.PCG64(number(seed, *purpose)))


def uniform(key: str, position: int) -> float:
    """The number in [0, 1) that decides token `position` of the answer to request `key`.

    Being a pure function of its arguments, it does not depend on the batch, the order or the process that asks.
    """
    digest = hashlib.blake2b(f"{key}\x1f{position}".encode(), digest_size=8).digest()
    # 53 bits are what a float64 can hold exactly, so 1.0 is never reached.
    return (int.from_bytes(digest, "big") >> 11) * 2.0**-53
