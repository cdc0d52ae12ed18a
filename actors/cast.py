"""The actors of a run: brought up together, replaced one by one, ended together.

The driver owns every actor, so they end with it. Generators and reward actors hold nothing that cannot be drawn again: one that dies
is replaced here. The queue and the learners hold the run itself: when one of them dies, the run goes on from its last checkpoint
(`actors.session`).
"""

from __future__ import annotations

import asyncio
import collections
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from actors.generator import Generator
from actors.learner import Learner
from actors.replay import ReplayQueue
from actors.reward import RewardActor
from treeadv.config import Config
from treeadv.runs import RunFolder

RESTARTS = 5  # replacements of one role without an optimizer step between them, before the run fails with the cause
BACKOFF = 0.5  # seconds before the first replacement; doubles with each


class RoleFailed(Exception):
    """A role keeps dying. The text is the role and the last cause."""


class Cast:
    """`generators` and `rewards` change as members are replaced or the run is scaled; `queue` and `learners` stay."""

    def __init__(self, config: Config, folder: RunFolder, model_dir: str, resumed: bool) -> None:
        """`model_dir` is the base model. A `resumed` run goes on from its last checkpoint, or from step 0 when it has none."""
        self.config, self.folder, self.model_dir, self.resumed = config, folder, model_dir, resumed
        whole = folder.checkpoints()
        self.step, self._checkpoint = whole[-1] if resumed and whole else (0, None)
        self._run_dir = str(folder.path.resolve())
        self.generators: list[Any] = []
        self.rewards: list[Any] = []
        self.learners: list[Any] = []
        self.queue: Any = None
        self.names: dict[Any, str] = {}
        self.targets: dict[str, tuple[str, str]] = {}  # name -> role, address of /metrics
        self.restarts = {"generator": 0, "reward": 0}  # over the whole run
        self._in_a_row = {"generator": 0, "reward": 0}
        self._grading: collections.Counter[Any] = collections.Counter()
        self._durable = self.step
        self._published: tuple[int, list[Any]] | None = None
        self._recruits: asyncio.Queue[Any] = asyncio.Queue()
        self._numbers = itertools.count()

    # ---- life ----------------------------------------------------------------------------------------------------------------
    async def __aenter__(self) -> Cast:
        try:
            at = self.step if self.resumed else None
            # Ray brings the queue back from its journal, and asks again what was being asked: its methods are idempotent.
            queue = _actor(ReplayQueue, max_concurrency=1000, max_restarts=RESTARTS, max_task_retries=-1)
            self.queue = queue.remote(self.config, self._run_dir, at, self.config.metrics.port)
            self.target("queue", "queue", await self.queue.address.remote())
            await asyncio.gather(self._learners(), self._enlist("reward", self.config.reward.count))
            await self._enlist("generator", self.config.generator.count)
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        members = [m for m in [*self.generators, *self.rewards, *self.learners, self.queue] if m is not None]
        closing = [m.close.remote() for m in members]
        if closing:
            await asyncio.to_thread(ray.wait, closing, num_returns=len(closing), timeout=10)
        for member in members:  # also those whose close() failed: what they hold is on the disk
            ray.kill(member)

    async def _enlist(self, role: str, count: int) -> None:
        await asyncio.gather(*(self._join(role) for _ in range(count)))

    async def _join(self, role: str) -> None:
        """Bring up one member and let it serve, once it holds the current weights."""
        make: Callable[[str], Awaitable[Any]] = {"generator": self._generator, "reward": self._reward}[role]
        member = await make(f"{role}-{next(self._numbers)}")
        self.members(role).append(member)
        if role == "generator":
            self._recruits.put_nowait(member)

    async def _learners(self) -> None:
        c = self.config.learner
        self.learners = [
            _actor(Learner, c).remote(self.config, self.model_dir, self._run_dir, rank, c.count, self.config.metrics.port)
            for rank in range(c.count)
        ]
        meeting = await self.learners[0].rendezvous.remote()
        await asyncio.gather(*(m.join.remote(meeting) for m in self.learners))
        if self._checkpoint:
            await asyncio.gather(*(m.restore.remote(str(self._checkpoint)) for m in self.learners))
            await self.publish(self.step)
        for rank, member in enumerate(self.learners):
            self.target("learner", f"learner-{rank}", await member.address.remote())

    async def _generator(self, name: str) -> Any:
        c = self.config.generator
        role = _actor(Generator, c, max_concurrency=c.forests + 8)
        member = role.remote(self.config, self.model_dir, int(name.split("-")[1]), self.config.metrics.port)
        self.names[member] = name
        self.target("generator", name, await member.start.remote())
        taken = None
        while taken is not self._published:  # more may be published while it takes one
            taken = self._published
            await member.update_weights.remote(*taken)
        return member

    async def _reward(self, name: str) -> Any:
        role = _actor(RewardActor, self.config.reward, max_concurrency=1000)
        member = role.remote(self.config, self.model_dir, int(name.split("-")[1]), self.config.metrics.port)
        self.names[member] = name
        self.target("reward", name, await member.address.remote())
        return member

    def target(self, role: str, name: str, address: str) -> None:
        """Put the address of one role's /metrics into targets.json, which Prometheus discovers."""
        self.targets[name] = role, address
        self.folder.write("targets.json", [
            {"targets": [address], "labels": {"role": role, "instance": name}} for name, (role, address) in self.targets.items()
        ])

    # ---- membership ----------------------------------------------------------------------------------------------------------
    def members(self, role: str) -> list[Any]:
        return {"generator": self.generators, "reward": self.rewards}[role]

    async def ready_generators(self) -> AsyncIterator[Any]:
        """Generators as they become ready: those of the start, replacements, and those that the run was scaled out by."""
        while True:
            yield await self._recruits.get()

    async def replace(self, role: str, member: Any, cause: Exception) -> None:
        """Bring up a new member for one that died. `RoleFailed` when the role dies again and again."""
        if member not in self.members(role):
            return  # another who noticed has seen to it
        self.members(role).remove(member)
        del self.targets[self.names[member]]
        await self.queue.forget.remote(self.names.pop(member))
        self.restarts[role] += 1
        self._in_a_row[role] += 1
        if self._in_a_row[role] > RESTARTS:
            raise RoleFailed(f"{role}: died {self._in_a_row[role]} times since the last step; the last cause: {cause}") from cause
        await asyncio.sleep(BACKOFF * 2 ** (self._in_a_row[role] - 1))
        await self._join(role)

    # ---- what the algorithm asks for -----------------------------------------------------------------------------------------
    async def grade(self, forest: Any) -> Any:
        """A reference to the forest graded by some reward actor; one that dies over it is replaced and another asked."""
        while True:
            while not self.rewards:
                await asyncio.sleep(BACKOFF)
            member = min(self.rewards, key=self._grading.__getitem__)
            self._grading[member] += 1
            try:
                scored, verdicts = member.grade.options(num_returns=2).remote(forest)
                await verdicts
                return scored
            except RayActorError as fault:
                await self.replace("reward", member, fault)
            finally:
                self._grading[member] -= 1

    async def lease(self, version: int, stop: asyncio.Event) -> Any | None:
        """The next batch of ready forests, waited for; None when `stop` came first."""
        leasing = asyncio.ensure_future(self.queue.lease.remote(self.config.learner.forests_per_step, version))
        stopping = asyncio.ensure_future(stop.wait())
        await asyncio.wait([leasing, stopping], return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if leasing.done():
            return await leasing
        leasing.cancel()
        return None

    async def train(self, refs: list[Any], version: int) -> Any:
        """One optimizer step on every rank; the report of rank 0, which speaks for all."""
        reports = await asyncio.gather(*(m.step.remote(refs, version) for m in self.learners))
        self._in_a_row = dict.fromkeys(self._in_a_row, 0)
        return reports[0]

    async def publish(self, version: int) -> None:
        """Bring a policy version to every generator while they draw."""
        buckets = (await asyncio.gather(*(m.publish.remote() for m in self.learners)))[0]
        self._published = version, buckets
        taken = await asyncio.gather(*(m.update_weights.remote(version, buckets) for m in self.generators), return_exceptions=True)
        for fault in taken:  # a dead one is replaced by whoever grows on it, and its successor starts with this version
            if isinstance(fault, Exception) and not isinstance(fault, RayActorError):
                raise fault

    async def checkpoint(self, step: int) -> None:
        """Make `step` durable, then tell the queue: what was trained up to it is trained for good."""
        if step > self._durable:
            await asyncio.gather(*(m.checkpoint.remote(step, {"step": step}) for m in self.learners))
            await self.queue.commit.remote(step)
            self._durable = self.step


def reason(fault: RayTaskError) -> str:
    """The last line of a remote error, which names it."""
    return str(fault).strip().splitlines()[-1]


def _actor(role: type, options: Any = None, **more: Any) -> Any:
    """The Ray actor class of a role, with the resources that its section of the configuration asks for."""
    asked: dict[str, Any] = {"num_cpus": 0, **more}
    if options is not None:
        asked |= {"num_cpus": options.cpus, "num_gpus": getattr(options, "gpus", 0)}
        if options.slot:
            asked["resources"] = {options.slot: 1}
    return ray.remote(role).options(**asked)
