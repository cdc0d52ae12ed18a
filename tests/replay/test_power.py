"""Simulates power failures at any moment. A local disk keeps all data that was fsynced, and any part of the other
data."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import treeadv.disk
import treeadv.storage.local
from tests.replay.helpers import fill, open_store, reserve, train
from treeadv.replay.audit import audit
from treeadv.replay.journal import Reader
from treeadv.storage.folder import flush, open_folder

Left = tuple[tuple[str, bytes], ...]  # path -> content after a power failure
CUTS = ("open", "write", "fsync", "replace", "truncate", "ftruncate")
MODES = {
    "only what was fsynced": lambda path, sure, now: sure,
    "deletions at once": lambda path, sure, now: sure,
    "names at once, bytes when they are fsynced": lambda path, sure, now: sure,
    "the journal sooner than the payload": lambda path, sure, now: now if "journal" in path else sure,
    "half of what was not fsynced": lambda path, sure, now: (
        now[: (len(sure) + len(now)) // 2] if now.startswith(sure) else sure
    ),
}


class Disk:
    """A substitute for `os` in the modules that write. Before each call that changes the disk, it records the files as
    a power failure would leave them, and the records that were promised as durable."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.promised = 0, 0  # (number of promised records, step of the durable checkpoint)
        self.cuts: dict[tuple[str, Left], tuple[int, int]] = {}
        self._bytes: dict[int, bytes] = {}  # inode -> content at its last fsync
        self._names: dict[
            Path, dict[str, tuple[int, bool]]
        ] = {}  # folder -> entries at its last fsync: inode, whether it is a folder
        self._pins: list[int] = []  # open files, which prevent the reuse of their inodes

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **more: Any) -> Any:
            self._note()
            return self._fsync(*args) if name == "fsync" else getattr(os, name)(*args, **more)

        return call if name in CUTS else getattr(os, name)

    def _fsync(self, fd: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{fd}"))
        if path.is_dir():
            self._names[path] = found = {e.name: (e.inode(), e.is_dir()) for e in os.scandir(path)}
            self._pins += [os.open(path / name, os.O_RDONLY) for name in found]
        else:
            self._bytes[path.stat().st_ino] = path.read_bytes()

    def _note(self) -> None:
        for mode in MODES:
            self.cuts[mode, tuple(self._left(self.root, mode))] = self.promised  # at later failures more is promised

    def _left(self, folder: Path, mode: str) -> Iterator[tuple[str, bytes]]:
        now = {e.name: (e.inode(), e.is_dir()) for e in os.scandir(folder)}
        entries = self._names.get(folder, {})
        if mode == "deletions at once":
            entries = {name: file for name, file in entries.items() if name in now}
        elif mode != "only what was fsynced":
            entries = now
        for name, (inode, is_folder) in sorted(entries.items()):
            path = folder / name
            if is_folder:
                yield from self._left(path, mode)
            else:
                sure = self._bytes.get(inode, b"")
                yield (
                    str(path.relative_to(self.root)),
                    MODES[mode](str(path), sure, path.read_bytes() if name in now else sure),
                )

    def end(self) -> None:
        for fd in self._pins:
            os.close(fd)


def scenario(disk: Disk) -> None:
    """Run three processes in succession. The first writes checkpoints with a compaction, the second writes a snapshot,
    and the third dies with unflushed records, of which the last is torn."""
    options: dict[str, Any] = {"max_staleness": 3, "retain": "unacknowledged"}
    store = open_store(disk.root, **options)
    store.files.payloads._limit = 3000
    for step in range(1, 6):
        fill(store, 2, step - 1)
        train(store, 2, step)
        promise(disk, store, disk.promised[1])
        if step in (2, 4):
            promise(disk, store, step)  # the checkpoint is now written
            store.commit(step, step - 2)
            promise(disk, store, step)
            store.journal_limit = 0 if step == 4 else 1 << 20
            store.compact()
    fill(store, 1, 5)
    promise(disk, store, 4)
    for durable_step, torn in ((None, 0), (4, 7)):
        fill(store, 1, 5)
        reserve(store)
        # the process is killed, maybe during its last record. The kernel still has the unflushed data
        store.files.lock.release()
        file = max((disk.root / "replay/journal").glob("*.jsonl"))
        os.truncate(file, file.stat().st_size - torn)
        store = open_store(disk.root, durable_step=durable_step, **options)
        promise(disk, store, 4)
    store.close()
    disk._note()


def promise(disk: Disk, store: Any, step: int) -> None:
    store.sync()
    disk.promised = store.files.records, step


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Disk]:
    disk = Disk(tmp_path_factory.mktemp("disk"))
    with pytest.MonkeyPatch.context() as patch:
        for module in (treeadv.storage.local, treeadv.disk):
            patch.setattr(module, "os", disk)
        scenario(disk)
    yield disk
    disk.end()


