"""Tests the effect of a crash, a bad disk or another release on the files of the queue."""

from __future__ import annotations

import json
import shutil
import subprocess
import zlib
from pathlib import Path

import pytest

from tests.replay.helpers import batch_for, fill, open_store, reserve, train
from treeadv import wire
from treeadv.errors import BadInput
from treeadv.replay import audit as auditing
from treeadv.replay.audit import _step_faults, audit
from treeadv.replay.history import read_history
from treeadv.replay.journal import Journal, Reader
from treeadv.replay.records import Acked, Admitted, Committed, Leased, Record, Resumed
from treeadv.storage.folder import open_folder
from treeadv.storage.local import LocalFolder


def one_run(folder: Path) -> Path:
    """Write a run of two steps. The first step is durable, one forest is ready, and one forest is reserved. Return the
    only part of the journal."""
    store = open_store(folder, max_staleness=2)
    fill(store, 3)
    train(store, 2, 1)
    store.commit(1)
    fill(store, 2)
    train(store, 2, 2)
    reserve(store)
    store.close()
    (file,) = (folder / "replay/journal").iterdir()
    return file


def read(folder: Path) -> tuple[list, Reader]:
    reader = Reader(open_folder(str(folder / "replay/journal")))
    return [line.record for line in reader], reader


def test_journal_cut_at_any_byte_keeps_all_whole_records(tmp_path: Path) -> None:
    file = one_run(tmp_path)
    data = file.read_bytes()
    records, _ = read(tmp_path)
    for cut in range(0, len(data), 3):
        file.write_bytes(data[:cut])
        whole = data[:cut].count(b"\n")
        got, reader = read(tmp_path)
        assert got == records[:whole]
        assert (reader.torn is None) == (cut == 0 or data[cut - 1 : cut] == b"\n")
        assert reader.torn is None or reader.torn.offset + reader.torn.lost == cut


def test_store_continues_after_a_torn_record_and_reports_it(tmp_path: Path) -> None:
    file = one_run(tmp_path)
    data = file.read_bytes()
    for cut in range(len(data) - 400, len(data), 37):
        copy = tmp_path / f"cut-{cut}"
        shutil.copytree(tmp_path / "replay", copy / "replay")
        (copy / "replay/journal" / file.name).write_bytes(data[:cut])
        store = open_store(copy, max_staleness=2)
        torn = store.files.opening.torn
        assert torn is not None and torn.offset == data.rindex(b"\n", 0, cut) + 1
        fill(store, 2)
        store.close()
        report = audit(str(copy))
        assert report.sound and not report.torn, report.table()


def test_zeros_after_the_last_record_are_a_torn_record(tmp_path: Path) -> None:
    file = one_run(tmp_path)
    data = file.read_bytes()
    file.write_bytes(data + bytes(300))
    store = open_store(tmp_path)
    assert store.files.opening.torn is not None and (
        store.files.opening.torn.offset,
        store.files.opening.torn.lost,
    ) == (len(data), 300)
    store.close()


def test_flipped_bit_is_located_and_nothing_is_changed(tmp_path: Path) -> None:
    file = one_run(tmp_path)
    data = file.read_bytes()
    starts = [0, *(i + 1 for i, c in enumerate(data) if c == 10)]
    last = starts[-2]
    for at in range(0, last, 41):
        bad = bytearray(data)
        bad[at] ^= 1
        file.write_bytes(bad)
        record = sum(s <= at for s in starts)
        with pytest.raises(
            BadInput, match=f"record {record} at byte {starts[record - 1]} is damaged .*1 to {record - 1} are undamaged"
        ):
            open_store(tmp_path)
        assert file.read_bytes() == bad
        report = audit(str(tmp_path))
        assert not report.sound and report.records == record - 1


