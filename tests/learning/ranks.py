"""Runs functions of tests on several ranks of one process group, in separate processes on gloo."""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.pool import Pool
from typing import Any

import torch
import torch.distributed as dist

LIMIT = 240  # seconds after which a call, or a collective of a rank, counts as hung


def _join(store: str, rank: int, world: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=world, timeout=timedelta(seconds=LIMIT)
    )


class Ranks:
    """The processes of `world` ranks. They start at the first call and serve all later calls, because a process needs
    seconds to import torch and transformers."""

    def __init__(self, world: int) -> None:
        self.world = world
        self._pools: list[Pool] = []
        self._place: tempfile.TemporaryDirectory | None = None

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Return the results of `function(rank, world, *arguments)` by rank.

        The first error of a rank is raised. The processes then start again at the next call."""
        self._start()
        try:
            calls = [
                pool.apply_async(function, (rank, self.world, *arguments)) for rank, pool in enumerate(self._pools)
            ]
            until = time.monotonic() + LIMIT
            while not all(call.ready() and call.successful() for call in calls):
                for call in calls:
                    if call.ready():
                        call.get()  # raises the error of the rank
                if time.monotonic() > until:
                    raise TimeoutError(f"{function.__name__}: {self.world} ranks had no result after {LIMIT} s")
                time.sleep(0.01)
            return [call.get() for call in calls]
        except BaseException:
            self.close()
            raise

    def _start(self) -> None:
        if not self._pools:
            self._place = tempfile.TemporaryDirectory()
            context, store = multiprocessing.get_context("spawn"), f"{self._place.name}/store"
            self._pools = [context.Pool(1, _join, (store, rank, self.world)) for rank in range(self.world)]

    def close(self) -> None:
        """Kill the processes."""
        for pool in self._pools:
            pool.terminate()
        for pool in self._pools:
            pool.join()
        self._pools = []
        if self._place:
            self._place.cleanup()
            self._place = None
