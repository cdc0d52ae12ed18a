"""The ways in which an attempt at a run ends, and the request to end the attempt before its last step."""

from __future__ import annotations

import asyncio
from enum import Enum


class AttemptOutcome(Enum):
    FINISHED = "finished"  # the last step was taken
    INTERRUPTED = "interrupted"  # a signal asked for the end
    EARLY = "early"  # an evaluation met run.stop_at or run.patience
    RESHAPE = "reshape"  # the number or the nodes of the learners have to change; the run resumes from its checkpoint


class EndRequest:
    """A request that the learner loop ends after the current step, with a checkpoint.

    An interrupt has priority over an early end, and an early end has priority over a reshape."""

    def __init__(self) -> None:
        self._requested = asyncio.Event()
        self._interrupted = self._early = False

    @property
    def attempt_outcome(self) -> AttemptOutcome | None:
        """Return how the attempt has to end; None while it has to continue."""
        if self._interrupted:
            return AttemptOutcome.INTERRUPTED
        if self._early:
            return AttemptOutcome.EARLY
        return AttemptOutcome.RESHAPE if self._requested.is_set() else None

    def interrupt(self) -> None:
        self._interrupted = True
        self._requested.set()

    def end_early(self) -> None:
        self._early = True
        self._requested.set()

    def reshape(self) -> None:
        self._requested.set()

    def clear_reshape(self) -> None:
        """Clear a reshape, because the next attempt carries it out. An interrupt and an early end stay."""
        if not self._interrupted and not self._early:
            self._requested.clear()

    async def wait(self) -> None:
        """Return once an end is requested."""
        await self._requested.wait()
