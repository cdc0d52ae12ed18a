"""A verifier of the tests. A policy cannot learn this reward in a few hundred steps, so its variance stays."""


def has_even_sum(response: str, gold: str, meta: str) -> float:
    """Reward 1 for an even sum of code points."""
    return float(sum(map(ord, response)) % 2 == 0)
