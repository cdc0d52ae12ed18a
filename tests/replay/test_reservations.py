"""Tests how waiting workers get the free slots of the queue: in order, without a wake-up of every worker."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from actors.reservations import Reservations
from tests.replay.helpers import batch_for, open_store
from treeadv.data.problems import Problem
from treeadv.replay.draws import Draws
from treeadv.replay.records import Reserved
from treeadv.replay.store import ReplayStore

SLOTS = 4  # (max_staleness + 1) * 2 forests per step


class Source:
    """Problems of which the draws in `missing` have none."""

    def __init__(self, missing: set[int]) -> None:
        self._missing = missing

    def __getitem__(self, draw: int) -> Problem:
        if draw in self._missing:
            raise KeyError(draw)
        return Problem(id=f"p{draw}", problem="1+1", answer="2", verifier="exact", meta="")


class Queue:
    """A store with reservations that fill its slots, and a fault that a test sets."""

    def __init__(self, folder: Path, missing: set[int]) -> None:
        self.store = open_store(folder, 2, 0, max_staleness=1, fsync="none")
        self.asked, self.fault = 0, ""
        self.reservations = Reservations(self.store, Draws(Source(missing)), self._check)

    def _check(self) -> None:
        self.asked += 1
        if self.fault:
            raise RuntimeError(self.fault)

    async def fill(self) -> list[Reserved]:
        return [(await self.reservations.take("w", f"first-{i}", 1))[0] for i in range(SLOTS)]

    def waiting(self, n: int) -> list[asyncio.Task[list[Reserved]]]:
        return [asyncio.create_task(self.reservations.take(f"w{i}", f"later-{i}", 1)) for i in range(n)]

    def train(self, step: int, records: list[Reserved]) -> None:
        """Admit, lease and acknowledge two forests, which frees their slots."""
        for record in records:
            assert self.store.admit(record.forest_id, batch_for(record, step - 1)) == "admitted"
        lease = self.store.lease(2, step - 1)
        assert lease is not None
        self.store.ack(lease.lease_id, step)
        self.reservations.notify()


async def idle() -> None:
    """Let every task run that can run. The source answers in a thread, which takes a moment."""
    for _ in range(20):
        await asyncio.sleep(0.005)


def scenario(folder: Path, body: Callable[[Queue], Coroutine[Any, Any, None]], missing: set[int] | None = None) -> None:
    queue = Queue(folder, missing or set())
    try:
        asyncio.run(asyncio.wait_for(body(queue), 30))
    finally:
        queue.store.close()


@pytest.mark.parametrize("workers", [2, 500])
def test_change_without_a_free_slot_wakes_one_call(tmp_path: Path, workers: int) -> None:
    async def body(queue: Queue) -> None:
        await queue.fill()
        tasks = queue.waiting(workers)
        await idle()
        before = queue.asked
        for _ in range(3):
            queue.reservations.notify()
            await idle()
        assert queue.asked - before == 3  # not 3 for each worker
        assert not any(t.done() for t in tasks)
        queue.reservations.stop()
        assert await asyncio.gather(*tasks) == [[]] * workers

    scenario(tmp_path, body)


def test_free_slots_go_to_workers_in_the_order_of_calls(tmp_path: Path) -> None:
    async def body(queue: Queue) -> None:
        records = await queue.fill()
        tasks = queue.waiting(5)
        await idle()
        queue.train(1, records[:2])
        found = await asyncio.gather(*tasks[:2])
        await idle()
        assert not any(t.done() for t in tasks[2:])
        assert [(r.worker, r.draw) for (r,) in found] == [("w0", 4), ("w1", 5)]
        queue.reservations.stop()
        assert await asyncio.gather(*tasks[2:]) == [[]] * 3

    scenario(tmp_path, body)


def test_repeated_request_is_answered_while_others_wait(tmp_path: Path) -> None:
    """After the death of the queue Ray repeats all calls. The slots may belong to calls that are repeated last."""

    async def body(queue: Queue) -> None:
        records = await queue.fill()
        tasks = queue.waiting(3)
        await idle()
        again = [await queue.reservations.take("w", f"first-{i}", 1) for i in range(SLOTS)]
        assert again == [[r] for r in records] and not any(t.done() for t in tasks)
        queue.reservations.stop()

    scenario(tmp_path, body)


def test_cancelled_wait_passes_its_turn_on(tmp_path: Path) -> None:
    async def body(queue: Queue) -> None:
        records = await queue.fill()
        tasks = queue.waiting(3)
        await idle()
        queue.train(1, records[:2])
        tasks[0].cancel()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(found[0], asyncio.CancelledError)
        assert [r.worker for (r,) in (taken for taken in found[1:] if isinstance(taken, list))] == ["w1", "w2"]

    scenario(tmp_path, body)


def test_fault_of_the_queue_reaches_every_waiting_call(tmp_path: Path) -> None:
    async def body(queue: Queue) -> None:
        await queue.fill()
        tasks = queue.waiting(3)
        await idle()
        queue.fault = "the disk is full"
        queue.reservations.notify()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert [str(f) for f in found] == ["the disk is full"] * 3

    scenario(tmp_path, body)


def test_draw_without_a_prompt_is_skipped(tmp_path: Path) -> None:
    async def body(queue: Queue) -> None:
        assert [r.draw for r in await queue.fill()] == [1, 3, 4, 5]

    scenario(tmp_path, body, missing={0, 2})


def test_concurrent_reservations_ask_for_each_draw_once(tmp_path: Path) -> None:
    """Workers that get slots at the same moment do not compete for one draw."""

    async def body(queue: Queue) -> None:
        tasks = queue.waiting(SLOTS)
        records = await asyncio.gather(*tasks)
        assert [r.draw for (r,) in records] == list(range(SLOTS))
        assert queue.asked == SLOTS

    scenario(tmp_path, body)


def test_store_names_an_open_request(tmp_path: Path) -> None:
    store: ReplayStore = open_store(tmp_path, 2, 0, max_staleness=1, fsync="none")
    record = store.reserve("w", "r", str)
    assert store.reserved_for("w", "r") == [record]
    assert store.reserved_for("w", "other") == store.reserved_for("v", "r") == store.reserved_for("w", "") == []
    store.close()
