"""A verifier of `treeadv bench overlap`. Its grades differ within almost every forest, so almost every forest has a
gradient and costs the learner time."""

from __future__ import annotations

import zlib


def coin(response: str) -> bool:
    """Return one bit of the checksum of a response."""
    return bool(zlib.crc32(response.encode()) & 1)
