"""A source of problems that draws in a thread, so the event loop of the queue does not wait."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from treeadv.data.problems import Problem
from treeadv.data.tasks import ProblemSource
from treeadv.errors import one_line

_KEPT = 256  # number of draws whose problem is cached
_PATIENCE = 0.005  # seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedDraw:
    """A draw for which the source has no problem. `detail` is the reason."""

    detail: str


class Draws:
    """A cached source of problems by draw. One thread calls the source, so a slow source does not block the event
    loop."""

    def __init__(self, source: ProblemSource) -> None:
        self._source = source
        self._thread = ThreadPoolExecutor(1, "draws")
        self._found: dict[int, asyncio.Future[Problem | FailedDraw]] = {}

    async def problem(self, draw: int) -> Problem | FailedDraw:
        """Return the problem of a draw. Concurrent calls for the same draw share one call of the source."""
        (found,) = await self.problems([draw])
        return found

    async def problems(self, draws: Sequence[int]) -> list[Problem | FailedDraw]:
        """Return the problems of the first of `draws`, at least one. A problem that the source has not found within
        `_PATIENCE` ends the list, so a slow source delays no problem that it has found."""
        futures = [self._future(draw) for draw in draws]
        await asyncio.shield(futures[0])
        if not all(f.done() for f in futures):
            await asyncio.wait(futures, timeout=_PATIENCE)
        return [f.result() for f in itertools.takewhile(asyncio.Future.done, futures)]

    def _future(self, draw: int) -> asyncio.Future[Problem | FailedDraw]:
        if draw not in self._found:
            loop = asyncio.get_running_loop()
            self._found[draw] = asyncio.ensure_future(loop.run_in_executor(self._thread, self._ask, draw))
        # Move the draw to the end. The first entries were asked for longest ago; a retry may have a small number.
        self._found[draw] = found = self._found.pop(draw)
        for old in list(self._found)[:-_KEPT]:
            del self._found[old]
        return found

    def close(self) -> None:
        """Cancel the draws that have not started."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _ask(self, draw: int) -> Problem | FailedDraw:
        try:
            return self._source[draw]
        except Exception as e:  # the source is code of a library or a user; any error of it fails only this draw
            return FailedDraw(detail=f"{type(e).__name__}: {one_line(e)}")
