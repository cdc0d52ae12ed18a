"""The algorithm. Forests flow from generators over reward actors and the replay queue to the learners; weights flow back.

Only references pass through here: tokens stay where they were drawn until a learner reads them.
"""

from __future__ import annotations

import asyncio
from typing import Any

from ray.exceptions import RayActorError, RayTaskError

from actors.cast import Cast, reason
from actors.recorder import Recorder


async def run(cast: Cast, recorder: Recorder, stop: asyncio.Event) -> None:
    """Generate and learn side by side until the last step; `stop` ends the run after the step in hand, with a checkpoint."""
    generating = asyncio.create_task(generate(cast))
    learning = asyncio.create_task(learn(cast, recorder, stop))
    done, running = await asyncio.wait([generating, learning], return_when=asyncio.FIRST_COMPLETED)
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)  # cancelled here; a fault of its own was in `done`
    for task in done:
        task.result()


async def generate(cast: Cast) -> None:
    """Keep every generator busy with as many forests as it takes, from when it is ready until it is lost or retired."""
    async with asyncio.TaskGroup() as group:
        async for generator in cast.ready_generators():
            for _ in range(cast.config.generator.forests):
                group.create_task(grow(cast, generator))


async def grow(cast: Cast, generator: Any) -> None:
    """Grow, grade and admit one forest after another. The queue holds back a prompt while the staleness bound leaves no slot."""
    while generator in cast.generators and (ticket := await cast.queue.reserve.remote(cast.names[generator])):
        try:
            forest, drawn = generator.grow.options(num_returns=2).remote(ticket)
            await drawn
            scored = await cast.grade(forest)
        except RayActorError as fault:
            await cast.queue.fail.remote(ticket.forest_id, "generator died")
            await cast.replace("generator", generator, fault)
        except RayTaskError as fault:
            await cast.queue.fail.remote(ticket.forest_id, reason(fault))
        else:
            await cast.queue.admit.remote(ticket.forest_id, [scored])


async def learn(cast: Cast, recorder: Recorder, stop: asyncio.Event) -> None:
    """Lease ready forests, redistribute advantages and update, publish the weights, acknowledge; checkpoint now and then."""
    c = cast.config
    for version in range(cast.step, c.run.steps):
        with recorder.phase("wait"):
            lease = await cast.lease(version, stop)
        if lease is None:  # stopped while waiting
            return await cast.checkpoint(version)
        with recorder.phase("train"):
            report = await cast.train(list(lease.refs), version)
        with recorder.phase("publish"):
            await cast.publish(version + 1)
        await cast.queue.ack.remote(lease.lease_id, version + 1)  # after the weights: a freed slot starts with the new version
        if stop.is_set() or version + 1 == c.run.steps or (version + 1) % c.run.checkpoint_every == 0:
            with recorder.phase("checkpoint"):
                await cast.checkpoint(version + 1)
        await recorder.record(cast, version + 1, report)
        if stop.is_set():
            return
