"""The replay queue on its files. Each method asks the ledger, writes the payload, writes the record and applies the
record.

The folder `replay` of a run holds `lock`, `journal/*.jsonl` and `payloads/*.arrow`. The queue writes a payload
before the record that refers to it. So the run can resume from the state that any prefix of the journal describes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict

import pyarrow as pa

from treeadv.config import QueueConfig
from treeadv.errors import BadForest, BadInput
from treeadv.forest import Forest
from treeadv.replay.admission import Admission, admission_record, drop_message, graded_forests, rejection
from treeadv.replay.ledger import Retry
from treeadv.replay.live import State
from treeadv.replay.open_files import OpenFiles
from treeadv.replay.payloads import DamagedPayload
from treeadv.replay.records import (
    Acked,
    Committed,
    Dropped,
    DropReason,
    Leased,
    Opened,
    Released,
    Reserved,
    Resumed,
    Returned,
    forest_id,
)
from treeadv.replay.selection import Due, choose, selection_rule
from treeadv.storage.folder import Action, flush, open_folder
from treeadv.visible import visible_logger

JOURNAL_BYTES = 1 << 22  # largest size that a start reads besides a snapshot: about 20,000 records
_WARN_EVERY = 50  # forests in a row that were dropped on admission
_MAX_FAILED_DRAWS = 50  # draws in a row without a prompt
log = visible_logger("treeadv.replay")


class ReplayStore:
    """The replay queue of one process, which owns the run's replay folder.

    The class is not thread-safe. Only the actions of `pending` and `compaction` may run in another thread.
    """

    def __init__(
        self,
        run_dir: str,
        config: QueueConfig,
        *,
        forests_per_step: int,
        seed: int,
        session: str,
        step: int,
        clock: Callable[[], float] = time.time,
        versions_per_step: int = 1,
    ) -> None:
        """Open or create the folder `replay` of `run_dir` (a path or a URI) and read its journal.

        `session` is the id of this start of the run. `step` is the step of the checkpoint to resume from; 0 for none.
        The first opening in a session resumes from `step`: forests that were leased later are ready again in the same
        order, and reserved prompts get another attempt. A second opening in the session happens after the death of the
        queue alone, and changes nothing. `versions_per_step` is the number of optimizer updates of a step.

        Raises `BadInput` for a folder in use, damage, another format, or a checkpoint that contradicts the journal."""
        self._config, self._seed, self._clock = config, seed, clock
        self._select = selection_rule(config.selection)
        folder = open_folder(run_dir).child("replay")
        if config.fsync == "none" and not folder.keeps_unflushed:
            raise BadInput(f"queue.fsync=none never writes to {run_dir}; use interval or always")
        self.fsync_interval = config.fsync_interval or folder.flush_seconds
        self.journal_limit = JOURNAL_BYTES
        self._steps = config.max_staleness // versions_per_step  # steps that a forest may be behind
        self.capacity = (self._steps + 1) * forests_per_step
        self._waiting: tuple[int, int] | None = None  # forests and version of a lease that waits for ready forests
        self._dropped_in_a_row = 0  # forests in a row that were dropped on admission
        self._failed_draws = 0  # draws in a row without a prompt
        self.files = OpenFiles(folder, config, session=session, step=step, clock=clock)
        self.ledger = self.files.ledger
        try:
            self._begin(session, step)
        except BaseException:
            self.files.lock.undo()
            raise
        self.files.opening.warn(run_dir)

    def _begin(self, session: str, step: int) -> None:
        if not self.files.opening.records:
            if step:
                raise BadInput(
                    f"{self.files.folder.uri} has no journal for the checkpoint of step {step}; restore the journal or"
                    " start a new run"
                )
            # equal seeds give equal forest ids, so a run is repeatable
            self.files.write(Opened(run=f"r{self._seed}", session=session))
            return
        if self.ledger.session == session:
            return
        low, high = self.ledger.oldest_kept, self.ledger.last_step
        if not low <= step <= high:
            found = f"the checkpoint is of step {step}" if step else "there is no undamaged checkpoint"
            raise BadInput(
                f"{self.files.folder.uri}: {found}, but the journal can resume from steps {low} to {high} only; another"
                " step would lose or repeat forests. Restore a checkpoint of these steps from a backup, or start a new"
                " run"
            )
        self.commit(step, low)
        # this write is the last, so a process that died earlier repeats all writes
        self.files.write(Resumed(step=step, session=session))

    # ---- calls of workers --------------------------------------------------------------------------------------------
    @property
    def free_slots(self) -> int:
        """Return the number of forests that can be reserved now.

        After a resume, forests of later steps may take all slots. A waiting lease then gets the slots that it lacks,
        even beyond the capacity."""
        lacking = 0
        if self._waiting is not None:
            n, version = self._waiting
            lacking = n - len(self.ledger.leasable(version)) - len(self.ledger.in_state(State.RESERVED))
        return max(0, lacking, self.capacity - self.ledger.slots_used)

    def reserved_for(self, worker: str, request: str) -> list[Reserved]:
        """Return the forests of the answer to an earlier `request` (not "") of this worker that are still reserved."""
        answers = (e.reserved for e in self.ledger.in_state(State.RESERVED)) if request else ()
        return [r for r in answers if (r.worker, r.request.rpartition("/")[0]) == (worker, request)]

    def reserve(self, worker: str, request: str, prompt_id: Callable[[int], str]) -> Reserved | None:
        """Reserve a slot for the next draw (see `reserve_many`). Returns None if no slot is free."""
        return next(iter(self.reserve_many(worker, request, prompt_id, 1)), None)

    def reserve_many(self, worker: str, request: str, prompt_id: Callable[[int], str], count: int) -> list[Reserved]:
        """Reserve slots for the next draws, at most `count`. The prompt of a draw is `prompt_id(draw)`. Returns [] if
        no slot is free.

        A repeated `request` (not "") gets those forests of its first answer again that are still reserved."""
        if found := self.reserved_for(worker, request):
            return found
        tickets = self.ledger.next_tickets(min(count, self.free_slots))
        if tickets:
            self._failed_draws = 0
        names = [f"{request}/{i}" if request else "" for i in range(len(tickets))]
        return self._reserve(worker, names, tickets, [prompt_id(t.draw) for t in tickets])

    def next_draws(self, count: int) -> list[int]:
        """Return the draws of the next `count` reservations."""
        return [t.draw for t in self.ledger.next_tickets(count)]

    def skip_draw(self, detail: str) -> None:
        """Finish the next draw without a forest, because it has no prompt.

        Raises `BadInput` after `_MAX_FAILED_DRAWS` such draws in a row."""
        (ticket,) = self.ledger.next_tickets(1)
        (record,) = self._reserve("", [""], [ticket], [""])
        draw = ticket.draw
        self._drop(self.ledger.drop(record.forest_id, "no_prompt", detail, self._config.attempts))
        self._failed_draws += 1
        if self._failed_draws >= _MAX_FAILED_DRAWS:
            raise BadInput(
                f"task.source: {self._failed_draws} draws in a row gave no prompt; the last error (draw {draw}) is"
                f" {detail}; correct the task"
            )

    def _reserve(
        self, worker: str, names: Sequence[str], tickets: Sequence[Retry], prompt_ids: Sequence[str]
    ) -> list[Reserved]:
        run = self.ledger.run
        records = [
            Reserved(
                forest_id=forest_id(run, t.draw, t.attempt), worker=worker, request=name, prompt_id=prompt, **asdict(t)
            )
            for name, t, prompt in zip(names, tickets, prompt_ids, strict=True)
        ]
        self.files.write(*records)
        return records

    def fail(self, fid: str, reason: str) -> None:
        """Drop a reserved forest that its worker cannot deliver.

        The prompt gets another attempt until `queue.attempts` attempts have failed."""
        if self._state(fid) is State.RESERVED:
            self._drop(self.ledger.drop(fid, "failed", reason, self._config.attempts))

    def forget(self, worker: str) -> int:
        """Fail all reservations of a worker that ended. Returns their number."""
        lost = [e.reserved.forest_id for e in self.ledger.in_state(State.RESERVED) if e.reserved.worker == worker]
        for fid in lost:
            self.fail(fid, f"worker {worker} has ended")
        return len(lost)

    def admit(self, fid: str, batch: pa.RecordBatch) -> Admission:
        """Store one graded forest and return the admission (see `admit_many`)."""
        (admission,) = self.admit_many([fid], batch)
        return admission

    def admit_many(self, fids: Sequence[str], batch: pa.RecordBatch) -> list[Admission]:
        """Store the graded forests in the rows of `batch` and return the admission of each. `fids` are their ids.

        `repeat`: the forest was admitted before. `late`: another attempt has the draw, or the draw is finished.
        `refused`: the forest breaks an invariant; the queue drops it as invalid, and its prompt gets another
        attempt. `dropped`: the forest is valid but gives no advantage (see `rejection`). The records are written in
        one piece after the payloads. A crash keeps a part of the forests, each of them whole. A repeated call stores
        only the others."""
        states = [self._state(fid) for fid in fids]
        forests: Sequence[Forest | BadForest | None] = [None] * len(fids)
        if State.RESERVED in states:
            forests = graded_forests(fids, batch)
        admissions: list[Admission] = []
        new: dict[str, Forest | Dropped] = {}
        stored: list[int] = []  # rows
        for row, (fid, state, forest) in enumerate(zip(fids, states, forests, strict=True)):
            if state is not State.RESERVED or fid in new or forest is None:
                admissions.append("repeat" if state else "late")
                continue
            new[fid] = found = self._drop_or_keep(fid, forest)
            if isinstance(found, Dropped):
                admissions.append("refused" if found.reason == "invalid" else "dropped")
            else:
                admissions.append("admitted")
                stored.append(row)
        places = iter(self.files.payloads.append(batch, stored))
        self.files.write(*(x if isinstance(x, Dropped) else admission_record(x, next(places)) for x in new.values()))
        return admissions

    def _drop_or_keep(self, fid: str, forest: Forest | BadForest) -> Forest | Dropped:
        """Return the forest if the queue stores it, else the record of its drop."""
        attempts = self._config.attempts
        if isinstance(forest, BadForest):
            record = self.ledger.drop(fid, "invalid", str(forest), attempts)
        elif found := rejection(forest, self._config):
            record = self.ledger.drop(fid, found.reason, found.detail, attempts)
            self._dropped_in_a_row += 1
            if self._dropped_in_a_row % _WARN_EVERY == 0:
                log.warning("the last %d forests were all dropped: %s", self._dropped_in_a_row, found.detail)
        else:
            self._dropped_in_a_row = 0
            return forest
        log.log(*drop_message(record))
        return record

    # ---- calls of the learner ----------------------------------------------------------------------------------------
    def lease(self, n: int, version: int, fetch: Callable[[str], object] | None = None) -> Leased | None:
        """Lease `n` ready forests to the learner at policy `version`. Returns None if fewer forests are ready, or if a
        reserved forest is due (`queue.stale_drops`).

        A forest with a token newer than `version` stays ready. Such a forest exists only after a resume. Forests over
        the staleness bound are dropped first. If `version` has an open lease, a repeated call returns that lease.
        `fetch` (default: `payload`) is called with each id before the lease is made. A forest whose `fetch` raises
        `DamagedPayload` is dropped like a stale forest."""
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
        due = Due(since=self.ledger.last_step - self._steps, drops=self._config.stale_drops)
        while True:
            chosen = choose(self.ledger.leasable(version), n, self._select, (self._seed, number), due)
            if len(chosen) < n or any(map(due, self.ledger.in_state(State.RESERVED))):
                self._waiting = n, version
                return None
            ids = tuple(e.reserved.forest_id for e in chosen)
            bad = self._damaged(ids, fetch)
            if not bad:
                break
            for record in bad:
                self._drop(record)
        bound, deadline = self._config.max_staleness, self._clock() + self._config.lease_seconds
        lease_id = f"lease-{number:06d}"
        lease = Leased(lease_id=lease_id, forest_ids=ids, version=version, max_staleness=bound, deadline=deadline)
        self.files.write(lease)
        self._waiting = None
        return lease

    def ack(self, lease_id: str, step: int, skipped: Sequence[str] = ()) -> None:
        """Record that optimizer step `step` used the lease, and free the slots of the lease.

        `skipped` are the forests whose update was not finite. The queue drops them when the step is durable. Raises
        `LeaseLost` if another lease has the forests."""
        if self.ledger.can_ack(lease_id, step):
            self.files.write(Acked(lease_id=lease_id, step=step, skipped=tuple(skipped)))

    def nack(self, lease_id: str) -> None:
        """End an unused lease. Its forests are ready again. Does nothing if the lease has ended or is acknowledged."""
        lease = self.ledger.leases.get(lease_id)
        if lease is not None and lease.step is None:
            self.files.write(Returned(lease_id=lease_id, reason="nack"))

    def discard(self, lease_id: str, reason: DropReason, detail: str) -> None:
        """Drop the forests of a lease that the learner cannot train.

        Does nothing if the lease has ended or is acknowledged. The reason decides whether the prompts get another
        attempt (see `Ledger.drop`)."""
        lease = self.ledger.leases.get(lease_id)
        if lease is None or lease.step is not None:
            return
        self.nack(lease_id)
        for fid in lease.record.forest_ids:
            self._drop(self.ledger.drop(fid, reason, detail, self._config.attempts))

    def expire(self) -> int:
        """End the leases whose deadline has passed. Returns their number."""
        over = self.ledger.expired(self._clock())
        for record in over:
            seconds = self._config.lease_seconds
            log.warning("lease %s expired after %g s; its forests are ready again", record.lease_id, seconds)
            self.files.write(record)
        return len(over)

    def commit(self, step: int, oldest_kept: int | None = None) -> None:
        """Record that a durable checkpoint contains all steps up to `step`.

        The forests of these steps become trained. The forests that the steps skipped are dropped.

        The run can later resume from `oldest_kept`, the step of the oldest kept checkpoint (default: `step`)."""
        if step > self.ledger.last_step:
            raise ValueError(f"commit of step {step}: the last acknowledged step is {self.ledger.last_step}")
        if step > self.ledger.committed:
            for fid, skipped_by in self.ledger.skipped(step):
                detail = f"the update of step {skipped_by} with this forest was not finite"
                self._drop(self.ledger.drop(fid, "not_finite", detail, self._config.attempts))
            oldest = step if oldest_kept is None else max(oldest_kept, self.ledger.oldest_kept)
            self.files.write(Committed(step=step, oldest_kept=oldest))

    def compaction(self) -> list[Action]:
        """Return the actions that shorten the next start and free disk space; [] if nothing is due.

        The actions first make all records durable, because a commit must be durable before a payload of its forests
        is deleted. Unless queue.retain is all, they then delete the payload files that hold only finished forests.
        If the journal has grown by more than `journal_limit` bytes since the last snapshot, they write a snapshot.
        Unless queue.retain is all, the snapshot replaces the records before it."""
        keep = self._config.retain == "all"
        gone = [] if keep else self.files.unneeded()
        if gone:
            self.files.write(Released(payload_files=tuple(gone)))
        return self.files.compaction(gone, self.journal_limit, keep=keep)

    def compact(self) -> None:
        flush(self.compaction())

    def sync(self) -> None:
        """Make every record durable."""
        flush(self.files.pending())

    def close(self) -> None:
        """Make all records durable, unless queue.fsync is none, and release the folder."""
        self.files.close()

    def payload(self, fid: str) -> pa.RecordBatch:
        """Return a stored forest. Raises `DamagedPayload`. Raises KeyError if the forest is not live."""
        return self.files.payloads.read(self.ledger.live[fid].payload.place)

    # ---- internal ----------------------------------------------------------------------------------------------------
    def _damaged(self, fids: Iterable[str], fetch: Callable[[str], object]) -> list[Dropped]:
        out = []
        for fid in fids:
            try:
                fetch(fid)
            except DamagedPayload as e:
                out.append(self.ledger.drop(fid, "damaged", str(e), self._config.attempts))
        return out

    def _drop(self, record: Dropped) -> None:
        log.log(*drop_message(record))
        self.files.write(record)

    def _state(self, fid: str) -> State | None:
        """Return the state of a live forest, or None for a finished forest.

        Raises `BadForest` for an id that this run has never reserved."""
        entry = self.ledger.live.get(fid)
        if entry is None and not self.ledger.known(fid):
            raise BadForest(fid, "the id was never reserved in this run")
        return entry.state if entry else None
