"""The members of a role that holds no state of the run: a dead member is replaced, members are added and retired."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Generic, Literal, TypeVar

from ray.actor import ActorProxy

from actors.driver.handles import close, kill
from actors.driver.losses import ACTOR_LOST, kill_when_lost
from actors.driver.targets import Targets

RESTARTS = 5  # replacements of a member without an optimizer step between them; one more fails the run
BACKOFF = 0.5  # seconds before the first replacement; doubles with each

FORESTS = 20  # that may fail in a row

R = TypeVar("R")


class RoleFailed(Exception):
    """A role keeps dying or delivers nothing. The text names the role and the last cause."""


class WorkerGroup(Generic[R]):
    """`members` take work. A retired member finishes its work and is then dismissed; `names` lists it until then."""

    def __init__(
        self,
        role: Literal["generator", "reward"],
        create: Callable[[int], ActorProxy[R]],
        prepare: Callable[[ActorProxy[R]], Awaitable[str]],
        targets: Targets,
        heartbeat_timeout: float,
    ) -> None:
        """`create(number)` makes an actor. `await prepare(actor)` makes it ready to serve and returns the address of
        its /metrics, which is listed in `targets`. A member without a heartbeat for `heartbeat_timeout` seconds is
        replaced."""
        self.role, self._create, self._prepare, self._targets = role, create, prepare, targets
        self.members: list[ActorProxy[R]] = []
        self.names: dict[ActorProxy[R], str] = {}
        self.restarts = 0
        self._deaths: dict[ActorProxy[R], int] = {}  # of a member and its predecessors since the last step
        self._heartbeat_timeout = heartbeat_timeout
        self._watches: dict[ActorProxy[R], asyncio.Task[None]] = {}
        self._numbers = itertools.count()
        self._joins: list[asyncio.Task[None]] = []
        self._ready: asyncio.Queue[ActorProxy[R]] = asyncio.Queue()

    @property
    def target_count(self) -> int:
        """Members, and actors that are starting, replacements included."""
        return len(self.members) + len(self._starting())

    def _starting(self) -> list[asyncio.Task[None]]:
        return [t for t in self._joins if not t.done()]

    async def ready(self) -> AsyncIterator[ActorProxy[R]]:
        """Yield each member once, when it becomes ready: first members, replacements and additions."""
        while True:
            yield await self._ready.get()

    async def start(self, count: int) -> None:
        """Start the first `count` members and wait for them."""
        self._joins = [asyncio.create_task(self._join(), name=f"start {self.role}") for _ in range(count)]
        await asyncio.gather(*self._joins)
        self._joins = []

    def scale(self, count: int) -> None:
        """Set the number of members. Starts actors or retires the newest members; returns at once. `check` raises the
        fault of an actor that cannot start."""
        while self.target_count < count:
            self._joins.append(asyncio.create_task(self._add(), name=f"start {self.role}"))
        while self.target_count > count:
            if starting := self._starting():
                self._joins.remove(starting[-1])
                starting[-1].cancel()
            else:
                self.retire(self.members[-1])

    def retire(self, member: ActorProxy[R]) -> None:
        """Give a member no more work. Whoever gives it work dismisses it when its last work is done."""
        self.members.remove(member)

    def move(self, member: ActorProxy[R]) -> None:
        """Retire a member and start another in its place at once."""
        count = self.target_count
        self.retire(member)
        self.scale(count)

    def replace(self, member: ActorProxy[R], cause: Exception) -> None:
        """Start a new actor for a member that died or can do no work. Returns at once; `check` raises the fault of the
        start. A member that was replaced or retired before is ignored."""
        if member not in self.members:
            return
        self.members.remove(member)
        deaths = self._deaths[member]
        self._forget(member)
        kill(member)
        self._joins.append(asyncio.create_task(self._succeed(deaths, cause), name=f"replace {self.role}"))

    def check(self) -> None:
        """Raise the fault of an actor that could not start. `end` collects further faults of the same kind."""
        starting = self._starting()
        for task in [t for t in self._joins if t not in starting]:
            self._joins.remove(task)
            task.result()
        for watch in [w for w in self._watches.values() if w.done()]:
            watch.result()

    def forgive_deaths(self) -> None:
        """Count deaths anew: a step was taken."""
        self._deaths = dict.fromkeys(self._deaths, 0)

    async def dismiss(self, member: ActorProxy[R]) -> None:
        """End a retired member without work. A member that died is ignored."""
        if member in self.names:
            self._forget(member)
            await close([member])

    async def end(self) -> None:
        """Cancel what is starting and end every member."""
        for task in (*self._joins, *self._watches.values()):
            task.cancel()
        await asyncio.gather(*self._joins, return_exceptions=True)
        await close(list(self.names))
        self.members, self.names, self._joins, self._watches = [], {}, [], {}

    async def _join(self, deaths: int = 0) -> None:
        """Start one member; it may wait long for a place in the cluster. `deaths` counts those of its predecessors."""
        number = next(self._numbers)
        member = self._create(number)
        name = f"{self.role}-{number}"
        self._watches[member] = asyncio.create_task(self._watch(member, name), name=f"watch {name}")
        try:
            address = await self._prepare(member)
            self._targets.add(self.role, name, address)
        except BaseException:
            self._watches.pop(member).cancel()
            kill(member)
            raise
        self.names[member] = name
        self._deaths[member] = deaths
        self.members.append(member)
        self._ready.put_nowait(member)

    async def _watch(self, member: ActorProxy[R], name: str) -> None:
        self.replace(member, await kill_when_lost(member, name, self._heartbeat_timeout))

    async def _succeed(self, deaths: int, cause: Exception) -> None:
        """Start the successor of a dead member, and again when the successor dies while it starts."""
        while True:
            self.restarts += 1
            deaths += 1
            if deaths > RESTARTS:
                raise RoleFailed(
                    f"{self.role}: died {deaths} times since the last step; the last cause: {cause}"
                ) from cause
            await asyncio.sleep(BACKOFF * 2 ** (deaths - 1))
            try:
                return await self._join(deaths)
            except ACTOR_LOST as fault:
                cause = fault

    async def _add(self) -> None:
        try:
            await self._join()
        except ACTOR_LOST as fault:
            await self._succeed(0, fault)

    def _forget(self, member: ActorProxy[R]) -> None:
        del self._deaths[member]
        self._watches.pop(member).cancel()
        self._targets.remove(self.names.pop(member))


class FailureLimit:
    """Counts the forests in a row that could not be grown or graded."""

    def __init__(self) -> None:
        self._failures = 0

    def count(self, cause: str, growing: int) -> None:
        """Count one more. Raise `RoleFailed` at the limit: `FORESTS`, or five times the forests that grow at a time
        where that is more. So many failures do not come from the prompts."""
        self._failures += 1
        if self._failures >= max(FORESTS, 5 * growing):
            raise RoleFailed(f"no forest comes through: {self._failures} in a row failed, the last with {cause}")

    def reset(self) -> None:
        self._failures = 0
