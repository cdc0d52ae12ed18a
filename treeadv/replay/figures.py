"""The figures of the queue: what `counts` answers and the exporter shows."""

from __future__ import annotations

from typing import Any

from treeadv.replay.ledger import UNITS, State
from treeadv.replay.store import ReplayStore

_ADMITTED = (State.READY, State.LEASED, State.TRAINED, State.DROPPED)


def figures(store: ReplayStore) -> dict[str, Any]:
    """Return JSON-able figures.

    `states`: forests by state; `admitted`, `ready`, `leased`, `trained`: by unit; `dropped`: by reason, then unit,
    where one that was not admitted counts as a forest without leaves or tokens; `law_error`: by unit, 0 unless there is
    a defect."""
    ledger, totals = store.ledger, store.ledger.totals
    reasons = sorted(({what for what, _ in totals} - {"admitted", *_ADMITTED}) | set(ledger.lost))
    states = {str(s): totals[s, "forests"] for s in _ADMITTED}
    return {
        "states": {"reserved": len(ledger.in_state(State.RESERVED)), **states},
        **{what: {u: totals[what, u] for u in UNITS} for what in ("admitted", "ready", "leased", "trained")},
        "dropped": {r: {u: totals[r, u] + ledger.lost[r] * (u == "forests") for u in UNITS} for r in reasons},
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
