"""The export of the figures of the queue as metrics."""

from __future__ import annotations

import math

from treeadv.jsonl import JsonObject
from treeadv.metrics import Exporter
from treeadv.replay.ledger import UNITS


class QueueMetrics:
    """The exporter of the figures of the queue. Counters continue after a restart, because the journal holds them."""

    def __init__(self, exporter: Exporter) -> None:
        self._exporter = exporter
        self._counted: dict[tuple[str, ...], float] = {}
        for unit in UNITS:  # the series exists from the start, because an alert needs an increase to see the first drop
            self._count("treeadv_queue_dropped_total", 0, reason="stale", unit=unit)

    def update(self, f: JsonObject) -> None:
        for state, n in f["states"].items():
            self._exporter.set("treeadv_queue_forests", n, state=state)
        for unit in UNITS:
            self._count("treeadv_queue_admitted_total", f["admitted"][unit], unit=unit)
            self._count("treeadv_queue_trained_total", f["trained"][unit], unit=unit)
            self._exporter.set("treeadv_queue_law_error", f["law_error"][unit], unit=unit)
        for reason, units in f["dropped"].items():
            for unit, n in units.items():
                self._count("treeadv_queue_dropped_total", n, reason=reason, unit=unit)
        self._count("treeadv_queue_journal_records_total", f["journal_records"])
        self._exporter.set("treeadv_queue_slots_free", f["slots_free"])
        self._exporter.set("treeadv_queue_disk_bytes", f["disk_bytes"])
        free = f["disk_free_bytes"]
        self._exporter.set(
            "treeadv_queue_disk_free_bytes", math.inf if free is None else free
        )  # inf stands for a store without a limit; 0 would mean a full disk

    def _count(self, name: str, total: float, **labels: str) -> None:
        key = (name, *labels.values())
        self._exporter.add(name, total - self._counted.get(key, 0), **labels)
        self._counted[key] = total