@pytest.mark.parametrize("mode", MODES)
def test_power_cut_at_any_call_keeps_all_durable_records(
    disk: Disk, mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda fd: None)  # no power failure occurs here, so fsync can be skipped
    cuts = [(left, promised) for (m, left), promised in disk.cuts.items() if m == mode]
    assert len(cuts) > 40
    for n, (left, (records, step)) in enumerate(cuts):
        run = tmp_path / str(n)
        for name, data in left:
            (run / name).parent.mkdir(parents=True, exist_ok=True)
            (run / name).write_bytes(data)
        journal = Reader(open_folder(str(run / "replay/journal")))
        list(journal)
        assert journal.seq >= records, f"failure {n}: {records} records were promised, {journal.seq} exist"
        if "payload" not in mode and "half" not in mode and journal.parts:
            assert audit(str(run)).sound, f"failure {n}: {audit(str(run)).table()}"
        go_on(run, step)


def go_on(run: Path, step: int) -> None:
    store = open_store(run, durable_step=step, max_staleness=3)
    for n in (1, 2, 3, 4):
        while store.free_slots:
            fill(store, 1, step + n - 1)
        train(store, 2, step + n)
    store.commit(step + 4)
    while (lease := store.lease(2, step + 4)) is not None:  # a lease checks every remaining file
        step += 1
        store.ack(lease.lease_id, step + 4)
    store.close()
    report = audit(str(run))
    assert report.sound, report.table()


def test_file_sealed_during_its_fsync_is_flushed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes that are written during an fsync are durable after the next flush. This also holds for a file that is
    sealed before that flush."""
    synced: dict[str, int] = {}
    started, go_on = threading.Event(), threading.Event()

    class SlowDisk:
        def __getattr__(self, name: str) -> Any:
            return self.slow_fsync if name == "fsync" else getattr(os, name)

        def slow_fsync(self, handle: int) -> None:
            size = os.fstat(handle).st_size  # this fsync may miss later writes
            name = Path(os.readlink(f"/proc/self/fd/{handle}")).name
            if name.endswith(".arrow") and not started.is_set():
                started.set()
                assert go_on.wait(10)
            os.fsync(handle)
            synced[name] = size

    store = open_store(tmp_path, per_step=8)
    store.files.payloads._limit = 3000
    fill(store, 1)
    monkeypatch.setattr(treeadv.storage.local, "os", SlowDisk())
    flushing = threading.Thread(target=flush, args=(store.files.pending(),))
    flushing.start()
    assert started.wait(10)
    while store.files.payloads._file is not None:  # until the file is sealed
        fill(store, 1)
    go_on.set()
    flushing.join(10)
    store.sync()
    for path in (tmp_path / "replay").rglob("*.arrow"):
        assert synced[path.name] == path.stat().st_size, (
            f"{path.name}: the bytes after {synced[path.name]} were not flushed"
        )
    store.close()


def test_concurrent_flushes_leave_nothing_unflushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are sealed at random moments while another thread flushes, as happens in the queue."""
    synced: dict[str, int] = {}

    class Disk:
        def __getattr__(self, name: str) -> Any:
            return self.fsync if name == "fsync" else getattr(os, name)

        def fsync(self, handle: int) -> None:
            size = os.fstat(handle).st_size
            time.sleep(0.002)
            name = os.readlink(f"/proc/self/fd/{handle}")
            synced[name] = max(size, synced.get(name, 0))

    monkeypatch.setattr(treeadv.storage.local, "os", Disk())
    monkeypatch.setattr(treeadv.disk, "os", Disk())
    store = open_store(tmp_path, per_step=1000)
    store.files.payloads._limit = 4000
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(lambda: None)
        for _ in range(400):
            fill(store, 1)
            if waiting.done():
                promised = {p: p.stat().st_size for p in (tmp_path / "replay").rglob("0*.*")}
                waiting = thread.submit(flush, store.files.pending())
            if waiting.done():
                waiting.result()
                missing = {
                    p.name: (size, synced.get(str(p), 0))
                    for p, size in promised.items()
                    if synced.get(str(p), 0) < size
                }
                assert not missing, "answered as durable, never fsynced"
        waiting.result()
    missing = {p.name: (size, synced.get(str(p), 0)) for p, size in promised.items() if synced.get(str(p), 0) < size}
    assert not missing, "answered as durable, never fsynced"
    assert len(list((tmp_path / "replay/payloads").iterdir())) > 50
    store.close()
