"""A verifier of the tests that passes the check at the start and then fails."""

from __future__ import annotations

import os


def fails_after_the_first_call(response: str, gold: str) -> float:
    with open(os.environ["TREEADV_VERIFIER_CALLS"], "a+") as calls:
        calls.seek(0)
        called = bool(calls.read())
        calls.write("x")
    if called:
        raise RuntimeError("broken")
    return 1.0
