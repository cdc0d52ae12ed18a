"""Checks the files of a run: no forest is lost and no forest is trained twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from treeadv import wire
from treeadv.errors import BadForest, BadInput
from treeadv.replay.history import History, folder_of
from treeadv.replay.journal import Line, Reader
from treeadv.replay.ledger import UNITS, LawBroken, LeaseLost, Ledger, State
from treeadv.replay.payloads import PayloadReader
from treeadv.replay.records import Admitted
from treeadv.storage.folder import Folder
from treeadv.storage.run_folder import named_store

_ROWS = ("admitted", "ready", "leased", "trained", "dropped")


@dataclass(frozen=True, slots=True)
class AuditReport:
    """The result of an audit.

    `rows` holds the numbers of forests, leaves and tokens of each state. `dropped` holds the number of forests by drop
    reason, including forests that were never admitted. `faults` holds one line for each fault; a run without faults is
    sound. A torn last record is no fault: the next start cuts it off.
    """

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

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON-able values."""
        return {"sound": self.sound, **{name: getattr(self, name) for name in self.__slots__}}

    def table(self) -> str:
        """Return the report as text: the conservation law, the numbers of checked items, and the faults."""
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
        return "\n".join(
            [*lines, *(f"FAULT {f}" for f in self.faults), "sound" if self.sound else f"{len(self.faults)} faults"]
        )


def audit(run_dir: str | Path) -> AuditReport:
    """Check the journal's checksums and order, and the conservation law after each record.

    Each trained forest must belong to exactly one step. Each prompt must have exactly one state. Every payload must
    exist, be undamaged and match its record. The journal must contain the step of every checkpoint. Raises `BadInput`
    if the run has no journal."""
    folder = folder_of(run_dir)
    # Read before the journal: a live run records a step before it writes the checkpoint of that step
    checkpoint = _last_checkpoint(run_dir)
    history, ledger, faults = History(), Ledger(), []
    reader = Reader(folder.child("journal"))
    try:
        for line in reader:
            _step(ledger, history, line)
    except BadInput as e:
        faults.append(str(e))
    except (KeyError, ValueError, LeaseLost, LawBroken) as e:
        faults.append(f"record {reader.seq} contradicts the records before it: {type(e).__name__} {e}")
    states = history.states()
    rows = _rows(history, states)
    faults += _count_faults(ledger, rows)
    faults += _step_faults(history, states) + _draw_faults(history, states, ledger)
    if checkpoint > (known := max(history.steps, default=history.committed)):
        faults.append(
            f"the run has a checkpoint of step {checkpoint}, but the journal ends with step {known}: records are lost"
        )
    payloads, released, size, bad = _payloads(history, folder)
    dropped = history.before.lost + Counter(f.dropped.reason for f in history.attempts.values() if f.dropped)
    dropped.update(
        {what: n for (what, unit), n in history.before.totals.items() if unit == "forests" and what not in _ROWS}
    )
    torn = f"{reader.torn.part} byte {reader.torn.offset}, {reader.torn.lost} bytes" if reader.torn else ""
    return AuditReport(
        str(run_dir), history.records, len(history.steps), history.committed, rows, dict(sorted(dropped.items())),
        payloads, released, size, torn, tuple(faults + bad),
    )  # fmt: skip


def _last_checkpoint(run_dir: str | Path) -> int:
    return max(named_store(run_dir).checkpoints(), default=0)


def _step(ledger: Ledger, history: History, line: Line) -> None:
    ledger.apply(line.record)
    history.add(line)


def _rows(history: History, states: dict[str, str]) -> dict[str, dict[str, int]]:
    """Count the admitted forests by state. The totals of a snapshot count the forests that were finished before it."""
    finished = {name: {u: history.before.totals[name, u] for u in UNITS} for name in ("trained", "dropped")}
    for entry in history.before.in_state(State.TRAINED):  # not finished: a resume may go back before the step
        for unit, n in zip(UNITS, (1, entry.payload.leaves, entry.payload.tokens), strict=True):
            finished["trained"][unit] -= n
    rows = {name: dict(finished.get(name, dict.fromkeys(UNITS, 0))) for name in _ROWS}
    rows["admitted"] = {u: finished["trained"][u] + finished["dropped"][u] for u in UNITS}
    for fid in history.admitted:
        a = history.attempts[fid].admitted
        for unit, n in zip(UNITS, (1, a.leaves, a.tokens) if a else (0, 0, 0), strict=True):
            rows["admitted"][unit] += n
            rows[states[fid]][unit] += n
    return rows


def _count_faults(ledger: Ledger, rows: dict[str, dict[str, int]]) -> list[str]:
    """Check the conservation law on the counts of the history, and compare these counts with those of the ledger."""
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
    out += [f"step {step} has {n} leases" for step, n in Counter(history.acks).items() if n > 1]
    first = history.before.oldest_kept + 1
    gaps = sorted(set(range(first, max(history.acks, default=0) + 1)) - set(history.acks))
    out += [f"step {step} has no lease, but a later step has one" for step in gaps]
    return out


def _draw_faults(history: History, states: dict[str, str], ledger: Ledger) -> list[str]:
    """Check that every draw has exactly one state: live, trained, given up, waiting for a retry, or finished before
    the snapshot."""
    finished = history.before.next_draw
    places: Counter[int] = Counter(a.draw for a in ledger.again)
    for fid, attempt in history.attempts.items():
        gone = states[fid] == "reissued" or (attempt.dropped is not None and attempt.dropped.refill)
        places[attempt.reserved.draw] += not gone
    wrong = [d for d in range(ledger.next_draw) if places[d] > 1 or (places[d] == 0 and d >= finished)]
    return [f"draw {d} has {places[d]} states instead of 1" for d in wrong]


def _payloads(history: History, folder: Folder) -> tuple[int, int, int, list[str]]:
    reader = PayloadReader(folder.child("payloads"))
    read = released = size = 0
    faults = {}
    for fid in history.admitted:
        a = history.attempts[fid].admitted
        assert a is not None
        if a.payload_file in history.released:
            released += 1
            continue
        if history.attempts[fid].damaged:
            continue  # the journal records the loss, and the prompt has another attempt
        try:
            _check_payload(a, reader)
        except (BadInput, BadForest) as e:
            faults[fid] = str(e)
        read, size = read + 1, size + a.length
    gone = _deleted_since(history, folder, faults) if faults else []
    return (
        read - len(gone),
        released + len(gone),
        size,
        [f"forest {fid}: {e}" for fid, e in faults.items() if fid not in gone],
    )


def _deleted_since(history: History, folder: Folder, fids: Iterable[str]) -> list[str]:
    """Return the ids of `fids` whose payload the live run deleted or found damaged after `history` was read."""
    now = History()
    try:
        for line in Reader(folder.child("journal")):
            now.add(line)
    except (BadInput, KeyError):
        return []
    files = {fid: a.payload_file for fid in fids if (a := history.attempts[fid].admitted)}
    return [
        fid for fid in fids
        # A forest that is not in `now` was finished before a new snapshot
        if fid not in now.attempts or files[fid] in now.released or now.attempts[fid].damaged
    ]  # fmt: skip


def _check_payload(a: Admitted, reader: PayloadReader) -> None:
    (forest,) = wire.from_batch(reader.read(a.place))
    found = forest.forest_id, forest.leaves, forest.tokens, forest.oldest_version, forest.newest_version
    told = a.forest_id, a.leaves, a.tokens, a.oldest_version, a.newest_version
    if found != told:
        raise BadForest(a.forest_id, f"the payload holds {found}, but the journal says {told}")
