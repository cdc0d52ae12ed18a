"""The queue of `treeadv bench driver`."""

from __future__ import annotations

from typing import Any

from actors.benchmarks.stubs.measured import Measured
from actors.replay_queue import ReplayQueue

_PARTS = {  # method of the store -> part of the cost of a forest
    "reserve_many": "reserve",
    "admit_many": "admit",
    "lease": "lease",
    "ack": "finish",
    "commit": "finish",
    "compaction": "finish",
}


class MeasuredQueue(ReplayQueue, Measured):
    """The queue of a run, which measures the work of its store."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        for method, component in _PARTS.items():
            setattr(self._store, method, self.timed(component, getattr(self._store, method)))
