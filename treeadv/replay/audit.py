"""Find out from the files of a run whether it lost a forest or trained one twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from treeadv.errors import BadForest, BadInput
from treeadv.replay.history import History, folder_of
from treeadv.replay.journal import Reader
from treeadv.replay.ledger import UNITS, Ledger, State
from treeadv.replay.payloads import PayloadReader
from treeadv.replay.records import Admitted
from treeadv.replay.recovery import IMPOSSIBLE, impossible, recover
from treeadv.storage.folder import Folder
from treeadv.storage.run_folder import named_store
from treeadv.visible import visible

_ROWS = ("admitted", "ready", "leased", "trained", "dropped")


@dataclass(frozen=True, slots=True)
class Report:
    """`rows`: forests, leaves, tokens of each state. `dropped`: forests by reason, those never admitted included.

    `faults` are one line each; a run without any is sound. A torn last record is no fault: the next start cuts it off.
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
        """JSON-able."""
        return {"sound": self.sound, **{name: getattr(self, name) for name in self.__slots__}}

    def table(self) -> str:
        """For a terminal: the law, what was checked, and the faults."""
        lines = [f"{'':10}" + "".join(f"{u:>14}" for u in UNITS)]
        lines += [f"{name:10}" + "".join(f"{self.rows[name][u]:>14,}" for u in UNITS) for name in _ROWS]
        error = {u: self.rows["admitted"][u] - sum(self.rows[r][u] for r in _ROWS[1:]) for u in UNITS}
        lines += [f"{'law error':10}" + "".join(f"{error[u]:>14,}" for u in UNITS), ""]
        lines += [f"dropped as {reason}: {n:,}" for reason, n in self.dropped.items()]
        lines.append(
            f"{self.records:,} records, {self.steps:,} steps "
            f"({self.committed_step:,} durable), {self.payloads:,} payloads of "
            f"{self.payload_bytes:,} bytes checked, {self.payloads_released:,} deleted once trained"
        )
        lines += [f"torn last record (cut off at the next start): {self.torn}"] if self.torn else []
        lines += [f"FAULT {visible(fault)}" for fault in self.faults]
        return "\n".join([*lines, "sound" if self.sound else f"{len(self.faults)} faults"])


def audit(run_dir: str) -> Report:
    """Check the journal's checksums and order, and the law after each record.

    Each trained forest must belong to one step and each prompt to one outcome; every payload must exist, undamaged and
    as large as its record says; no checkpoint may be of a step that the journal lacks. Raises `BadInput` if there is no
    journal."""
    folder = folder_of(run_dir)
    checkpoint = _last_checkpoint(run_dir)  # before the journal: a live run records a step before its checkpoint
    history, ledger, faults = History(), Ledger(), []
    reader = Reader(folder.child("journal"), whole=True)
    try:
        for line in recover(reader, ledger):
            history.add(line)
    except BadInput as e:
        faults.append(str(e))
    except IMPOSSIBLE as e:
        faults.append(str(impossible(reader.seq, e)))
    states = history.states()
    rows = _rows(history, states)
    faults += _count_faults(ledger, rows)
    faults += _step_faults(history, states) + _draw_faults(history, states, ledger)
    if checkpoint > (known := max(history.steps, default=history.committed)):
        faults.append(
            f"there is a checkpoint of step {checkpoint}, but the journal ends with step {known}: its records are lost"
        )
    payloads, released, size, bad = _payloads(history, folder)
    dropped = history.before.lost + Counter(f.dropped.reason for f in history.fates.values() if f.dropped)
    dropped.update(
        {what: n for (what, unit), n in history.before.totals.items() if unit == "forests" and what not in _ROWS}
    )
    torn = f"{reader.torn.part} byte {reader.torn.offset}, {reader.torn.lost} bytes" if reader.torn else ""
    return Report(
        run_dir, history.records, len(history.steps), history.committed, rows, dict(sorted(dropped.items())),
        payloads, released, size, torn, tuple(faults + bad),
    )  # fmt: skip


def _last_checkpoint(run_dir: str) -> int:
    return max(named_store(run_dir).checkpoints(), default=0)


