"""Ends a run whose verifier fails instead of judging: otherwise a broken verifier looks like a bad model."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from treeadv.errors import RunFailed
from treeadv.forest import Forest, Verdict

FIRST = 32  # answers that all have to fail before a verifier counts as broken from the start
WINDOW = 128  # last answers of which more than half have to fail later
FAILURES = (Verdict.TIMEOUT, Verdict.CRASH)


class VerifierWatch:
    """A window over the last answers that a verifier was asked about. It has no clock."""

    def __init__(self) -> None:
        self._failed: deque[bool] = deque(maxlen=WINDOW)
        self._judged_once = False

    def add(self, verdicts: Iterable[int], failure: str) -> None:
        """Count the verdicts of a forest; `failure` is the detail of a failed one. Raises `RunFailed`."""
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
    """The detail of the last leaf on which the verifier failed; "" where it judged every leaf."""
    failed = [d for d, v in zip(forest.detail, forest.verdict, strict=True) if v in FAILURES]
    return failed[-1] if failed else ""
