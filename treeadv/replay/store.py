"""The queue over its files: each method decides with the ledger, writes the payload, then the record, then makes the
transition.

The folder `replay` of a run holds `lock`, `journal/*.jsonl` and `payloads/*.arrow`. A record refers to a payload only
after that is written, so every prefix of the journal is a state that the run was in, and a run can resume from it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple, dataclass
from typing import Literal

import numpy as np
import pyarrow as pa

from treeadv.config import QueueConfig
from treeadv.errors import BadForest, BadInput
from treeadv.replay.admission import advantage_mass, graded_forest, rejection
from treeadv.replay.journal import Journal, Reader, Torn
from treeadv.replay.ledger import Ledger, State
from treeadv.replay.payloads import Damaged, Payloads
from treeadv.replay.records import (
    Acked,
    Admitted,
    Committed,
    Dropped,
    DropReason,
    Leased,
    Opened,
    Record,
    Released,
    Reserved,
    Resumed,
    Returned,
    Snapshot,
    forest_id,
)
from treeadv.replay.recovery import recover
from treeadv.replay.selection import choose, selection_rule
from treeadv.storage.folder import Action, flush, open_folder
from treeadv.visible import visible_logger

Admission = Literal["admitted", "repeat", "late", "refused", "dropped"]
JOURNAL_BYTES = 1 << 22  # that a start reads at most, beside a snapshot: 20,000 records
_TELL_EVERY = 50  # forests dropped in a row on admission
_MAX_FAILED_DRAWS = 50  # in a row
log = visible_logger("treeadv.replay")


@dataclass(frozen=True, slots=True)
class Opening:
    """What opening found: records read, seconds it took, and the torn last record that was cut off."""

    records: int
    seconds: float
    torn: Torn | None


class ReplayStore:
    """One writer's view of a run's replay folder.

    Not thread-safe, except that the actions of `pending` and `compaction` may run in another thread.
    """

    def __init__(
        self,
        run_dir: str,
        config: QueueConfig,
        forests_per_step: int,
        seed: int,
        session: str,
        step: int,
        clock: Callable[[], float] = time.time,
        versions_per_step: int = 1,
    ) -> None:
        """Open or make `run_dir`/replay (a path or a URI) and read the journal back.

        `session` names this start of the run, `step` the checkpoint that it resumes from (0: none). The first to open
        the folder in a session goes back to that step: forests leased after it are ready again in the same order,
        prompts that were only reserved go out again. A later one (the queue died beside a living learner) changes
        nothing. `versions_per_step` is the number of optimizer updates of a step.

        Raises `BadInput` for a folder in use, damage, another format, or a checkpoint that does not fit the journal.
        """
        began = time.perf_counter()
        self._config, self._seed, self._clock = config, seed, clock
        self._select = selection_rule(config.selection)
        self._folder = open_folder(run_dir).child("replay")
        if config.fsync == "none" and not self._folder.keeps_unflushed:
            raise BadInput(f"queue.fsync=none would never write to {run_dir}; use interval or always")
        self.fsync_interval = config.fsync_interval or self._folder.flush_seconds
        self.journal_limit = JOURNAL_BYTES
        self.capacity = (config.max_staleness // versions_per_step + 1) * forests_per_step
        self._waiting: tuple[int, int] | None = None  # forests and version of a lease that could not be made
        self._dropped_in_a_row = 0  # forests on admission
        self._failed_draws = 0  # in a row
        self._journals, payloads = self._folder.child("journal"), self._folder.child("payloads")
        self._journals.make()
        payloads.make()
        self._lock = self._folder.lock(session, step)
        try:
            reader = Reader(self._journals)
            self.ledger = Ledger()
            for _ in recover(reader, self.ledger):
                pass
            self._payloads = Payloads(payloads, config.payload_mb << 20, config.fsync != "none", session)
            self._payloads.settle(self._needed())  # before the records that refer to them
            self._journal = Journal(self._journals, reader, session, self._lock.check)
            self.opening = Opening(reader.seq, time.perf_counter() - began, reader.torn)
            self._begin(session, step)
        except BaseException:
            self._lock.undo()
            raise
        if reader.torn:
            log.warning("%s: unfinished last record cut off: %s", run_dir, reader.torn)
        if reader.ignored:
            log.warning(
                "%s: %d parts hold records of a process that had lost the run; ignored", run_dir, reader.ignored
            )

    def _begin(self, session: str, step: int) -> None:
        if not self.opening.records:
            if step:
                raise BadInput(
                    f"{self._folder.uri}: no journal for the checkpoint of step {step}; restore it or start anew"
                )
            self._write(Opened(f"r{self._seed}", session))  # one seed has one set of ids, so a run can be grown again
            return
        if self.ledger.session == session:
            return
        low, high = self.ledger.oldest_kept, self.ledger.last_step
        if not low <= step <= high:
            raise BadInput(
                f"{self._folder.uri}: the checkpoint is of step {step}, "
                f"the journal can go back to steps {low} to {high};"
                " resume from one of these, any other would lose forests or train them twice"
            )
        self.commit(step, low)
        self._write(Resumed(step, session))  # last: a process that dies before it starts over

    # ---- calls of workers --------------------------------------------------------------------------------------------
    @property
    def free_slots(self) -> int:
        """Forests that may still be reserved.

        A resume may leave forests for later steps in all slots. A lease that then waits for an earlier forest gets the
        slots that it needs beyond the capacity."""
        lacking = 0
        if self._waiting is not None:
            n, version = self._waiting
            lacking = n - len(self.ledger.leasable(version)) - len(self.ledger.in_state(State.RESERVED))
        return max(0, lacking, self.capacity - self.ledger.slots_used)

    def reserve(self, worker: str, request: str, prompt_id: Callable[[int], str]) -> Reserved | None:
        """Take a slot for the next draw, whose prompt is `prompt_id(draw)`; None while no slot is free.

        A repeat of a `request` (not "") gets the first answer, as long as that forest is not delivered or lost.
        """
        for e in self.ledger.in_state(State.RESERVED) if request else ():
            if (e.reserved.worker, e.reserved.request) == (worker, request):
                return e.reserved
        if not self.free_slots:
            return None
        self._failed_draws = 0
        return self._reserve(worker, request, prompt_id(self.next_draw))

    @property
    def next_draw(self) -> int:
        """The draw that the next reservation takes."""
        return self.ledger.next_ticket().draw

    def skip_draw(self, detail: str) -> None:
        """The next draw gives no prompt: finish it without a forest. Raises `BadInput` where that happens again and
        again."""
        draw = self.next_draw
        record = self._reserve("", "", "")
        self._drop(self.ledger.drop(record.forest_id, "no_prompt", detail, self._config.attempts))
        self._failed_draws += 1
        if self._failed_draws >= _MAX_FAILED_DRAWS:
            raise BadInput(
                f"task.source: {self._failed_draws} draws in a row gave "
                f"no prompt, the last (draw {draw}) with {detail};"
                " correct the task"
            )

    def _reserve(self, worker: str, request: str, prompt_id: str) -> Reserved:
        t = self.ledger.next_ticket()
        fid = forest_id(self.ledger.run, t.draw, t.attempt)
        record = Reserved(fid, t.draw, t.attempt, t.failures, worker, request, prompt_id)
        self._write(record)
        return record

    def fail(self, fid: str, reason: str) -> None:
        """The worker could not deliver: the prompt goes out again, or is given up after `queue.attempts` failures."""
        if self._state(fid) is State.RESERVED:
            self._drop(self.ledger.drop(fid, "failed", reason, self._config.attempts))

    def forget(self, worker: str) -> int:
        """The worker is gone: fail all its reservations. Returns how many."""
        lost = [e.reserved.forest_id for e in self.ledger.in_state(State.RESERVED) if e.reserved.worker == worker]
        for fid in lost:
            self.fail(fid, f"worker {worker} is gone")
        return len(lost)

    def admit(self, fid: str, batch: pa.RecordBatch) -> Admission:
        """Store one graded forest.

        `repeat`: it was admitted before. `late`: its reservation went to another attempt or is finished. `refused`: it
        breaks an invariant; it is dropped as invalid and its prompt goes out again. `dropped`: it is valid, but nothing
        can be learnt from it (see `rejection`)."""
        state = self._state(fid)
        if state is not State.RESERVED:
            return "repeat" if state else "late"
        try:
            forest = graded_forest(fid, batch)
        except (BadForest, BadInput) as e:
            self._drop(self.ledger.drop(fid, "invalid", str(e), self._config.attempts))
            return "refused"
        if found := rejection(forest, self._config):
            self._drop(self.ledger.drop(fid, found.reason, found.detail, self._config.attempts))
            self._dropped_in_a_row += 1
            if self._dropped_in_a_row % _TELL_EVERY == 0:
                log.warning("no forest of the last %d was stored: %s", self._dropped_in_a_row, found.detail)
            return "dropped"
        self._dropped_in_a_row = 0
        place = self._payloads.append(batch)
        judged = forest.reward[forest.judged]
        reward, mass = float(judged.mean(dtype=np.float64)), advantage_mass(judged)
        versions = forest.oldest_version, forest.newest_version
        self._write(Admitted(fid, forest.leaves, forest.tokens, *versions, reward, mass, *astuple(place)))
        return "admitted"

    # ---- calls of the learner ----------------------------------------------------------------------------------------
    def lease(self, n: int, version: int, fetch: Callable[[str], object] | None = None) -> Leased | None:
        """Take `n` ready forests for the learner at policy `version`; None while there are fewer.

        A forest with a token newer than `version` stays ready: a resume may leave some for later steps. Forests over
        the staleness bound are dropped first and refilled. A repeat for a version whose lease is open
        returns that lease. `fetch` (`payload` unless given) is called with each id before the lease is made: a forest
        that it finds damaged is dropped and refilled too, else every later process would lease it and fail.
        """
        fetch = fetch or self.payload
        for open_lease in self.ledger.leases.values():
            if open_lease.step is None and open_lease.record.version == version:
                bad = self._damaged(open_lease.record.forest_ids, fetch)
                if not bad:
                    return open_lease.record
                self.nack(open_lease.record.lease_id)
                for record in bad:
                    self._drop(record)
                break
        for record in self.ledger.stale(version, self._config.max_staleness):
            self._drop(record)
        number = self.ledger.leases_made + 1
        while True:
            chosen = choose(self.ledger.leasable(version), n, self._select, (self._seed, number))
            if len(chosen) < n:
                self._waiting = n, version
                return None
            ids = tuple(e.reserved.forest_id for e in chosen)
            bad = self._damaged(ids, fetch)
            if not bad:
                break
            for record in bad:
                self._drop(record)
        deadline = self._clock() + self._config.lease_seconds
        lease = Leased(f"lease-{number:06d}", ids, version, self._config.max_staleness, deadline)
        self._write(lease)
        self._waiting = None
        return lease

    def ack(self, lease_id: str, step: int, skipped: Sequence[str] = ()) -> None:
        """Optimizer step `step` used the lease: its slots are free. `skipped` are the forests whose update was not
        finite; they are dropped once the step is durable. Raises `LeaseLost` if another lease has its forests."""
        if self.ledger.can_ack(lease_id, step):
            self._write(Acked(lease_id, step, tuple(skipped)))

    def nack(self, lease_id: str) -> None:
        """The lease will not be used: its forests are ready again. Does nothing for one that ended or did its step."""
        lease = self.ledger.leases.get(lease_id)
        if lease is not None and lease.step is None:
            self._write(Returned(lease_id, "nack"))

    def discard(self, lease_id: str, reason: DropReason, detail: str) -> None:
        """The learner cannot train the lease: its forests are dropped. Does nothing for a lease that ended or did its
        step.

        Whether their prompts go out again depends on the reason (see `Ledger.drop`).
        """
        lease = self.ledger.leases.get(lease_id)
        if lease is None or lease.step is not None:
            return
        self.nack(lease_id)
        for fid in lease.record.forest_ids:
            self._drop(self.ledger.drop(fid, reason, detail, self._config.attempts))

    def expire(self) -> int:
        """End the leases whose deadline has passed. Returns how many."""
        over = self.ledger.expired(self._clock())
        for record in over:
            seconds = self._config.lease_seconds
            log.warning("%s expired after %g s, its forests are ready again", record.lease_id, seconds)
            self._write(record)
        return len(over)

    def commit(self, step: int, oldest_kept: int | None = None) -> None:
        """Steps up to `step` are in a durable checkpoint: their forests are trained, those that were skipped are
        dropped.

        The run may later resume from `oldest_kept` (`step` unless given), the step of the oldest checkpoint that is
        kept."""
        if step > self.ledger.last_step:
            raise ValueError(f"commit of step {step}: {self.ledger.last_step} is the last one done")
        if step > self.ledger.committed:
            for fid, skipped_by in self.ledger.skipped(step):
                detail = f"its update in step {skipped_by} was not finite"
                self._drop(self.ledger.drop(fid, "not_finite", detail, self._config.attempts))
            oldest = step if oldest_kept is None else max(oldest_kept, self.ledger.oldest_kept)
            self._write(Committed(step, oldest))

    def compaction(self) -> list[Action]:
        """Return what shortens the next start: a snapshot once the journal has grown by `journal_limit` bytes
        since the last one. With retain=unacknowledged it replaces the records before it, and payload files
        that hold only finished forests are deleted.

        The records so far are made durable first: the commit must outlive the payload that it releases.
        """
        keep = self._config.retain == "all"
        gone = [] if keep else self._payloads.unneeded(self._needed())
        if gone:
            self._write(Released(tuple(gone)))
        over = self._journal.size - self._journal.base > self.journal_limit
        if not gone and not over:
            return []
        deletion = [self._payloads.deletion(gone, self._lock.check)] if gone else []
        pending = self.pending()
        snapshot = self._journal.snapshot(Snapshot(self.ledger.to_state()), self._clock(), keep) if over else []
        return [*pending, *deletion, *snapshot]

    def compact(self) -> None:
        flush(self.compaction())

    def payload(self, fid: str) -> pa.RecordBatch:
        """Return a stored forest. Raises `Damaged`, or KeyError if it is not live."""
        return self._payloads.read(self.ledger.live[fid].payload.place)

    # ---- durability --------------------------------------------------------------------------------------------------
    def pending(self) -> list[Action]:
        """Return what makes every record so far durable: one flush serves all callers that wait (group commit)."""
        payloads, journal = self._payloads.pending(), self._journal.pending()
        return [*payloads, self._lock.check, *journal] if journal else payloads

    def sync(self) -> None:
        flush(self.pending())

    def check_owner(self) -> None:
        """Raise `BadInput` if another process owns the run now."""
        self._lock.check()

    @property
    def records(self) -> int:
        """Records in the journal since the run began."""
        return self._journal.seq

    def disk_bytes(self) -> int:
        """Return the bytes of journal and payload files."""
        return self._journal.disk_bytes + self._payloads.size

    def free_bytes(self) -> int | None:
        return self._folder.free_bytes()

    def close(self) -> None:
        """Make all durable (unless fsync is none) and release the folder."""
        if self._config.fsync != "none":
            self.sync()
        self._payloads.close()
        self._journal.close()
        self._lock.release()

    def _write(self, record: Record) -> None:
        self._journal.append(record, self._clock())
        self.ledger.apply(record)

    def _needed(self) -> set[str]:
        """Return the payload files with forests that are not finished."""
        return {e.admitted.payload_file for e in self.ledger.live.values() if e.admitted}

    def _damaged(self, fids: Iterable[str], fetch: Callable[[str], object]) -> list[Dropped]:
        out = []
        for fid in fids:
            try:
                fetch(fid)
            except Damaged as e:
                out.append(self.ledger.drop(fid, "damaged", str(e), self._config.attempts))
        return out

    def _drop(self, record: Dropped) -> None:
        level, fate = (logging.WARNING, "goes out again") if record.refill else (logging.ERROR, "is given up")
        if record.reason in ("no_variance", "no_prompt"):
            fate = "is not drawn again"
            level = logging.INFO if record.reason == "no_variance" else logging.WARNING
        log.log(
            level, "forest %s dropped as %s: %s; its prompt %s", record.forest_id, record.reason, record.detail, fate
        )
        self._write(record)

    def _state(self, fid: str) -> State | None:
        """Return the state of a live forest, None for a finished one. Raises `BadForest` for an id that this run has
        not given out."""
        entry = self.ledger.live.get(fid)
        if entry is None and not self.ledger.known(fid):
            raise BadForest(fid, "was never reserved in this run")
        return entry.state if entry else None
