"""A verifier of the tests. Its reward depends on the question and on every character of the response, so it keeps its
variance."""

import zlib


def has_even_sum(response: str, gold: str, meta: str) -> float:
    """Return 1 if the checksum of question and response is even, else 0. No response has reward 1 for all questions."""
    return float(zlib.crc32(f"{meta} {response}".encode()) % 2 == 0)
