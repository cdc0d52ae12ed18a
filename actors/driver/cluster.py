"""The actors of a run. They start and end together.

The driver owns every actor, so an actor ends with the driver. Generators and reward actors form worker groups, whose
members are added, replaced and retired. The queue and the learners hold the state of the run. Ray restarts a dead queue
from its journal. If a learner dies, the run resumes from its last checkpoint (`actors.driver.supervisor`)."""

from __future__ import annotations

import asyncio
from typing import Any

import ray
from ray.actor import ActorProxy
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.driver.attempt_outcome import EndRequest
from actors.driver.evaluation import Evaluations
from actors.driver.grading import Grading
from actors.driver.handles import actor_class, close
from actors.driver.learner_group import LearnerGroup
from actors.driver.liveness import Deadlines, restart_when_hung
from actors.driver.roles import Roles
from actors.driver.targets import Targets
from actors.driver.weight_sync import WeightSync
from actors.driver.worker_group import RESTARTS, FailureLimit, WorkerGroup
from actors.generator import Generator
from actors.replay_queue import Lease, ReplayQueue
from actors.reward import RewardActor
from treeadv.config import Config
from treeadv.errors import BadForest, one_line
from treeadv.learning.report import NonFinite, StepReport
from treeadv.metrics import Role
from treeadv.replay.records import DropReason
from treeadv.storage.run_folder import RunFolder

# The number of calls that an actor may have in progress. A call that waits (for a slot, for forests, for a verdict)
# must not block the call that ends its wait.
UNBOUNDED = 1_000_000


