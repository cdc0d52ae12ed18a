"""Tests lists of reservations and admissions: they equal single calls, and a crash or a repetition changes nothing."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import treeadv.storage.local
from tests.replay.helpers import Clock, batch_for, forest_for, open_store, reserve
from treeadv import wire
from treeadv.errors import BadForest
from treeadv.forest import Forest, Verdict
from treeadv.replay.audit import audit
from treeadv.replay.journal import Reader
from treeadv.replay.records import Admitted, Record, Reserved
from treeadv.replay.store import ReplayStore
from treeadv.storage.folder import open_folder

KINDS = ("good", "ungraded", "unjudged", "flat", "other id")
SLOTS = 8


def open_batches(folder: Path) -> ReplayStore:
    return open_store(folder, 4, max_staleness=1, mixed_only=True, retain="all", clock=Clock())


def forest_of(record: Reserved, kind: str) -> Forest:
    f = forest_for(record, rewards=[1.0, 1.0, 1.0] if kind == "flat" else [0.0, 1.0, 0.0])
    match kind:
        case "ungraded":
            return replace(f, verdict=f.verdict * 0 - 1)
        case "unjudged":
            return replace(f, verdict=f.verdict * 0 + Verdict.CRASH)
        case "other id":
            return replace(f, forest_id="r0-000099-0")
    return f


def records_of(folder: Path) -> list[Record]:
    """Return the journal without its first record, which names the session, and without the places of the payloads.
    Arrow may write a row of a batch with other bytes than a batch of one row."""
    place = {"payload_file": "", "offset": 0, "length": 0, "payload_crc": 0, "payload_row": 0}
    records = [line.record for line in Reader(open_folder(str(folder / "replay/journal")))][1:]
    return [replace(r, **place) if isinstance(r, Admitted) else r for r in records]


def payloads_of(store: ReplayStore) -> dict[str, list[int]]:
    return {
        fid: wire.from_batch(store.payload(fid))[0].token.tolist() for fid, e in store.ledger.live.items() if e.admitted
    }


@settings(max_examples=25, deadline=None)
@given(
    kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=SLOTS),
    cuts=st.lists(st.integers(1, 3), max_size=SLOTS),
    repeated=st.booleans(),
)
def test_list_equals_the_sequence_of_single_calls(
    tmp_path_factory: Any, kinds: list[str], cuts: list[int], repeated: bool
) -> None:
    single, listed = (tmp_path_factory.mktemp(name) for name in ("single", "listed"))
    one, many = open_batches(single), open_batches(listed)
    singles = [reserve(one) for _ in kinds]
    records: list[Reserved] = []
    while len(records) < len(kinds):
        asked = min([*cuts[len(records) :][:1], len(kinds) - len(records)])
        records += many.reserve_many("w", "", lambda draw: f"prompt-{draw}", asked)
    assert records == singles

    forests = [forest_of(r, kind) for r, kind in zip(records, kinds, strict=True)]
    ids = [r.forest_id for r in records]
    admissions = [one.admit(fid, wire.to_batch([f])) for fid, f in zip(ids, forests, strict=True)]
    at, found = 0, []
    for cut in [*cuts, len(ids)]:
        chunk = slice(at, at + cut)
        if ids[chunk]:
            found += many.admit_many(ids[chunk], wire.to_batch(forests[chunk]))
        at += cut
    assert found == admissions
    if repeated:
        again = [one.admit(fid, wire.to_batch([f])) for fid, f in zip(ids, forests, strict=True)]
        assert many.admit_many(ids, wire.to_batch(forests)) == again
    assert many.ledger.to_state()["totals"] == one.ledger.to_state()["totals"]
    assert payloads_of(many) == payloads_of(one)
    one.close()
    many.close()
    assert records_of(listed) == records_of(single)
    assert audit(str(listed)).sound


def test_forest_twice_in_a_list_is_stored_once(tmp_path: Path) -> None:
    store = open_batches(tmp_path)
    first, second = store.reserve_many("w", "", str, 2)
    rows = [forest_of(r, "good") for r in (first, second, first)]
    assert store.admit_many([f.forest_id for f in rows], wire.to_batch(rows)) == ["admitted", "admitted", "repeat"]
    assert store.ledger.totals["admitted", "forests"] == 2
    store.close()
    assert audit(str(tmp_path)).sound


def test_list_with_an_unknown_forest_changes_nothing(tmp_path: Path) -> None:
    store = open_batches(tmp_path)
    records = store.reserve_many("w", "", str, 2)
    before = store.files.records
    rows = [forest_of(r, "good") for r in records]
    with pytest.raises(BadForest, match="never reserved"):
        store.admit_many([records[0].forest_id, "r1-000000-0"], wire.to_batch(rows))
    assert store.files.records == before and store.files.disk_bytes() == store.files.journal.disk_bytes
    store.close()


def test_list_gets_no_more_than_the_free_slots(tmp_path: Path) -> None:
    store = open_batches(tmp_path)
    [reserve(store) for _ in range(3)]
    assert len(store.reserve_many("w", "", str, 100)) == SLOTS - 3
    assert store.reserve_many("w", "", str, 100) == []
    store.close()


def test_list_takes_retries_before_new_draws(tmp_path: Path) -> None:
    store = open_batches(tmp_path)
    lost = store.reserve_many("w", "", str, 3)
    store.fail(lost[1].forest_id, "test")
    again = store.reserve_many("w", "", str, 3)
    assert [(r.draw, r.attempt) for r in again] == [(1, 1), (3, 0), (4, 0)]
    store.close()


def test_repeated_request_of_a_list_gets_what_is_left_of_it(tmp_path: Path) -> None:
    store = open_batches(tmp_path)
    first = store.reserve_many("a", "7", str, 3)
    assert [r.request for r in first] == ["7/0", "7/1", "7/2"]
    assert store.reserve_many("a", "7", str, 3) == first
    assert store.reserve_many("b", "7", str, 1) != first[:1]
    store.admit(first[1].forest_id, batch_for(first[1], rewards=[0.0, 1.0, 0.0]))
    assert store.reserve_many("a", "7", str, 3) == [first[0], first[2]]
    store.close()


class Stopped(Exception):
    """The process is killed."""


class Killed:
    """A substitute for `os` that lets only some bytes of the writes to the journal through, then kills the process."""

    def __init__(self, left: int) -> None:
        self.left = left

    def __getattr__(self, name: str) -> Any:
        return self.write if name == "write" else getattr(os, name)

    def write(self, handle: int, data: memoryview) -> int:
        if "journal" not in os.readlink(f"/proc/self/fd/{handle}"):
            return os.write(handle, data)
        written = os.write(handle, bytes(data)[: self.left])
        self.left -= written
        if written < len(data):
            raise Stopped
        return written


@settings(max_examples=25, deadline=None)
@given(left=st.integers(0, 1500), what=st.sampled_from(["reserve", "admit"]))
def test_kill_inside_a_list_keeps_whole_forests(tmp_path_factory: Any, left: int, what: str) -> None:
    """The process dies while it writes the records of a list. The retry completes the list."""
    folder = tmp_path_factory.mktemp("killed")
    store = open_batches(folder)
    records = [] if what == "reserve" else store.reserve_many("w", "7", str, 4)

    def call(queue: ReplayStore) -> Any:
        if what == "reserve":
            return queue.reserve_many("w", "7", str, 4)
        ids = [r.forest_id for r in records]
        return queue.admit_many(ids, wire.to_batch([forest_of(r, "good") for r in records]))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(treeadv.storage.local, "os", Killed(left))
        try:
            call(store)
            done = True
        except Stopped:
            done = False
    store.files.lock.release()
    store = open_batches(folder)
    kept = len(store.ledger.live) if what == "reserve" else store.ledger.totals["admitted", "forests"]
    assert kept == 4 if done else kept < 4
    again = call(store)
    if what == "reserve":
        assert [r.request for r in again] == [f"7/{i}" for i in range(kept or 4)]
        assert len(store.ledger.live) == store.ledger.next_draw == (kept or 4)
    else:
        assert again == ["repeat"] * kept + ["admitted"] * (4 - kept)
    assert call(store) == (again if what == "reserve" else ["repeat"] * 4)
    assert len(payloads_of(store)) == (0 if what == "reserve" else 4)
    store.close()
    report = audit(str(folder))
    assert report.sound, report.table()
