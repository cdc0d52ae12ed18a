"""A role that measures the CPU seconds of its process and of parts of its work."""

from __future__ import annotations

import functools
import os
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import ray

Used = dict[str, float]


class Measured:
    """An actor that measures its process and parts of its work."""

    @functools.cached_property
    def seconds(self) -> defaultdict[str, float]:
        return defaultdict(float)

    @ray.method
    def used(self) -> tuple[int, Used]:
        """Return the id of this process, and CPU seconds of it (`all`) and of parts of it."""
        return os.getpid(), {"all": time.process_time(), **self.seconds}

    def timed(self, component: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that calls `call` and adds the CPU seconds of its thread to a part of the work."""

        @functools.wraps(call)
        def timed(*args: Any, **more: Any) -> Any:
            began = time.thread_time()
            try:
                return call(*args, **more)
            finally:
                self.seconds[component] += time.thread_time() - began

        return timed
