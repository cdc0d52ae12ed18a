"""A crew with actors that are stand-ins for Ray's: how many there are and are wanted, through deaths, additions and retirements."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator

import pytest
from ray.exceptions import RayActorError

from actors.driver import worker_group as crew
from actors.driver.worker_group import RESTARTS, Crew, RoleFailed


@pytest.fixture(autouse=True)
def without_ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(crew.ray, "kill", lambda member: None)
    monkeypatch.setattr(crew, "close", closed)
    monkeypatch.setattr(crew, "BACKOFF", 0.001)
    yield


async def closed(members: list[str]) -> None:
    pass


class Role:
    """`deaths`: how many of the members made next die while they come up."""

    def __init__(self) -> None:
        self.deaths = 0
        self.may_come = asyncio.Event()
        self.may_come.set()
        self.places: dict[str, str | None] = {}
        self.crew = Crew("generator", lambda number: f"member {number}", self.prepare, lambda _, name, address: self.place(name, address))

    async def prepare(self, member: str) -> str:
        await self.may_come.wait()
        if self.deaths:
            self.deaths -= 1
            raise RayActorError()
        return f"address of {member}"

    def place(self, name: str, address: str | None) -> None:
        self.places[name] = address


async def settle(of: Crew, members: int) -> None:
    async with asyncio.timeout(5):
        while len(of.members) < members:
            await asyncio.sleep(0.001)
            of.check()


def test_one_that_is_on_its_way_is_wanted_and_is_counted_once_when_it_is_there() -> None:
    async def scene() -> None:
        role = Role()
        role.may_come.clear()
        filling = asyncio.create_task(role.crew.fill(2))
        await asyncio.sleep(0)
        assert (len(role.crew.members), role.crew.wanted) == (0, 2)
        role.may_come.set()
        await filling
        assert (len(role.crew.members), role.crew.wanted) == (2, 2)
        role.crew.scale(3)
        await settle(role.crew, 3)
        assert role.crew.wanted == 3
        role.crew.scale(2)
        assert (len(role.crew.members), role.crew.wanted) == (2, 2)

    asyncio.run(scene())


def test_a_dead_member_stays_wanted_and_is_not_replaced_twice() -> None:
    async def scene() -> None:
        role = Role()
        await role.crew.fill(2)
        first = role.crew.members[0]
        role.may_come.clear()
        role.crew.replace(first, RayActorError())
        role.crew.replace(first, RayActorError())
        assert (len(role.crew.members), role.crew.wanted) == (1, 2)
        role.crew.scale(2)  # as the controller asks for again and again
        role.may_come.set()
        await settle(role.crew, 2)
        assert (role.crew.wanted, role.crew.restarts) == (2, 1)
        assert role.places["generator-0"] is None

    asyncio.run(scene())


def test_a_successor_that_dies_while_it_comes_up_is_succeeded_too_and_a_step_forgives() -> None:
    async def scene() -> None:
        role = Role()
        await role.crew.fill(1)
        for _ in range(3):
            role.deaths = RESTARTS - 1
            role.crew.replace(role.crew.members[0], RayActorError())
            await settle(role.crew, 1)
            role.crew.progress()
        assert role.crew.restarts == 3 * RESTARTS

    asyncio.run(scene())


def test_members_that_die_together_are_not_one_that_dies_again_and_again() -> None:
    """A node that goes takes all of its members."""

    async def scene() -> None:
        role = Role()
        await role.crew.fill(2 * RESTARTS)
        for member in list(role.crew.members):
            role.crew.replace(member, RayActorError())
        await settle(role.crew, 2 * RESTARTS)

    asyncio.run(scene())


def test_of_two_that_fail_at_once_one_tells_and_the_other_is_not_left_to_the_garbage_collector() -> None:
    async def scene() -> list[str]:
        unheard: list[str] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: unheard.append(context["message"]))
        role = Role()
        await role.crew.fill(2)
        role.deaths = 10**6
        for member in list(role.crew.members):
            role.crew.replace(member, RayActorError())
        while role.crew._coming():
            await asyncio.sleep(0.001)
        with pytest.raises(RoleFailed):
            role.crew.check()
        await role.crew.end()
        gc.collect()
        return unheard

    assert asyncio.run(scene()) == []


def test_one_that_dies_again_and_again_fails_its_role_with_the_last_cause() -> None:
    async def scene() -> None:
        role = Role()
        await role.crew.fill(1)
        role.deaths = 10**6
        role.crew.replace(role.crew.members[0], RuntimeError("at first"))
        await settle(role.crew, 1)

    with pytest.raises(RoleFailed, match=f"generator: died {RESTARTS + 1} times since the last step; the last cause: The actor "):
        asyncio.run(scene())
