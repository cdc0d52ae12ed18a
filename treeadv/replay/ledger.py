"""The states of forests as a pure state machine. It applies records, reads no clock and does no I/O.

    reserved -> ready -> leased -> trained
        \\__________\\______________> dropped(reason)

A forest holds one slot from `reserved` until the learner acknowledges its lease, or until it is dropped.

A forest is `reserved` while workers grow and grade it. A forest stays `leased` until its step is durable (`Committed`);
the ack only frees the slots. A step does not train a forest whose update is not finite. The queue drops such a forest
just before the step becomes durable. So a step that is undone is taken again with all its forests. A resume from an
older checkpoint makes the trained forests of later steps ready again.
After every record the conservation law holds for forests, leaves and tokens:

    admitted = ready + leased + trained + dropped

The law counts admitted forests only. A failed reservation has no leaves or tokens and counts in `lost`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Annotated

from pydantic import AfterValidator, TypeAdapter

from treeadv.jsonl import JsonObject
from treeadv.replay.live import Entry, LiveForests, State
from treeadv.replay.records import (
    Acked,
    Admitted,
    Committed,
    Dropped,
    DropReason,
    Leased,
    Opened,
    Record,
    Reserved,
    Resumed,
    Returned,
    Snapshot,
)

UNITS = ("forests", "leaves", "tokens")
_FAILURES = ("failed", "invalid", "too_few_judged", "not_finite")  # drop reasons whose cause may be the prompt
_FINAL = ("no_variance", "no_prompt")  # drop reasons that would likely recur in another attempt at the prompt


class LawBroken(AssertionError):
    """The conservation law does not hold: a defect of the queue lost or duplicated forests. The run must stop."""


class LeaseLost(RuntimeError):
    """The lease ended and another lease holds its forests. Its step is void: the run resumes from a checkpoint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenLease:
    """A lease that is not finished.

    `step` is the step that the ack named; it is None before the ack. `skipped` are the forests that the step did not
    train."""

    record: Leased
    step: int | None = None
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """The next attempt at a draw. `failures` is the number of earlier attempts that failed."""

    draw: int
    attempt: int
    failures: int


