"""Tests the path of forests through the driver with actors that the tests play."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, ObjectLostError, RayTaskError

from actors.driver.forests import Forests
from actors.driver.worker_group import FailureLimit
from actors.generator import EndedForests, FailedForest
from treeadv.errors import single_errors


class Method:
    """A method of an actor. `remote` calls a function and notes its arguments."""

    def __init__(self, answer: Callable[..., Any]) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self._answer = answer

    def remote(self, *args: Any) -> Any:
        self.calls.append(args)
        return self._answer(*args)


class Member:
    """A generator."""

    grow: Method
    finished: Method


class Scene:
    """A generator, a reward actor and a queue. A test says which forests end together, and with which faults."""

    def __init__(self) -> None:
        self.ends: asyncio.Queue[EndedForests | Exception] = asyncio.Queue()
        self.bad: set[str] = set()  # forests that the reward actor cannot grade
        self.lost: set[str] = set()  # forests whose objects are lost
        self.generator: Any = Member()
        self.generator.grow, self.generator.finished = Method(self._nothing), Method(self._finished)
        self.queue = SimpleNamespace(
            reserve=Method(self._reserve), admit=Method(self._nothing), fail=Method(self._nothing)
        )
        self.replaced: list[Exception] = []
        self.graded: list[tuple[Any, ...]] = []
        generators = SimpleNamespace(
            members=[self.generator],
            names={self.generator: "generator-0"},
            replace=lambda member, fault: self.replaced.append(fault),
        )
        self.cluster: Any = SimpleNamespace(
            queue=self.queue,
            generators=generators,
            grading=SimpleNamespace(grade=self._grade),
            failures=FailureLimit(),
            config=SimpleNamespace(generator=SimpleNamespace(forests=1)),
        )

    async def _nothing(self, *args: Any) -> None:
        return None

    async def _reserve(self, worker: str, count: int) -> list[Any]:
        return [SimpleNamespace(forest_id=f"{worker}-{n}") for n in range(count)]

    def _finished(self) -> tuple[Any, Any]:
        answer = asyncio.ensure_future(self._ended())
        return answer, answer

    async def _ended(self) -> EndedForests:
        found = await self.ends.get()
        if isinstance(found, Exception):
            raise found
        return found

    async def _grade(self, batch: Any, row: int | None = None) -> tuple[Any, None]:
        ids = (await batch).forest_ids
        asked = ids if row is None else ids[row : row + 1]
        self.graded.append(asked)
        if self.lost & set(asked):
            raise ObjectLostError("00" * 28, None, "")
        if self.bad & set(asked):
            raise RayTaskError("grade", "Traceback\nValueError: no grade", ValueError("no grade"))
        return asked, None

    def failed(self) -> dict[str, str]:
        return dict(self.queue.fail.calls)


def ended(*ids: str, failed: tuple[FailedForest, ...] = ()) -> EndedForests:
    return EndedForests(forest_ids=ids, failed=failed, free=3)


async def grown(scene: Scene, ids: str, *ends: EndedForests | Exception) -> dict[str, int | None]:
    """Grow forests at the same time, and return the answer for each."""
    for end in ends:
        scene.ends.put_nowait(end)
    async with asyncio.TaskGroup() as group:
        forests = Forests(scene.cluster, group)
        growth = forests.on(scene.generator)
        tickets: list[Any] = [SimpleNamespace(forest_id=fid) for fid in ids]
        answers = await asyncio.wait_for(asyncio.gather(*map(growth.grow, tickets)), 10)
    return dict(zip(ids, answers, strict=True))


def test_forests_of_one_moment_make_one_call_of_each_actor() -> None:
    async def scene():
        s = Scene()
        assert await grown(s, "abc", ended("a", "b", "c")) == {"a": 3, "b": 3, "c": 3}
        assert [[t.forest_id for t in tickets] for (tickets,) in s.generator.grow.calls] == [["a", "b", "c"]]
        assert s.graded == [("a", "b", "c")] and [ids for ids, _ in s.queue.admit.calls] == [[("a", "b", "c")]]
        assert len(s.generator.finished.calls) == 1 and not s.failed()

    asyncio.run(scene())


def test_forest_that_ends_early_waits_for_no_other() -> None:
    async def scene():
        s = Scene()
        async with asyncio.TaskGroup() as group:
            growth = Forests(s.cluster, group).on(s.generator)
            slow, fast = (asyncio.create_task(growth.grow(SimpleNamespace(forest_id=fid))) for fid in "ab")
            s.ends.put_nowait(ended("b"))
            assert await asyncio.wait_for(fast, 10) == 3 and not slow.done()
            assert [ids for ids, _ in s.queue.admit.calls] == [[("b",)]]
            s.ends.put_nowait(ended("a"))
            assert await asyncio.wait_for(slow, 10) == 3

    asyncio.run(scene())


@pytest.mark.parametrize("kind", ["grade", "grow"])
def test_forest_that_fails_does_not_fail_its_neighbours(kind: str) -> None:
    async def scene():
        s = Scene()
        if kind == "grade":
            s.bad = {"b"}
            end = ended("a", "b", "c")
        else:
            failure = FailedForest(forest_id="b", cause="EngineLost: no token", engine_gone="")
            end = ended("a", "c", failed=(failure,))
        assert await grown(s, "abc", end) == {"a": 3, "b": None, "c": 3}
        admitted = [fid for ids, _ in s.queue.admit.calls for batch in ids for fid in batch]
        assert sorted(admitted) == ["a", "c"] and not s.replaced
        assert s.failed() == {"b": "ValueError: no grade" if kind == "grade" else "EngineLost: no token"}

    asyncio.run(scene())


def test_dead_generator_fails_its_forests_and_is_replaced() -> None:
    async def scene():
        s = Scene()
        assert await grown(s, "abc", ended("a"), ActorDiedError()) == {"a": 3, "b": None, "c": None}
        assert s.failed() == {"b": "generator died", "c": "generator died"}
        assert [type(fault) for fault in s.replaced] == [ActorDiedError]

    asyncio.run(scene())


def test_generator_without_engine_is_replaced_with_the_cause() -> None:
    async def scene():
        s = Scene()
        failure = FailedForest(forest_id="a", cause="EngineGone: it broke", engine_gone="it broke")
        assert await grown(s, "ab", ended("b", failed=(failure,))) == {"a": None, "b": 3}
        assert s.failed() == {"a": "EngineGone: it broke"} and [str(f) for f in s.replaced] == ["it broke"]

    asyncio.run(scene())


def test_lost_batch_fails_every_forest_in_it() -> None:
    async def scene():
        s = Scene()
        s.lost = {"a"}
        assert await grown(s, "ab", ended("a", "b")) == {"a": None, "b": None}
        assert s.failed() == dict.fromkeys("ab", "its payload is lost")

    asyncio.run(scene())


def test_many_failures_in_a_row_end_the_run() -> None:
    async def scene():
        s = Scene()
        names = [chr(ord("a") + n) for n in range(20)]
        failures = tuple(FailedForest(forest_id=n, cause="EngineLost: x", engine_gone="") for n in names)
        await grown(s, "".join(names), ended(failed=failures))

    with pytest.raises(ExceptionGroup) as fault:
        asyncio.run(scene())
    assert "20 in a row failed, the last with EngineLost: x" in str(next(single_errors(fault.value)))


def test_waiting_loops_of_a_generator_make_one_reservation() -> None:
    async def scene():
        s = Scene()
        in_flight = SimpleNamespace(reserving=0)
        async with asyncio.TaskGroup() as group:
            growth = Forests(s.cluster, group).on(s.generator)
            tickets = await asyncio.gather(*(growth.reserve(in_flight) for _ in range(4)))
            s.cluster.generators.members.clear()
            assert await growth.reserve(in_flight) is None
        assert [t.forest_id for t in tickets] == [f"generator-0-{n}" for n in range(4)]
        assert s.queue.reserve.calls == [("generator-0", 4)] and in_flight.reserving == 0

    asyncio.run(scene())