def test_damaged_payload_is_named_by_forest_file_and_offset(tmp_path: Path) -> None:
    one_run(tmp_path)
    (file,) = (tmp_path / "replay/payloads").iterdir()
    records, _ = read(tmp_path)
    place = [r for r in records if type(r).__name__ == "Admitted"][1]
    data = bytearray(file.read_bytes())
    data[place.offset + place.length // 2] ^= 4
    file.write_bytes(data)
    report = audit(str(tmp_path))
    assert len(report.faults) == 1
    assert f"forest {place.forest_id}" in report.faults[0] and f"{file.name} byte {place.offset}" in report.faults[0]


def test_missing_payload_file_is_a_fault_of_every_forest_in_it(tmp_path: Path) -> None:
    one_run(tmp_path)
    (file,) = (tmp_path / "replay/payloads").iterdir()
    file.unlink()
    assert len(audit(str(tmp_path)).faults) == 5


def test_missing_part_of_the_journal_is_a_fault(tmp_path: Path) -> None:
    one_run(tmp_path)
    for _ in range(2):
        store = open_store(tmp_path, max_staleness=5)
        reserve(store)
        store.close()
    (tmp_path / "replay/journal/0000000002.jsonl").unlink()
    with pytest.raises(BadInput, match=r"0000000003.jsonl byte 0: record \d+ follows record \d+"):
        open_store(tmp_path)


def test_snapshot_replaces_earlier_parts_at_any_death(tmp_path: Path) -> None:
    file = one_run(tmp_path)
    store = open_store(tmp_path, max_staleness=2, retain="unacknowledged")
    before, kept = store.ledger, file.read_bytes()
    store.journal_limit = 0
    store.compact()
    store.close()
    folder = tmp_path / "replay/journal"
    assert [p.name for p in folder.iterdir()] == ["0000000002.snapshot.jsonl"]

    file.write_bytes(kept)  # the process dies before it deletes the old part
    (folder / ".0000000003.snapshot.jsonl.1").write_text('{"crc"')  # the process dies while it writes the next snapshot
    store = open_store(tmp_path, max_staleness=2, retain="unacknowledged")
    for name in (
        "live",
        "leases",
        "again",
        "totals",
        "lost",
        "next_draw",
        "leases_made",
        "last_step",
        "committed",
        "run",
    ):
        assert getattr(store.ledger, name) == getattr(before, name), name
    reserve(store)
    store.journal_limit = 0
    store.compact()
    fill(store, 1)
    store.close()
    assert sorted(p.name for p in folder.glob("[0-9]*")) == ["0000000004.snapshot.jsonl", "0000000005.jsonl"]
    report = audit(str(tmp_path))
    assert report.sound and report.rows["admitted"]["forests"] == 6, report.table()


def rewritten(line: bytes, **change: object) -> bytes:
    tree = json.loads(line)
    del tree["crc"]
    return encoded({**tree, **change})


def encoded(tree: dict) -> bytes:
    rest = json.dumps(tree, separators=(",", ":"))[1:].encode()
    return b'{"crc":"%08x",%b\n' % (zlib.crc32(rest), rest)


@pytest.mark.parametrize(
    ("line", "change", "message"),
    [
        (0, {"format": 6}, "journal format 6, this release reads 5; use the release of treeadv that wrote the journal"),
        (3, {"kind": "pondered"}, "unknown record 'pondered'"),
        (3, {"colour": "red"}, "unknown record .*colour"),
    ],
)
def test_journal_of_a_newer_release_is_refused(tmp_path: Path, line: int, change: dict, message: str) -> None:
    file = one_run(tmp_path)
    lines = file.read_bytes().splitlines(keepends=True)
    lines[line] = rewritten(lines[line], **change)
    file.write_bytes(b"".join(lines))
    with pytest.raises(BadInput, match=message):
        open_store(tmp_path)


def journalled(folder: Path, *records: Record) -> None:
    """Append records to a journal without a check."""
    parts = open_folder(str(folder / "replay/journal"))
    reader = Reader(parts)
    list(reader)
    writer = Journal(parts, reader, "", lambda: None)
    writer.append(records, 0.0)
    writer.close()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (Acked(lease_id="lease-000003", step=2), "ack of lease lease-000003 for step 2: the next step is 3"),
        (Acked(lease_id="lease-000003", step=4), "ack of lease lease-000003 for step 4: the next step is 3"),
        (Acked(lease_id="lease-000009", step=3), "lease-000009"),
        (
            Committed(step=3, oldest_kept=0),
            "step 3 cannot become durable: the step must be between 1 (durable) and 2 (last acknowledged)",
        ),
        (
            Committed(step=2, oldest_kept=0),
            "step 0 cannot be the oldest kept checkpoint: the step must be between 1 and 2",
        ),
        (
            Resumed(step=2, session="s"),
            "the run cannot resume from step 2: only steps 1 to 1 may have a durable checkpoint",
        ),
        (
            Resumed(step=0, session="s"),
            "the run cannot resume from step 0: only steps 1 to 1 may have a durable checkpoint",
        ),
    ],
)
def test_record_out_of_step_order_is_a_fault(tmp_path: Path, wrong: Record, message: str) -> None:
    """Each step has one lease, and step numbers have no gaps."""
    one_run(tmp_path)
    fids = [r.forest_id for r in read(tmp_path)[0] if isinstance(r, Admitted)]
    journalled(
        tmp_path,
        Leased(lease_id="lease-000003", forest_ids=(fids[4],), version=2, max_staleness=2, deadline=0.0),
        wrong,
    )
    (fault,) = audit(str(tmp_path)).faults
    assert "contradicts the records before it" in fault and message in fault


