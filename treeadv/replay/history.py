"""The history of every forest, read from the files of a run. The files do not change, so the run may continue."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from treeadv.errors import BadInput
from treeadv.forest import Forest
from treeadv.replay.finished import Finished, NumberSet
from treeadv.replay.journal import Line, Reader, TornRecord
from treeadv.replay.ledger import Ledger
from treeadv.replay.payloads import PayloadReader
from treeadv.replay.records import (
    Acked,
    Admitted,
    Committed,
    Dropped,
    Leased,
    Record,
    Released,
    Reserved,
    Resumed,
    Returned,
    Snapshot,
)
from treeadv.replay.recovery import IMPOSSIBLE, impossible, recover
from treeadv.storage.folder import Folder, open_folder
from treeadv.storage.run_folder import named_store


@dataclass(slots=True, kw_only=True)
class Attempt:
    """One attempt at one prompt. Times are in seconds since 1970."""

    reserved: Reserved
    reserved_at: float
    admitted: Admitted | None = None
    admitted_at: float | None = None
    dropped: Dropped | None = None
    lease: str | None = None  # the open lease that holds the forest
    reissued: bool = False  # a resume cancelled the attempt while a worker grew the forest

    @property
    def damaged(self) -> bool:
        """Return whether the forest was dropped because its payload could not be read."""
        return self.dropped is not None and self.dropped.reason == "damaged"


@dataclass(slots=True, kw_only=True)
class History:
    """All attempts by forest id in the order of reservation, and the forests of each optimizer step in training order.

    The forests of a step include the forests that the step skipped.

    The history is built from the records and does not use the ledger, except for a snapshot. So the audit can
    compare history and ledger. If `finished` is set, it takes the attempts and steps that no later record can
    change, and keeps only their totals."""

    attempts: dict[str, Attempt] = field(default_factory=dict)
    steps: dict[int, list[str]] = field(default_factory=dict)
    released: set[str] = field(default_factory=set)  # payload files that the queue deleted after training
    skipped: set[str] = field(default_factory=set)  # forests that their step did not train
    acks: list[int] = field(default_factory=list)  # the step of each acknowledged lease, in the order of the journal
    committed: int = 0
    records: int = 0
    seq: int = 0  # number of the last record
    torn: TornRecord | None = None
    finished: Finished | None = None
    damaged: set[str] = field(default_factory=set)  # forests whose payload could not be read
    before: Ledger = field(default_factory=Ledger)  # the state of the snapshot that the journal starts with
    _leases: dict[str, tuple[str, ...]] = field(default_factory=dict)
    _dropped: list[str] = field(default_factory=list)  # ids of dropped forests that are not in `finished`

    def add(self, line: Line) -> None:
        self.records += 1
        self.seq = line.seq
        match line.record:
            case Reserved(forest_id=fid):
                self.attempts[fid] = Attempt(reserved=line.record, reserved_at=line.t)
            case Admitted(forest_id=fid):
                self.attempts[fid].admitted, self.attempts[fid].admitted_at = line.record, line.t
            case Dropped(forest_id=fid):
                self.attempts[fid].dropped = line.record
                self._dropped.append(fid)
                if line.record.reason == "damaged":
                    self.damaged.add(fid)
            case Leased(lease_id=lease, forest_ids=fids):
                self._leases[lease] = fids
                self._set_lease(fids, lease)
            case Returned(lease_id=lease):
                self._set_lease(self._leases[lease], None)
            case Acked(lease_id=lease, step=step, skipped=skipped):
                self.skipped.update(skipped)
                self._set_lease(self._leases[lease], lease)
                self.steps.setdefault(step, []).extend(self._leases[lease])
                self.acks.append(step)
            case Committed(step=step, oldest_kept=oldest_kept):
                self.committed = step
                if self.finished is not None:
                    self._finish(self.finished, oldest_kept)
            case Released(payload_files=files):
                self.released.update(files)
            case Resumed(step=step):
                self._resume(step)
            case Snapshot():
                self._start_from(line)

    def _start_from(self, line: Line) -> None:
        """Read the live forests of a snapshot. The snapshot holds only totals of the finished forests; `before`
        keeps these totals."""
        self.before.apply(line.record)
        self.committed = self.before.committed
        for fid, entry in self.before.live.items():
            self.attempts[fid] = Attempt(
                reserved=entry.reserved,
                reserved_at=line.t,
                admitted=entry.admitted,
                admitted_at=line.t if entry.admitted else None,
            )
        if self.finished is not None:
            self.finished.draws = NumberSet(self.before.next_draw)
            self.finished.last_step = self.before.oldest_kept
        self._leases = {i: r.forest_ids for i, r in self.before.lapsed.items()}
        for lease_id, lease in self.before.leases.items():
            self._leases[lease_id] = lease.record.forest_ids
            self._set_lease(lease.record.forest_ids, lease_id)
            if lease.step is not None:
                self.skipped.update(lease.skipped)
                self.steps.setdefault(lease.step, []).extend(lease.record.forest_ids)
                self.acks.append(lease.step)

    def _set_lease(self, fids: tuple[str, ...], lease: str | None) -> None:
        for fid in fids:
            self.attempts[fid].lease = lease

    def _resume(self, step: int) -> None:
        """Remove the steps after the checkpoint. Reserved prompts get another attempt."""
        self.committed = step
        self.steps = {s: fids for s, fids in self.steps.items() if s <= step}
        self.acks = [s for s in self.acks if s <= step]
        kept = {fid for fids in self.steps.values() for fid in fids}
        self.skipped &= kept
        for fid, attempt in self.attempts.items():
            if fid not in kept:
                attempt.lease = None
            if attempt.admitted is None and attempt.dropped is None:
                attempt.reissued = True
        if self.finished is not None:
            self.attempts = {fid: attempt for fid, attempt in self.attempts.items() if not attempt.reissued}

    def _finish(self, finished: Finished, oldest_kept: int) -> None:
        """Move dropped attempts and the steps up to `oldest_kept` to `finished`. No resume goes back before
        `oldest_kept`."""
        for step in sorted(s for s in self.steps if s <= oldest_kept):
            for fid in self.steps.pop(step):
                if fid in self.skipped:
                    self.skipped.remove(fid)  # the journal has a record of its drop
                elif attempt := self.attempts.pop(fid, None):
                    finished.add("trained", attempt.reserved, attempt.admitted, attempt.dropped)
                else:
                    finished.faults.append(f"forest {fid} of step {step} was finished before")
        if done := [s for s in self.acks if s <= oldest_kept]:
            finished.end_steps(done, oldest_kept)
            self.acks = self.acks[len(done) :]
        for fid in self._dropped:
            if attempt := self.attempts.pop(fid, None):
                finished.add("dropped", attempt.reserved, attempt.admitted, attempt.dropped)
        self._dropped.clear()
        self._leases = {i: f for i, f in self._leases.items() if not self.attempts.keys().isdisjoint(f)}

    def states(self) -> dict[str, str]:
        """Return the state of every attempt: a state of the ledger, or "reissued" if a resume cancelled the attempt."""
        done = {fid for step, fids in self.steps.items() if step <= self.committed for fid in fids}
        trained = done - self.skipped
        return {fid: "trained" if fid in trained else _state(attempt) for fid, attempt in self.attempts.items()}


def _state(attempt: Attempt) -> str:
    if attempt.dropped:
        return "dropped"
    if attempt.admitted is None:
        return "reissued" if attempt.reissued else "reserved"
    return "leased" if attempt.lease else "ready"


def folder_of(run_dir: str | Path) -> Folder:
    """Return the replay folder of the run at a path or URI. Raises `BadInput` if the run has no journal."""
    folder = open_folder(named_store(run_dir).uri).child("replay")
    if not folder.child("journal").sizes(".jsonl"):
        raise BadInput(f"{run_dir} has no journal under replay/journal; give the folder of a run")
    return folder


def read_history(run_dir: str | Path) -> History:
    """Read the whole journal. Raises `BadInput` for damage or another format."""
    reader = Reader(folder_of(run_dir).child("journal"), whole=True)
    history = History()
    for line in reader:
        try:
            history.add(line)
        except IMPOSSIBLE as e:
            raise impossible(reader.seq, e) from e
    history.torn = reader.torn
    return history


def forests(run_dir: str | Path) -> Iterator[Forest]:
    """Yield every admitted forest whose payload is kept and undamaged, in the order of admission. On a local disk
    the arrays are views of the mapped files."""
    replay = folder_of(run_dir)
    payloads, released, damaged = PayloadReader(replay.child("payloads")), set[str](), set[str]()
    for line in Reader(replay.child("journal"), whole=True):
        match line.record:
            case Released(payload_files=files):
                released.update(files)
            case Dropped(forest_id=fid, reason="damaged"):
                damaged.add(fid)
    for admitted in admitted_forests(Reader(replay.child("journal"), whole=True)):
        if admitted.payload_file not in released and admitted.forest_id not in damaged:
            yield payloads.forest(admitted)


def last_forest(run_dir: str | Path) -> Forest | None:
    """Return the forest that was admitted last; None if no forest was admitted. Reads the journal from its last
    snapshot on.

    Raises `BadInput` if the run has no journal, or if the payload of that forest cannot be read."""
    replay = folder_of(run_dir)
    last = deque(admitted_forests(Reader(replay.child("journal"))), maxlen=1)
    return PayloadReader(replay.child("payloads")).forest(last[0]) if last else None


def admitted_forests(reader: Reader, until: float = math.inf) -> Iterator[Admitted]:
    """Yield the forests that the records up to number `until` admitted, in the order of admission.

    If the journal starts with a snapshot, the live forests of the snapshot come first. Later records are not read."""
    for line in reader:
        if line.seq > until:
            return
        match line.record:
            case Admitted():
                yield line.record
            case Snapshot():
                before = Ledger()
                before.apply(line.record)
                yield from (e.payload for e in sorted(before.live.values(), key=lambda e: e.order) if e.admitted)
        if line.seq == until:
            return


class RecordedSteps:
    """The forests of some optimizer steps. One pass over the journal finds them, in memory that does not grow with
    the journal."""

    def __init__(self, run_dir: str | Path, steps: Collection[int]) -> None:
        """Find the forests of `steps`. Raises `BadInput` for a journal that is damaged or of another format."""
        self._run_dir = run_dir
        replay = folder_of(run_dir)
        self._payloads = PayloadReader(replay.child("payloads"))
        self._found: dict[int, tuple[Admitted, ...]] = {}
        self._released: set[str] = set()
        self._known = range(0)  # the steps in the journal
        ledger = Ledger()
        for line in recover(Reader(replay.child("journal"), whole=True), ledger):
            self._note(line.record, ledger, steps)

    def _note(self, record: Record, ledger: Ledger, steps: Collection[int]) -> None:
        match record:
            case Acked(step=step):
                self._known = range(self._known.start or step, step + 1)
                done = [ledger.leases[record.lease_id]]
            case Snapshot():
                done = [lease for lease in ledger.leases.values() if lease.step is not None]
                self._known = range(ledger.oldest_kept + 1, ledger.last_step + 1)
            case Resumed(step=step):
                self._found = {s: forests for s, forests in self._found.items() if s <= step}
                self._known = range(self._known.start, step + 1)
                return
            case Released(payload_files=files):
                self._released.update(files)
                return
            case _:
                return
        for lease in done:
            if lease.step is not None and lease.step in steps:
                self._found[lease.step] = tuple(ledger.live[fid].payload for fid in lease.record.forest_ids)

    def forests(self, step: int) -> list[Forest]:
        """Return the forests that `step` trained on, in training order.

        Raises `BadInput` if the step did not happen or one of its payloads is gone."""
        if step not in self._found:
            known = f"steps {self._known.start} to {self._known.stop - 1}" if self._known else "no step"
            raise BadInput(f"step {step}: the journal of {self._run_dir} has {known}")
        for admitted in self._found[step]:
            if admitted.payload_file in self._released:
                raise BadInput(
                    f"step {step}: forest {admitted.forest_id} was deleted after training; train with queue.retain=all"
                    " to keep payloads"
                )
        return [self._payloads.forest(admitted) for admitted in self._found[step]]


def forests_of_step(run_dir: str | Path, step: int) -> list[Forest]:
    """Return the batch of optimizer step `step` in training order.

    For several steps use `RecordedSteps`, which reads the journal once. Raises `BadInput` as `RecordedSteps.forests`
    does."""
    return RecordedSteps(run_dir, (step,)).forests(step)
