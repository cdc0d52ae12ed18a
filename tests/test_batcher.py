"""Tests how the calls of several tasks become one call of an actor."""

from __future__ import annotations

import asyncio

import pytest

from actors.driver.batcher import Batcher


class Actor:
    """A function that notes its calls. It answers when a test lets it, at most `most` items per call."""

    def __init__(self, most: int = 100) -> None:
        self.calls: list[list[int]] = []
        self.answers = asyncio.Event()
        self.fault: Exception | None = None
        self._most = most

    async def __call__(self, items: list[int]) -> list[int]:
        self.calls.append(items)
        await self.answers.wait()
        if self.fault:
            raise self.fault
        return [10 * n for n in items[: self._most]]


async def turns(n: int = 20) -> None:
    for _ in range(n):
        await asyncio.sleep(0)


def test_items_of_one_moment_travel_in_one_call() -> None:
    async def scene():
        actor = Actor()
        actor.answers.set()
        ask = Batcher(actor, asyncio.create_task)
        assert await asyncio.gather(*(ask(n) for n in range(5))) == [0, 10, 20, 30, 40]
        return actor.calls

    assert asyncio.run(scene()) == [[0, 1, 2, 3, 4]]


def test_items_that_come_during_a_call_share_the_next_one() -> None:
    async def scene():
        actor = Actor()
        ask = Batcher(actor, asyncio.create_task)
        first = asyncio.create_task(ask(0))
        await turns()
        later = [asyncio.create_task(ask(n)) for n in (1, 2, 3)]
        await turns()
        assert actor.calls == [[0]]
        actor.answers.set()
        assert await asyncio.gather(first, *later) == [0, 10, 20, 30]
        return actor.calls

    assert asyncio.run(scene()) == [[0], [1, 2, 3]]


def test_items_without_an_answer_are_sent_again() -> None:
    async def scene():
        actor = Actor(most=2)
        actor.answers.set()
        ask = Batcher(actor, asyncio.create_task)
        assert await asyncio.gather(*(ask(n) for n in range(5))) == [0, 10, 20, 30, 40]
        return actor.calls

    assert asyncio.run(scene()) == [[0, 1, 2, 3, 4], [2, 3, 4], [4]]


def test_error_of_a_call_reaches_all_its_items_only() -> None:
    async def scene():
        actor = Actor()
        ask = Batcher(actor, asyncio.create_task)
        failing = [asyncio.create_task(ask(n)) for n in (0, 1)]
        await turns()
        actor.fault = ValueError("broken")
        actor.answers.set()
        found = await asyncio.gather(*failing, return_exceptions=True)
        assert [str(f) for f in found] == ["broken", "broken"]
        actor.fault = None
        assert await ask(2) == 20

    asyncio.run(scene())


@pytest.mark.parametrize("cancelled", [0, 1])
def test_cancelled_caller_does_not_lose_the_others(cancelled: int) -> None:
    async def scene():
        actor = Actor()
        ask = Batcher(actor, asyncio.create_task)
        callers = [asyncio.create_task(ask(n)) for n in (0, 1, 2)]
        await turns()
        callers[cancelled].cancel()
        await turns()
        actor.answers.set()
        return await asyncio.gather(*callers, return_exceptions=True)

    found = asyncio.run(scene())
    assert isinstance(found.pop(cancelled), asyncio.CancelledError)
    assert found == [10 * n for n in (0, 1, 2) if n != cancelled]
