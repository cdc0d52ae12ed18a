"""Tests slots, staleness, selections, leases and the resume of the store."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.replay.helpers import Clock, batch_for, fill, forest_for, open_store, reserve, train
from treeadv import wire
from treeadv.config import QueueConfig
from treeadv.errors import BadForest, BadInput
from treeadv.forest import Verdict
from treeadv.replay import payloads
from treeadv.replay.admission import advantage_mass
from treeadv.replay.audit import audit
from treeadv.replay.figures import figures
from treeadv.replay.history import forests, forests_of_step
from treeadv.replay.ledger import LeaseLost
from treeadv.replay.live import Entry, State
from treeadv.replay.payloads import DamagedPayload
from treeadv.replay.records import Admitted, DropReason, Leased, Reserved
from treeadv.replay.selection import choose, fifo, freshest, priority
from treeadv.replay.store import ReplayStore


def test_slots_hold_from_reservation_to_ack(tmp_path: Path) -> None:
    store = open_store(tmp_path, per_step=2, max_staleness=1)
    ids = fill(store, 4)
    assert store.free_slots == 0 and store.reserve("w", "", str) is None
    lease = store.lease(2, 0)
    assert lease is not None and store.free_slots == 0
    store.ack(lease.lease_id, 1)
    assert store.free_slots == 2
    fill(store, 2)
    assert store.reserve("w", "", str) is None
    assert lease.forest_ids == tuple(ids[:2])


@settings(max_examples=15, deadline=None)
@given(
    bound=st.integers(0, 3),
    per_step=st.integers(1, 3),
    seed=st.integers(0, 2**32 - 1),
    selection=st.sampled_from(["fifo", "freshest", "priority"]),
)
def test_no_trained_forest_is_staler_than_the_bound(
    tmp_path_factory, bound: int, per_step: int, seed: int, selection: str
) -> None:
    """Workers finish in any order and have weights that are any number of versions old."""
    rng = np.random.default_rng(seed)
    folder = tmp_path_factory.mktemp("run")
    store = open_store(folder, per_step, max_staleness=bound, fsync="none", selection=selection)
    growing: list[tuple[Reserved, int]] = []
    step, dropped = 0, 0
    for _ in range(60):
        assert store.ledger.slots_used <= (bound + 1) * per_step
        while (record := store.reserve("w", "", str)) is not None:
            growing.append((record, max(0, step - int(rng.integers(0, 4)))))
        for i in (
            sorted(rng.choice(len(growing), rng.integers(0, len(growing) + 1), replace=False), reverse=True)
            if growing
            else ()
        ):
            record, version = growing.pop(i)
            assert store.admit(record.forest_id, batch_for(record, version)) == "admitted"
        lease = store.lease(per_step, step)
        dropped = store.ledger.totals["stale", "forests"]
        if lease:
            ages = [step - store.ledger.live[f].payload.oldest_version for f in lease.forest_ids]
            assert max(ages) <= bound
            store.ack(lease.lease_id, step + 1)
            step += 1
    store.close()
    report = audit(str(folder))
    assert report.sound, report.table()
    assert report.dropped.get("stale", 0) == dropped


def test_stale_forest_is_dropped_and_its_draw_repeated(tmp_path: Path) -> None:
    store = open_store(tmp_path, per_step=1, max_staleness=1)
    old = fill(store, 1, version=0)[0]
    assert store.lease(1, 2) is None
    assert store.ledger.totals["stale", "forests"] == 1 and store.ledger.totals["stale", "tokens"] > 0
    again = reserve(store)
    assert (again.draw, again.attempt) == (0, 1) and again.forest_id != old
    assert reserve(store).draw == 1
    assert store.admit(old, batch_for(again)) == "late"


def stale_attempt(store: ReplayStore, step: int) -> int:
    """Let the first attempt of a draw become stale with a bound of 1 and one forest per step. Return the last step."""
    slow = reserve(store)
    for _ in range(2):
        step += 1
        fill(store, 1, step - 1)
        train(store, 1, step)
    assert store.admit(slow.forest_id, batch_for(slow, step - 2)) == "admitted"
    assert store.lease(1, step) is None and store._state(slow.forest_id) is None
    return step


@pytest.mark.parametrize("selection", ["fifo", "freshest", "priority"])
def test_prompt_with_a_stale_attempt_is_not_dropped_again(tmp_path: Path, selection: str) -> None:
    """The learner may take one step while the second attempt grows. The next step would make it stale, so it waits."""
    store = open_store(tmp_path, per_step=1, max_staleness=1, selection=selection)
    step = stale_attempt(store, 0)
    again = reserve(store)
    assert (again.draw, again.attempt) == (0, 1)
    (first,) = fill(store, 1, step)
    assert train(store, 1, step + 1) == (first,)
    fill(store, 1, step + 1)
    assert store.lease(1, step + 1) is None  # a forest is ready, but the attempt still grows
    assert store.admit(again.forest_id, batch_for(again, step)) == "admitted"
    lease = store.lease(1, step + 1)
    assert lease is not None and lease.forest_ids == (again.forest_id,)


def test_lease_goes_on_when_the_awaited_attempt_fails(tmp_path: Path) -> None:
    store = open_store(tmp_path, per_step=1, max_staleness=1)
    step = stale_attempt(store, 0)
    again = reserve(store)
    fill(store, 1, step)
    train(store, 1, step + 1)
    ready = fill(store, 1, step + 1)
    assert store.lease(1, step + 1) is None
    store.fail(again.forest_id, "the generator died")
    lease = store.lease(1, step + 1)
    assert lease is not None and list(lease.forest_ids) == ready


@pytest.mark.parametrize(("drops", "times"), [(None, 4), (2, 2), (3, 3)])
def test_number_of_stale_attempts_is_bounded(tmp_path: Path, drops: int | None, times: int) -> None:
    store = open_store(tmp_path, per_step=1, max_staleness=1, stale_drops=drops)
    step = 0
    for _ in range(times):
        step = stale_attempt(store, step)
    again = reserve(store)
    assert again.attempt == times
    fill(store, 1, step)
    train(store, 1, step + 1)
    fill(store, 1, step + 1)
    assert (store.lease(1, step + 1) is None) == (drops is not None)


def test_failing_prompt_is_given_up_after_its_attempts(tmp_path: Path, caplog) -> None:
    store = open_store(tmp_path, attempts=3)
    for attempt in range(3):
        record = reserve(store)
        assert (record.draw, record.attempt) == (0, attempt)
        store.fail(record.forest_id, "the generator died")
    assert "is given up" in caplog.text and "the generator died" in caplog.text
    assert reserve(store).draw == 1
    assert store.ledger.lost == Counter(failed=3)
    store.close()
    assert audit(str(tmp_path)).sound


@pytest.mark.parametrize("fault", ["ungraded", "other id", "two forests", "positive logprob"])
def test_bad_forest_is_refused_and_its_prompt_repeated(tmp_path: Path, fault: str) -> None:
    store = open_store(tmp_path)
    record = reserve(store)
    good = batch_for(record)
    if fault == "positive logprob":
        column = good.column("logprob")
        values = column.values.to_numpy().copy()
        values[1] = 0.5
        bad = good.set_column(
            good.schema.get_field_index("logprob"),
            good.schema.field("logprob"),
            type(column).from_arrays(column.offsets, values, type=column.type),
        )
    elif fault == "two forests":
        bad = wire.to_batch([forest_for(record), forest_for(record)])
    elif fault == "other id":
        bad = batch_for(
            Reserved(forest_id="r0-000009-0", draw=9, attempt=0, failures=0, worker="w", request="", prompt_id="p")
        )
    else:
        f = forest_for(record)
        bad = good.set_column(
            good.schema.get_field_index("verdict"),
            good.schema.field("verdict"),
            type(good.column("verdict")).from_arrays(
                good.column("verdict").offsets, f.verdict * 0 - 1, type=good.column("verdict").type
            ),
        )
    assert store.admit(record.forest_id, bad) == "refused"
    assert store.ledger.lost == Counter(invalid=1) and not any(store.ledger.totals.values())
    assert reserve(store).attempt == 1


def test_forest_of_another_run_is_not_admitted(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    for fid in ("r1-000000-0", "r0-000005-0", "nonsense"):
        with pytest.raises(BadForest, match="never reserved"):
            store.admit(
                fid,
                batch_for(
                    Reserved(forest_id=fid, draw=0, attempt=0, failures=0, worker="w", request="", prompt_id="p")
                ),
            )


def test_named_request_gets_the_same_ticket_again(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    first = store.reserve("a", "7", str)
    assert store.reserve("a", "7", str) == first
    assert store.reserve("b", "7", str) != first
    store.close()
    store = open_store(tmp_path)
    assert store.reserve("a", "7", str) == first  # the next queue returns the same reservation
    assert store.admit(first.forest_id, batch_for(first)) == "admitted"
    assert store.reserve("a", "7", str) != first


def test_expired_lease_may_be_acknowledged_until_taken_over(tmp_path: Path) -> None:
    clock = Clock()
    store = open_store(tmp_path, clock=clock, lease_seconds=5.0, max_staleness=3)
    fill(store, 4)
    slow = store.lease(2, 0)
    clock.now += 6
    assert store.expire() == 1
    store.ack(slow.lease_id, 1)
    lost = store.lease(2, 1)
    clock.now += 6
    store.expire()
    taken = store.lease(2, 1)
    assert taken.forest_ids == lost.forest_ids and taken.lease_id != lost.lease_id
    with pytest.raises(LeaseLost, match=lost.lease_id):
        store.ack(lost.lease_id, 2)


@pytest.mark.parametrize("selection", ["fifo", "freshest", "priority"])
def test_resume_leases_the_same_forests_in_the_same_order(tmp_path: Path, selection: str) -> None:
    store = open_store(tmp_path, selection=selection, max_staleness=11)
    for version in (2, 0, 3, 1):
        fill(store, 5, version)
    steps = {s: train(store, 2, s) for s in range(1, 7)}
    doing = store.lease(2, 6)
    store.commit(1)
    waiting = [reserve(store).draw for _ in range(2)]
    store.close()
    store = open_store(
        tmp_path, durable_step=2, selection=selection, max_staleness=11
    )  # checkpoint 2 exists, but its commit is not written
    assert store.ledger.totals["trained", "forests"] == 4
    fill(store, 2, version=9)  # lost reservations precede new draws
    assert [store.ledger.live[f].reserved.draw for f in list(store.ledger.live)[-2:]] == waiting
    assert {s: train(store, 2, s) for s in range(3, 7)} == {s: steps[s] for s in range(3, 7)}
    assert train(store, 2, 7) == doing.forest_ids
    store.close()
    assert [f.forest_id for f in forests_of_step(str(tmp_path), 3)] == list(steps[3])
    assert audit(str(tmp_path)).sound


def test_failures_of_a_prompt_are_kept_over_a_resume(tmp_path: Path) -> None:
    for attempt in range(3):
        store = open_store(tmp_path, attempts=3, durable_step=0)
        record = reserve(store)
        assert (record.draw, record.failures) == (0, attempt)
        store.fail(record.forest_id, "out of memory")
        if attempt < 2:
            reserve(store)  # the end of the run does not count as a failure of the prompt
        store.close()
    assert not store.ledger.again and store.ledger.lost == Counter(failed=3)


@pytest.mark.parametrize(("step", "found"), [(0, "there is no undamaged checkpoint"), (4, "checkpoint is of step 4")])
def test_checkpoint_that_does_not_fit_the_journal_is_refused(tmp_path: Path, step: int, found: str) -> None:
    store = open_store(tmp_path, max_staleness=3)
    fill(store, 6)
    for s in (1, 2, 3):
        train(store, 2, s)
    store.commit(1)
    store.close()
    with pytest.raises(BadInput, match=f"{found}, but the journal can resume from steps 1 to 3 only"):
        open_store(tmp_path, durable_step=step)
    with pytest.raises(BadInput, match="no journal for the checkpoint of step 3"):
        open_store(tmp_path / "other", durable_step=3)


@pytest.mark.parametrize("change", ["one payload is damaged", "steps take more forests", "the bound is 0"])
@pytest.mark.parametrize("bound", [0, 2])
def test_no_lease_after_a_resume_has_a_newer_forest(tmp_path: Path, bound: int, change: str) -> None:
    """Forests of later steps stay ready. A lease waits for a forest that a worker grows again."""
    store = open_store(tmp_path, max_staleness=bound)
    for step in (1, 2, 3):
        fill(store, 2, version=step - 1)
        train(store, 2, step)
    first = next(e.payload for e in store.ledger.live.values())
    store.close()
    per_step = 3 if change == "steps take more forests" else 2
    if change == "one payload is damaged":
        flip(tmp_path / "replay/payloads" / first.payload_file, first.offset + 400)
    store = open_store(tmp_path, per_step, 0, max_staleness=0 if change == "the bound is 0" else bound)
    for step in (1, 2, 3):
        while (lease := store.lease(per_step, step - 1)) is None:
            assert store.free_slots > 0, "a lease waits for a forest that no worker may grow"
            fill(store, 1, version=step - 1)
        assert all(store.ledger.live[fid].payload.newest_version <= step - 1 for fid in lease.forest_ids)
        store.ack(lease.lease_id, step)
    store.close()
    report = audit(str(tmp_path))
    assert report.sound, report.table()


def test_lease_may_wait_for_a_forest_that_a_worker_grows(tmp_path: Path) -> None:
    """Slots beyond the capacity are reserved once, for any number of lease calls."""
    store = open_store(tmp_path, per_step=1, max_staleness=0)
    for step in (1, 2, 3):
        fill(store, 1, version=step - 1)
        train(store, 1, step)
    first = next(e.payload for e in store.ledger.live.values())
    store.close()
    flip(tmp_path / "replay/payloads" / first.payload_file, first.offset + 400)
    store = open_store(tmp_path, 1, 0, max_staleness=0)
    for _ in range(3):
        assert store.lease(1, 0) is None
        assert store.free_slots == 1
    ticket = reserve(store)
    assert store.lease(1, 0) is None and store.free_slots == 0
    assert store.admit(ticket.forest_id, batch_for(ticket)) == "admitted"
    assert train(store, 1, 1) == (ticket.forest_id,)


@pytest.mark.parametrize(
    ("record", "fault"),
    [
        (
            Leased(lease_id="lease-000001", forest_ids=("r0-000000-0",), version=1, max_staleness=2, deadline=0.0),
            "has a forest of version 2",
        ),
        (
            Leased(lease_id="lease-000001", forest_ids=("r0-000000-0",), version=5, max_staleness=2, deadline=0.0),
            "has a forest of staleness 3 > 2",
        ),
    ],
)
def test_audit_finds_a_lease_that_breaks_the_bound(tmp_path: Path, record: Leased, fault: str) -> None:
    store = open_store(tmp_path)
    fill(store, 1, version=2)
    store.files.journal.append([record], 0.0)
    store.close()
    (found,) = audit(str(tmp_path)).faults
    assert fault in found


def test_audit_finds_versions_that_differ_from_the_payload(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    reserved = reserve(store)
    (place,) = store.files.payloads.append(batch_for(reserved, version=50), [0])
    forest = forest_for(reserved, version=50)
    store.files.write(Admitted(
        forest_id=reserved.forest_id, leaves=forest.leaves, tokens=forest.tokens, oldest_version=0, newest_version=0,
        reward=0.5, mass=1.0, payload_file=place.file, offset=place.offset, length=place.length, payload_crc=place.crc,
        payload_row=place.row,
    ))  # fmt: skip
    store.close()
    (fault,) = audit(str(tmp_path)).faults
    assert "50" in fault


@pytest.mark.parametrize(
    ("rewards", "kept"), [([1.0, 1.0, 1.0], False), ([0.0, 0.0, 0.0], False), ([0.0, 1.0, 1.0], True)]
)
def test_mixed_only_drops_a_forest_of_one_reward(tmp_path: Path, rewards: list[float], kept: bool) -> None:
    store = open_store(tmp_path, mixed_only=True)
    record = reserve(store)
    used = store.ledger.slots_used
    admission = store.admit(record.forest_id, batch_for(record, rewards=rewards))
    assert admission == ("admitted" if kept else "dropped")
    assert store.ledger.slots_used == used - (not kept)
    if not kept:
        assert reserve(store).draw == 1, "another prompt gets the slot"
        assert store.admit(record.forest_id, batch_for(record)) == "late"
        assert figures(store)["dropped"]["no_variance"]["forests"] == 1
    store.close()
    report = audit(str(tmp_path))
    assert report.sound and report.dropped == ({} if kept else {"no_variance": 1}), report.table()


def unjudged(record: Reserved, leaves: list[int]) -> pa.RecordBatch:
    """Return a forest whose verifier timed out on some leaves."""
    forest = forest_for(record)
    verdict = forest.verdict.copy()
    verdict[leaves] = Verdict.TIMEOUT
    return wire.to_batch([replace(forest, verdict=verdict)])


def test_forest_of_fewer_than_two_judged_leaves_is_refilled(tmp_path: Path) -> None:
    store = open_store(tmp_path, attempts=2)
    record = reserve(store)
    assert store.admit(record.forest_id, unjudged(record, [0])) == "admitted"
    for attempt in range(2):
        record = reserve(store)
        assert (record.draw, record.attempt) == (1, attempt)
        assert store.admit(record.forest_id, unjudged(record, [0, 2])) == "dropped"
    assert reserve(store).draw == 2, "the prompt is given up after queue.attempts"
    store.close()
    report = audit(str(tmp_path))
    assert report.sound and report.dropped == {"too_few_judged": 2}, report.table()


def test_mixed_only_ignores_unjudged_leaves(tmp_path: Path) -> None:
    store = open_store(tmp_path, mixed_only=True)
    record = reserve(store)
    forest = forest_for(record, rewards=[0.0, 1.0, 1.0])
    verdict = forest.verdict.copy()
    verdict[0] = Verdict.CRASH
    assert store.admit(record.forest_id, wire.to_batch([replace(forest, verdict=verdict)])) == "dropped"


@pytest.mark.parametrize(("reason", "again"), [("not_finite", True), ("no_variance", False)])
def test_discarded_lease_frees_its_slots(tmp_path: Path, reason: DropReason, again: bool) -> None:
    store = open_store(tmp_path, max_staleness=1)
    fill(store, 4)
    lease = store.lease(2, 0)
    assert lease is not None
    for _ in range(2):  # a repeated call changes nothing
        store.discard(lease.lease_id, reason, "the loss is NaN")
    assert store.free_slots == 2 and reserve(store).attempt == int(again)
    with pytest.raises(LeaseLost):
        store.ack(lease.lease_id, 1)
    train(store, 2, 1)
    store.discard("lease-000002", reason, "it did its step")
    store.close()
    report = audit(str(tmp_path))
    assert report.sound and report.dropped == {reason: 2}, report.table()


def test_audit_reports_missing_records_of_a_durable_step(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    fill(store, 2)
    train(store, 2, 1)
    store.close()
    for step in (1, 2):
        assert audit(str(tmp_path)).sound
        (tmp_path / "checkpoints" / f"step-{step}").mkdir(parents=True)
    faults = audit(str(tmp_path)).faults
    assert faults == ("the run has a checkpoint of step 2, but the journal ends with step 1: records are lost",)


def test_restart_of_the_queue_alone_rolls_nothing_back(tmp_path: Path) -> None:
    store = open_store(tmp_path, max_staleness=3)
    fill(store, 6)
    train(store, 2, 1)
    open_lease = store.lease(2, 1)
    growing = reserve(store)
    before = store.ledger
    store.close()
    store = open_store(tmp_path, max_staleness=3)
    assert (store.ledger.live, store.ledger.leases, store.ledger.totals) == (before.live, before.leases, before.totals)
    store.ack(open_lease.lease_id, 2)
    assert store.admit(growing.forest_id, batch_for(growing)) == "admitted"


def test_interrupted_return_to_a_checkpoint_is_repeated(tmp_path: Path) -> None:
    store = open_store(tmp_path, max_staleness=1)
    steps = {}
    for n in (1, 2, 3):
        fill(store, 2, n - 1)
        steps[n] = train(store, 2, n)
    [reserve(store) for _ in range(4)]
    store.close()
    (file,) = (tmp_path / "replay/journal").iterdir()
    before = file.read_bytes()

    def resume(run: Path) -> ReplayStore:
        return ReplayStore(
            str(run), QueueConfig(max_staleness=1), forests_per_step=2, seed=0, session="resumed", step=1, clock=Clock()
        )

    resume(tmp_path).close()
    written = (tmp_path / "replay/journal/0000000002.jsonl").read_bytes()
    for cut in range(
        len(written) + 1
    ):  # the queue dies when this part of `Committed` and `Resumed` is written, and restarts
        run = tmp_path / f"cut-{cut}"
        (run / "replay/journal").mkdir(parents=True)
        shutil.copytree(tmp_path / "replay/payloads", run / "replay/payloads")
        (run / "replay/journal/0000000001.jsonl").write_bytes(before)
        (run / "replay/journal/0000000002.jsonl").write_bytes(written[:cut])
        store = resume(run)
        assert (store.free_slots, store.ledger.committed, store.ledger.last_step) == (0, 1, 1)
        again = store.lease(2, 1)
        assert again is not None and again.forest_ids == steps[2]
        store.close()
        store = resume(run)
        assert store.lease(2, 1) == again  # after the return to the checkpoint a restart keeps the current state
        with pytest.raises(ValueError, match="commit of step 3: the last acknowledged step is 1"):
            store.commit(3)
        for step in (1, 3):
            with pytest.raises(ValueError, match="the next step is 2"):
                store.ack(again.lease_id, step)
        store.ack(again.lease_id, 2)
        store.close()
        assert audit(str(run)).sound


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", ["flipped", "header", "cut", "empty", "missing"])
def test_forest_with_a_damaged_payload_is_dropped_with_a_reason(tmp_path: Path, damage: str, caplog) -> None:
    store = open_store(tmp_path, max_staleness=2)
    fill(store, 1)
    store.close()
    store = open_store(tmp_path, max_staleness=2)  # later payloads go to another file
    fill(store, 2)
    store.close()
    file = tmp_path / "replay/payloads/0000000001.arrow"
    match damage:
        case "flipped":
            flip(file, -200)
        case "header":
            flip(file, 5)
        case "cut":
            file.write_bytes(file.read_bytes()[:-200])
        case "empty":
            file.write_bytes(b"")
        case "missing":
            file.unlink()
    assert len(audit(str(tmp_path)).faults) == 1  # the forest is still ready, because the damage is not yet detected
    store = open_store(tmp_path, durable_step=0, max_staleness=2)
    lease = store.lease(2, 0)
    assert lease is not None and lease.forest_ids == ("r0-000001-0", "r0-000002-0")
    assert "forest r0-000000-0 dropped as damaged" in caplog.text and "payloads/0000000001.arrow" in caplog.text
    assert "its prompt gets another attempt" in caplog.text
    assert figures(store)["dropped"]["damaged"]["forests"] == 1
    again = reserve(store)
    assert (again.draw, again.attempt, again.failures) == (0, 1, 0)
    assert store.admit(again.forest_id, batch_for(again)) == "admitted"
    store.ack(lease.lease_id, 1)
    fill(store, 1)
    train(store, 2, 2)
    store.commit(2)
    store.close()
    report = audit(str(tmp_path))
    assert report.sound and report.dropped == {"damaged": 1} and report.rows["trained"]["forests"] == 4, report.table()
    assert len(list(forests(str(tmp_path)))) == 4


def test_open_lease_with_a_damaged_payload_is_returned(tmp_path: Path) -> None:
    store = open_store(tmp_path, max_staleness=2)
    fill(store, 3)
    lease = store.lease(2, 0)
    assert lease is not None
    store.close()
    flip(tmp_path / "replay/payloads/0000000001.arrow", store.ledger.live["r0-000000-0"].payload.offset + 400)
    store = open_store(tmp_path, max_staleness=2)  # only the queue dies, and the learner repeats the call
    instead = store.lease(2, 0)
    assert instead is not None and instead.forest_ids == ("r0-000001-0", "r0-000002-0")
    with pytest.raises(LeaseLost):
        store.ack(lease.lease_id, 1)
    store.ack(instead.lease_id, 1)
    store.close()
    assert audit(str(tmp_path)).sound


def test_payloads_are_views_of_the_mapped_file(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    record = reserve(store)
    want = forest_for(record)
    store.admit(record.forest_id, wire.to_batch([want]))
    (got,) = wire.from_batch(store.payload(record.forest_id))
    mapped = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        if str(tmp_path) in line:
            low, high = (int(x, 16) for x in line.split()[0].split("-"))
            mapped.append(range(low, high))
    for name in ("token", "logprob", "entropy", "version", "parent", "reward"):
        address = getattr(got, name).__array_interface__["data"][0]
        assert any(address in r for r in mapped), name
        np.testing.assert_array_equal(getattr(got, name), getattr(want, name))


def test_disk_use_is_bounded_without_retained_payloads(tmp_path: Path) -> None:
    kept = open_store(tmp_path / "all", per_step=4, payload_mb=1, fsync="none")
    let_go = open_store(tmp_path / "few", per_step=4, payload_mb=1, fsync="none", retain="unacknowledged")
    let_go.journal_limit = 20_000
    sizes: dict[str, list[int]] = {"all": [], "few": []}
    for step in range(1, 25):
        for name, store in (("all", kept), ("few", let_go)):
            for _ in range(4):
                record = reserve(store)
                store.admit(record.forest_id, batch_for(record, version=step - 1, length=8000))
            train(store, 4, step)
            store.commit(step)
            store.compact()
            sizes[name].append(store.files.disk_bytes())
    assert sizes["all"][-1] > 10 << 20
    assert max(sizes["few"]) < 4 << 20
    journals = [sum(f.stat().st_size for f in (tmp_path / n / "replay/journal").iterdir()) for n in ("all", "few")]
    assert journals[0] > 45_000 and journals[1] < 30_000
    kept.close()
    let_go.close()
    report = audit(str(tmp_path / "few"))
    assert report.sound and report.rows["trained"] == audit(str(tmp_path / "all")).rows["trained"], report.table()
    with pytest.raises(BadInput, match=r"step 1: .* has steps \d+ to 24"):
        forests_of_step(str(tmp_path / "few"), 1)
    assert len(list(forests(str(tmp_path / "all")))) == 96
    assert let_go.ledger.live == {}  # finished forests use no memory


def entry(order: int, mass: float, version: int = 0) -> Entry:
    fid = f"r0-{order:06d}-0"
    admitted = Admitted(
        forest_id=fid,
        leaves=3,
        tokens=9,
        oldest_version=version,
        newest_version=version,
        reward=0.5,
        mass=mass,
        payload_file="s",
        offset=0,
        length=0,
        payload_crc=0,
        payload_row=0,
    )
    return Entry(
        reserved=Reserved(forest_id=fid, draw=order, attempt=0, failures=0, worker="w", request="", prompt_id="p"),
        state=State.READY,
        admitted=admitted,
        order=order,
    )


def test_each_selection_orders_forests_as_documented() -> None:
    ready = [entry(0, 1.0, 3), entry(1, 2.0, 5), entry(2, 0.0, 4), entry(3, 4.0, 5)]
    assert [e.order for e in choose(ready[::-1], 3, fifo, (0, 1))] == [0, 1, 2]
    assert [e.order for e in choose(ready[::-1], 3, freshest, (0, 1))] == [1, 3, 2]
    first = Counter(choose(ready, 1, priority, (0, n))[0].order for n in range(4000))
    for order, share in ((0, 1 / 7), (1, 2 / 7), (3, 4 / 7)):  # proportional to the mass, within 4 standard errors
        assert abs(first[order] / 4000 - share) < 4 * np.sqrt(share * (1 - share) / 4000)
    assert first[2] == 0 and choose(ready, 4, priority, (0, 1))[-1].order == 2
    assert choose(ready, 4, priority, (7, 1)) == choose(ready, 4, priority, (7, 1))


@given(st.lists(st.integers(0, 1), min_size=1, max_size=16))
def test_advantage_mass_of_binary_rewards_matches_the_formula(rewards: list[int]) -> None:
    """For k right leaves of n the mass is k (1 - k/n) + (n - k) k/n = 2 k (n - k) / n."""
    k, n = sum(rewards), len(rewards)
    assert advantage_mass(rewards) == pytest.approx(2 * k * (n - k) / n)


def test_forests_of_one_admission_share_messages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that the queue does not store split a message, and so does its size."""
    store = open_store(tmp_path, per_step=8, retain="all")
    tickets = [reserve(store) for _ in range(8)]
    made = [forest_for(t) for t in tickets]
    made[3] = replace(made[3], verdict=made[3].verdict * 0 - 1)
    ids = [t.forest_id for t in tickets]
    batch = wire.to_batch(made, checked=True)
    monkeypatch.setattr(payloads, "MESSAGE_BYTES", 3 * batch.nbytes // 8 + 1)
    assert store.admit_many(ids, batch) == ["admitted"] * 3 + ["refused"] + ["admitted"] * 4
    places = [store.ledger.live[fid].payload.place for fid in ids if fid != ids[3]]
    assert [p.row for p in places] == [0, 1, 2, 0, 1, 2, 0]
    assert len({p.offset for p in places}) == 3
    for fid, forest in zip(ids, made, strict=True):
        if fid != ids[3]:
            (read,) = wire.from_batch(payload := store.payload(fid))
            assert len(payload.column("token").values) == forest.tokens  # the other rows of the message are left out
            assert read.forest_id == fid and np.array_equal(read.token, forest.token)
    store.close()
    report = audit(str(tmp_path))
    assert report.sound, report.table()
    assert report.payload_bytes == sum(p.length for p in places if p.row == 0)


def test_damaged_message_loses_all_its_forests_and_no_others(tmp_path: Path) -> None:
    store = open_store(tmp_path, per_step=4)
    tickets = [reserve(store) for _ in range(4)]
    for some in (tickets[:2], tickets[2:]):
        store.admit_many([t.forest_id for t in some], wire.to_batch([forest_for(t) for t in some]))
    place = store.ledger.live[tickets[1].forest_id].payload.place
    flip(tmp_path / "replay/payloads" / place.file, place.offset + 400)
    assert store.lease(4, 0) is None
    assert set(store.ledger.live) == {t.forest_id for t in tickets[2:]}
    with pytest.raises(DamagedPayload, match=r"names row 9 of 2"):
        store.files.payloads.read(replace(store.ledger.live[tickets[3].forest_id].payload.place, row=9))
