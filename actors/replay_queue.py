"""The replay queue role. It adds waiting, group commit and object references to `treeadv.replay.store`.

The queue passes on references. It reads a payload only to check and to write it. On the node of the queue the payload
is a view of Ray's object store, and a write makes one copy of it (an Arrow message)."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pyarrow as pa
import ray
from ray import ObjectRef

from actors.heartbeat import Heartbeat
from actors.queue_metrics import QueueMetrics
from actors.reservations import Reservations
from treeadv import wire
from treeadv.config import Config
from treeadv.data.tasks import problem_source
from treeadv.data.tickets import Ticket
from treeadv.errors import BadInput
from treeadv.jsonl import JsonObject
from treeadv.metrics import Exporter
from treeadv.replay.draws import Draws, FailedDraw
from treeadv.replay.figures import figures
from treeadv.replay.live import State
from treeadv.replay.payloads import DamagedPayload
from treeadv.replay.records import DropReason, Reserved
from treeadv.replay.store import ReplayStore
from treeadv.sampling.threshold import Threshold
from treeadv.seeds import derive
from treeadv.storage.folder import Action, flush
from treeadv.visible import visible_logger

log = visible_logger("treeadv.replay")
_TICK = 1.0  # seconds between checks of deadlines
_FIGURES_EVERY = 10.0  # seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """The forests of one step. `rows[i]` is (n, row): the forest `forest_ids[i]` is this row of the record batch
    `refs[n]`."""

    lease_id: str
    forest_ids: tuple[str, ...]
    refs: tuple[ObjectRef[pa.RecordBatch], ...]
    rows: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredRow:
    """A forest in Ray's object store: a row of a record batch."""

    ref: ObjectRef[pa.RecordBatch]
    row: int


