"""Detects actors that are lost. A hung actor is killed, so that its callers see the same errors as after a crash."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable
from typing import cast

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

from actors.driver.handles import Handle, kill
from actors.heartbeat import Heartbeat

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
INTERVAL_SECONDS = 2.0  # between heartbeats, or a quarter of the timeout where that is less

log = logging.getLogger(__name__)


class Hung(Exception):
    """An actor gave no heartbeat within the timeout."""


async def wait_until_lost(handle: Handle, name: str, timeout: float) -> Exception:
    """Wait until an actor dies or gives no heartbeat for `timeout` seconds, and return the cause. An actor that has not
    started yet has no deadline, because it may wait for resources of the cluster."""
    actor = cast(ActorProxy[Heartbeat], handle)
    try:
        await actor.beat.remote()
        while True:
            await asyncio.sleep(min(INTERVAL_SECONDS, timeout / 4))
            await _answer(actor.beat.remote(), timeout)
    except TimeoutError:
        return Hung(f"{name} gave no heartbeat for {timeout:g} s")
    except ACTOR_LOST as fault:
        return fault


async def _answer(beat: Awaitable[None], timeout: float) -> None:
    """Wait for a heartbeat; raise TimeoutError after `timeout` seconds. They are waited in parts: when this process was
    stopped for a while, only the part that has run out meanwhile is lost, and not the patience."""
    answer = asyncio.ensure_future(beat)
    for _ in range(PARTS):
        if (await asyncio.wait([answer], timeout=timeout / PARTS))[0]:
            return await answer
    answer.cancel()
    raise TimeoutError


async def kill_when_lost(handle: Handle, name: str, timeout: float) -> Exception:
    """Wait until an actor is lost, kill its process, and return the cause. Calls in progress fail."""
    cause = await wait_until_lost(handle, name, timeout)
    if isinstance(cause, Hung):
        log.warning("%s: it is killed", cause)
    kill(handle)
    return cause


async def restart_when_hung(handle: Handle, name: str, timeout: float) -> None:
    """Kill an actor each time that it hangs; Ray restarts it and repeats its calls. Returns when Ray no longer restarts
    it."""
    while not isinstance(cause := await wait_until_lost(handle, name, timeout), ActorDiedError):
        if isinstance(cause, Hung):
            log.warning("%s: it is restarted", cause)
            kill(handle, restart=True)
        await asyncio.sleep(INTERVAL_SECONDS)
