"""The queue in figures: what `counts` answers and what the exporter shows."""

from __future__ import annotations

import math
from typing import Any

from treeadv.metrics import Exporter
from treeadv.replay.ledger import UNITS, State
from treeadv.replay.store import ReplayStore

_ADMITTED = (State.READY, State.LEASED, State.TRAINED, State.DROPPED)


def figures(store: ReplayStore) -> dict[str, Any]:
    """JSON-able. `states`: forests by state; `admitted`, `ready`, `leased`, `trained`: by unit; `dropped`: by reason, then unit;
    `lost`: reservations that ended without a forest, by reason; `law_error`: by unit, zero unless there is a defect."""
    ledger, totals = store.ledger, store.ledger.totals
    reasons = sorted({what for what, _ in totals} - {"admitted", *_ADMITTED})
    return {
        "states": {"reserved": len(ledger.in_state(State.RESERVED)), **{str(s): totals[s, "forests"] for s in _ADMITTED}},
        **{what: {u: totals[what, u] for u in UNITS} for what in ("admitted", "ready", "leased", "trained")},
        "dropped": {r: {u: totals[r, u] for u in UNITS} for r in reasons},
        "lost": dict(ledger.lost),
        "law_error": ledger.law_error(),
        "waiting_again": len(ledger.again),
        "next_draw": ledger.next_draw,
        "last_step": ledger.last_step,
        "committed_step": ledger.committed,
        "capacity": store.capacity,
        "slots_free": store.free_slots,
        "journal_records": store.records,
        "disk_bytes": store.disk_bytes(),
        "disk_free_bytes": store.free_bytes(),
    }


class Shown:
    """Brings an exporter up to date with the figures; counters go on over restarts, because the journal does."""

    def __init__(self, exporter: Exporter) -> None:
        self._exporter = exporter
        self._counted: dict[tuple[str, ...], float] = {}

    def update(self, f: dict[str, Any]) -> None:
        for state, n in f["states"].items():
            self._exporter.set("treeadv_queue_forests", n, state=state)
        for unit in UNITS:
            self._count("treeadv_queue_admitted_total", f["admitted"][unit], unit=unit)
            self._count("treeadv_queue_trained_total", f["trained"][unit], unit=unit)
            self._exporter.set("treeadv_queue_law_error", f["law_error"][unit], unit=unit)
        for reason, units in f["dropped"].items():
            for unit, n in units.items():
                self._count("treeadv_queue_dropped_total", n, reason=reason, unit=unit)
        for reason, n in f["lost"].items():
            self._count("treeadv_queue_dropped_total", n, reason=reason, unit="forests")
        self._count("treeadv_queue_journal_records_total", f["journal_records"])
        self._exporter.set("treeadv_queue_slots_free", f["slots_free"])
        self._exporter.set("treeadv_queue_disk_bytes", f["disk_bytes"])
        free = f["disk_free_bytes"]
        self._exporter.set("treeadv_queue_disk_free_bytes", math.inf if free is None else free)  # unset it would show as 0, a full disk

    def _count(self, name: str, total: float, **labels: str) -> None:
        key = (name, *labels.values())
        self._exporter.add(name, total - self._counted.get(key, 0), **labels)
        self._counted[key] = total
