"""The audit of the files of a run. In a sound run no forest is lost and no forest is trained twice."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from treeadv.errors import BadInput
from treeadv.jsonl import JsonObject
from treeadv.replay.finished import Finished, lease_faults
from treeadv.replay.history import History, admitted_forests, folder_of
from treeadv.replay.journal import Reader
from treeadv.replay.ledger import UNITS, Ledger
from treeadv.replay.live import State
from treeadv.replay.payloads import PayloadReader
from treeadv.replay.records import Admitted, Dropped, Released, Snapshot
from treeadv.replay.recovery import IMPOSSIBLE, impossible, recover
from treeadv.storage.folder import Folder
from treeadv.storage.run_folder import named_store
from treeadv.visible import visible

_ROWS = ("admitted", "ready", "leased", "trained", "dropped")


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditReport:
    """The result of an audit.

    `rows` holds the numbers of forests, leaves and tokens of each state. `dropped` holds the number of forests by
    drop reason, including forests that were never admitted. `faults` holds one line for each fault; a run without
    faults is sound. A torn last record is not a fault, because the next start cuts it off."""

    run_dir: str
    records: int
    steps: int
    committed_step: int
    rows: dict[str, dict[str, int]]
    dropped: dict[str, int]
    payloads: int
    payloads_released: int
    payload_bytes: int
    torn: str
    faults: tuple[str, ...]

    @property
    def sound(self) -> bool:
        return not self.faults

    def to_dict(self) -> JsonObject:
        """Return the report as values that JSON can represent."""
        return {"sound": self.sound, **{name: getattr(self, name) for name in self.__slots__}}

    def table(self) -> str:
        """Return the report as text: the counts of the conservation law, the numbers of checked items, and the
        faults."""
        lines = [f"{'':10}" + "".join(f"{u:>14}" for u in UNITS)]
        lines += [f"{name:10}" + "".join(f"{self.rows[name][u]:>14,}" for u in UNITS) for name in _ROWS]
        error = {u: self.rows["admitted"][u] - sum(self.rows[r][u] for r in _ROWS[1:]) for u in UNITS}
        lines += [f"{'law error':10}" + "".join(f"{error[u]:>14,}" for u in UNITS), ""]
        lines += [f"dropped as {reason}: {n:,}" for reason, n in self.dropped.items()]
        lines.append(
            f"{self.records:,} records, {self.steps:,} steps "
            f"({self.committed_step:,} durable), {self.payloads:,} payloads of "
            f"{self.payload_bytes:,} bytes checked, {self.payloads_released:,} deleted after training"
        )
        lines += [f"torn last record (cut off at the next start): {self.torn}"] if self.torn else []
        lines += [f"FAULT {visible(fault)}" for fault in self.faults]
        return "\n".join([*lines, "sound" if self.sound else f"{len(self.faults)} faults"])


def audit(run_dir: str | Path) -> AuditReport:
    """Check the checksums and the order of the journal, and check the conservation law after each record.

    Each trained forest must belong to exactly one step. Each prompt must have exactly one state. Every payload must
    exist, be undamaged and match its record. The journal must contain the step of every checkpoint. The memory of
    the audit does not grow with the run, because it holds only what a resume could still change. Raises `BadInput`
    if the run has no journal."""
    folder = folder_of(run_dir)
    # The checkpoint is read before the journal, because a live run records a step before it writes its checkpoint.
    checkpoint = _last_checkpoint(run_dir)
    finished = Finished()
    history, ledger, faults = History(finished=finished), Ledger(), []
    reader = Reader(folder.child("journal"), whole=True)
    try:
        for line in recover(reader, ledger):
            history.add(line)
    except BadInput as e:
        faults.append(str(e))
    except IMPOSSIBLE as e:
        faults.append(str(impossible(reader.seq, e)))
    states = history.states()
    rows = _rows(history, finished, states)
    faults += _count_faults(ledger, rows)
    faults += finished.faults + _step_faults(history, states) + _draw_faults(history, finished, states, ledger)
    if checkpoint > (known := max(history.steps, default=history.committed)):
        faults.append(
            f"the run has a checkpoint of step {checkpoint}, but the journal ends with step {known}: records are lost"
        )
    payloads, released, size, bad = _payloads(history, folder)
    dropped = history.before.lost + finished.dropped
    dropped.update(f.dropped.reason for f in history.attempts.values() if f.dropped)
    dropped.update(
        {what: n for (what, unit), n in history.before.totals.items() if unit == "forests" and what not in _ROWS}
    )
    torn = f"{reader.torn.part_name} byte {reader.torn.offset}, {reader.torn.lost} bytes" if reader.torn else ""
    return AuditReport(
        run_dir=str(run_dir), records=history.records, steps=finished.steps + len(history.steps),
        committed_step=history.committed, rows=rows, dropped=dict(sorted(dropped.items())), payloads=payloads,
        payloads_released=released, payload_bytes=size, torn=torn, faults=tuple(faults + bad),
    )  # fmt: skip


def _last_checkpoint(run_dir: str | Path) -> int:
    return max(named_store(run_dir).checkpoints(), default=0)


def _rows(history: History, finished: Finished, states: dict[str, str]) -> dict[str, dict[str, int]]:
    """Count the admitted forests by state. Totals of a snapshot count the forests that had finished before the
    snapshot."""
    totals = Counter({(s, u): history.before.totals[s, u] for s in ("trained", "dropped") for u in UNITS})
    for entry in history.before.in_state(State.TRAINED):  # not finished, because a resume may go back before its step
        for unit, n in zip(UNITS, (1, entry.payload.leaves, entry.payload.tokens), strict=True):
            totals["trained", unit] -= n
    totals.update(finished.totals)
    for fid, attempt in history.attempts.items():
        if a := attempt.admitted:
            for unit, n in zip(UNITS, (1, a.leaves, a.tokens), strict=True):
                totals[states[fid], unit] += n
    rows = {name: {u: totals[name, u] for u in UNITS} for name in _ROWS}
    rows["admitted"] = {u: sum(n for (_, unit), n in totals.items() if unit == u) for u in UNITS}
    return rows


def _count_faults(ledger: Ledger, rows: dict[str, dict[str, int]]) -> list[str]:
    """Check the conservation law on the counts of the history, and compare these counts with the counts of the
    ledger."""
    out = []
    for unit in UNITS:
        error = rows["admitted"][unit] - sum(rows[r][unit] for r in _ROWS[1:])
        if error:
            out.append(f"conservation law broken: {error} {unit} are admitted but have no state")
        out += [
            f"{name} {unit}: the history counts {rows[name][unit]}, the ledger {ledger.totals[name, unit]}"
            for name in _ROWS if rows[name][unit] != ledger.totals[name, unit]
        ]  # fmt: skip
    return out


def _step_faults(history: History, states: dict[str, str]) -> list[str]:
    times = Counter(fid for fids in history.steps.values() for fid in fids)
    out = [f"forest {fid} occurs {n} times in the optimizer steps" for fid, n in times.items() if n > 1]
    out += [f"no step trained forest {fid}" for fid, s in states.items() if s == "trained" and fid not in times]
    again = (fid for fid in times if fid not in history.attempts and fid not in history.skipped)
    out += [f"forest {fid} was finished before its last step" for fid in again]
    before = history.finished.last_step if history.finished else history.before.oldest_kept
    return out + lease_faults(history.acks, before, max(history.acks, default=0))


def _draw_faults(history: History, finished: Finished, states: dict[str, str], ledger: Ledger) -> list[str]:
    """Check that every draw has exactly one state: live, trained, given up, waiting for a retry, or finished before
    the snapshot."""
    first = history.before.next_draw
    places: Counter[int] = Counter(a.draw for a in ledger.again)
    for fid, attempt in history.attempts.items():
        gone = states[fid] == "reissued" or (attempt.dropped is not None and attempt.dropped.refill)
        places[attempt.reserved.draw] += not gone
    counts = ((d, places[d] + (d in finished.draws)) for d in range(ledger.next_draw))
    return [f"draw {d} has {n} states instead of 1" for d, n in counts if n > 1 or (n == 0 and d >= first)]


def _payloads(history: History, folder: Folder) -> tuple[int, int, int, list[str]]:
    """Check the payloads of the records in `history`. This is a second pass over the journal."""
    reader = PayloadReader(folder.child("payloads"))
    read = released = size = 0
    faults: dict[Admitted, str] = {}
    admitted = admitted_forests(Reader(folder.child("journal"), whole=True), history.seq) if history.seq else ()
    for (file, _, length, _), group in itertools.groupby(admitted, key=_message):
        some = list(group)
        if file in history.released:
            released += len(some)
            continue
        # The journal already records a damaged forest as lost, and its prompt has another attempt.
        if some := [a for a in some if a.forest_id not in history.damaged]:
            faults |= _payload_faults(some, reader)
            read, size = read + len(some), size + length
    gone = _deleted_since(folder, faults) if faults else set()
    return (
        read - len(gone),
        released + len(gone),
        size,
        [f"forest {a.forest_id}: {e}" for a, e in faults.items() if a.forest_id not in gone],
    )


def _deleted_since(folder: Folder, faulty: Collection[Admitted]) -> set[str]:
    """Return the ids of those `faulty` forests whose payload the live run has deleted or found damaged since the
    journal was read."""
    missing, released, damaged = {a.forest_id for a in faulty}, set[str](), set[str]()
    try:
        for line in Reader(folder.child("journal"), whole=True):
            match line.record:
                case Admitted(forest_id=fid):
                    missing.discard(fid)
                case Snapshot():  # a snapshot holds the live forests, so all other forests were finished
                    before = Ledger()
                    before.apply(line.record)
                    missing.difference_update(before.live)
                case Released(payload_files=files):
                    released.update(files)
                case Dropped(forest_id=fid, reason="damaged"):
                    damaged.add(fid)
    except (BadInput, *IMPOSSIBLE):
        return set()
    gone = {a.forest_id for a in faulty if a.payload_file in released}
    return gone | {a.forest_id for a in faulty} & (missing | damaged)


def _message(a: Admitted) -> tuple[str, int, int, int]:
    """Return the place of the message of a forest. Forests that share a message are adjacent in the journal."""
    return a.payload_file, a.offset, a.length, a.payload_crc


def _payload_faults(some: Sequence[Admitted], reader: PayloadReader) -> dict[Admitted, str]:
    """Return the faults of admitted forests that share a message."""
    try:
        forests = reader.forests(some)
    except BadInput as e:
        if len(some) == 1:
            return {some[0]: str(e)}
        return {a: fault for one in some for a, fault in _payload_faults([one], reader).items()}
    faults = {}
    for a, f in zip(some, forests, strict=True):
        found = f.leaves, f.tokens, f.oldest_version, f.newest_version
        told = a.leaves, a.tokens, a.oldest_version, a.newest_version
        if found != told:
            faults[a] = f"the payload holds {found}, but the journal records {told}"
    return faults
