"""The autoscaler, which changes the number of actors during a run.

Three events cause a change: a request of `treeadv scale`, a role that waits for another role, and a node that hosts
an actor and drains."""

from __future__ import annotations

import asyncio
import time

from actors.driver.attempt_outcome import EndRequest
from actors.driver.cluster import Cluster
from actors.driver.gcs import ask
from actors.driver.handles import actor_id
from actors.driver.nodes import actor_nodes, draining_nodes
from actors.driver.recorder import Recorder
from actors.driver.scaling_policy import Observation, ScalingState
from treeadv.visible import visible_logger

POLL_SECONDS = 1.0
log = visible_logger(__name__)


async def autoscale(cluster: Cluster, recorder: Recorder, end_request: EndRequest) -> None:
    """Adjust the number of generators and reward actors until cancelled. A change of the number of learners requests a
    reshape."""
    options = cluster.config.scaling
    state = ScalingState.start(cluster.config.generator.count, time.monotonic(), options)
    observed, waited = time.monotonic(), recorder.waited_seconds
    while True:
        await asyncio.sleep(POLL_SECONDS)
        now = time.monotonic()
        requested = cluster.folder.take_request()
        if "generator" in requested:
            if options.enabled:
                state = state.set_target(requested["generator"], now, options)
            cluster.generators.scale(state.target if options.enabled else requested["generator"])
        if "reward" in requested:
            cluster.rewards.scale(requested["reward"])
        if "learner" in requested:
            _request_learners(cluster, requested["learner"], end_request)
        if options.enabled and now - observed >= options.interval:
            share = (recorder.waited_seconds - waited) / (now - observed)
            observed, waited = now, recorder.waited_seconds
            state = state.observe(await _observation(cluster, now, share, recorder.staleness), options)
            cluster.generators.scale(state.target)
        await _leave_draining_nodes(cluster, end_request)
        await cluster.grading.dismiss_retired()
        cluster.generators.check()
        cluster.rewards.check()


def _request_learners(cluster: Cluster, count: int, end_request: EndRequest) -> None:
    if missing := cluster.learners.missing_resources(count):
        log.warning(
            "learner=%d: the cluster lacks resources for them (%s); the run continues with the old number",
            count,
            missing,
        )
    elif cluster.learners.request_count(count):
        end_request.reshape()


async def _observation(cluster: Cluster, now: float, wait_share: float, staleness: int) -> Observation:
    counts = await cluster.queue.counts.remote()
    return Observation(
        now=now,
        count=len(cluster.generators.members),
        ready=counts["states"]["ready"],
        need=cluster.config.learner.forests_per_step,
        slots_free=counts["slots_free"],
        wait_share=wait_share,
        staleness=staleness,
        bound=cluster.config.queue.max_staleness,
    )


async def _leave_draining_nodes(cluster: Cluster, end_request: EndRequest) -> None:
    """Move actors off draining nodes.

    A generator or reward actor gets a successor at once and finishes its work. A learner needs a reshape, which starts
    the learner on another node from a checkpoint."""
    if not (draining := await ask(draining_nodes)) or not (nodes := await ask(actor_nodes)):
        return
    for generator in [g for g in cluster.generators.members if nodes.get(actor_id(g)) in draining]:
        cluster.generators.move(generator)
    for reward in [r for r in cluster.rewards.members if nodes.get(actor_id(r)) in draining]:
        cluster.rewards.move(reward)
    if any(nodes.get(actor) in draining for actor in cluster.learners.actor_ids()):
        end_request.reshape()
