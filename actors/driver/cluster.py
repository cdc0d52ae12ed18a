"""The actors of a run: brought up together, ended together.

The driver owns every actor, so they end with it. Generators and reward actors are crews, whose members come and go. The queue and the
learners hold the run itself: Ray brings a dead queue back from its journal; when a learner dies, the run goes on from its last
checkpoint (`actors.driver.supervisor`).
"""

from __future__ import annotations

import asyncio
import collections
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.driver.worker_group import BACKOFF, RESTARTS, Crew, RoleFailed, close
from actors.generator import Generator
from actors.learner import Learner
from actors.replay_queue import ReplayQueue
from actors.reward import RewardActor
from treeadv.config import Config
from treeadv.rewards.sandbox.pool import PoolBroken
from treeadv.storage.run_folder import RunFolder

# Calls that an actor may have under way: those that wait (for a slot, for forests, for a verdict) must never keep out one that would
# end their waiting.
UNBOUNDED = 1_000_000
FAILURES = 20  # forests in a row that may fail, or five times as many as grow at a time where that is more


class Cast:
    """`generators` and `rewards` are crews, `queue` and `learners` stay from `begin` to `end`."""

    def __init__(self, config: Config, folder: RunFolder, resumed: bool) -> None:
        """A `resumed` run goes on from its last checkpoint, or from step 0 when it has none."""
        self.config, self.folder, self.resumed = config, folder, resumed
        self.step = folder.last_checkpoint() if resumed else 0
        self._session = folder.store.next_session()
        self.queue: Any = None
        self.learners: list[Any] = []
        self.targets: dict[str, tuple[str, str]] = {}  # name -> role, address of /metrics
        self._run_dir, self._port = str(folder.path.resolve()), config.metrics.port
        self._home = RunFolder.of(folder.path.resolve(), config).home
        self.generators = Crew("generator", self._generator, self._bring_up, self._place)
        self.rewards = Crew("reward", self._reward, lambda member: member.address.remote(), self._place)
        self._grading: collections.Counter[Any] = collections.Counter()
        self.learners_wanted = config.learner.count  # another number: the cast ends at its next step and a new one begins
        self.leaving = False  # a learner's node goes away: likewise
        self.weight_bytes = 0  # of the last publication
        self.failures = 0  # forests in a row that could not be grown or graded
        self.missed_updates = 0  # by generators that died over one
        self._durable = self.step
        self._published: tuple[int, list[Any]] | None = None

    # ---- life ----------------------------------------------------------------------------------------------------------------
    async def begin(self) -> None:
        """Bring everyone up. Whatever comes of it, `end` has to follow."""
        # Ray asks a queue that it brought back again what was being asked: its methods are idempotent. But in an object store what
        # a dead queue had not yet written is gone: from there the run goes on from its last checkpoint.
        lives: dict[str, Any] = {"max_restarts": RESTARTS, "max_task_retries": -1} if self.folder.store.keeps_unflushed else {}
        # It lives with the driver, which needs it as much as it needs the driver: nodes of other roles come and go.
        lives["scheduling_strategy"] = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self.queue = _actor(ReplayQueue, max_concurrency=UNBOUNDED, **lives).remote(
            self.config, self._home, self._session, self.step, self._port
        )
        self._place("queue", "queue", await self.queue.address.remote())
        await asyncio.gather(self._start_learners(), self.rewards.fill(self.config.reward.count))
        await self.generators.fill(self.config.generator.count)

    async def end(self) -> None:
        await asyncio.gather(self.generators.end(), self.rewards.end())
        await close([*self.learners, *([self.queue] if self.queue else [])])
        self.learners, self.queue, self.targets = [], None, {}

    def missing(self) -> str:
        """Who is not there yet, and what the cluster has to place them on."""
        there = collections.Counter(role for role, _ in self.targets.values())
        c = self.config
        wanted = {"queue": 1, "learner": c.learner.count, "reward": c.reward.count, "generator": c.generator.count}
        missing = [f"{n - there[role]} of {n} {role}" for role, n in wanted.items() if there[role] < n]
        shown = {k: v for k, v in ray.cluster_resources().items() if k in ("CPU", "GPU") or k.endswith("_slot")}
        return f"{', '.join(missing)} (in the cluster: {', '.join(f'{v:g} {k}' for k, v in sorted(shown.items()))})"

    def lacks(self, learners: int) -> str:
        """What so many learners would need and the cluster does not have; "" when they have room."""
        c = self.config.learner
        free, each = ray.available_resources(), {"CPU": c.cpus, "GPU": c.gpus} | ({c.slot: 1.0} if c.slot else {})
        short = [k for k, v in each.items() if v * (learners - c.count) > free.get(k, 0.0)]
        return ", ".join(f"{each[k] * learners:g} {k}" for k in short)

    @property
    def renewed(self) -> bool:
        """Whether the run goes on in another cast, for its learners are to be others or elsewhere."""
        return self.leaving or self.learners_wanted != self.config.learner.count

    async def _start_learners(self) -> None:
        c = self.config.learner
        role = _actor(Learner, c)
        self.learners = [role.remote(self.config, self._run_dir, rank, c.count, self._port) for rank in range(c.count)]
        meeting = await self.learners[0].rendezvous.remote()
        await asyncio.gather(*(m.join.remote(meeting) for m in self.learners))
        if self.step:
            await asyncio.gather(*(m.restore.remote(self.step) for m in self.learners))
            await self.publish(self.step)
        for rank, member in enumerate(self.learners):
            self._place("learner", f"learner-{rank}", await member.address.remote())

    def _generator(self, number: int) -> Any:
        c = self.config.generator
        return _actor(Generator, c, max_concurrency=c.forests + 8).remote(self.config, number, self._port)

    async def _bring_up(self, generator: Any) -> str:
        """Load its engine; it serves only once it holds the current weights."""
        address = await generator.start.remote()
        taken = None
        while taken is not self._published:  # more may be published while it takes one
            taken = self._published
            if taken:
                await generator.update_weights.remote(*taken)
        return address

    def _reward(self, number: int) -> Any:
        return _actor(RewardActor, self.config.reward, max_concurrency=UNBOUNDED).remote(self.config, number, self._port)

    def _place(self, role: str, name: str, address: str | None) -> None:
        """Keep targets.json, which Prometheus discovers, with the address of every /metrics."""
        if address:
            self.targets[name] = role, address
        else:
            del self.targets[name]
        self.folder.write("targets.json", [
            {"targets": [address], "labels": {"role": role, "instance": name, "run": self.folder.path.name}}
            for name, (role, address) in self.targets.items()
        ])

    def serve_driver(self, address: str) -> None:
        self._place("driver", "driver", address)

    # ---- what the algorithm asks for -----------------------------------------------------------------------------------------
    async def grade(self, forest: Any) -> Any:
        """A reference to the forest graded by some reward actor; one that dies over it, or whose verifiers do, is replaced and another
        asked."""
        while True:
            while not self.rewards.members:
                await asyncio.sleep(BACKOFF)
            member = min(self.rewards.members, key=self._grading.__getitem__)
            self._grading[member] += 1
            try:
                scored, verdicts = member.grade.options(num_returns=2).remote(forest)
                await verdicts
                return scored
            except RayActorError as fault:
                self.rewards.replace(member, fault)
            except RayTaskError as fault:
                if not isinstance(fault.cause, PoolBroken):
                    raise
                self.rewards.replace(member, fault.cause)
            finally:
                self._grading[member] -= 1

    def failed(self, fault: RayTaskError) -> None:
        """One more forest failed. When none comes through any more the cause is not the prompt: `RoleFailed`."""
        self.failures += 1
        growing = len(self.generators.members) * self.config.generator.forests
        if self.failures >= max(FAILURES, 5 * growing):
            raise RoleFailed(f"no forest comes through: {self.failures} in a row failed, the last with {reason(fault)}") from fault

    async def sweep(self) -> None:
        """End the reward actors that were retired and have nothing left to grade."""
        for member in [m for m in self.rewards.names if m not in self.rewards.members and not self._grading[m]]:
            await self.rewards.dismiss(member)

    async def lease(self, version: int, stop: asyncio.Event) -> Any | None:
        """The next batch of ready forests, waited for; None when `stop` came first."""
        leasing = asyncio.ensure_future(self.queue.lease.remote(self.config.learner.forests_per_step, version))
        stopping = asyncio.ensure_future(stop.wait())
        try:
            await asyncio.wait([leasing, stopping], return_when=asyncio.FIRST_COMPLETED)
            return await leasing if leasing.done() else None
        finally:  # also when the run ends meanwhile: the queue's refusal would come when nobody listens any more
            stopping.cancel()
            leasing.cancel()

    async def train(self, refs: list[Any], version: int) -> Any:
        """One optimizer step on every rank; the report of rank 0, which speaks for all."""
        reports = await asyncio.gather(*(m.step.remote(refs, version) for m in self.learners))
        for crew in (self.generators, self.rewards):
            crew.progress()
        return reports[0]

    async def publish(self, version: int) -> None:
        """Bring a policy version to every generator while they draw."""
        weights, self.weight_bytes = (await asyncio.gather(*(m.publish.remote() for m in self.learners)))[0]
        self._published = version, weights
        holders = list(self.generators.names)  # also those that were retired and finish what they have in hand
        taken = await asyncio.gather(*(m.update_weights.remote(version, weights) for m in holders), return_exceptions=True)
        for fault in taken:  # a dead one is replaced by whoever grows on it, and its successor starts with this version
            if isinstance(fault, RayActorError):
                self.missed_updates += 1
            elif isinstance(fault, BaseException):
                raise fault

    async def checkpoint(self, step: int) -> None:
        """Make `step` durable, then tell the queue: what was trained up to it is trained for good. Journal and records go first: from
        a checkpoint of steps that they do not know nobody could go on."""
        if step > self._durable:
            await self.queue.flush.remote()
            await asyncio.to_thread(self.folder.store.push)
            await asyncio.gather(*(m.checkpoint.remote(step, {"step": step}, self._session) for m in self.learners))
            await self.queue.flush.remote()  # writing takes its time: this session must still own the run
            await asyncio.to_thread(self.folder.store.seal, step, self._session, self.config.run.keep_checkpoints)
            await self.queue.commit.remote(step)
            self._durable = step


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
