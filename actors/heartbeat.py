"""The heartbeat of every role. The driver calls it, and a separate thread of the actor answers, even while the role is
busy."""

from __future__ import annotations

import ray

GROUP = "heartbeat"  # the name of Ray's concurrency group; its thread answers the heartbeat


class Heartbeat:
    """The base class of the roles."""

    @ray.method(concurrency_group=GROUP, max_task_retries=0)
    def beat(self) -> None:
        """Return at once. The caller gets no answer from a stopped or dead process."""
