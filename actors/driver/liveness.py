"""The detection of lost actors. The driver kills an actor that hangs, so its callers see the same errors as after a
crash."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Self, cast

from ray.actor import ActorProxy
from ray.exceptions import (
    ActorDiedError,
    ActorUnschedulableError,
    LocalRayletDiedError,
    NodeDiedError,
    ObjectLostError,
    OutOfDiskError,
    OutOfMemoryError,
    RayActorError,
    WorkerCrashedError,
)

from actors.driver.gcs import has_process, is_restarting
from actors.driver.handles import Handle, kill
from actors.heartbeat import Heartbeat
from treeadv.config import RunConfig
from treeadv.visible import visible_logger

# Ray's memory monitor, a full disk and a dead node end an actor without a RayActorError.
ACTOR_LOST = (
    RayActorError,
    OutOfMemoryError,
    OutOfDiskError,
    NodeDiedError,
    LocalRayletDiedError,
    WorkerCrashedError,
    ActorUnschedulableError,
)
STATE_LOST = (*ACTOR_LOST, ObjectLostError)
PARTS = 4
INTERVAL_SECONDS = 2.0  # between heartbeats; a quarter of the timeout if that is less

log = visible_logger(__name__)


class Hung(Exception):
    """An actor missed a deadline."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadlines:
    """The numbers of seconds after which an actor counts as hung."""

    start: float  # from the start of its process to its first heartbeat
    heartbeat: float

    @classmethod
    def of(cls, run: RunConfig) -> Self:
        return cls(start=run.start_timeout, heartbeat=run.heartbeat_timeout)


async def wait_until_lost(handle: Handle, name: str, deadlines: Deadlines) -> Exception:
    """Wait until an actor dies or misses a deadline, and return the cause.

    An actor without a process has no deadline, because it waits for resources of the cluster."""
    actor = cast(ActorProxy[Heartbeat], handle)
    try:
        await _start(handle, name, asyncio.ensure_future(actor.beat.remote()), deadlines.start)
        while True:
            await asyncio.sleep(min(INTERVAL_SECONDS, deadlines.heartbeat / PARTS))
            await _answer(handle, name, asyncio.ensure_future(actor.beat.remote()), deadlines)
    except (Hung, *ACTOR_LOST) as fault:
        return fault


async def _start(handle: Handle, name: str, beat: asyncio.Future[None], timeout: float) -> None:
    """Wait for the first heartbeat. Raises `Hung` if the actor has had a process for `timeout` seconds and has given no
    heartbeat.

    Time counts only while Ray reports the process. A pause of Ray or of this process therefore does not count."""
    look, waited = min(INTERVAL_SECONDS, timeout / PARTS), 0.0
    try:
        while not (await asyncio.wait([beat], timeout=look))[0]:
            waited += look if await has_process(handle) else 0.0
            if waited >= timeout:
                raise Hung(f"{name} did not start within {timeout:g} s (run.start_timeout)")
        await beat
    finally:
        beat.cancel()  # cancelled, because no task would read the error of an actor that is killed later


async def _answer(handle: Handle, name: str, beat: asyncio.Future[None], deadlines: Deadlines) -> None:
    """Wait for a heartbeat. Raises `Hung` if it does not come in time.

    The wait has `PARTS` parts of equal length. If the system stops this process for a while, only the current part ends
    early, and the actor keeps the rest of its time. Ray keeps the heartbeat of an actor that it restarts. The deadline
    of a start then replaces the deadline of the heartbeat."""
    try:
        for _ in range(PARTS):
            if (await asyncio.wait([beat], timeout=deadlines.heartbeat / PARTS))[0]:
                return await beat
            if await is_restarting(handle):
                return await _start(handle, name, beat, deadlines.start)
        raise Hung(f"{name} gave no heartbeat for {deadlines.heartbeat:g} s")
    finally:
        beat.cancel()


async def kill_when_lost(handle: Handle, name: str, deadlines: Deadlines) -> Exception:
    """Wait until an actor is lost, kill its process, and return the cause. The calls in progress fail."""
    cause = await wait_until_lost(handle, name, deadlines)
    if isinstance(cause, Hung):
        log.warning("%s: it is killed", cause)
    kill(handle)
    return cause


async def restart_when_hung(handle: Handle, name: str, deadlines: Deadlines) -> None:
    """Kill an actor each time that it hangs. Ray then restarts it and repeats its calls. Returns when Ray no longer
    restarts the actor."""
    while not isinstance(cause := await wait_until_lost(handle, name, deadlines), ActorDiedError):
        if isinstance(cause, Hung):
            log.warning("%s: it is restarted", cause)
            kill(handle, restart=True)
        await asyncio.sleep(INTERVAL_SECONDS)