def test_history_shows_steps_with_two_leases_and_with_none(tmp_path: Path) -> None:
    one_run(tmp_path)
    history = read_history(str(tmp_path))
    assert _step_faults(history, history.states()) == []
    history.acks = [1, 3, 3]
    faults = _step_faults(history, history.states())
    assert faults == ["step 3 has 2 leases", "step 2 has no lease, but a later step has one"]


def test_payload_file_of_a_newer_schema_is_refused(tmp_path: Path) -> None:
    one_run(tmp_path)
    (file,) = (tmp_path / "replay/payloads").iterdir()
    newer = wire.SCHEMA.with_metadata({b"treeadv.schema_version": b"9"}).serialize().to_pybytes()
    file.write_bytes(newer + file.read_bytes()[len(newer) :])
    faults = audit(str(tmp_path)).faults
    assert len(faults) == 5 and all("schema 9 is newer than this release reads (1)" in f for f in faults), faults


def test_second_run_on_a_folder_is_refused(tmp_path: Path) -> None:
    first = open_store(tmp_path)
    with pytest.raises(BadInput, match="in use by process"):
        open_store(tmp_path)
    fill(first, 2)
    first.close()
    second = open_store(tmp_path)
    assert second.ledger.totals["ready", "forests"] == 2
    second.close()


def test_closed_store_refuses_to_write(tmp_path: Path) -> None:
    first = open_store(tmp_path)
    ticket = reserve(first)
    first.close()
    second = open_store(tmp_path)
    files = {p: p.read_bytes() for p in (tmp_path / "replay").rglob("*.*")}
    with pytest.raises(RuntimeError, match="the journal is closed"):
        reserve(first)
    with pytest.raises(RuntimeError, match="the payload files are closed"):
        first.admit(ticket.forest_id, batch_for(ticket))
    first.close()
    assert {p: p.read_bytes() for p in (tmp_path / "replay").rglob("*.*")} == files
    assert second.admit(ticket.forest_id, batch_for(ticket)) == "admitted"
    second.close()
    assert audit(str(tmp_path)).sound


