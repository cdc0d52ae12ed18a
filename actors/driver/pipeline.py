"""The training algorithm: forests go from generators to learners, and weights go from learners to generators.

Only references pass through the driver. Tokens stay on the machine that drew them until a learner reads them."""

from __future__ import annotations

import asyncio

from ray.actor import ActorProxy

from actors.driver.attempt_outcome import AttemptOutcome, EndRequest
from actors.driver.autoscaler import autoscale
from actors.driver.cluster import Cluster
from actors.driver.forests import Forests
from actors.driver.in_flight import ForestsInFlight
from actors.driver.recorder import Recorder
from actors.generator import Generator
from treeadv.evaluation.history import is_durable


async def run(cluster: Cluster, recorder: Recorder, end_request: EndRequest) -> AttemptOutcome:
    """Generate and learn at the same time until the last step or a requested end."""
    learning = asyncio.create_task(learn(cluster, recorder, end_request))
    evaluating = cluster.evaluations.run(cluster, recorder, end_request)
    helpers = [*map(asyncio.create_task, (generate(cluster), autoscale(cluster, recorder, end_request), evaluating))]
    done, _ = await asyncio.wait([learning, *helpers], return_when=asyncio.FIRST_COMPLETED)
    for task in (learning, *helpers):
        task.cancel()
    await asyncio.gather(learning, *helpers, return_exceptions=True)  # the loop below raises the faults
    for task in done:
        task.result()
    return learning.result()


async def generate(cluster: Cluster) -> None:
    """Use every generator from the time it is ready until it is lost or retired."""
    async with asyncio.TaskGroup() as group:
        forests = Forests(cluster, group)
        async for generator in cluster.generators.ready():
            group.create_task(use(forests, generator))


async def use(forests: Forests, generator: ActorProxy[Generator]) -> None:
    """Grow as many forests at a time on a generator as fill the rows of its engine."""
    async with asyncio.TaskGroup() as group:
        ForestsInFlight(forests.cluster.config, lambda loops: group.create_task(grow(forests, generator, loops)))
    await forests.cluster.generators.dismiss(generator)
    forests.forget(generator)


async def grow(forests: Forests, generator: ActorProxy[Generator], in_flight: ForestsInFlight) -> None:
    """Grow, grade and admit one forest after another, as long as the engine has free rows."""
    while ticket := await forests.on(generator).reserve(in_flight):
        free = await forests.on(await forests.cluster.drawer(generator)).grow(ticket)
        if free is not None and not in_flight.keeps_loop(free):
            return


async def learn(cluster: Cluster, recorder: Recorder, end_request: EndRequest) -> AttemptOutcome:
    """Repeat: lease ready forests, update the policy, publish its weights, acknowledge the lease, write checkpoints."""
    config, step = cluster.config, cluster.first_step
    while step < config.run.steps and not end_request.attempt_outcome:
        with recorder.phase("wait"):
            lease = await cluster.lease(end_request)
        if lease and (report := await cluster.train(lease)).void:
            # Every update was skipped, so another batch replaces this one.
            await cluster.queue.discard.remote(lease.lease_id, "not_finite", f"batch of version {report.version}")
        elif lease:
            step += 1
            with recorder.phase("publish"):
                await cluster.publish()
            # The ack frees slots. It follows the begin of the publication, and a generator starts a forest only with
            # the version published last. So forests in these slots use the new weights.
            await cluster.queue.ack.remote(lease.lease_id, step, report.nonfinite_forests)
            await recorder.record(cluster, step, report)  # the checkpoint below needs this record
        if lease is None or end_request.attempt_outcome or is_durable(config, step):
            with recorder.phase("checkpoint"):
                await cluster.checkpoint(step)
    await cluster.evaluations.settled(end_request)
    asked = end_request.attempt_outcome
    return asked if asked and step < config.run.steps else AttemptOutcome.FINISHED
