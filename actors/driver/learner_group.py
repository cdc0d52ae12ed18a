"""The learners of a run. All ranks start, step, publish and checkpoint together."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import ray
from ray import ObjectRef
from ray.actor import ActorProxy

from actors.driver.handles import actor_class, actor_id, close, kill
from actors.driver.liveness import Deadlines, kill_when_lost
from actors.driver.targets import Targets
from actors.learner import Learner
from actors.replay_queue import Lease
from actors.weight_bucket import WeightBucket
from treeadv.config import Config
from treeadv.learning.report import StepReport
from treeadv.storage.run_folder import RunFolder


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """The weights of a policy version in Ray's object store. `buckets` together hold all weights."""

    version: int
    buckets: Sequence[ObjectRef[WeightBucket]]
    size: int  # bytes


class LearnerGroup:
    """The learner ranks of one attempt at a run. If a rank dies, the run resumes from its last checkpoint with a new
    group."""

    def __init__(self, config: Config, folder: RunFolder, targets: Targets, role: type[Learner] = Learner) -> None:
        """`role` is the class of a rank."""
        self._role = role
        self._config, self._folder, self._targets = config, folder, targets
        self.members: list[ActorProxy[Learner]] = []
        self._watches: list[asyncio.Task[None]] = []
        self._count = self.target_count = config.learner.count

    async def start(self, step: int) -> int:
        """Start every rank with the base model, or with the checkpoint of `step` if `step` is not 0.

        Returns the version of the weights."""
        role = actor_class(self._role, self._config.learner)
        run_dir, port = str(self._folder.path.resolve()), self._config.metrics.port
        self.members = [role.remote(self._config, run_dir, rank, self._count, port) for rank in range(self._count)]
        self._watches = [asyncio.create_task(self._watch(m, f"learner-{i}")) for i, m in enumerate(self.members)]
        rendezvous = await self.members[0].rendezvous.remote()
        await asyncio.gather(*(m.join.remote(rendezvous) for m in self.members))
        versions = [0]
        if step:
            versions = await asyncio.gather(*(m.restore.remote(step) for m in self.members))
        for rank, member in enumerate(self.members):
            self._targets.add("learner", f"learner-{rank}", await member.address.remote())
        return versions[0]

    async def step(self, lease: Lease, version: int) -> StepReport:
        """Take the optimizer updates of one batch on every rank. Returns the report of rank 0, which covers all
        ranks."""
        reports = await asyncio.gather(*(m.step.remote(list(lease.refs), lease.rows, version) for m in self.members))
        return reports[0]

    async def publish(self, version: int) -> Publication:
        """Let every rank put its share of the weights into the object store."""
        shares = await asyncio.gather(*(m.publish.remote() for m in self.members))
        buckets = [bucket for refs, _ in shares for bucket in refs]
        return Publication(version=version, buckets=buckets, size=sum(size for _, size in shares))

    async def checkpoint(self, step: int, session: str) -> None:
        """Write the checkpoint of `step`. In an object store the checkpoint is valid only after it is sealed."""
        await asyncio.gather(*(m.checkpoint.remote(step, session) for m in self.members))

    def request_count(self, count: int) -> bool:
        """Set the number of learners of the next attempt. Returns whether this number differs from the current
        number."""
        self.target_count = count
        return count != self._count

    def missing_resources(self, count: int) -> str:
        """Return the resources that `count` learners need and that the cluster does not have free; "" if the learners
        fit."""
        c = self._config.learner
        free, each = ray.available_resources(), {"CPU": c.cpus, "GPU": c.gpus} | ({c.slot: 1.0} if c.slot else {})
        short = [k for k, v in each.items() if v * (count - self._count) > free.get(k, 0.0)]
        return ", ".join(f"{each[k] * count:g} {k}" for k in short)

    def actor_ids(self) -> list[str]:
        return [actor_id(m) for m in self.members]

    async def end(self) -> None:
        for watch in self._watches:
            watch.cancel()
        await close(self.members)
        self.members, self._watches = [], []

    async def _watch(self, member: ActorProxy[Learner], name: str) -> None:
        """Kill every rank when `member` is lost, because the others would wait for it in a collective operation."""
        await kill_when_lost(member, name, Deadlines.of(self._config.run))
        for other in self.members:
            kill(other)