class ReplayQueue(Heartbeat):
    """The queue of a run. A repeated call of a method with the same ids changes nothing."""

    def __init__(self, config: Config, run_dir: str, session: str, step: int, port: int) -> None:
        """Open `run_dir`/replay for a `session` of the run that resumes from the checkpoint of `step` (see
        `ReplayStore`).

        Ray runs this method again when it restarts the actor. The journal says whether an earlier process of the
        session has returned to the checkpoint. Ray's count of restarts does not say this, because a process may die in
        this method."""
        self._config = config
        self._draws = Draws(problem_source(config.task, config.run.seed))
        self._stored: dict[str, StoredRow] = {}
        self._ready = asyncio.Condition()  # a lease may be possible
        self._flushing = asyncio.Lock()
        self._fault: str | None = None
        self._is_bad_input = False  # whether the user can correct the fault
        self._closed = False
        self._ticking: asyncio.Task[None] | None = None
        self._exporter = Exporter("queue", lambda: self._fault)
        self._metrics = QueueMetrics(self._exporter)
        self._threshold = Threshold(config.sampling)
        self._address = self._exporter.serve(config.metrics.host, port)
        self._store: ReplayStore
        try:
            per_step, seed = config.learner.forests_per_step, config.run.seed
            updates = config.learner.updates_per_step
            self._store = ReplayStore(
                run_dir,
                config.queue,
                forests_per_step=per_step,
                seed=seed,
                session=session,
                step=step,
                versions_per_step=updates,
            )
            self._reservations = Reservations(self._store, self._draws, self._check)
            self._restore_threshold()
        except BadInput as fault:  # the first call raises it; an error here would look like a dead actor
            self._note_fault(fault)

    def _restore_threshold(self) -> None:
        """Add the entropies of the ready forests to the threshold. A restarted queue has an empty threshold."""
        if self._config.sampling.tau_quantile is None:
            return
        for entry in self._store.ledger.in_state(State.READY):
            with contextlib.suppress(DamagedPayload):  # `lease` drops a damaged forest
                batch = self._store.payload(entry.reserved.forest_id)
                self._threshold.observe(wire.numbers(batch.column("entropy").values))

    @ray.method
    async def address(self) -> str:
        """Return host:port of /metrics and /healthz."""
        self._check()
        return self._address

    # ---- calls of workers --------------------------------------------------------------------------------------------
    @ray.method
    async def reserve(self, worker: str, count: int) -> list[Ticket]:
        """Wait for a free slot and return the tickets of the next forests, at most `count`. Calls that wait share the
        free slots. Returns [] when the run ends."""
        # When the actor dies before its answer arrives, Ray repeats the call with the same task id. The repeated call
        # gets the same slots.
        request = ray.get_runtime_context().get_task_id() or ""
        self._check()
        records = await self._reservations.take(worker, request, count)
        if records:
            await self._make_durable()
        return [await self._ticket(record) for record in records]

    async def _ticket(self, record: Reserved) -> Ticket:
        problem = await self._draws.problem(record.draw)
        if isinstance(problem, FailedDraw):
            raise RuntimeError(f"draw {record.draw} had a prompt before and has none now: {problem.detail}")
        seed = derive(self._config.run.seed, record.draw, record.attempt)
        return Ticket(
            forest_id=record.forest_id,
            draw=record.draw,
            attempt=record.attempt,
            problem=problem,
            seed=seed,
            tau=self._threshold.tau,
        )

    @ray.method
    async def fail(self, forest_id: str, reason: str) -> None:
        """Record that a worker cannot deliver a forest. The queue gives out the prompt again until `queue.attempts`
        attempts have failed."""
        self._check()
        self._store.fail(forest_id, reason)
        await self._notify()

    async def forget(self, worker: str) -> int:
        """Record the death of a worker. The queue gives out its reservations again. It serves the forests that the
        worker delivered from disk, because the objects of the worker are lost."""
        self._check()
        for entry in self._store.ledger.live.values():
            if entry.reserved.worker == worker:
                self._stored.pop(entry.reserved.forest_id, None)
        lost = self._store.forget(worker)
        await self._notify()
        return lost

    @ray.method
    async def admit(
        self, forest_ids: Sequence[Sequence[str]], refs: Sequence[ObjectRef[pa.RecordBatch]]
    ) -> list[list[str]]:
        """Admit graded forests. The rows of the record batch `refs[i]` are the forests `forest_ids[i]`. One flush makes
        all of them durable. `refs` is a list, because Ray resolves a reference that is not in a list.

        Returns the results of `ReplayStore.admit_many`. A result is "lost" if the object of a forest is lost; the queue
        then gives out its prompt again."""
        self._check()
        admissions = [await self._admit(ids, ref) for ids, ref in zip(forest_ids, refs, strict=True)]
        await self._notify()
        return admissions

    async def _admit(self, ids: Sequence[str], ref: ObjectRef[pa.RecordBatch]) -> list[str]:
        try:
            batch = await ref
        except ray.exceptions.RayError as e:
            for forest_id in ids:
                self._store.fail(forest_id, f"its payload is lost: {type(e).__name__}")
            return ["lost"] * len(ids)
        self._check()  # the run may have ended during the wait
        admissions = self._store.admit_many(ids, batch)
        for row, (forest_id, admission) in enumerate(zip(ids, admissions, strict=True)):
            if admission == "admitted":
                self._stored[forest_id] = StoredRow(ref=ref, row=row)
                self._threshold.observe(wire.numbers(batch.column("entropy")[row].values))
        return [str(admission) for admission in admissions]

    # ---- calls of the learner ----------------------------------------------------------------------------------------
    @ray.method
    async def lease(self, n: int, version: int) -> Lease:
        """Wait for `n` forests within the staleness bound of policy `version` and lease them. If that version has an
        open lease, return the open lease."""
        async with self._ready:
            while True:
                self._check()
                used = self._store.ledger.slots_used
                record = self._store.lease(n, version, self._stored_row)
                dropped = self._store.ledger.slots_used < used
                if dropped:
                    self._stored = {f: row for f, row in self._stored.items() if f in self._store.ledger.live}
                if record is None or dropped:
                    self._reservations.notify()  # a dropped forest frees a slot
                    await self._make_durable()
                if record:
                    break
                await self._ready.wait()
        await self._make_durable()
        stored = [self._stored_row(f) for f in record.forest_ids]
        refs = list(dict.fromkeys(h.ref for h in stored))
        rows = tuple((refs.index(h.ref), h.row) for h in stored)
        return Lease(lease_id=record.lease_id, forest_ids=record.forest_ids, refs=tuple(refs), rows=rows)

    @ray.method
    async def ack(self, lease_id: str, step: int, skipped: Sequence[str]) -> None:
        """Record that `step` has used this lease except the forests `skipped`, and free its slots.

        Raises `LeaseLost` if the lease expired and another lease has its forests. The step is then invalid."""
        self._check()
        self._store.ack(lease_id, step, skipped)
        self._release(lease_id)
        await self._notify()

    async def nack(self, lease_id: str) -> None:
        """Return the forests of a lease to the queue. The queue serves their next lease from disk, because their
        objects may be lost."""
        self._check()
        self._release(lease_id)
        self._store.nack(lease_id)
        await self._notify()

    @ray.method
    async def discard(self, lease_id: str, reason: DropReason, detail: str) -> None:
        """Drop the forests of a lease that the learner cannot train, record the reason, and free their slots."""
        self._check()
        self._release(lease_id)
        self._store.discard(lease_id, reason, detail)
        await self._notify()

    @ray.method
    async def commit(self, step: int, oldest_kept: int) -> None:
        """Record that a checkpoint holds all steps up to `step`, so the forests of these steps are trained.

        `oldest_kept` is the step of the oldest checkpoint of the run. The record is durable on return, unless
        queue.fsync is none."""
        self._check()
        self._store.commit(step, oldest_kept)
        await self._make_durable(at_once=True)
        await self._flush(self._store.compaction)

    @ray.method
    async def flush(self) -> None:
        """Make all records so far durable, unless queue.fsync is none. Raises `BadInput` if another process owns the
        run now."""
        self._check()
        await self._make_durable(at_once=True)
        await asyncio.to_thread(self._store.files.lock.check)

    # ---- calls of the driver -----------------------------------------------------------------------------------------
    @ray.method
    async def counts(self) -> JsonObject:
        """Return the figures of the queue (`treeadv.replay.figures.figures`)."""
        self._check()
        now = figures(self._store)
        self._metrics.update(now)
        return now

    async def stop(self) -> None:
        """End reservations: waiting and later calls of `reserve` return []. The queue may still admit forests that
        grow now."""
        self._reservations.stop()
        await self._make_durable()

    @ray.method
    async def close(self) -> None:
        """End reservations, make all records durable and release the folder."""
        if self._closed:
            return
        if not hasattr(self, "_store"):  # the folder could not be opened
            return self._exporter.close()
        await self.stop()
        self._closed = True
        if self._ticking:
            self._ticking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._ticking
        self._draws.close()
        async with self._flushing:
            self._store.close()
        self._exporter.close()
        async with self._ready:
            self._ready.notify_all()  # a waiting lease then raises an error, because the queue is closed

    # ---- internal ----------------------------------------------------------------------------------------------------
    def _check(self) -> None:
        """Raise the fault of a background task, if there is one."""
        if self._closed:
            raise RuntimeError("the replay queue is closed")
        if self._fault:
            raise (BadInput if self._is_bad_input else RuntimeError)(f"the replay queue has failed: {self._fault}")
        if self._ticking is None:  # the task starts here, because `__init__` runs without an event loop
            self._ticking = asyncio.get_running_loop().create_task(self._tick())

    def _note_fault(self, fault: Exception) -> None:
        self._is_bad_input = isinstance(fault, BadInput)
        self._fault = str(fault) if self._is_bad_input else f"{type(fault).__name__}: {fault}"

    async def _tick(self) -> None:
        interval = self._store.fsync_interval if self._config.queue.fsync == "interval" else math.inf
        updated, flushed = 0.0, time.monotonic()
        try:
            while True:
                await asyncio.sleep(min(interval, _TICK))
                if self._store.expire():
                    await self._notify()
                if time.monotonic() - flushed >= interval:
                    flushed = time.monotonic()
                    await self._flush()
                if time.monotonic() - updated >= _FIGURES_EVERY:
                    updated = time.monotonic()
                    self._metrics.update(figures(self._store))
        except Exception as e:
            self._note_fault(e)
            log.exception("the replay queue has failed")
            self._reservations.notify()
            async with self._ready:
                self._ready.notify_all()

    async def _notify(self) -> None:
        """Wake the lease and the first reservation that wait, and make the change durable as queue.fsync requires."""
        self._reservations.notify()
        async with self._ready:
            self._ready.notify_all()
        await self._make_durable()

    async def _make_durable(self, at_once: bool = False) -> None:
        fsync = self._config.queue.fsync
        if fsync == "always" or (at_once and fsync == "interval"):
            await self._flush()

    async def _flush(self, what: Callable[[], list[Action]] | None = None) -> None:
        """Write pending records (group commit). A call that waits for the lock finds its records flushed by the
        previous call.

        The lock is held until the write has ended, even if the caller is cancelled. Otherwise `close` could close files
        that a thread still writes."""
        await asyncio.shield(self._flush_now(what or self._store.files.pending))

    async def _flush_now(self, what: Callable[[], list[Action]]) -> None:
        async with self._flushing:
            actions = what()
            if not actions:
                return
            began = time.perf_counter()
            try:
                await asyncio.to_thread(flush, actions)
            except (OSError, BadInput) as e:  # the state of the disk is unknown until a restart reads it
                self._note_fault(e)
                raise
            self._exporter.observe("treeadv_queue_fsync_seconds", time.perf_counter() - began)

    def _stored_row(self, forest_id: str) -> StoredRow:
        if forest_id not in self._stored:
            self._stored[forest_id] = StoredRow(ref=ray.put(self._store.payload(forest_id)), row=0)
        return self._stored[forest_id]

    def _release(self, lease_id: str) -> None:
        """Release the objects of the forests of a lease that the ledger knows.

        Call it after an ack, which may bring back an expired lease. Call it before `nack` and `discard`, which end the
        lease."""
        lease = self._store.ledger.leases.get(lease_id)
        for forest_id in lease.record.forest_ids if lease else ():
            self._stored.pop(forest_id, None)
