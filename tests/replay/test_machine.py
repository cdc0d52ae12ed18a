"""Compares random histories of the store with a model that does not depend on the ledger, the journal and the
records."""

from __future__ import annotations

import math
import shutil
import tempfile
from dataclasses import dataclass, replace

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.replay.helpers import Clock, forest_for, open_store
from treeadv import wire
from treeadv.forest import Verdict
from treeadv.replay.audit import audit
from treeadv.replay.history import forests_of_step
from treeadv.replay.ledger import LeaseLost
from treeadv.replay.records import DropReason, Reserved

PER_STEP = 2
BOUND = 1
MIXED = [0.0, 1.0, 0.0]
ATTEMPTS = 3
LEASE_SECONDS = 10.0


@dataclass
class Thing:
    """One forest of the model."""

    record: Reserved
    where: str = "growing"  # growing, ready, leased, stepped, trained, gone
    since: int = 0  # step of the reservation
    version: int = 0
    arrived: int = -1
    step: int = 0
    skipped: bool = False  # whether its step skipped it


class Machine(RuleBasedStateMachine):
    @initialize(selection=st.sampled_from(["fifo", "freshest"]), retain=st.sampled_from(["all", "unacknowledged"]))
    def begin(self, selection: str, retain: str) -> None:
        self.selection, self.retain = selection, retain
        self.dir = tempfile.mkdtemp(prefix="replay-")
        self.clock = Clock()
        self.things: dict[str, Thing] = {}
        self.leases: dict[str, tuple[list[str], float]] = {}  # open leases: (forests, deadline)
        self.expired: dict[str, list[str]] = {}
        self.failures: dict[int, int] = {}
        self.version = self.step = self.committed = self.oldest_kept = self.arrivals = 0
        self.given_up: set[int] = set()
        self.steps: dict[int, list[str]] = {}
        self.front: list[str] = []  # forests that a resume took from the learner, in their order
        self.waiting: int | None = None  # the version of a lease for which forests were missing
        self.store = self.open(None)

    def open(self, durable_step: int | None):
        return open_store(
            self.dir, PER_STEP, durable_step, self.clock, max_staleness=BOUND, attempts=ATTEMPTS, fsync="none",
            lease_seconds=LEASE_SECONDS, selection=self.selection, retain=self.retain, mixed_only=True,
        )  # fmt: skip

    def of(self, *where: str) -> list[Thing]:
        return [t for t in self.things.values() if t.where in where]

    def leasable(self, version: int) -> list[Thing]:
        return [t for t in self.of("ready") if t.version <= version]

    def is_due(self, t: Thing) -> bool:
        """Return whether the next step makes a forest stale whose prompt had a stale or resumed attempt before."""
        retried = t.record.attempt > t.record.failures
        return retried and self.step - t.since <= BOUND < self.step + 1 - t.since

    def lose(self, t: Thing) -> None:
        t.where = "gone"
        draw = t.record.draw
        self.failures[draw] = self.failures.get(draw, 0) + 1
        if self.failures[draw] >= ATTEMPTS:
            self.given_up.add(draw)

    # ---- workers -----------------------------------------------------------------------------------------------------
    @rule(worker=st.sampled_from(["a", "b"]))
    def reserve(self, worker: str) -> None:
        free = (BOUND + 1) * PER_STEP - len(self.of("growing", "ready", "leased"))
        if self.waiting is not None:
            free = max(free, PER_STEP - len(self.leasable(self.waiting)) - len(self.of("growing")))
        record = self.store.reserve(worker, "", str)
        assert (record is None) == (free <= 0)
        if record:
            assert record.forest_id not in self.things
            self.things[record.forest_id] = Thing(record, since=self.step)

    @rule(n=st.integers(1, 4), lag=st.integers(0, 1))
    def grow(self, n: int, lag: int) -> None:
        """Reserve and admit a forest. Random rules alone would rarely do both."""
        for _ in range(n):
            self.reserve("a")
        for t in self.of("growing"):
            self.bring(t, lag)

    @precondition(lambda self: self.of("growing"))
    @rule(data=st.data(), lag=st.integers(0, 3))
    def deliver(self, data: st.DataObject, lag: int) -> None:
        self.bring(data.draw(st.sampled_from(self.of("growing"))), lag)

    def bring(self, t: Thing, lag: int) -> None:
        t.version = max(0, self.version - lag)
        assert (
            self.store.admit(t.record.forest_id, wire.to_batch([forest_for(t.record, t.version, MIXED)])) == "admitted"
        )
        t.where, t.arrived = "ready", self.arrivals
        self.arrivals += 1

    @precondition(lambda self: len(self.of("growing")) < len(self.things))
    @rule(data=st.data())
    def deliver_again(self, data: st.DataObject) -> None:
        t = data.draw(st.sampled_from([t for t in self.things.values() if t.where != "growing"]))
        admission = self.store.admit(t.record.forest_id, wire.to_batch([forest_for(t.record)]))
        finished = t.where == "gone" or (t.where == "trained" and t.step <= self.oldest_kept)
        assert admission == ("late" if finished else "repeat")

    @precondition(lambda self: self.of("growing"))
    @rule(data=st.data())
    def deliver_ungraded(self, data: st.DataObject) -> None:
        t = data.draw(st.sampled_from(self.of("growing")))
        f = forest_for(t.record)
        bad = wire.to_batch([replace(f, verdict=f.verdict * 0 - 1)])
        assert self.store.admit(t.record.forest_id, bad) == "refused"
        self.lose(t)

    @precondition(lambda self: self.of("growing"))
    @rule(data=st.data(), mixed=st.booleans())
    def deliver_dropped_forest(self, data: st.DataObject, mixed: bool) -> None:
        """Admit a forest that is dropped. If it has no variance, its draw is finished. If it has too few judged leaves,
        its prompt is reserved again."""
        t = data.draw(st.sampled_from(self.of("growing")))
        f = forest_for(t.record, self.version, [0.0, 1.0, 1.0] if mixed else [1.0, 1.0, 1.0])
        if mixed:
            f = replace(f, verdict=f.verdict * 0 + Verdict.CRASH)
        assert self.store.admit(t.record.forest_id, wire.to_batch([f])) == "dropped"
        if mixed:
            self.lose(t)
        else:
            t.where = "gone"
            self.given_up.add(t.record.draw)

    @precondition(lambda self: self.leases)
    @rule(reason=st.sampled_from(["not_finite", "no_variance"]))
    def discard(self, reason: DropReason) -> None:
        lease_id, (fids, _) = self.leases.popitem()
        for _ in range(2):
            self.store.discard(lease_id, reason, "test")
        for fid in fids:
            if reason == "not_finite":
                self.lose(self.things[fid])
            else:
                self.things[fid].where = "gone"
                self.given_up.add(self.things[fid].record.draw)

    @precondition(lambda self: self.of("growing"))
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        t = data.draw(st.sampled_from(list(self.things.values())))
        self.store.fail(t.record.forest_id, "test")
        if t.where == "growing":
            self.lose(t)

    @precondition(lambda self: self.of("growing"))
    @rule(worker=st.sampled_from(["a", "b"]))
    def forget(self, worker: str) -> None:
        mine = [t for t in self.of("growing") if t.record.worker == worker]
        assert self.store.forget(worker) == len(mine)
        for t in mine:
            self.lose(t)

    # ---- learner -----------------------------------------------------------------------------------------------------
    @precondition(lambda self: not self.leases and self.of("ready"))
    @rule()
    def train(self) -> None:
        self.lease()
        if self.leases:
            self.ack(0)

    @precondition(lambda self: not self.leases and self.of("ready"))
    @rule()
    def lease(self) -> None:
        for t in self.of("ready"):
            if self.version - t.version > BOUND:
                t.where = "gone"
                for lease in [i for i, fids in self.expired.items() if t.record.forest_id in fids]:
                    del self.expired[lease]
        at = {fid: n for n, fid in enumerate(self.front)}
        ready = sorted(self.leasable(self.version), key=lambda t: t.arrived)
        if self.selection == "freshest":
            ready.sort(key=lambda t: -t.version if not self.is_due(t) else -math.inf)
        else:
            ready.sort(key=lambda t: not self.is_due(t))
        ready.sort(key=lambda t: at.get(t.record.forest_id, len(at)))
        lease = self.store.lease(PER_STEP, self.version)
        assert (lease is None) == (len(ready) < PER_STEP or any(map(self.is_due, self.of("growing"))))
        self.waiting = self.version if lease is None else None
        if lease is None:
            return
        assert lease.forest_ids == tuple(t.record.forest_id for t in ready[:PER_STEP])
        assert self.store.lease(PER_STEP, self.version) == lease  # a repeated call returns the same lease
        for t in ready[:PER_STEP]:
            assert 0 <= self.version - t.version <= BOUND
            t.where = "leased"
        self.leases[lease.lease_id] = (list(lease.forest_ids), self.clock.now + LEASE_SECONDS)
        self.expired = {i: f for i, f in self.expired.items() if not set(f) & set(lease.forest_ids)}

    def stepped(self, lease_id: str, fids: list[str], skipped: list[str]) -> None:
        self.step += 1
        self.version = self.step
        for _ in range(2):  # a repeated call changes nothing
            self.store.ack(lease_id, self.step, skipped)
        self.steps[self.step] = fids
        for fid in fids:
            self.things[fid].where, self.things[fid].step = "stepped", self.step
            self.things[fid].skipped = fid in skipped

    @precondition(lambda self: self.leases)
    @rule(skips=st.integers(0, PER_STEP))
    def ack(self, skips: int) -> None:
        lease_id, (fids, _) = self.leases.popitem()
        self.stepped(lease_id, fids, fids[:skips])

    @precondition(lambda self: self.expired and not self.leases)
    @rule(data=st.data())
    def ack_late(self, data: st.DataObject) -> None:
        lease_id = data.draw(st.sampled_from(sorted(self.expired)))
        self.stepped(lease_id, self.expired.pop(lease_id), [])

    @precondition(lambda self: self.step)
    @rule()
    def ack_unknown_lease(self) -> None:
        with pytest.raises(LeaseLost):
            self.store.ack("lease-999999", self.step + 1)

    @precondition(lambda self: self.leases)
    @rule()
    def nack(self) -> None:
        lease_id, (fids, _) = self.leases.popitem()
        for _ in range(2):
            self.store.nack(lease_id)
        for fid in fids:
            self.things[fid].where = "ready"

    @precondition(lambda self: self.leases)
    @rule(seconds=st.sampled_from([1.0, 11.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.now += seconds
        over = [i for i, (_, deadline) in self.leases.items() if deadline <= self.clock.now]
        assert self.store.expire() == len(over)
        for i in over:
            self.expired[i] = self.leases.pop(i)[0]
            for fid in self.expired[i]:
                self.things[fid].where = "ready"

    @precondition(lambda self: self.step > self.committed)
    @rule(data=st.data())
    def commit(self, data: st.DataObject) -> None:
        self.committed = data.draw(st.integers(self.committed + 1, self.step))
        self.oldest_kept = data.draw(st.integers(self.oldest_kept, self.committed))
        for _ in range(2):
            self.store.commit(self.committed, self.oldest_kept)
        self.durable()

    @precondition(lambda self: self.committed)
    @rule(limit=st.sampled_from([0, 4000]))
    def compact(self, limit: int) -> None:
        self.store.journal_limit = limit
        self.store.compact()

    def durable(self) -> None:
        for t in self.of("stepped"):
            if t.step <= self.committed:
                if t.skipped:
                    self.lose(t)
                else:
                    t.where = "trained"

    # ---- death -------------------------------------------------------------------------------------------------------
    @precondition(lambda self: len(self.things) > 3)
    @rule()
    def restart_queue(self) -> None:
        self.store.close()
        self.waiting = None
        self.store = self.open(None)

    @precondition(lambda self: not self.leases)
    @rule(data=st.data())
    def undo_step(self, data: st.DataObject) -> None:
        """Undo a step whose weights have drawn the forests of the next step. Random rules alone would rarely do
        this."""
        self.grow(4, 0)
        if self.of("ready"):
            self.train()
        self.grow(4, 0)
        self.resume_after_death(data)

    @precondition(lambda self: self.step > self.oldest_kept or self.leases)
    @rule(data=st.data())
    def resume_after_death(self, data: st.DataObject) -> None:
        self.committed = data.draw(st.integers(self.oldest_kept, self.step))
        self.store.close()
        self.waiting = None
        self.store = self.open(self.committed)
        self.durable()
        for t in self.of("trained"):
            if t.step > self.committed:
                t.where = "stepped"
        self.step = self.version = self.committed
        for t in self.of("growing"):
            t.where = "gone"
        undone = [fid for step in sorted(self.steps) if step > self.committed for fid in self.steps.pop(step)]
        undone += [fid for fids, _ in self.leases.values() for fid in fids]
        self.front = undone + [fid for fid in self.front if fid not in undone]
        for fid in undone:
            if self.things[fid].where != "gone":  # a step that was durable earlier has dropped its skipped forests
                self.things[fid].where = "ready"
        self.leases.clear()
        self.expired.clear()

    # ---- invariants --------------------------------------------------------------------------------------------------
    @invariant()
    def counts_agree(self) -> None:
        if not hasattr(self, "store"):
            return
        totals = self.store.ledger.totals
        want = {
            "admitted": [t for t in self.things.values() if t.arrived >= 0], "ready": self.of("ready"),
            "leased": self.of("leased", "stepped"), "trained": self.of("trained"),
            "dropped": [t for t in self.of("gone") if t.arrived >= 0],
        }  # fmt: skip
        for name, things in want.items():
            sizes = [forest_for(t.record) for t in things]
            got = tuple(totals[name, u] for u in ("forests", "leaves", "tokens"))
            assert got == (len(sizes), sum(f.leaves for f in sizes), sum(f.tokens for f in sizes)), name

    @invariant()
    def every_prompt_is_given_out_once(self) -> None:
        if not hasattr(self, "store"):
            return
        alive = [t.record.draw for t in self.things.values() if t.where != "gone"]
        again = [a.draw for a in self.store.ledger.again]
        assert sorted([*alive, *again, *self.given_up]) == list(range(self.store.ledger.next_draw))

    def teardown(self) -> None:
        if not hasattr(self, "store"):
            return
        self.store.close()
        report = audit(self.dir)
        assert report.sound, report.table()
        assert report.rows["trained"]["forests"] == len(self.of("trained"))
        for step in {t.step for t in self.of("trained")} if self.retain == "all" else ():
            assert [f.forest_id for f in forests_of_step(self.dir, step)] == self.steps[step]
        shutil.rmtree(self.dir)


Machine.TestCase.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestRandomHistories = Machine.TestCase
