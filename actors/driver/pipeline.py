"""The algorithm. Forests go from generators through reward actors and the replay queue to the learners; weights go back.

Only references pass through the driver: tokens stay where they were drawn until a learner reads them.
"""

from __future__ import annotations

import asyncio

from ray.actor import ActorProxy
from ray.exceptions import RayActorError, RayTaskError

from actors.driver.autoscaler import autoscale
from actors.driver.cluster import Cluster
from actors.driver.forests import FailureLimit, draw_forest, reason
from actors.driver.outcome import EndRequest, Outcome
from actors.driver.recorder import Recorder
from actors.generator import Generator
from treeadv.engines.base import EngineGone


async def run(cluster: Cluster, recorder: Recorder, end_request: EndRequest) -> Outcome:
    """Generate and learn side by side until the last step or a requested end."""
    learning = asyncio.create_task(learn(cluster, recorder, end_request))
    helpers = [asyncio.create_task(generate(cluster)), asyncio.create_task(autoscale(cluster, recorder, end_request))]
    done, _ = await asyncio.wait([learning, *helpers], return_when=asyncio.FIRST_COMPLETED)
    for task in (learning, *helpers):
        task.cancel()
    await asyncio.gather(learning, *helpers, return_exceptions=True)  # waits for the cancelled tasks; faults are in `done`
    for task in done:
        task.result()
    return learning.result()


async def generate(cluster: Cluster) -> None:
    """Keep every generator busy, from when it is ready until it is lost or retired."""
    failures = FailureLimit()
    async with asyncio.TaskGroup() as group:
        async for generator in cluster.generators.ready():
            group.create_task(use(cluster, generator, failures))


async def use(cluster: Cluster, generator: ActorProxy[Generator], failures: FailureLimit) -> None:
    """Grow as many forests at a time as a generator takes."""
    async with asyncio.TaskGroup() as group:
        for _ in range(cluster.config.generator.forests):
            group.create_task(grow(cluster, generator, failures))
    await cluster.generators.dismiss(generator)


async def grow(cluster: Cluster, generator: ActorProxy[Generator], failures: FailureLimit) -> None:
    """Grow, grade and admit one forest after another. `reserve` waits while the staleness bound leaves no slot."""
    generators, queue = cluster.generators, cluster.queue
    while generator in generators.members and (ticket := await queue.reserve.remote(generators.names[generator])):
        try:
            graded = await cluster.grading.grade(await draw_forest(generator, ticket))
        except RayActorError as fault:
            await queue.fail.remote(ticket.forest_id, "generator died")
            generators.replace(generator, fault)
        except RayTaskError as fault:
            await queue.fail.remote(ticket.forest_id, reason(fault))
            if isinstance(fault.cause, EngineGone):
                generators.replace(generator, fault.cause)
            else:
                failures.count(fault, len(generators.members) * cluster.config.generator.forests)
        else:
            await queue.admit.remote(ticket.forest_id, [graded])
            failures.reset()


async def learn(cluster: Cluster, recorder: Recorder, end_request: EndRequest) -> Outcome:
    """Lease ready forests, update the policy, publish its weights, acknowledge the lease; write a checkpoint now and then."""
    config, step = cluster.config.run, cluster.first_step
    while step < config.steps and not end_request.outcome:
        with recorder.phase("wait"):
            lease = await cluster.lease(step, end_request)
        if lease:
            report = await cluster.train(lease, step)
            step += 1
            with recorder.phase("publish"):
                await cluster.publish(step)
            await cluster.queue.ack.remote(lease.lease_id, step)  # after the weights: a freed slot starts with the new version
            await recorder.record(cluster, step, report)  # before the checkpoint: a durable step is on record
        if lease is None or end_request.outcome or step == config.steps or step % config.checkpoint_every == 0:
            with recorder.phase("checkpoint"):
                await cluster.checkpoint(step)
    if step < config.steps and end_request.outcome:
        return end_request.outcome
    return Outcome.FINISHED
