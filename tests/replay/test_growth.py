"""Tests that a long run needs bounded memory and a bounded time to start."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.replay.helpers import fill, open_store, train
from treeadv.replay.audit import _step_faults, audit
from treeadv.replay.finished import Finished, NumberSet
from treeadv.replay.history import History, RecordedSteps
from treeadv.replay.journal import Line, Reader
from treeadv.replay.records import Committed
from treeadv.storage.folder import open_folder

STEPS = 12


@pytest.fixture(params=["all", "unacknowledged"])
def compacted(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, str, dict[int, tuple[str, ...]]]:
    """Return a run whose journal was compacted after each step."""
    store = open_store(tmp_path, max_staleness=2, retain=request.param)
    store.journal_limit, steps = 0, {}
    for step in range(1, STEPS + 1):
        fill(store, 2, version=step - 1)
        steps[step] = train(store, 2, step)
        store.commit(step)
        store.compact()
    store.close()
    return tmp_path, request.param, steps


def test_start_reads_the_last_snapshot_alone(compacted: tuple) -> None:
    folder, _, _ = compacted
    reader = Reader(open_folder(str(folder)).child("replay").child("journal"))
    records = list(reader)
    assert len(records) == 1 and reader.parts[0].endswith(".snapshot.jsonl")
    store = open_store(folder, durable_step=STEPS)
    assert store.files.opening.records == reader.seq and store.ledger.last_step == STEPS
    store.close()


def test_compacted_journal_keeps_steps_with_kept_payloads(compacted: tuple) -> None:
    folder, retain, steps = compacted
    report = audit(str(folder))
    assert report.sound, report.table()
    assert report.rows["trained"]["forests"] == 2 * STEPS
    if retain == "all":
        recorded = RecordedSteps(str(folder), steps)
        for step, fids in steps.items():
            assert tuple(f.forest_id for f in recorded.forests(step)) == fids
        assert report.steps == STEPS


MILLION = """
import resource, sys
from dataclasses import replace
from pathlib import Path
from tests.replay.helpers import open_store, reserve, batch_for, train
from treeadv import wire
from treeadv.replay import store as replay
from treeadv.replay.history import RecordedSteps

def rss():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() >> 20

folder, count, per_step = sys.argv[1], int(sys.argv[2]), 64
store = open_store(folder, per_step=per_step, max_staleness=10**7, fsync="none")
record = reserve(store)
BATCH = batch_for(record)
FOREST = wire.from_batch(BATCH)[0]
replay.graded_forests = lambda fids, batch: [replace(FOREST, forest_id=fid) for fid in fids]  # one payload for all
store.admit(record.forest_id, BATCH)
step, seen = 0, []
for n in range(1, count):
    record = reserve(store)
    store.admit(record.forest_id, BATCH)
    if n % per_step == per_step - 1:
        step += 1
        train(store, per_step, step)
        if step % 8 == 0:
            store.commit(step)
            store.compact()
            seen.append(rss())
store.commit(step)
store.close()
quarter = len(seen) // 4
store = open_store(folder, per_step=per_step, durable_step=step, max_staleness=10**7)
read = store.files.opening.seconds
store.close()
before = rss()
RecordedSteps(folder, {1, step})
print(max(seen[quarter : 2 * quarter]), max(seen[-quarter:]), read, rss() - before)
"""


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_million_forests_leave_memory_flat(tmp_path: Path) -> None:
    """This test takes 8 minutes on a quiet machine."""
    arguments = [sys.executable, "-c", MILLION, str(tmp_path), "1000000"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    second, last, seconds, recorded = map(float, done.stdout.split())
    assert last - second < 30, done.stdout  # MB
    assert seconds < 10 and recorded < 60, done.stdout


def test_audit_keeps_only_what_a_resume_could_change(compacted: tuple) -> None:
    folder, _, _ = compacted
    history = History(finished=Finished())
    for line in Reader(open_folder(str(folder)).child("replay").child("journal"), whole=True):
        history.add(line)
        assert len(history.attempts) <= 6 and len(history.steps) <= 2 and len(history._leases) <= 2
    assert not history.attempts and history.finished is not None and not history.finished.faults


@given(numbers=st.lists(st.integers(0, 40)))
def test_set_of_numbers_equals_a_set(numbers: list[int]) -> None:
    found, seen = NumberSet(), set[int]()
    for n in numbers:
        assert found.add(n) == (n not in seen)
        seen.add(n)
        assert [k for k in range(42) if k in found] == sorted(seen)


def test_forest_of_a_finished_step_in_a_later_step_is_a_fault(compacted: tuple) -> None:
    """The history detects the fault without the ledger."""
    folder, _, steps = compacted
    history = History(finished=Finished())
    for line in Reader(open_folder(str(folder)).child("replay").child("journal"), whole=True):
        history.add(line)
    again = steps[STEPS - 1]
    history.steps[STEPS + 1] = list(again)
    assert _step_faults(history, {}) == [f"forest {fid} was finished before its last step" for fid in again]
    history.add(Line(seq=history.seq + 1, t=0.0, record=Committed(step=STEPS + 1, oldest_kept=STEPS + 1)))
    assert history.finished is not None
    assert history.finished.faults == [f"forest {fid} of step {STEPS + 1} was finished before" for fid in again]


# The folder has a journal of many forests, or records of many steps
GROWTH = """
import json, resource, sys
from pathlib import Path
import pyarrow as pa
from tests.replay.helpers import batch_for, open_store, reserve, train
from tests.report.runs import CONFIG, record
from treeadv import config
from treeadv.replay.audit import audit
from treeadv.report.overview import comparison_page, read_run
from treeadv.report.run import write_report
from treeadv.storage.run_folder import RunFolder

folder, what, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
run, _, _ = RunFolder.create(config.parse({**CONFIG, "run": {"root": folder, "name": what + str(count)}}, "test"), "x")
if what == "audit":
    store = open_store(run.path, per_step=64, max_staleness=10**7, fsync="none")
    batch = None
    for n in range(count):
        ticket = reserve(store)
        batch = batch or batch_for(ticket)
        names = {"forest_id": ticket.forest_id, "prompt_id": ticket.prompt_id}
        columns = [pa.array([names[k]], c.type) if (k := f.name) in names else c for f, c in zip(batch.schema, batch)]
        own = pa.RecordBatch.from_arrays(columns, schema=batch.schema)  # another batch_for would take 3 ms
        assert store.admit(ticket.forest_id, own) == "admitted"
        if n % 64 == 63:
            train(store, 64, (n + 1) // 64)
            store.commit((n + 1) // 64)
    store.close()
else:
    with (run.path / "metrics.jsonl").open("w") as file:
        file.writelines(json.dumps(record(step)) + "\\n" for step in range(1, count + 1))
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10  # MB
before = peak()
if what == "audit":
    report = audit(run.path)
    assert report.sound and report.payloads == count and report.records > 2 * count, report.table()
else:
    write_report(run.path)
    assert len(comparison_page([read_run(run.path)])) < 1 << 22
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("what", "count"), [("audit", 1 << 16), ("report", 100_000)])
def test_memory_of_audit_and_report_does_not_grow_with_the_run(tmp_path: Path, what: str, count: int) -> None:
    """The folder has a journal of 133,000 records, or 100,000 records of steps."""
    grown = []
    for n in (count // 16, count):
        arguments = [sys.executable, "-c", GROWTH, str(tmp_path), what, str(n)]
        done = subprocess.run(arguments, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        grown.append(int(done.stdout))
    assert grown[1] - grown[0] < 16, grown  # MB