class Ledger:
    """The state of every forest that is not finished, and the totals of all forests.

    A trained forest is finished when the run keeps no checkpoint of an earlier step."""

    def __init__(self) -> None:
        self.run = ""
        self.session = ""  # the session of the last record `Opened` or `Resumed`
        self.live = LiveForests()
        self.leases: dict[str, OpenLease] = {}
        self.again: list[Retry] = []
        self.next_draw = 0
        self.leases_made = 0
        self.last_step = 0  # last acknowledged step
        self.committed = 0  # largest durable step
        self.oldest_kept = 0  # oldest step that the run may resume from
        self.totals: Counter[tuple[str, str]] = Counter()  # keys are (state or drop reason, unit)
        self.lost: Counter[str] = Counter()  # number of reservations that ended without a forest, by reason
        self.lapsed: dict[str, Leased] = {}  # expired leases whose forests no other lease has taken
        self._orders = 0

    # ---- queries -----------------------------------------------------------------------------------------------------
    @property
    def slots_used(self) -> int:
        """Return the number of slots in use. Every live forest uses a slot until its lease is acknowledged."""
        return len(self.live) - sum(len(x.record.forest_ids) for x in self.leases.values() if x.step is not None)

    def in_state(self, state: State) -> list[Entry]:
        return self.live.in_state(state)

    def known(self, fid: str) -> bool:
        """Return whether this run has reserved the forest id. A known id that is not live is finished."""
        parts = fid.rsplit("-", 2)
        return len(parts) == 3 and parts[0] == self.run and parts[1].isdecimal() and int(parts[1]) < self.next_draw

    def next_tickets(self, count: int) -> list[Retry]:
        """Return the draws and attempts of the next `count` reservations: the waiting retries, then new draws."""
        fresh = range(self.next_draw, self.next_draw + count - len(self.again))
        return [*self.again[:count], *(Retry(draw=draw, attempt=0, failures=0) for draw in fresh)]

    def drop(self, fid: str, reason: DropReason, detail: str, attempts: int) -> Dropped:
        """Return the record that drops a live forest. `Dropped.refill` says whether the prompt gets another attempt.

        If the prompt did not cause the reason (stale, damaged), the prompt gets another attempt. After a failure the
        prompt gets another attempt until `attempts` attempts of the draw have failed. A prompt without variance and
        a draw without a prompt get no other attempt."""
        failed_for_good = reason in _FAILURES and self.live[fid].reserved.failures + 1 >= attempts
        return Dropped(forest_id=fid, reason=reason, detail=detail, refill=reason not in _FINAL and not failed_for_good)

    def skipped(self, step: int) -> list[tuple[str, int]]:
        """Return (forest, step) for each leased forest that its step did not train. Only the steps up to `step`
        count."""
        done = self._acked_after(self.committed, step)
        return [(fid, lease.step) for lease in done for fid in lease.skipped if lease.step is not None]

    def leasable(self, version: int) -> list[Entry]:
        """Return the ready forests that have no token newer than `version`. Newer tokens exist only after a resume."""
        return [e for e in self.in_state(State.READY) if e.payload.newest_version <= version]

    def stale(self, version: int, bound: int) -> list[Dropped]:
        """Return records that drop the ready forests with a token more than `bound` versions older than `version`."""
        ready = sorted(self.in_state(State.READY), key=lambda e: e.reserved.draw)
        ages = {e.reserved.forest_id: version - e.payload.oldest_version for e in ready}
        old = [(fid, f"staleness {age} > {bound}") for fid, age in ages.items() if age > bound]
        return [Dropped(forest_id=fid, reason="stale", detail=detail, refill=True) for fid, detail in old]

    def expired(self, now: float) -> list[Returned]:
        """Return the records that end the expired leases: open leases without an ack whose deadline has passed."""
        over = [x for x in self.leases.values() if x.step is None and x.record.deadline <= now]
        return [Returned(lease_id=x.record.lease_id, reason="expired") for x in over]

    def can_ack(self, lease_id: str, step: int) -> bool:
        """Return True for a new ack and False for a repeated ack. Raises `LeaseLost` if another lease has the
        forests."""
        open_lease = self.leases.get(lease_id)
        if (open_lease is not None and open_lease.step is None) or lease_id in self.lapsed:
            if step != self.last_step + 1:
                raise ValueError(f"ack of lease {lease_id} for step {step}: the next step is {self.last_step + 1}")
            return True
        if (open_lease is not None and open_lease.step == step) or step <= self.committed:
            return False
        raise LeaseLost(
            f"lease {lease_id}: another lease holds the forests, so step {step} is void; raise queue.lease_seconds"
        )

    def law_error(self) -> dict[str, int]:
        """Return admitted - ready - leased - trained - dropped by unit. Any value but 0 is a defect."""
        t = self.totals
        return {u: t["admitted", u] - t["ready", u] - t["leased", u] - t["trained", u] - t["dropped", u] for u in UNITS}

    # ---- transitions -------------------------------------------------------------------------------------------------
    def apply(self, record: Record) -> None:
        """Apply one record. Raises KeyError or ValueError for an illegal transition, and `LawBroken` for a defect of
        the queue."""
        match record:
            case Opened(run=run, session=session):
                self.run, self.session = run, session
            case Reserved():
                self._reserve(record)
            case Admitted():
                self._admit(record)
            case Leased():
                self._lease(record)
            case Acked():
                self._ack(record)
            case Returned(lease_id=lease_id, reason=reason):
                lease = self.leases.pop(lease_id)
                if lease.step is not None:
                    raise ValueError(f"lease {lease_id} is acknowledged for step {lease.step} and cannot return")
                for fid in lease.record.forest_ids:
                    self._move(fid, State.READY)
                if reason == "expired":
                    self.lapsed[lease_id] = lease.record
            case Dropped():
                self._drop(record)
            case Committed():
                self._commit(record)
            case Resumed():
                self._resume(record)
            case Snapshot(ledger=state):
                self._restore(state)
        self._check_law(record)

    def _reserve(self, record: Reserved) -> None:
        (ticket,) = self.next_tickets(1)
        if (record.draw, record.attempt) != (ticket.draw, ticket.attempt):
            raise ValueError(f"{record} is not the next ticket {ticket}")
        if self.again:
            del self.again[0]
        else:
            self.next_draw += 1
        self.live[record.forest_id] = Entry(reserved=record, since=self.last_step)

    def _admit(self, record: Admitted) -> None:
        entry = self.live[record.forest_id]
        if entry.state is not State.RESERVED:
            raise ValueError(f"forest {record.forest_id} is {entry.state} and cannot be admitted")
        self.live[record.forest_id] = replace(entry, admitted=record, order=self._orders)
        self._orders += 1
        self._count("admitted", record, 1)
        self._move(record.forest_id, State.READY)

    def _lease(self, record: Leased) -> None:
        if any(self.live[fid].state is not State.READY for fid in record.forest_ids):
            raise ValueError(f"lease {record.lease_id} names a forest that is not ready")
        for payload in (self.live[fid].payload for fid in record.forest_ids):
            newest, age = payload.newest_version, record.version - payload.oldest_version
            if newest > record.version:
                raise ValueError(
                    f"lease {record.lease_id} of version {record.version} has a forest of version {newest}"
                )
            if age > record.max_staleness:
                raise ValueError(f"lease {record.lease_id} has a forest of staleness {age} > {record.max_staleness}")
        for fid in record.forest_ids:
            self._move(fid, State.LEASED)
        taken = set(record.forest_ids)
        self.lapsed = {i: r for i, r in self.lapsed.items() if taken.isdisjoint(r.forest_ids)}
        self.leases[record.lease_id] = OpenLease(record=record)
        self.leases_made += 1

    def _ack(self, record: Acked) -> None:
        if not self.can_ack(record.lease_id, record.step):
            raise ValueError(f"lease {record.lease_id} is already acknowledged for step {record.step}")
        if record.lease_id in self.lapsed:  # the ack is late but valid, because no other lease has the forests
            lapsed = self.lapsed.pop(record.lease_id)
            for fid in lapsed.forest_ids:
                self._move(fid, State.LEASED)
            self.leases[record.lease_id] = OpenLease(record=lapsed)
        lease = self.leases[record.lease_id]
        if not set(record.skipped) <= set(lease.record.forest_ids):
            raise ValueError(f"step {record.step} skipped a forest that lease {record.lease_id} does not have")
        self.leases[record.lease_id] = replace(lease, step=record.step, skipped=record.skipped)
        self.last_step = record.step

    def _drop(self, record: Dropped) -> None:
        entry = self.live[record.forest_id]
        if entry.state is State.LEASED:
            self._leave_step(record.forest_id)
        if entry.admitted is None:
            self.lost[record.reason] += 1
            del self.live[record.forest_id]
        else:
            self._count(record.reason, entry.admitted, 1)
            self._move(record.forest_id, State.DROPPED)
        for lease_id in [i for i, r in self.lapsed.items() if record.forest_id in r.forest_ids]:
            del self.lapsed[lease_id]
        if record.refill:
            r = entry.reserved
            failures = r.failures + (record.reason in _FAILURES)
            self.again.append(Retry(draw=r.draw, attempt=r.attempt + 1, failures=failures))

    def _leave_step(self, fid: str) -> None:
        """Remove a skipped forest from the lease of its step. Raises ValueError for any other leased forest."""
        for lease_id, lease in self.leases.items():
            if fid in lease.skipped:
                kept, skipped = (tuple(x for x in f if x != fid) for f in (lease.record.forest_ids, lease.skipped))
                record = replace(lease.record, forest_ids=kept)
                self.leases[lease_id] = replace(lease, record=record, skipped=skipped)
                return
        raise ValueError(f"forest {fid} is leased and cannot be dropped")

    def _commit(self, record: Committed) -> None:
        if not self.committed <= record.step <= self.last_step:
            wrong = f"the step must be between {self.committed} (durable) and {self.last_step} (last acknowledged)"
            raise ValueError(f"step {record.step} cannot become durable: {wrong}")
        if not self.oldest_kept <= record.oldest_kept <= record.step:
            wrong = f"the step must be between {self.oldest_kept} and {record.step}"
            raise ValueError(f"step {record.oldest_kept} cannot be the oldest kept checkpoint: {wrong}")
        if left := self.skipped(record.step):
            raise ValueError(f"step {left[0][1]} did not train forest {left[0][0]}: the forest must be dropped first")
        for lease in self._acked_after(self.committed, record.step):
            for fid in lease.record.forest_ids:
                self._move(fid, State.TRAINED)
        for lease in self._acked_after(self.oldest_kept, record.oldest_kept):
            del self.leases[lease.record.lease_id]
            for fid in lease.record.forest_ids:
                del self.live[fid]
        self.committed, self.oldest_kept = record.step, record.oldest_kept

    def _acked_after(self, low: int, high: int) -> list[OpenLease]:
        """Return the acknowledged leases of the steps low + 1 to high."""
        return [x for x in self.leases.values() if x.step is not None and low < x.step <= high]

    def _resume(self, record: Resumed) -> None:
        if not self.oldest_kept <= record.step <= self.committed:
            wrong = f"only steps {self.oldest_kept} to {self.committed} may have a durable checkpoint"
            raise ValueError(f"the run cannot resume from step {record.step}: {wrong}")
        self.session = record.session
        undone = [x for x in self.leases.values() if x.step is None or x.step > record.step]
        undone.sort(key=lambda x: (x.step is None, x.step or 0))  # leases without an ack keep their order
        first = [fid for lease in undone for fid in lease.record.forest_ids]
        later = sorted((e for e in self.in_state(State.READY) if e.turn is not None), key=lambda e: e.turn or 0)
        for turn, fid in enumerate([*first, *(e.reserved.forest_id for e in later)]):
            self.live[fid] = replace(self.live[fid], turn=turn)
        for fid in first:
            self._move(fid, State.READY)
        for lease in undone:
            del self.leases[lease.record.lease_id]
        self.lapsed.clear()
        for entry in self.in_state(State.RESERVED):
            r = entry.reserved
            del self.live[r.forest_id]
            self.again.append(Retry(draw=r.draw, attempt=r.attempt + 1, failures=r.failures))
        self.again.sort(key=lambda a: a.draw)
        self.committed = self.last_step = record.step

    # ---- snapshots ---------------------------------------------------------------------------------------------------
    def to_state(self) -> JsonObject:
        """Return the state for a `Snapshot`, as values that JSON can represent."""
        return {
            **{name: getattr(self, name) for name in _PLAIN},
            "lost": dict(self.lost),
            "totals": [[what, unit, n] for (what, unit), n in self.totals.items() if n],
            **{name: kind.dump_python(getattr(self, name), mode="json") for name, kind in _NESTED.items()},
        }

    def _restore(self, state: JsonObject) -> None:
        for name in _PLAIN:
            setattr(self, name, _SCALAR[name].validate_python(state[name]))
        self.lost = Counter(_LOST.validate_python(state["lost"]))
        self.totals = Counter({(what, unit): n for what, unit, n in _TOTALS.validate_python(state["totals"])})
        for name, kind in _NESTED.items():
            setattr(self, name, kind.validate_python(state[name]))

    # ---- counts ------------------------------------------------------------------------------------------------------
    def _move(self, fid: str, to: State) -> None:
        entry = self.live[fid]
        if entry.state is not State.RESERVED:
            self._count(entry.state, entry.payload, -1)
        self._count(to, entry.payload, 1)
        if to is State.DROPPED:
            del self.live[fid]
        else:
            self.live[fid] = replace(entry, state=to)

    def _count(self, what: str, payload: Admitted, sign: int) -> None:
        for unit, size in zip(UNITS, (1, payload.leaves, payload.tokens), strict=True):
            self.totals[str(what), unit] += sign * size

    def _check_law(self, record: Record) -> None:
        error = self.law_error()
        if any(error.values()):
            raise LawBroken(f"admitted - ready - leased - trained - dropped is {error} after {record}, must be 0")


_PLAIN = ("run", "session", "next_draw", "leases_made", "last_step", "committed", "oldest_kept", "_orders")
_SCALAR: dict[str, TypeAdapter[object]] = {n: TypeAdapter(str if n in ("run", "session") else int) for n in _PLAIN}
_LOST, _TOTALS = TypeAdapter(dict[str, int]), TypeAdapter(list[tuple[str, str, int]])
_NESTED: dict[str, TypeAdapter[object]] = {
    "live": TypeAdapter(Annotated[dict[str, Entry], AfterValidator(LiveForests)]),
    "leases": TypeAdapter(dict[str, OpenLease]),
    "again": TypeAdapter(list[Retry]),
    "lapsed": TypeAdapter(dict[str, Leased]),
}
