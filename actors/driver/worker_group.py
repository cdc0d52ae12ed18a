"""A group of actors of a role that holds no state of the run. The group replaces dead actors, adds actors and
retires actors."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Generic, Literal, TypeVar

from ray.actor import ActorProxy

from actors.driver.handles import close, kill
from actors.driver.liveness import ACTOR_LOST, Deadlines, Hung, kill_when_lost
from actors.driver.targets import Targets

RESTARTS = 5  # replacements of a member without an optimizer step between them; one more replacement fails the run
BACKOFF = 0.5  # seconds before the first replacement; the time doubles with each replacement
MAX_FAILED_FORESTS = 20  # failed forests in a row

R = TypeVar("R")


class RoleFailed(Exception):
    """A role keeps dying or delivers nothing. The message names the role and the last cause."""


class WorkerGroup(Generic[R]):
    """The actors of one role.

    `members` are the actors that take new work. `names` also contains the retired actors, which finish their work
    before they are dismissed."""

    def __init__(
        self,
        role: Literal["generator", "reward"],
        create: Callable[[int], ActorProxy[R]],
        prepare: Callable[[ActorProxy[R]], Awaitable[str]],
        targets: Targets,
        deadlines: Deadlines,
    ) -> None:
        """Create an empty group.

        `create(number)` creates an actor. `await prepare(actor)` makes it ready to serve and returns the address of its
        /metrics, which is added to `targets`. A member that misses one of `deadlines` is replaced."""
        self.role, self._create, self._prepare, self._targets = role, create, prepare, targets
        self.members: list[ActorProxy[R]] = []
        self.names: dict[ActorProxy[R], str] = {}
        self.restarts = 0
        self._deaths: dict[ActorProxy[R], int] = {}  # deaths of a member and its predecessors since the last step
        self._steps = 0  # calls of `reset_deaths`
        self._deadlines = deadlines
        self._watches: dict[ActorProxy[R], asyncio.Task[Exception]] = {}
        self._numbers = itertools.count()
        self._joins: list[asyncio.Task[None]] = []
        self._ready: asyncio.Queue[ActorProxy[R]] = asyncio.Queue()

    @property
    def target_count(self) -> int:
        """Return the number of members and of actors that are starting. Replacements are included."""
        return len(self.members) + len(self._starting())

    def _starting(self) -> list[asyncio.Task[None]]:
        return [t for t in self._joins if not t.done()]

    async def ready(self) -> AsyncIterator[ActorProxy[R]]:
        """Yield each member once, when it becomes ready. Replacements and added members are included."""
        while True:
            yield await self._ready.get()

    async def start(self, count: int) -> None:
        """Start the first `count` members and wait until they are ready."""
        self._joins = [asyncio.create_task(self._add(), name=f"start {self.role}") for _ in range(count)]
        await asyncio.gather(*self._joins)
        self._joins = []

    def scale(self, count: int) -> None:
        """Start actors, or retire the newest members, until the group has `count` actors. Returns at once.

        `check` raises the error of an actor that cannot start."""
        while self.target_count < count:
            self._joins.append(asyncio.create_task(self._add(), name=f"start {self.role}"))
        while self.target_count > count:
            if starting := self._starting():
                self._joins.remove(starting[-1])
                starting[-1].cancel()
            else:
                self.retire(self.members[-1])

    def retire(self, member: ActorProxy[R]) -> None:
        """Give a member no more work. The caller dismisses the member after its last work."""
        self.members.remove(member)

    def move(self, member: ActorProxy[R]) -> None:
        """Retire a member and start another in its place at once."""
        count = self.target_count
        self.retire(member)
        self.scale(count)

    def replace(self, member: ActorProxy[R], cause: Exception) -> None:
        """Start a new actor for a member that died or cannot work. Returns at once.

        `check` raises the error of a failed start. A member that was already replaced or retired is ignored."""
        if member not in self.members:
            return
        self.members.remove(member)
        deaths = self._deaths[member]
        self._forget(member)
        kill(member)
        self._joins.append(asyncio.create_task(self._start_successor(deaths, cause), name=f"replace {self.role}"))

    def check(self) -> None:
        """Raise the error of an actor that could not start. `end` discards later errors of this kind."""
        starting = self._starting()
        for task in [t for t in self._joins if t not in starting]:
            self._joins.remove(task)
            task.result()
        for watch in [w for w in self._watches.values() if w.done()]:
            watch.result()

    def reset_deaths(self) -> None:
        """Set the counts of deaths to 0. The driver calls this after each step."""
        self._deaths = dict.fromkeys(self._deaths, 0)
        self._steps += 1

    async def dismiss(self, member: ActorProxy[R]) -> None:
        """End a retired member that has no work. A dead member is ignored."""
        if member in self.names:
            self._forget(member)
            await close([member])

    async def end(self) -> None:
        """Cancel the actors that are starting and end every member."""
        for task in (*self._joins, *self._watches.values()):
            task.cancel()
        await asyncio.gather(*self._joins, return_exceptions=True)
        await close(list(self.names))
        self.members, self.names, self._joins, self._watches = [], {}, [], {}

    async def _join(self, deaths: int = 0) -> None:
        """Start one member, which may wait for resources of the cluster. `deaths` is the number of deaths of its
        predecessors."""
        number = next(self._numbers)
        member = self._create(number)
        name = f"{self.role}-{number}"
        self._watches[member] = asyncio.create_task(self._watch(member, name), name=f"watch {name}")
        try:
            address = await self._prepare(member)
            self._targets.add(self.role, name, address)
        except BaseException as fault:
            watch = self._watches.pop(member)
            watch.cancel()
            kill(member)
            if isinstance(fault, ACTOR_LOST) and watch.done() and isinstance(cause := watch.result(), Hung):
                raise cause from fault  # Ray's error says only that the driver killed the actor
            raise
        self.names[member] = name
        self._deaths[member] = deaths
        self.members.append(member)
        self._ready.put_nowait(member)

    async def _watch(self, member: ActorProxy[R], name: str) -> Exception:
        cause = await kill_when_lost(member, name, self._deadlines)
        self.replace(member, cause)
        return cause

    async def _start_successor(self, deaths: int, cause: Exception) -> None:
        """Start the successor of a dead member, and retry if the successor dies during its start.

        The run may take optimizer steps with the other members during this time. Each such step resets the count of
        deaths."""
        steps = self._steps
        while True:
            if steps < self._steps:
                deaths, steps = 0, self._steps
            self.restarts += 1
            deaths += 1
            if deaths > RESTARTS:
                raise RoleFailed(
                    f"{self.role}: died {deaths} times since the last step; the last cause: {cause}"
                ) from cause
            await asyncio.sleep(BACKOFF * 2 ** (deaths - 1))
            try:
                return await self._join(deaths)
            except (Hung, *ACTOR_LOST) as fault:
                cause = fault

    async def _add(self) -> None:
        try:
            await self._join()
        except (Hung, *ACTOR_LOST) as fault:
            await self._start_successor(0, fault)

    def _forget(self, member: ActorProxy[R]) -> None:
        del self._deaths[member]
        self._watches.pop(member).cancel()
        self._targets.remove(self.names.pop(member))


class FailureLimit:
    """A counter of forests that fail in a row. A forest fails if it cannot be grown or graded."""

    def __init__(self) -> None:
        self._failures = 0

    def count(self, cause: str, growing: int) -> None:
        """Count one more failure. Raises `RoleFailed` at the limit.

        The limit is the larger of `MAX_FAILED_FORESTS` and five times `growing`, the number of forests that grow at a
        time. The prompts cannot be the cause of so many failures in a row."""
        self._failures += 1
        if self._failures >= max(MAX_FAILED_FORESTS, 5 * growing):
            raise RoleFailed(f"no forest comes through: {self._failures} in a row failed, the last with {cause}")

    def reset(self) -> None:
        self._failures = 0
