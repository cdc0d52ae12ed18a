"""The heartbeat of every role: the driver asks for it, and a thread of its own answers while the role is busy."""

from __future__ import annotations

import ray

GROUP = "heartbeat"  # the name of Ray's concurrency group, whose thread answers


class Heartbeat:
    """Base class of the roles."""

    @ray.method(concurrency_group=GROUP, max_task_retries=0)
    def beat(self) -> None:
        """Answer at once. A stopped or dead process does not."""
