"""The figures of the queue. The queue's method `counts` and the metrics exporter use them."""

from __future__ import annotations

from treeadv.jsonl import JsonObject
from treeadv.replay.ledger import UNITS
from treeadv.replay.live import State
from treeadv.replay.store import ReplayStore

_ADMITTED = (State.READY, State.LEASED, State.TRAINED, State.DROPPED)


def figures(store: ReplayStore) -> JsonObject:
    """Return the figures as values that JSON can represent.

    `states` holds forests by state. `admitted`, `ready`, `leased` and `trained` hold numbers by unit. `dropped`
    holds numbers by reason and unit; a forest that was not admitted counts as a forest without leaves and tokens.
    `law_error` holds the error of the conservation law by unit. Any value but 0 is a defect."""
    ledger, totals = store.ledger, store.ledger.totals
    reasons = sorted(({what for what, _ in totals} - {"admitted", *_ADMITTED}) | set(ledger.lost))
    states = {str(s): totals[s, "forests"] for s in _ADMITTED}
    return {
        "states": {"reserved": len(ledger.in_state(State.RESERVED)), **states},
        **{what: {u: totals[what, u] for u in UNITS} for what in ("admitted", "ready", "leased", "trained")},
        "dropped": {r: {u: totals[r, u] + ledger.lost[r] * (u == "forests") for u in UNITS} for r in reasons},
        "law_error": ledger.law_error(),
        "waiting_for_retry": len(ledger.again),
        "next_draw": ledger.next_draw,
        "last_step": ledger.last_step,
        "committed_step": ledger.committed,
        "capacity": store.capacity,
        "slots_free": store.free_slots,
        "journal_records": store.files.records,
        "disk_bytes": store.files.disk_bytes(),
        "disk_free_bytes": store.files.folder.free_bytes(),
    }
