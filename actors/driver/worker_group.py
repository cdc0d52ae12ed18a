"""The members of one role that hold nothing of the run's state: they may die and be replaced, be added and be retired."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from typing import Any

import ray
from ray.exceptions import RayActorError

RESTARTS = 5  # replacements of a member without an optimizer step between them, before the run fails with the cause
BACKOFF = 0.5  # seconds before the first replacement; doubles with each


class RoleFailed(Exception):
    """A role keeps dying, or delivers nothing. The text is the role and the last cause."""


class Crew:
    """`members` serve; a member that was retired still finishes what it has in hand, until it is dismissed."""

    def __init__(
        self, role: str, create: Callable[[int], Any], prepare: Callable[[Any], Any], place: Callable[[str, str, str | None], None]
    ) -> None:
        """`create(number)` makes an actor, `await prepare(actor)` lets it serve and gives its address, `place(role, name, address)`
        hears where members are (None: gone)."""
        self.role, self._create, self._prepare, self._place = role, create, prepare, place
        self.members: list[Any] = []
        self.names: dict[Any, str] = {}
        self.restarts = 0
        self._deaths: dict[Any, int] = {}  # of a member and those that it replaced, since the last step
        self._numbers = itertools.count()
        self._joining: list[asyncio.Task[None]] = []
        self._ready: asyncio.Queue[Any] = asyncio.Queue()

    @property
    def wanted(self) -> int:
        """Members that serve, and those that are on their way, replacements too."""
        return len(self.members) + len(self._coming())

    def _coming(self) -> list[asyncio.Task[None]]:
        return [t for t in self._joining if not t.done()]

    async def ready(self) -> AsyncIterator[Any]:
        """Members as they become ready: those of the start, replacements, additions."""
        while True:
            yield await self._ready.get()

    async def fill(self, count: int) -> None:
        """Bring up the first `count` members."""
        self._joining = [asyncio.create_task(self.join(), name=f"joining {self.role}") for _ in range(count)]
        await asyncio.gather(*self._joining)
        self._joining = []

    async def join(self, deaths: int = 0) -> None:
        """Bring up one member. It may wait long for a place in the cluster: Ray's autoscaler sees it waiting. `deaths` of those that it
        replaces count as its own."""
        number = next(self._numbers)
        member = self._create(number)
        name = f"{self.role}-{number}"
        try:
            self._place(self.role, name, await self._prepare(member))
        except BaseException:
            ray.kill(member)
            raise
        self.names[member] = name
        self._deaths[member] = deaths
        self.members.append(member)
        self._ready.put_nowait(member)

    def scale(self, wanted: int) -> None:
        """Add members or retire the newest. Returns at once: those that join do so in their own time, their faults show in `check`;
        those that are retired finish what they have in hand."""
        while self.wanted < wanted:
            self._joining.append(asyncio.create_task(self._add(), name=f"joining {self.role}"))
        while self.wanted > wanted:
            if coming := self._coming():
                self._joining.remove(coming[-1])
                coming[-1].cancel()
            else:
                self.members.pop()  # it stays in `names` until it is dismissed

    def check(self) -> None:
        """Take in who has joined; raises what went wrong with one who could not. Of more that could not `end` hears."""
        coming = self._coming()
        for task in [t for t in self._joining if t not in coming]:
            self._joining.remove(task)
            task.result()

    def replace(self, member: Any, cause: Exception) -> None:
        """Bring up a new member for one that died, or can do nothing any more, in its own time; `check` tells when that fails."""
        if member not in self.members:
            return  # retired, or another who noticed has seen to it
        self.members.remove(member)
        deaths = self._deaths[member]
        self._forget(member)
        ray.kill(member)
        self._joining.append(asyncio.create_task(self._succeed(deaths, cause), name=f"replacing {self.role}"))

    async def _succeed(self, deaths: int, cause: Exception) -> None:
        """Join in the place of one that died, and again when the successor dies while it comes up."""
        while True:
            self.restarts += 1
            deaths += 1
            if deaths > RESTARTS:
                raise RoleFailed(f"{self.role}: died {deaths} times since the last step; the last cause: {cause}") from cause
            await asyncio.sleep(BACKOFF * 2 ** (deaths - 1))
            try:
                return await self.join(deaths)
            except RayActorError as fault:
                cause = fault

    async def _add(self) -> None:
        try:
            await self.join()
        except RayActorError as fault:
            await self._succeed(0, fault)

    def progress(self) -> None:
        """A step was taken: what died before it is forgiven."""
        self._deaths = dict.fromkeys(self._deaths, 0)

    async def dismiss(self, member: Any) -> None:
        """End a retired member that has nothing in hand any more; one that died is gone already."""
        if member in self.names:
            self._forget(member)
            await close([member])

    async def end(self) -> None:
        for task in self._joining:
            task.cancel()
        await asyncio.gather(*self._joining, return_exceptions=True)  # cancelled here, or one of them told by `check`
        await close(list(self.names))
        self.members, self.names, self._joining = [], {}, []

    def _forget(self, member: Any) -> None:
        del self._deaths[member]
        self._place(self.role, self.names.pop(member), None)


async def close(members: list[Any]) -> None:
    """Let actors close, ten seconds at most, then end them; what a member cannot do in that time must not be needed."""
    closing = [m.close.remote() for m in members]
    if closing:
        await asyncio.to_thread(ray.wait, closing, num_returns=len(closing), timeout=10)
    for member in members:
        ray.kill(member)
