"""Draws problems beside the event loop of the queue."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from treeadv.data.problems import Problem
from treeadv.data.tasks import ProblemSource
from treeadv.errors import one_line

_KEPT = 64  # draws whose problem is remembered


@dataclass(frozen=True, slots=True)
class FailedDraw:
    """The source has no problem for this draw, and why."""

    detail: str


class Draws:
    """Problems by draw. One thread asks the source, so a slow family does not stop the event loop."""

    def __init__(self, source: ProblemSource) -> None:
        self._source = source
        self._thread = ThreadPoolExecutor(1, "draws")
        self._found: dict[int, asyncio.Future[Problem | FailedDraw]] = {}

    async def problem(self, draw: int) -> Problem | FailedDraw:
        """Return the problem of a draw. Callers that ask for one draw at the same time share the answer."""
        if draw not in self._found:
            loop = asyncio.get_running_loop()
            self._found[draw] = asyncio.ensure_future(loop.run_in_executor(self._thread, self._ask, draw))
            for old in sorted(self._found)[:-_KEPT]:
                del self._found[old]
        return await asyncio.shield(self._found[draw])

    def close(self) -> None:
        """Cancel the draws that have not started."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _ask(self, draw: int) -> Problem | FailedDraw:
        try:
            return self._source[draw]
        except Exception as e:  # a library draws here: whatever it raises costs this draw and no more
            return FailedDraw(f"{type(e).__name__}: {one_line(e)}")
