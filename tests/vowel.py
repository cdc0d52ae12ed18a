"""A verifier of the tests' own, with a reward that a random model earns now and then."""


def has_vowel(response: str, gold: str, meta: str) -> float:
    return float(any(c in "aeiou" for c in response))
