"""Typed handles of Ray actors. With `ActorProxy[Role]` an editor can follow a call from the driver to the method of the
role."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, TypeVar, cast

import ray
from ray.actor import ActorClass, ActorHandle, ActorProxy

from actors.heartbeat import GROUP
from treeadv.config import GeneratorConfig, LearnerConfig, RewardConfig

CLOSE_SECONDS = 10.0  # time that an actor has to close before it is killed

R = TypeVar("R")
Handle = ActorProxy[Any]


def actor_class(
    role: type[R], resources: GeneratorConfig | LearnerConfig | RewardConfig | None = None, **options: object
) -> ActorClass[R]:
    """Return the Ray actor class of a role.

    `resources` is the section of the role in the configuration. `options` are options of Ray."""
    # With task events Ray would keep records of up to 100,000 calls in memory.
    asked: dict[str, Any] = {"num_cpus": 0, "concurrency_groups": {GROUP: 1}, "enable_task_events": False, **options}
    if resources is not None:
        asked |= {"num_cpus": resources.cpus, "num_gpus": getattr(resources, "gpus", 0)}
        if resources.slot:
            asked["resources"] = {resources.slot: 1}
    return ray.remote(**asked)(role)


def actor_id(handle: Handle) -> str:
    """Return the id (hex) that names the actor in Ray's lists of state."""
    return cast(ActorHandle, handle)._actor_id.hex()


def kill(handle: Handle, restart: bool = False) -> None:
    """Kill the process of an actor, even if a signal has stopped it. With `restart`, Ray may start the actor again."""
    ray.kill(cast(ActorHandle, handle), no_restart=not restart)


async def close(handles: Sequence[Handle]) -> None:
    """Give actors at most CLOSE_SECONDS to close, then kill them."""
    closing = [cast(Any, h).close.remote() for h in handles]
    if closing:
        await asyncio.to_thread(ray.wait, closing, num_returns=len(closing), timeout=CLOSE_SECONDS)
    for handle in handles:
        kill(handle)
