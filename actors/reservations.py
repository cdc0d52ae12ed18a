"""The reservations that wait for free slots of the queue."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

from treeadv.replay.draws import Draws, FailedDraw
from treeadv.replay.records import Reserved
from treeadv.replay.store import ReplayStore


class Reservations:
    """Gives free slots to workers in the order of their calls.

    Only the first call waits for a slot; the others wait for their turn. So a change of the queue wakes one call,
    however many workers wait. Calls that wait share the free slots."""

    def __init__(self, store: ReplayStore, draws: Draws, check: Callable[[], None]) -> None:
        """`check` raises the fault of the queue, if it has one."""
        self._store, self._draws, self._check = store, draws, check
        self._turn = asyncio.Lock()
        self._room = asyncio.Event()  # a slot may be free
        self._calls = 0  # calls that wait
        self._stopped = False

    async def take(self, worker: str, request: str, count: int) -> list[Reserved]:
        """Wait for a free slot and reserve the next draws that have a prompt, at most `count`. Returns [] when the run
        ends.

        A repeated `request` gets the first answer again without a wait: its forests may hold the slots that the first
        call in the turn waits for."""
        if not self._stopped and (records := self._store.reserved_for(worker, request)):
            return records
        self._calls += 1
        try:
            async with self._turn:
                while not self._stopped:
                    self._check()
                    if not self._store.free_slots:
                        self._room.clear()
                        await self._room.wait()
                    elif records := await self._reserve(worker, request, count):
                        return records
        finally:
            self._calls -= 1
        return []

    async def _reserve(self, worker: str, request: str, count: int) -> list[Reserved]:
        """Reserve slots, at most the share of one call. Returns [] if the queue changes while the source is asked, or
        if the next draw has no prompt."""
        share = math.ceil(self._store.free_slots / self._calls)
        draws = self._store.next_draws(min(count, share))
        found = await self._draws.problems(draws)
        if self._stopped or self._store.next_draws(len(draws)) != draws or not self._store.free_slots:
            return []
        if isinstance(found[0], FailedDraw):
            self._store.skip_draw(found[0].detail)
            return []
        ids = {}
        for draw, problem in zip(draws, found, strict=False):
            if isinstance(problem, FailedDraw):  # the next call skips this draw
                break
            ids[draw] = problem.id
        return self._store.reserve_many(worker, request, ids.__getitem__, len(ids))

    def notify(self) -> None:
        """Tell the first waiting call that a slot may be free or that the queue has a fault."""
        self._room.set()

    def stop(self) -> None:
        """Let waiting and later calls return []."""
        self._stopped = True
        self._room.set()
