"""Random numbers that depend on names, not on the order in which things happen."""

from __future__ import annotations

from hashlib import blake2b


def derive(*names: str | int) -> int:
    """A 63-bit seed from names; the same names give the same seed on every machine."""
    digest = blake2b("\x1f".join(map(str, names)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def uniform(*names: str | int) -> float:
    """A number in [0, 1) from names."""
    return (derive(*names) >> 10) / (1 << 53)
