"""Ends a run whose verifier fails too often. Without this check a broken verifier looks like a bad model."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from treeadv.errors import RunFailed
from treeadv.forest import Forest, Verdict

FIRST = 32  # the run ends if the verifier fails on all of this many first answers
WINDOW = 128  # later, the run ends if the verifier fails on more than half of this many last answers
FAILURES = frozenset({Verdict.TIMEOUT, Verdict.CRASH})


class VerifierWatch:
    """A counter of the failures of a verifier in a window over the last answers."""

    def __init__(self) -> None:
        self._failed: deque[bool] = deque(maxlen=WINDOW)
        self._judged_once = False

    def add(self, verdicts: Iterable[int], failure: str) -> None:
        """Count the verdicts of a forest. `failure` is the detail of a failed answer.

        Raises `RunFailed` if the verifier fails too often."""
        for verdict in verdicts:
            if verdict != Verdict.ABORTED:
                self._failed.append(verdict in FAILURES)
                self._judged_once = self._judged_once or verdict not in FAILURES
        count = sum(self._failed)
        if not self._judged_once and count >= FIRST:
            raise RunFailed(f"the verifier failed on all of the first {count} answers; the last failure: {failure}")
        if len(self._failed) == WINDOW and 2 * count > WINDOW:
            raise RunFailed(f"the verifier failed on {count} of the last {WINDOW} answers; the last failure: {failure}")


def failure_of(forest: Forest) -> str:
    """Return the detail of the last leaf on which the verifier failed; "" if the verifier judged every leaf."""
    failed = [d for d, v in zip(forest.detail, forest.verdict.tolist(), strict=True) if v in FAILURES]
    return failed[-1] if failed else ""