def _rows(history: History, states: dict[str, str]) -> dict[str, dict[str, int]]:
    """Count the admitted forests and their states. The totals of a snapshot count what was finished before it."""
    finished = {name: {u: history.before.totals[name, u] for u in UNITS} for name in ("trained", "dropped")}
    for entry in history.before.in_state(State.TRAINED):  # the run may still go back before its step
        for unit, n in zip(UNITS, (1, entry.payload.leaves, entry.payload.tokens), strict=True):
            finished["trained"][unit] -= n
    rows = {name: dict(finished.get(name, dict.fromkeys(UNITS, 0))) for name in _ROWS}
    rows["admitted"] = {u: finished["trained"][u] + finished["dropped"][u] for u in UNITS}
    for fid in history.admitted:
        a = history.fates[fid].admitted
        for unit, n in zip(UNITS, (1, a.leaves, a.tokens) if a else (0, 0, 0), strict=True):
            rows["admitted"][unit] += n
            rows[states[fid]][unit] += n
    return rows


def _count_faults(ledger: Ledger, rows: dict[str, dict[str, int]]) -> list[str]:
    """Check the law on the counts of the history, and those counts against the ledger's."""
    out = []
    for unit in UNITS:
        error = rows["admitted"][unit] - sum(rows[r][unit] for r in _ROWS[1:])
        if error:
            out.append(f"law broken: {error} {unit} are admitted and in no state")
        out += [
            f"{name} {unit}: {rows[name][unit]} by history, {ledger.totals[name, unit]} by the ledger"
            for name in _ROWS if rows[name][unit] != ledger.totals[name, unit]
        ]  # fmt: skip
    return out


def _step_faults(history: History, states: dict[str, str]) -> list[str]:
    times = Counter(fid for fids in history.steps.values() for fid in fids)
    out = [f"forest {fid} is in {n} places of the optimizer steps" for fid, n in times.items() if n > 1]
    out += [f"forest {fid} is trained by no step" for fid, s in states.items() if s == "trained" and fid not in times]
    out += [f"step {step} was done with {n} leases" for step, n in Counter(history.acks).items() if n > 1]
    first = history.before.oldest_kept + 1
    gaps = sorted(set(range(first, max(history.acks, default=0) + 1)) - set(history.acks))
    out += [f"step {step} was done with no lease, but later ones were done" for step in gaps]
    return out


def _draw_faults(history: History, states: dict[str, str], ledger: Ledger) -> list[str]:
    """Check that every prompt given out is in one place: live, trained, given up, waiting to go out again, or finished
    before a snapshot."""
    finished = history.before.next_draw
    places: Counter[int] = Counter(a.draw for a in ledger.again)
    for fid, fate in history.fates.items():
        gone = states[fid] == "reissued" or (fate.dropped is not None and fate.dropped.refill)
        places[fate.reserved.draw] += not gone
    wrong = [d for d in range(ledger.next_draw) if places[d] > 1 or (places[d] == 0 and d >= finished)]
    return [f"draw {d} is in {places[d]} places, one is right" for d in wrong]


def _payloads(history: History, folder: Folder) -> tuple[int, int, int, list[str]]:
    reader = PayloadReader(folder.child("payloads"))
    read = released = size = 0
    faults = {}
    for fid in history.admitted:
        a = history.fates[fid].admitted
        assert a is not None
        if a.payload_file in history.released:
            released += 1
            continue
        if history.fates[fid].damaged:
            continue  # it is known to be lost, and its prompt went out again
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
    """Return those of `fids` whose payload the live run deleted or found damaged since its journal was read."""
    now = History()
    try:
        for line in Reader(folder.child("journal"), whole=True):
            now.add(line)
    except (BadInput, *IMPOSSIBLE):
        return []
    files = {fid: a.payload_file for fid in fids if (a := history.fates[fid].admitted)}
    return [
        fid for fid in fids
        # not in: finished before a snapshot
        if fid not in now.fates or files[fid] in now.released or now.fates[fid].damaged
    ]  # fmt: skip


def _check_payload(a: Admitted, reader: PayloadReader) -> None:
    forest = reader.forest(a)
    found = forest.forest_id, forest.leaves, forest.tokens, forest.oldest_version, forest.newest_version
    told = a.forest_id, a.leaves, a.tokens, a.oldest_version, a.newest_version
    if found != told:
        raise BadForest(a.forest_id, f"the payload holds {found}, the journal says {told}")