@pytest.mark.parametrize("moment", ["the journal is listed", "its parts are read", "the payloads are checked"])
@pytest.mark.parametrize("snapshots", [False, True])
def test_audit_during_deletions_finds_no_fault(
    tmp_path: Path, snapshots: bool, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(tmp_path, retain="unacknowledged", max_staleness=3)
    store.files.payloads._limit = 3000
    store.journal_limit = 0 if snapshots else 1 << 20
    fill(store, 8)
    done = [0]

    def go_on() -> None:
        """Train, commit, delete payload files and replace the journal. After three calls, do nothing."""
        if done[0] < 3:
            done[0] += 1
            train(store, 2, done[0])
            store.commit(done[0])
            store.compact()

    def before(owner: object, name: str) -> None:
        real = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args: (go_on(), real(*args))[1])

    go_on()
    match moment:
        case "the journal is listed":
            before(LocalFolder, "sizes")
        case "its parts are read":
            before(LocalFolder, "open_all")
        case "the payloads are checked":
            before(auditing, "_payloads")
    report = audit(str(tmp_path))
    assert done[0] > 1 and report.sound, report.table()
    assert snapshots or report.rows["admitted"]["forests"] == 8
    store.close()


def test_journal_parts_are_ordered_by_number_not_by_name(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.files.journal._number = 9_999_999_998  # like the names of a release with six digits
    for _ in range(3):
        reserve(store)
        store.sync()
        store.files.journal._open_part = None
    store.close()
    names = sorted(p.name for p in (tmp_path / "replay/journal").iterdir())
    assert names == ["0000000001.jsonl", "10000000000.jsonl", "9999999999.jsonl"]
    again = open_store(tmp_path)
    assert again.ledger.next_draw == 3
    again.close()


def test_listing_without_the_snapshot_is_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one_run(tmp_path)
    store = open_store(tmp_path, max_staleness=2, retain="unacknowledged")
    store.journal_limit = 0
    store.compact()
    reserve(store)
    store.close()
    sizes = LocalFolder.sizes
    listed: list[dict[str, int]] = []

    def racing(folder: LocalFolder, suffix: str) -> dict[str, int]:
        found = sizes(folder, suffix)
        listed.append({n: s for n, s in found.items() if listed or not n.endswith(".snapshot.jsonl")})
        return listed[-1]

    monkeypatch.setattr(LocalFolder, "sizes", racing)
    _, reader = read(tmp_path)
    assert reader.parts == ["0000000002.snapshot.jsonl", "0000000003.jsonl"] and len(listed) == 4


def test_audit_reports_a_missing_payload_file_of_a_live_run(tmp_path: Path) -> None:
    store = open_store(tmp_path, retain="unacknowledged", max_staleness=3)
    fill(store, 2)
    (tmp_path / "replay/payloads/0000000001.arrow").unlink()
    assert len(audit(str(tmp_path)).faults) == 2
    store.close()


@pytest.fixture
def small_disk(tmp_path: Path):
    disk = tmp_path / "disk"
    disk.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)], capture_output=True, text=True
    )
    if made.returncode:
        pytest.skip(f"this machine does not permit a tmpfs mount: {made.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_full_disk_is_one_line_and_admitted_forests_are_kept(small_disk: Path) -> None:
    store = open_store(small_disk, per_step=1000)
    admitted = []
    with pytest.raises(BadInput, match=r"No space left on device.; stored data is not lost: free space"):
        while True:
            record = reserve(store)
            store.admit(record.forest_id, batch_for(record, length=500))
            admitted.append(record.forest_id)
    assert len(admitted) >= 5
    ready = [e.reserved.forest_id for e in store.ledger.live.values() if e.admitted]
    assert ready == admitted
    assert audit(str(small_disk)).rows["ready"]["forests"] == len(admitted)
    subprocess.run(["mount", "-o", "remount,size=1m", str(small_disk)], check=True)
    again = store.ledger.live[record.forest_id].reserved if record.forest_id in store.ledger.live else reserve(store)
    assert (
        store.admit(again.forest_id, batch_for(again, length=500)) == "admitted"
    )  # the same process continues when the disk has free space
    store.close()
    report = audit(str(small_disk))
    assert report.sound and report.rows["ready"]["forests"] == len(admitted) + 1, report.table()
