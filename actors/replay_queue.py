"""The replay queue as an actor: waiting, group commit and object references around `treeadv.replay.store`.

It passes references on and looks at a payload only to check and write it: on its own node that is a view of the object store, of which
writing makes one copy (an Arrow message).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from ray import ObjectRef

from treeadv.config import Config
from treeadv.data.tasks import problem_source
from treeadv.errors import BadInput
from treeadv.metrics import Exporter
from treeadv.replay.figures import Shown, figures
from treeadv.replay.ledger import State
from treeadv.replay.payloads import Damaged
from treeadv.replay.store import ReplayStore
from treeadv.replay.tickets import Ticket
from treeadv.sampling.threshold import Threshold
from treeadv.seeds import derive
from treeadv.storage.folder import Syncable, flush

log = logging.getLogger("treeadv.replay")
_TICK = 1.0  # seconds between looks at deadlines and figures


@dataclass(frozen=True, slots=True)
class Lease:
    """Forests for one optimizer step: `refs[i]` is of a record batch that holds forest `forest_ids[i]` alone."""

    lease_id: str
    forest_ids: tuple[str, ...]
    refs: tuple[ObjectRef, ...]


class ReplayQueue:
    """To be wrapped by `ray.remote`. Every method may be called again with the same ids: a repeat changes nothing."""

    def __init__(self, config: Config, run_dir: str, session: str, step: int, port: int) -> None:
        """Open `run_dir`/replay for a `session` of the run that goes on from the checkpoint of `step` (see `ReplayStore`). An actor that
        Ray restarts runs this again: it goes back to the checkpoint unless an earlier life has done so. Whether one has only the
        journal knows; Ray also counts the lives that died in here."""
        self._config = config
        self._problems = problem_source(config.task, config.run.seed)
        self._refs: dict[str, ObjectRef] = {}
        self._room = asyncio.Condition()  # a slot may be free
        self._ready = asyncio.Condition()  # more forests may be ready
        self._flushing = asyncio.Lock()
        self._fault: str | None = None
        self._mendable = False  # by the user
        self._stopped = self._closed = False
        self._ticking: asyncio.Task[None] | None = None
        self._exporter = Exporter("queue", lambda: self._fault)
        self._shown = Shown(self._exporter)
        self._threshold = Threshold(config.sampling)
        self._address = self._exporter.serve(config.metrics.host, port)
        self._store: ReplayStore
        try:
            per_step, seed = config.learner.forests_per_step, config.run.seed
            self._store = ReplayStore(run_dir, config.queue, per_step, seed, session, step)
            self._restore_threshold()
        except BadInput as fault:  # told to whoever calls first: of what a constructor raises Ray makes a death
            self._broken(fault)

    def _restore_threshold(self) -> None:
        """Take in the forests that are ready: a restarted queue has seen none yet."""
        for entry in self._store.ledger.in_state(State.READY):
            with contextlib.suppress(Damaged):  # its lease drops it
                batch = self._store.payload(entry.reserved.forest_id)
                self._threshold.observe(batch.column("entropy").values.to_numpy())

    @ray.method
    async def address(self) -> str:
        """Where /metrics and /healthz answer."""
        self._check()
        return self._address

    # ---- a worker's side -----------------------------------------------------------------------------------------------------
    @ray.method
    async def reserve(self, worker: str) -> Ticket | None:
        """The next forest to grow, once a slot is free (this is the back-pressure); None when the run takes no more."""
        # Ray repeats a call under its old task id when the actor died before its answer arrived: no second slot is then held.
        request = ray.get_runtime_context().get_task_id() or ""
        async with self._room:
            while not self._stopped:
                self._check()
                record = self._store.reserve(worker, request, lambda draw: self._problems[draw].id)
                if record:
                    break
                await self._room.wait()
            else:
                return None
        await self._make_durable()
        seed = derive(self._config.run.seed, record.draw, record.attempt)
        return Ticket(
            record.forest_id, record.draw, record.attempt, self._problems[record.draw], seed, self._threshold.tau
        )

    @ray.method
    async def fail(self, forest_id: str, reason: str) -> None:
        """The worker cannot deliver; the prompt goes out again as another attempt, at most `queue.attempts` times."""
        self._check()
        self._store.fail(forest_id, reason)
        await self._tell(self._room)

    async def forget(self, worker: str) -> int:
        """The worker died: what it had reserved goes out again, and what it delivered is served from disk, as its objects died
        with it."""
        self._check()
        for entry in self._store.ledger.live.values():
            if entry.reserved.worker == worker:
                self._refs.pop(entry.reserved.forest_id, None)
        lost = self._store.forget(worker)
        await self._tell(self._room)
        return lost

    @ray.method
    async def admit(self, forest_id: str, refs: list[ObjectRef]) -> str:
        """Take one graded forest: `refs` is a list of one, which keeps Ray from resolving it. Answers admitted, repeat, late,
        refused (see `ReplayStore.admit`) or lost (its object is gone; the prompt goes out again)."""
        self._check()
        (ref,) = refs
        try:
            batch = await ref
        except ray.exceptions.RayError as e:
            self._store.fail(forest_id, f"its payload is lost: {type(e).__name__}")
            await self._tell(self._room)
            return "lost"
        self._check()  # the run may have ended meanwhile
        outcome = self._store.admit(forest_id, batch)
        if outcome == "admitted":
            self._refs[forest_id] = ref
            self._threshold.observe(batch.column("entropy").values.to_numpy())
        await self._tell(self._room if outcome == "refused" else self._ready)
        return outcome

    # ---- the learner's side --------------------------------------------------------------------------------------------------
    @ray.method
    async def lease(self, n: int, version: int) -> Lease:
        """Wait for `n` forests within the staleness bound of policy `version`. While a lease of that version is open, it is the
        answer."""
        async with self._ready:
            while True:
                self._check()
                held = self._store.ledger.held
                record = self._store.lease(n, version, self._ref)
                if self._store.ledger.held < held:
                    await self._tell(self._room)  # stale or damaged forests went, their slots are free
                if record:
                    break
                await self._ready.wait()
        await self._make_durable()
        return Lease(record.lease_id, record.forest_ids, tuple(self._ref(f) for f in record.forest_ids))

    @ray.method
    async def ack(self, lease_id: str, step: int) -> None:
        """Optimizer step `step` is done with this lease: its slots are free.

        Raises `LeaseLost` if the lease expired and another took its forests: then the step must not stand.
        """
        self._check()
        self._store.ack(lease_id, step)
        self._release_refs()
        await self._tell(self._room)

    async def nack(self, lease_id: str) -> None:
        """Give the lease back; the next one of these forests is served from disk, in case their objects are lost."""
        self._check()
        lease = self._store.ledger.leases.get(lease_id)
        for forest_id in lease.record.forest_ids if lease else ():
            self._refs.pop(forest_id, None)
        self._store.nack(lease_id)
        await self._tell(self._ready)

    @ray.method
    async def commit(self, step: int) -> None:
        """A durable checkpoint holds all steps up to `step`: their forests are trained, now and after any restart. Durable on
        return, unless queue.fsync is none."""
        self._check()
        self._store.commit(step)
        await self._make_durable(at_once=True)
        await self._flush(self._store.compaction)

    @ray.method
    async def flush(self) -> None:
        """Make all records so far durable, unless queue.fsync is none. `BadInput` if another process has opened the run since."""
        self._check()
        await self._make_durable(at_once=True)
        await asyncio.to_thread(self._store.hold)

    # ---- the run's side ------------------------------------------------------------------------------------------------------
    @ray.method
    async def counts(self) -> dict[str, Any]:
        """See `treeadv.replay.figures.figures`."""
        self._check()
        now = figures(self._store)
        self._shown.update(now)
        return now

    async def stop(self) -> None:
        """Give out no more: reservations that wait, and all later ones, get None. What is growing may still come in."""
        self._stopped = True
        await self._tell(self._room)

    @ray.method
    async def close(self) -> None:
        """Stop, make all durable and give the folder up."""
        if self._closed:
            return
        if not hasattr(self, "_store"):  # it could not be opened
            return self._exporter.close()
        await self.stop()
        self._closed = True
        if self._ticking:
            self._ticking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._ticking
        async with self._flushing:
            self._store.close()
        self._exporter.close()
        async with self._ready:
            self._ready.notify_all()  # a lease that waits is told that the queue is closed

    # ---- inside --------------------------------------------------------------------------------------------------------------
    def _check(self) -> None:
        """Raise what went wrong in the background, if anything did."""
        if self._closed:
            raise RuntimeError("the replay queue is closed")
        if self._fault:
            raise (BadInput if self._mendable else RuntimeError)(f"the replay queue has failed: {self._fault}")
        if self._ticking is None:  # only now is there an event loop
            self._ticking = asyncio.get_running_loop().create_task(self._tick())

    def _broken(self, fault: Exception) -> None:
        self._mendable = isinstance(fault, BadInput)
        self._fault = str(fault) if self._mendable else f"{type(fault).__name__}: {fault}"

    async def _tick(self) -> None:
        interval = self._store.fsync_interval if self._config.queue.fsync == "interval" else math.inf
        looked, flushed = 0.0, time.monotonic()
        try:
            while True:
                await asyncio.sleep(min(interval, _TICK))
                if self._store.expire():
                    await self._tell(self._ready)
                if time.monotonic() - flushed >= interval:
                    flushed = time.monotonic()
                    await self._flush()
                if time.monotonic() - looked >= 10 * _TICK:
                    looked = time.monotonic()
                    self._shown.update(figures(self._store))
        except Exception as e:
            self._broken(e)
            log.exception("the replay queue has failed")
            for waiting in (self._room, self._ready):
                async with waiting:
                    waiting.notify_all()

    async def _tell(self, waiting: asyncio.Condition) -> None:
        """Wake who waits for what has changed, and make the change durable as the policy asks."""
        async with waiting:
            waiting.notify_all()
        await self._make_durable()

    async def _make_durable(self, at_once: bool = False) -> None:
        policy = self._config.queue.fsync
        if policy == "always" or (at_once and policy == "interval"):
            await self._flush()

    async def _flush(self, what: Callable[[], list[Syncable]] | None = None) -> None:
        """Group commit: whoever waits for the lock finds its records flushed by the one before it. The lock is held until the disk has
        answered, also when nobody waits any more: `close` must not find parts that a thread still writes."""
        await asyncio.shield(self._flush_now(what or self._store.pending))

    async def _flush_now(self, what: Callable[[], list[Syncable]]) -> None:
        async with self._flushing:
            parts = what()
            if not parts:
                return
            began = time.perf_counter()
            try:
                await asyncio.to_thread(flush, parts)
            except (OSError, BadInput) as e:  # what the disk holds now is unknown: only a restart, which reads it, may go on
                self._broken(e)
                raise
            self._exporter.observe("treeadv_queue_fsync_seconds", time.perf_counter() - began)

    def _ref(self, forest_id: str) -> ObjectRef:
        if forest_id not in self._refs:
            self._refs[forest_id] = ray.put(self._store.payload(forest_id))
        return self._refs[forest_id]

    def _release_refs(self) -> None:
        """Let go the objects of forests that no step needs any more."""
        ledger = self._store.ledger
        stepped = {f for x in ledger.leases.values() if x.step is not None for f in x.record.forest_ids}
        self._refs = {f: r for f, r in self._refs.items() if f in ledger.live and f not in stepped}
