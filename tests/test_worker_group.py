"""Tests the counts of a worker group during deaths, additions and retirements, with stand-ins for Ray actors."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.exceptions import RayActorError

from actors.driver import worker_group
from actors.driver.liveness import Deadlines, Hung
from actors.driver.targets import Targets
from actors.driver.worker_group import RESTARTS, RoleFailed, WorkerGroup
from treeadv.storage.run_folder import RunFolder


@pytest.fixture(autouse=True)
def without_ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(worker_group, "kill", lambda member: None)
    monkeypatch.setattr(worker_group, "close", close_nothing)
    monkeypatch.setattr(worker_group, "BACKOFF", 0.001)
    monkeypatch.setattr(worker_group, "kill_when_lost", never_lost)
    yield


async def close_nothing(members: list[str]) -> None:
    pass


async def never_lost(member: str, name: str, deadlines: Deadlines) -> Exception:
    return await asyncio.get_running_loop().create_future()


class FakeRole:
    """A role of which `deaths` members die during their start. No member becomes ready before `may_start` is set."""

    def __init__(self, folder: Path) -> None:
        self.deaths = 0
        self.may_start = asyncio.Event()
        self.may_start.set()
        self.targets = Targets(RunFolder(folder))
        deadlines = Deadlines(start=300.0, heartbeat=60.0)
        self.group: WorkerGroup = WorkerGroup(
            "generator", lambda number: f"member {number}", self.prepare, self.targets, deadlines
        )

    async def prepare(self, member: str) -> str:
        await asyncio.sleep(0)
        await self.may_start.wait()
        if self.deaths:
            self.deaths -= 1
            raise RayActorError()
        return f"address of {member}"


async def wait_for_members(group: WorkerGroup, count: int) -> None:
    async with asyncio.timeout(5):
        while len(group.members) < count:
            await asyncio.sleep(0.001)
            group.check()


def test_starting_actor_counts_once_in_the_target(tmp_path: Path) -> None:
    async def scenario() -> None:
        role = FakeRole(tmp_path)
        role.may_start.clear()
        starting = asyncio.create_task(role.group.start(2))
        await asyncio.sleep(0)
        assert (len(role.group.members), role.group.target_count) == (0, 2)
        role.may_start.set()
        await starting
        assert (len(role.group.members), role.group.target_count) == (2, 2)
        role.group.scale(3)
        await wait_for_members(role.group, 3)
        assert role.group.target_count == 3
        role.group.scale(2)
        assert (len(role.group.members), role.group.target_count) == (2, 2)

    asyncio.run(scenario())


def test_dead_member_is_replaced_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        role = FakeRole(tmp_path)
        await role.group.start(2)
        first = role.group.members[0]
        role.may_start.clear()
        role.group.replace(first, RayActorError())
        role.group.replace(first, RayActorError())
        assert (len(role.group.members), role.group.target_count) == (1, 2)
        role.group.scale(2)  # the autoscaler repeats its target
        role.may_start.set()
        await wait_for_members(role.group, 2)
        assert (role.group.target_count, role.group.restarts) == (2, 1)
        assert role.targets.count() == {"generator": 2}

    asyncio.run(scenario())


def test_moved_member_is_retired_and_gets_a_successor(tmp_path: Path) -> None:
    async def scenario() -> None:
        role = FakeRole(tmp_path)
        await role.group.start(2)
        first = role.group.members[0]
        role.group.move(first)
        assert (len(role.group.members), role.group.target_count) == (1, 2)
        await wait_for_members(role.group, 2)
        assert first in role.group.names and first not in role.group.members
        await role.group.dismiss(first)
        assert first not in role.group.names and role.group.restarts == 0

    asyncio.run(scenario())


def test_step_resets_the_deaths_of_starting_successors(tmp_path: Path) -> None:
    async def scenario() -> None:
        role = FakeRole(tmp_path)
        await role.group.start(1)
        for _ in range(3):
            role.deaths = RESTARTS - 1
            role.group.replace(role.group.members[0], RayActorError())
            await wait_for_members(role.group, 1)
            role.group.reset_deaths()
        assert role.group.restarts == 3 * RESTARTS

    asyncio.run(scenario())


def test_step_resets_the_deaths_of_one_that_cannot_start(tmp_path: Path) -> None:
    """The other member continues to work. If there is one step after each death, these deaths never end the run."""

    async def scenario() -> None:
        role = FakeRole(tmp_path)
        await role.group.start(2)
        role.deaths = 4 * RESTARTS
        role.group.replace(role.group.members[0], RayActorError())
        left = role.deaths
        while len(role.group.members) < 2:
            await asyncio.sleep(0.0005)
            role.group.check()
            if role.deaths < left:
                left = role.deaths
                role.group.reset_deaths()
        assert role.group.restarts == 4 * RESTARTS + 1

    asyncio.run(asyncio.wait_for(scenario(), 10))


def test_simultaneous_deaths_count_once_for_each_member(tmp_path: Path) -> None:
    """If a node dies, all members on it die."""

    async def scenario() -> None:
        role = FakeRole(tmp_path)
        await role.group.start(2 * RESTARTS)
        for member in list(role.group.members):
            role.group.replace(member, RayActorError())
        await wait_for_members(role.group, 2 * RESTARTS)

    asyncio.run(scenario())


def test_second_failure_is_collected_on_end(tmp_path: Path) -> None:
    async def scenario() -> list[str]:
        unheard: list[str] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: unheard.append(context["message"]))
        role = FakeRole(tmp_path)
        await role.group.start(2)
        role.deaths = 10**6
        for member in list(role.group.members):
            role.group.replace(member, RayActorError())
        while role.group.target_count:
            await asyncio.sleep(0.001)
        with pytest.raises(RoleFailed):
            role.group.check()
        await role.group.end()
        gc.collect()
        return unheard

    assert asyncio.run(scenario()) == []


def test_member_that_keeps_dying_fails_its_role(tmp_path: Path) -> None:
    async def scenario() -> None:
        role = FakeRole(tmp_path)
        await role.group.start(1)
        role.deaths = 10**6
        role.group.replace(role.group.members[0], RuntimeError("at first"))
        await wait_for_members(role.group, 1)

    with pytest.raises(
        RoleFailed, match=f"generator: died {RESTARTS + 1} times since the last step; the last cause: The actor "
    ):
        asyncio.run(scenario())


def test_member_that_hangs_in_its_start_is_named_as_the_cause(tmp_path: Path, monkeypatch) -> None:
    """Ray's own message only says that the driver killed the member."""

    async def killed(member: str, name: str, deadlines: Deadlines) -> Exception:
        return Hung(f"{name} did not start within {deadlines.start:g} s")

    async def scenario() -> None:
        role = FakeRole(tmp_path)
        role.deaths = 10**6
        await role.group.start(1)

    monkeypatch.setattr(worker_group, "kill_when_lost", killed)
    with pytest.raises(RoleFailed, match=rf"the last cause: generator-{RESTARTS} did not start within 300 s"):
        asyncio.run(scenario())
