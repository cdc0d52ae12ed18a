"""The algorithm. Forests flow from generators over reward actors and the replay queue to the learners; weights flow back.

Only references pass through here: tokens stay where they were drawn until a learner reads them.
"""

from __future__ import annotations

import asyncio
from typing import Any

from ray.exceptions import RayActorError, RayTaskError

from actors.driver.autoscaler import oversee
from actors.driver.cluster import Cast, reason
from actors.driver.recorder import Recorder
from treeadv.engines.base import EngineGone


async def run(cast: Cast, recorder: Recorder, stop: asyncio.Event) -> None:
    """Generate and learn side by side until the last step; `stop` ends the run after the step in hand, with a checkpoint."""
    learning = asyncio.create_task(learn(cast, recorder, stop))
    aside = [asyncio.create_task(generate(cast)), asyncio.create_task(oversee(cast, recorder, stop))]
    done, _ = await asyncio.wait([learning, *aside], return_when=asyncio.FIRST_COMPLETED)
    for task in (learning, *aside):
        task.cancel()
    await asyncio.gather(learning, *aside, return_exceptions=True)  # those cancelled here; a fault of its own is in `done`
    for task in done:
        task.result()


async def generate(cast: Cast) -> None:
    """Keep every generator busy with as many forests as it takes, from when it is ready until it is lost or retired."""
    async with asyncio.TaskGroup() as group:
        async for generator in cast.generators.ready():
            group.create_task(tend(cast, generator))


async def tend(cast: Cast, generator: Any) -> None:
    async with asyncio.TaskGroup() as group:
        for _ in range(cast.config.generator.forests):
            group.create_task(grow(cast, generator))
    await cast.generators.dismiss(generator)


async def grow(cast: Cast, generator: Any) -> None:
    """Grow, grade and admit one forest after another. The queue holds back a prompt while the staleness bound leaves no slot."""
    crew = cast.generators
    while generator in crew.members and (ticket := await cast.queue.reserve.remote(crew.names[generator])):
        try:
            forest, drawn = generator.grow.options(num_returns=2).remote(ticket)
            await drawn
            scored = await cast.grade(forest)
        except RayActorError as fault:
            await cast.queue.fail.remote(ticket.forest_id, "generator died")
            crew.replace(generator, fault)
        except RayTaskError as fault:
            await cast.queue.fail.remote(ticket.forest_id, reason(fault))
            if isinstance(fault.cause, EngineGone):
                crew.replace(generator, fault.cause)
            else:
                cast.failed(fault)
        else:
            await cast.queue.admit.remote(ticket.forest_id, [scored])
            cast.failures = 0


async def learn(cast: Cast, recorder: Recorder, stop: asyncio.Event) -> None:
    """Lease ready forests, redistribute advantages and update, publish the weights, acknowledge; checkpoint now and then."""
    c = cast.config
    for version in range(cast.step, c.run.steps):
        with recorder.phase("wait"):
            lease = await cast.lease(version, stop)
        if lease is None:  # stopped while waiting
            return await cast.checkpoint(version)
        report = await cast.train(list(lease.refs), version)
        with recorder.phase("publish"):
            await cast.publish(version + 1)
        await cast.queue.ack.remote(lease.lease_id, version + 1)  # after the weights: a freed slot starts with the new version
        await recorder.record(cast, version + 1, report)  # before the checkpoint: a step that is durable is on record
        if stop.is_set() or version + 1 == c.run.steps or (version + 1) % c.run.checkpoint_every == 0:
            with recorder.phase("checkpoint"):
                await cast.checkpoint(version + 1)
        if stop.is_set():
            return
