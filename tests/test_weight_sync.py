"""Tests when a policy version is sent to the generators and who waits for it. The actors are replaced by objects whose
updates the test ends."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from ray.exceptions import RayActorError

from actors.driver.learner_group import Publication
from actors.driver.weight_sync import WeightSync


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run an asynchronous test in a loop of its own."""

    @functools.wraps(test)
    def run(*args: Any, **more: Any) -> None:
        asyncio.run(test(*args, **more))

    return run


class FakeGenerator:
    """A generator whose updates last until the test sets `done`."""

    def __init__(self) -> None:
        self.update_weights = self
        self.received: list[int] = []
        self.done = asyncio.Event()
        self.fault: Exception | None = None

    async def remote(self, version: int, buckets: list[object]) -> float:
        self.received.append(version)
        await self.done.wait()
        if self.fault:
            raise self.fault
        return 0.0


class FakeGroup:
    def __init__(self, *generators: FakeGenerator) -> None:
        self.members = list(generators)
        self.names = {g: f"generator-{i}" for i, g in enumerate(generators)}


def publication(version: int) -> Publication:
    return Publication(version=version, buckets=[], size=0)


async def begun(task: asyncio.Task) -> bool:
    """Let all tasks run as far as they can, and return whether `task` has ended."""
    for _ in range(20):
        await asyncio.sleep(0)
    return task.done()


@in_loop
async def test_publication_does_not_wait_for_its_arrival():
    sync, g = WeightSync(), FakeGenerator()
    group = FakeGroup(g)
    await asyncio.wait_for(sync.publish(publication(1), group), 1)
    assert sync.version == 1 and sync.lag(group) == 1
    forest = asyncio.create_task(sync.wait_until_current(g))
    assert not await begun(forest) and g.received == [1]
    g.done.set()
    await asyncio.wait_for(forest, 1)
    assert sync.lag(group) == 0


@in_loop
async def test_next_publication_waits_until_the_last_has_arrived():
    sync, g = WeightSync(), FakeGenerator()
    group = FakeGroup(g)
    await sync.publish(publication(1), group)
    second = asyncio.create_task(sync.publish(publication(2), group))
    assert not await begun(second) and sync.version == 1
    g.done.set()
    await asyncio.wait_for(second, 1)
    await asyncio.wait_for(sync.arrived(group), 1)
    assert g.received == [1, 2] and sync.lag(group) == 0


@in_loop
async def test_slow_generator_is_waited_for_until_patience_ends(monkeypatch):
    monkeypatch.setattr("actors.driver.weight_sync.PATIENCE_SECONDS", 0.05)
    sync, fast, slow = WeightSync(), FakeGenerator(), FakeGenerator()
    group = FakeGroup(fast, slow)
    await sync.publish(publication(1), group)
    fast.done.set()
    await asyncio.wait_for(sync.arrived(group), 1)
    assert sync.lag(group) == 1
    await asyncio.wait_for(sync.publish(publication(2), group), 1)
    slow.done.set()
    await asyncio.wait_for(sync.arrived(group), 1)
    assert slow.received == [1, 2]


@in_loop
async def test_lost_generator_delays_no_publication():
    sync, g = WeightSync(), FakeGenerator()
    g.fault = RayActorError()
    g.done.set()
    group = FakeGroup(g)
    await sync.publish(publication(1), group)
    await asyncio.wait_for(sync.publish(publication(2), group), 1)
    assert sync.missed_updates == 1


@in_loop
async def test_refused_weights_end_the_run():
    sync, g = WeightSync(), FakeGenerator()
    g.fault = ValueError("these weights are of another model")
    g.done.set()
    group = FakeGroup(g)
    await sync.publish(publication(1), group)
    with pytest.raises(ValueError, match="another model"):
        await sync.arrived(group)


@in_loop
async def test_pinned_generator_gets_the_version_when_unpinned():
    sync, g = WeightSync(), FakeGenerator()
    g.done.set()
    group = FakeGroup(g)
    sync.pin(g)
    await sync.publish(publication(1), group)
    await asyncio.wait_for(sync.arrived(group), 1)
    assert g.received == []
    sync.unpin(g)
    await asyncio.wait_for(sync.arrived(group), 1)
    assert g.received == [1]
