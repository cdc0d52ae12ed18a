"""Random numbers that depend only on names. So they do not depend on the order of events."""

from __future__ import annotations

import random
from hashlib import blake2b


def derive(*names: str | int) -> int:
    """Return a 63-bit seed that is a hash of `names`. Equal names give equal seeds on every machine."""
    digest = blake2b("\x1f".join(map(str, names)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def uniform(*names: str | int) -> float:
    """Return a number in [0, 1) that depends only on `names`."""
    return (derive(*names) >> 10) / (1 << 53)


def generator(*names: str | int) -> random.Random:
    """Return a new random generator that depends only on `names`. Equal names give equal draws on every machine.

    The draws of the published studies (docs/results) come from this form of the seed, so it must not change."""
    return random.Random("/".join(map(str, names)))