class Cluster:
    """The actors of one attempt at a run, from `start` to `end`. The cluster owns these actors."""

    queue: ActorProxy[ReplayQueue]

    def __init__(self, config: Config, folder: RunFolder, roles: Roles | None = None) -> None:
        """Prepare an attempt. It resumes from the last checkpoint of the run, or starts at step 0 if the run has no
        checkpoint. `roles` are the classes of the actors (default: those of a run)."""
        self.config, self.folder, self._roles = config, folder, roles or Roles()
        self.first_step = folder.last_checkpoint()
        self.targets = Targets(folder)
        self.learners = LearnerGroup(config, folder, self.targets, self._roles.learner)
        self.weights = WeightSync()
        self.evaluations = Evaluations(config, folder)
        deadlines = Deadlines.of(config.run)
        self.generators = WorkerGroup(
            "generator", self._create_generator, self._prepare_generator, self.targets, deadlines
        )
        self.rewards = WorkerGroup("reward", self._create_reward, self._prepare_reward, self.targets, deadlines)
        self.grading = Grading(self.rewards)
        self.failures = FailureLimit()
        self._session = folder.store.next_session()
        self._durable_step = self.first_step
        self.version = 0  # the version of the learners' weights, which is the number of optimizer updates
        self._queue_watch: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start every actor. The caller must call `end` afterwards, even if `start` fails."""
        self.queue = self._create_queue()
        hung = restart_when_hung(self.queue, "queue", Deadlines.of(self.config.run))
        self._queue_watch = asyncio.create_task(hung)
        self.targets.add("queue", "queue", await self.queue.address.remote())
        await asyncio.gather(self._start_learners(), self.rewards.start(self.config.reward.count))
        await self.generators.start(self.config.generator.count)
        self.evaluations.offer(self, self.first_step, self.version)

    async def end(self) -> None:
        await asyncio.gather(self.generators.end(), self.rewards.end())
        await self.learners.end()
        self.weights.end()
        if self._queue_watch:
            self._queue_watch.cancel()
            await close([self.queue])

    def missing(self) -> str:
        """Return a text that names the actors that are not up yet and the resources of the cluster."""
        c, up = self.config, self.targets.count()
        counts: tuple[tuple[Role, int], ...] = (
            ("queue", 1),
            ("learner", c.learner.count),
            ("reward", c.reward.count),
            ("generator", c.generator.count),
        )
        missing = [f"{n - up[role]} of {n} {role}" for role, n in counts if up[role] < n]
        shown = {k: v for k, v in ray.cluster_resources().items() if k in ("CPU", "GPU") or k.endswith("_slot")}
        return f"{', '.join(missing)} (in the cluster: {', '.join(f'{v:g} {k}' for k, v in sorted(shown.items()))})"

    async def lease(self, end_request: EndRequest) -> Lease | None:
        """Wait for the next batch of ready forests. Returns None if an end of the run is requested first."""
        leasing = asyncio.ensure_future(self.queue.lease.remote(self.config.learner.forests_per_step, self.version))
        ending = asyncio.ensure_future(end_request.wait())
        try:
            await asyncio.wait([leasing, ending], return_when=asyncio.FIRST_COMPLETED)
            return await leasing if leasing.done() else None
        finally:  # cancelled, because no task would read an error that the queue raises later
            ending.cancel()
            leasing.cancel()

    async def train(self, lease: Lease) -> StepReport:
        """Take the optimizer updates of a lease. A completed step resets the count of deaths of each worker group.

        The run ends after too many non-finite updates, and after a forest that the learner refuses. The queue then
        drops the forests of the lease, because a resumed run would lease the same forests again."""
        try:
            report = await self.learners.step(lease, self.version)
        except (NonFinite, BadForest) as fault:
            reason: DropReason = "not_finite" if isinstance(fault, NonFinite) else "invalid"
            await self.queue.discard.remote(lease.lease_id, reason, one_line(fault))
            await self.queue.flush.remote()
            raise
        self.version = report.version
        self.generators.reset_deaths()
        self.rewards.reset_deaths()
        return report

    async def publish(self) -> None:
        """Send the weights of the learners to every generator as a new policy version. Returns before they arrive."""
        await self.weights.publish(await self.learners.publish(self.version), self.generators)

    async def checkpoint(self, step: int) -> None:
        """Write the checkpoint of `step`.

        Then tell the queue that the forests of all steps up to `step` are trained, and start the evaluation of `step`
        if it is due. The journal and the records are written first: a run cannot resume from a checkpoint if they lack
        one of its steps."""
        if step > self._durable_step:
            await self.queue.flush.remote()
            await asyncio.to_thread(self.folder.store.push)
            await self.learners.checkpoint(step, self._session)
            keep, protected = self.config.run.keep_checkpoints, self.evaluations.steps
            await asyncio.to_thread(self.folder.store.seal, step, self._session, keep, protected)
            await self.queue.commit.remote(step, min(self.folder.checkpoints()))
            self._durable_step = step
            if self.config.eval.every:
                await self.weights.arrived(self.generators)  # an evaluation needs a generator with these weights
            self.evaluations.offer(self, step, self.version)

    async def drawer(self, generator: ActorProxy[Generator]) -> ActorProxy[Generator]:
        """Return the generator that grows a forest for `generator`. It is `generator` itself, unless that answers
        held-out problems. Waits until the returned generator holds the current weights."""
        found = self.weights.stand_in(generator, self.generators)
        await self.weights.wait_until_current(found)
        return found

    async def _start_learners(self) -> None:
        self.version = await self.learners.start(self.first_step)
        if self.first_step:
            await self.publish()

    def _create_queue(self) -> ActorProxy[ReplayQueue]:
        # Ray repeats the pending calls on a restarted queue, so the methods are idempotent. With an object store a dead
        # queue loses the records that it has not written. The run then resumes from its last checkpoint.
        options: dict[str, Any] = {}
        if self.folder.store.keeps_unflushed:
            options |= {"max_restarts": RESTARTS, "max_task_retries": -1}
        # The queue runs on the node of the driver: neither works without the other, and other nodes may be removed.
        node = ray.get_runtime_context().get_node_id()
        options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(node, soft=False)
        uri = RunFolder.of(self.folder.path.resolve(), self.config).uri
        role = actor_class(self._roles.queue, max_concurrency=UNBOUNDED, **options)
        return role.remote(self.config, uri, self._session, self.first_step, self.config.metrics.port)

    def _create_generator(self, number: int) -> ActorProxy[Generator]:
        c = self.config.generator
        role = actor_class(self._roles.generator, c, max_concurrency=UNBOUNDED)
        return role.remote(self.config, number, self.config.metrics.port)

    async def _prepare_generator(self, generator: ActorProxy[Generator]) -> str:
        """Load the engine, wait until it has the current weights, and return the address of its /metrics."""
        address = await generator.start.remote()
        await self.weights.wait_until_current(generator)
        return address

    def _create_reward(self, number: int) -> ActorProxy[RewardActor]:
        role = actor_class(self._roles.reward, self.config.reward, max_concurrency=UNBOUNDED)
        return role.remote(self.config, number, self.config.metrics.port)

    async def _prepare_reward(self, reward: ActorProxy[RewardActor]) -> str:
        return await reward.address.remote()
