"""The servers of one generator: which serve, which are being brought back, and which of them grows which tree.

A server serves only while it holds the current policy version. One that is lost is brought up again (a server of our
own is restarted), checked, and given the current weights before any traffic; so is one that appears later. One that is
no longer listed is let go.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, Literal

import torch

from treeadv.engines.base import EngineLost
from treeadv.engines.sglang.client import ServerGone
from treeadv.engines.sglang.member import Member, Model
from treeadv.engines.sglang.reply import Refused
from treeadv.engines.sglang.routing import Routes
from treeadv.engines.sglang.weights import Loaded, tensors_of
from treeadv.errors import BadInput

ATTEMPTS = 3  # to bring a lost server up, before it is given up
PAUSE = 1.0  # seconds between them
LOOK = 5.0  # seconds between looks for servers that have appeared

log = logging.getLogger(__name__)


class Fleet:
    def __init__(self, make: Callable[[str], Member], find: Callable[[], Awaitable[list[str]]], model: Model, dtype: str, patience: float):
        """`find` gives the addresses of the servers as they are now ("" is a server of our own), `make` a member for
        one.

        `dtype`: of the servers' weights; `patience`: seconds that the start waits for a server to appear, and a request
        for one to be ready.
        """
        self._make, self._find, self._model, self._dtype, self._patience = make, find, model, getattr(torch, dtype), patience
        self.members: list[Member] = []
        self.version = 0
        self.gone = ""  # why no server came in time to a request
        self.updates: list[Loaded] = []
        self._weights: Mapping[str, Any] | None = None
        self._updating = asyncio.Lock()
        self._changed = asyncio.Event()  # a server came back or was given up
        self._fault = ""  # why the last one was given up
        self._discovers = False
        self._routes = Routes()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Bring all servers up. The first fault of any ends the start."""
        addresses = await self._appear()
        self.members = [self._make(a) for a in addresses]
        outcomes = await asyncio.gather(*(m.bring_up() for m in self.members), return_exceptions=True)
        fault = next((o for o in outcomes if o is not None), None)
        if fault is not None:
            await self.close()
            if isinstance(fault, ServerGone | Refused):
                raise BadInput(f"generator.sglang: {fault}") from fault
            raise fault
        for member in self.members:
            member.ready.set()
            self._watch(self._keep(member))
        self._discovers = addresses != [""]
        if self._discovers:
            self._watch(self._discover())

    async def _appear(self) -> list[str]:
        """The addresses at the start. A fleet that is installed together with the run may come up after it, its router
        too.
        """
        deadline = asyncio.get_running_loop().time() + self._patience
        while True:
            try:
                fault = BadInput("generator.sglang.url: there is no server behind it")
                if addresses := await self._find():
                    return addresses
            except BadInput as unreachable:
                fault = unreachable
            if asyncio.get_running_loop().time() + LOOK > deadline:
                raise BadInput(f"{fault} (waited for generator.sglang.start_timeout={self._patience:g} s)")
            log.warning("%s; waiting for it", fault)
            await asyncio.sleep(LOOK)

    def _watch(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.add(asyncio.create_task(work))

    async def close(self) -> None:
        """Let go of all servers. A task that failed by a defect is heard of here at the latest."""
        members = self.members
        for task in self._tasks:
            task.cancel()
        outcomes = await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(m.shut() for m in members))
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome

    # ---- routing -----------------------------------------------------------------------------------------------------
    async def home(self, forest: str, tree: str) -> Member:
        """The server of a tree; waits for one that is being brought back. Raises `EngineLost` where none will come."""
        if not self._ready():
            await self._someone_ready()
        ready = {m.url: m for m in self._ready()}
        newest = max(m.version for m in ready.values())  # during an update a tree must not move to older weights
        return ready[self._routes.home(forest, tree, ready, [u for u, m in ready.items() if m.version == newest])]

    def release(self, forest: str) -> None:
        self._routes.release(forest)

    def _ready(self) -> list[Member]:
        return [m for m in self.members if m.ready.is_set()]

    async def _someone_ready(self) -> None:
        if self.gone:
            raise EngineLost(self.gone)
        try:
            async with asyncio.timeout(self._patience):
                while not self._ready() and (self.members or self._discovers):
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            self.gone = f"no server was ready for {self._patience:g} s: {self.members[0].reason if self.members else self._fault}"
        else:
            self.gone = "" if self._ready() else f"every server was given up; the last: {self._fault}"
        if self.gone:
            raise EngineLost(self.gone)

    # ---- losing and coming back --------------------------------------------------------------------------------------
    def lose(self, member: Member, reason: str) -> bool:
        """Take a server out of service. Returns whether another is ready at once.

        Of many requests that fail with the server the first counts: the others must not lose it again when it is being
        brought back.
        """
        if member.ready.is_set():
            member.ready.clear()
            member.reason = reason
            member.lost.set()
        return bool(self._ready())

    async def _keep(self, member: Member) -> None:
        """Bring a server back each time that it is lost; give it up when that fails `ATTEMPTS` times in a row."""
        try:
            while await self._loss(member):
                log.warning("%s is lost: %s", member.url, member.reason)
                if not (member.listed and await self._bring_back(member)):
                    return await member.shut()
                self._changed.set()
        except Exception as defect:  # raised again in `close`; those who wait for the server must not wait in vain
            member.reason = repr(defect)
            raise
        finally:
            self._fault = member.reason
            self.members = [m for m in self.members if m is not member]
            self._changed.set()

    async def _discover(self) -> None:
        """Follow a fleet that is scaled. Servers that appear at the address are taken in as lost ones, so that they get
        weights before traffic; those that it no longer names are about to end, and their trees go on at the others. An
        empty list says nothing of servers: a router that was restarted has one.
        """
        while True:
            await asyncio.sleep(LOOK)
            try:
                addresses = await self._find()
            except BadInput as unreachable:
                log.warning("%s", unreachable)
                continue
            for member in [m for m in self.members if addresses and m.url not in addresses]:
                member.listed = False
                self.lose(member, "it is no longer listed")
            for url in set(addresses) - {m.url for m in self.members}:
                member = self._make(url)
                member.reason = "it has just appeared"
                member.lost.set()
                self.members.append(member)
                self._watch(self._keep(member))

    async def _loss(self, member: Member) -> Literal[True]:
        """Wait until the server is lost; always True."""
        waits: list[asyncio.Task[Any]] = [asyncio.create_task(member.lost.wait())]
        if member.process:
            waits.append(asyncio.create_task(member.process.process.wait()))
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for w in waits:
                w.cancel()
        if not member.lost.is_set():
            self.lose(member, f"its process ended with code {member.process.process.returncode}" if member.process else "")
        return True

    async def _bring_back(self, member: Member) -> bool:
        for _ in range(ATTEMPTS):
            member.lost.clear()
            try:
                await member.bring_up()
                async with self._updating:
                    if self._weights is not None:
                        tensors = await asyncio.to_thread(self._tensors, self._weights)
                        self.updates.append(await member.load(self.version, tensors))
                    member.ready.set()
                self.gone = ""
                return True
            except (BadInput, ServerGone, Refused) as fault:
                member.reason = str(fault)
                log.warning("%s did not come back: %s", member.url, fault)
            await asyncio.sleep(PAUSE)
        return False

    # ---- weights -----------------------------------------------------------------------------------------------------
    async def update(self, version: int, weights: Mapping[str, Any]) -> None:
        """Bring a version into every server that is ready; the others get it when they come back, as does one that
        fails over it.

        Raises `ValueError` for a version that goes backwards or weights of another model.
        """
        if version < self.version:
            raise ValueError(f"policy version {version} is older than the engine's {self.version}")
        if version == self.version:  # a repeated call (Ray calls at least once): it is there
            return
        self._model.check(weights)
        async with self._updating:
            self.version, self._weights = version, weights
            tensors = await asyncio.to_thread(self._tensors, weights)
            members = self._ready()
            outcomes = await asyncio.gather(*(m.load(version, tensors) for m in members), return_exceptions=True)
        for member, outcome in zip(members, outcomes, strict=True):
            if isinstance(outcome, Loaded):
                self.updates.append(outcome)
            elif isinstance(outcome, ServerGone | Refused):
                self.lose(member, f"it did not take policy version {version}: {outcome}")
            else:
                raise outcome

    def _tensors(self, weights: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        return tensors_of(weights, self._dtype, self._model.tied)
