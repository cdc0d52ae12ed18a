"""Sets the number of actors while the run goes on: when a person asks (`treeadv scale`), when the controller finds that one role waits
for another, and when a node that an actor lives on is told to leave."""

from __future__ import annotations

import asyncio
import logging
import time

from actors.driver.cluster import Cast
from actors.driver.drain import homes, leaving
from actors.driver.recorder import Recorder
from actors.driver.scaling_policy import Observation, Scaler

POLL = 1.0  # seconds between looks at what is asked
log = logging.getLogger(__name__)


async def oversee(cast: Cast, recorder: Recorder, stop: asyncio.Event) -> None:
    """Look, and act, until cancelled. Another number of learners ends the cast at its next step, for the session to start it anew."""
    rules = cast.config.scaling
    scaler = Scaler.start(cast.config.generator.count, time.monotonic(), rules)
    looked = time.monotonic()
    while True:
        await asyncio.sleep(POLL)
        now = time.monotonic()
        asked = cast.folder.take_request()
        if "generator" in asked:
            scaler = scaler.ask(asked["generator"], now, rules) if rules.enabled else scaler
            cast.generators.scale(scaler.wanted if rules.enabled else asked["generator"])
        if "reward" in asked:
            cast.rewards.scale(asked["reward"])
        if asked.get("learner", cast.config.learner.count) != cast.config.learner.count:
            if lacking := cast.lacks(asked["learner"]):
                log.warning("learner=%d: the cluster has no room for them (%s); the run goes on as it was", asked["learner"], lacking)
            else:
                cast.learners_wanted = asked["learner"]
                stop.set()
        if rules.enabled and now - looked >= rules.interval:
            scaler = scaler.step(await _observe(cast, recorder, now, now - looked), rules)
            cast.generators.scale(scaler.wanted)
            looked = now
        await _leave(cast, stop)
        await cast.sweep()
        for crew in (cast.generators, cast.rewards):
            crew.check()


async def _observe(cast: Cast, recorder: Recorder, now: float, seconds: float) -> Observation:
    counts = await cast.queue.counts.remote()
    return Observation(
        now, len(cast.generators.members), counts["states"]["ready"], cast.config.learner.forests_per_step, counts["slots_free"],
        recorder.waited() / seconds, recorder.staleness, cast.config.queue.max_staleness,
    )


async def _leave(cast: Cast, stop: asyncio.Event) -> None:
    """Move everyone off nodes that go away. A new generator or reward actor is asked for at once, the old one drains; with a learner the
    cast ends at its next step, with a checkpoint, and a new one begins elsewhere."""
    going = await asyncio.to_thread(leaving)
    home = await asyncio.to_thread(homes) if going else {}
    for crew in (cast.generators, cast.rewards):
        for member in [m for m in crew.members if home.get(m._actor_id.hex()) in going]:
            wanted = crew.wanted
            crew.members.remove(member)
            crew.scale(wanted)
    if any(home.get(member._actor_id.hex()) in going for member in cast.learners):
        cast.leaving = True
        stop.set()
