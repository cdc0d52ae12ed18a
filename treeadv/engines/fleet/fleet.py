"""Manages the servers of one generator. This covers their readiness, their recovery, and the routing of trees to them.

A server is ready only while it has the current policy version. A lost server is restarted, checked, and gets the
current weights before any request. A server that discovery finds later gets the same treatment. A server that discovery
no longer lists is closed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Generic, TypeVar

from treeadv.engines.base import EngineLost, Weights
from treeadv.engines.fleet.member import Loaded, Member, Payload, Refused, ServerGone
from treeadv.engines.fleet.routing import Routes
from treeadv.errors import BadInput
from treeadv.visible import visible_logger

ATTEMPTS = 3  # attempts to start a lost server before it is given up
PAUSE = 1.0  # seconds between attempts
DISCOVERY_INTERVAL = 5.0  # seconds

M = TypeVar("M", bound=Member)
log = visible_logger(__name__)


class Fleet(Generic[M, Payload]):
    """The servers of one generator. It keeps them ready, routes trees to them, and sends them weights."""

    def __init__(
        self,
        *,
        key: str,
        make: Callable[[str], M],
        find: Callable[[], Awaitable[list[str]]],
        prepare: Callable[[Weights], Payload],
        patience: float,
    ) -> None:
        """Keep the functions of the engine.

        `key` is the configuration section for error messages. `find` returns the current addresses of the servers. The
        address "" means a server that this process starts. `make` builds the member for an address. `prepare` converts
        weights to the payload of a member, and raises `ValueError` for weights of another model. `patience` is a time
        in seconds. The start waits that long for a first server, and a request waits that long for a ready server.
        """
        self._key, self._make, self._find, self._prepare, self._patience = key, make, find, prepare, patience
        self.members: list[M] = []
        self.version = 0
        self.gone = ""  # the reason why no server was ready in time for a request
        self.updates: list[Loaded] = []
        self._weights: Weights | None = None
        self._updating = asyncio.Lock()
        self._changed = asyncio.Event()  # a server is ready again or was given up
        self._last_fault = ""  # the reason why the last server was given up
        self._discovers = False
        self._routes = Routes()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Start all servers. Raises the first error of a server."""
        addresses = await self._first_addresses()
        self.members = [self._make(a) for a in addresses]
        results = await asyncio.gather(*(m.bring_up() for m in self.members), return_exceptions=True)
        fault = next((o for o in results if o is not None), None)
        if fault is not None:
            await self.close()
            if isinstance(fault, ServerGone | Refused):
                raise BadInput(f"{self._key}: {fault}") from fault
            raise fault
        for member in self.members:
            member.ready.set()
            self._run(self._keep(member))
        self._discovers = addresses != [""]
        if self._discovers:
            self._run(self._discover())

    async def _first_addresses(self) -> list[str]:
        """Return the addresses at the start. Waits for them, because servers that are deployed with the run may start
        later than the run.
        """
        deadline = asyncio.get_running_loop().time() + self._patience
        while True:
            try:
                fault = BadInput(f"{self._key}.url: no server is behind this address")
                if addresses := await self._find():
                    return addresses
            except BadInput as unreachable:
                fault = unreachable
            if asyncio.get_running_loop().time() + DISCOVERY_INTERVAL > deadline:
                raise BadInput(f"{fault} (waited for {self._key}.start_timeout={self._patience:g} s)")
            log.warning("%s; waiting for it", fault)
            await asyncio.sleep(DISCOVERY_INTERVAL)

    def _run(self, work: Coroutine[None, None, None]) -> None:
        self._tasks.add(asyncio.create_task(work))

    async def close(self) -> None:
        """Close all servers. Raises the error of a background task that failed unexpectedly."""
        members = self.members
        for task in self._tasks:
            task.cancel()
        results = await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(m.shut() for m in members))
        for result in results:
            if isinstance(result, Exception):
                raise result

    # ---- routing -----------------------------------------------------------------------------------------------------
    async def server_of(self, forest: str, tree: str) -> M:
        """Return the server of a tree.

        Waits until a server is ready. Raises `EngineLost` if no server becomes ready.
        """
        if not self._ready():
            await self._wait_until_ready()
        ready = {m.url: m for m in self._ready()}
        newest = max(m.version for m in ready.values())  # during an update no tree moves to older weights
        return ready[self._routes.server_of(forest, tree, ready, [u for u, m in ready.items() if m.version == newest])]

    def release(self, forest: str) -> None:
        """Remove the trees of a complete forest from the load of their servers."""
        self._routes.release(forest)

    def _ready(self) -> list[M]:
        return [m for m in self.members if m.ready.is_set()]

    async def _wait_until_ready(self) -> None:
        if self.gone:
            raise EngineLost(self.gone)
        try:
            async with asyncio.timeout(self._patience):
                while not self._ready() and (self.members or self._discovers):
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            reason = self.members[0].reason if self.members else self._last_fault
            self.gone = f"no server was ready for {self._patience:g} s: {reason}"
        else:
            self.gone = "" if self._ready() else f"every server was given up; the last: {self._last_fault}"
        if self.gone:
            raise EngineLost(self.gone)

    # ---- loss and recovery -------------------------------------------------------------------------------------------
    def lose(self, member: M, reason: str) -> bool:
        """Take a server out of service. Returns whether another server is ready.

        When a server fails, many requests fail with it. Only the first failure counts, so later failures do not
        interrupt the recovery.
        """
        if member.ready.is_set():
            member.ready.clear()
            member.reason = reason
            member.lost.set()
        return bool(self._ready())

    async def _keep(self, member: M) -> None:
        """Restart a server each time it is lost. Give the server up after `ATTEMPTS` failures in a row."""
        try:
            while True:
                await self._wait_until_lost(member)
                log.warning("%s is lost: %s", member.url, member.reason)
                if not (member.listed and await self._bring_back(member)):
                    return await member.shut()
                self._changed.set()
        except Exception as defect:  # `close` raises it again; requests that wait must not wait forever
            member.reason = repr(defect)
            raise
        finally:
            self._last_fault = member.reason
            self.members = [m for m in self.members if m is not member]
            self._changed.set()

    async def _discover(self) -> None:
        """Follow servers that are added and removed.

        A new server is treated as a lost server, so it gets weights before requests. A server that discovery no longer
        lists will end soon, so its trees move to other servers. An empty list is ignored, because a restarted router
        has an empty list.
        """
        while True:
            await asyncio.sleep(DISCOVERY_INTERVAL)
            try:
                addresses = await self._find()
            except BadInput as unreachable:
                log.warning("%s", unreachable)
                continue
            for member in [m for m in self.members if addresses and m.url not in addresses]:
                member.listed = False
                self.lose(member, "discovery no longer lists the server")
            for url in set(addresses) - {m.url for m in self.members}:
                member = self._make(url)
                member.reason = "the server is new"
                member.lost.set()
                self.members.append(member)
                self._run(self._keep(member))

    async def _wait_until_lost(self, member: M) -> None:
        ended = asyncio.create_task(member.ended())
        lost = asyncio.create_task(member.lost.wait())
        try:
            await asyncio.wait([ended, lost], return_when=asyncio.FIRST_COMPLETED)
            if not member.lost.is_set():
                self.lose(member, ended.result())
        finally:
            ended.cancel()
            lost.cancel()

    async def _bring_back(self, member: M) -> bool:
        """Restart a server and load the current weights. Returns whether the server is ready."""
        for _ in range(ATTEMPTS):
            member.lost.clear()
            try:
                await member.bring_up()
                async with self._updating:
                    if self._weights is not None:
                        payload = await asyncio.to_thread(self._prepare, self._weights)
                        self.updates.append(await member.load(self.version, payload))
                    member.ready.set()
                self.gone = ""
                return True
            except (BadInput, ServerGone, Refused) as fault:
                member.reason = str(fault)
                log.warning("%s could not be restarted: %s", member.url, fault)
            await asyncio.sleep(PAUSE)
        return False

    # ---- weights -----------------------------------------------------------------------------------------------------
    async def update(self, version: int, weights: Weights) -> None:
        """Load a version into every ready server.

        Other servers, and servers that fail, load the version when they recover. Raises `ValueError` for a version
        below the current version or for weights of another model.
        """
        if version < self.version:
            raise ValueError(f"policy version {version} is older than the engine's {self.version}")
        if version == self.version:  # Ray may repeat a call
            return
        async with self._updating:
            payload = await asyncio.to_thread(self._prepare, weights)
            self.version, self._weights = version, weights
            members = self._ready()
            results = await asyncio.gather(*(m.load(version, payload) for m in members), return_exceptions=True)
        for member, result in zip(members, results, strict=True):
            if isinstance(result, Loaded):
                self.updates.append(result)
            elif isinstance(result, ServerGone | Refused):
                self.lose(member, f"the server did not load policy version {version}: {result}")
            else:
                raise result
