"""The heartbeat of every role. The driver calls it; a separate thread of the actor answers, even while the role is
busy."""

from __future__ import annotations

import ray

GROUP = "heartbeat"  # the name of Ray's concurrency group, whose thread answers


class Heartbeat:
    """Base class of the roles."""

    @ray.method(concurrency_group=GROUP, max_task_retries=0)
    def beat(self) -> None:
        """Return at once. A stopped or dead process gives no answer."""
