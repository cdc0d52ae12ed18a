"""A long run takes bounded memory and a bounded time to start."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.replay.helpers import fill, open_store, train
from treeadv.replay.audit import audit
from treeadv.replay.history import RecordedSteps
from treeadv.replay.journal import Reader
from treeadv.storage.folder import open_folder

STEPS = 12


@pytest.fixture(params=["all", "unacknowledged"])
def compacted(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, str, dict[int, tuple[str, ...]]]:
    """A run whose journal was compacted after each step."""
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
    assert store.opening.records == reader.seq and store.ledger.last_step == STEPS
    store.close()


def test_compacted_journal_keeps_every_step_where_payloads_are_kept(compacted: tuple) -> None:
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
replay.graded_forest = lambda fid, batch: FOREST  # every forest has the same payload, under the first id
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
read = store.opening.seconds
store.close()
before = rss()
RecordedSteps(folder, {1, step})
print(max(seen[quarter : 2 * quarter]), max(seen[-quarter:]), read, rss() - before)
"""


@pytest.mark.slow
def test_million_forests_leave_memory_flat(tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", MILLION, str(tmp_path), "1000000"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    second, last, seconds, recorded = map(float, done.stdout.split())
    assert last - second < 30, done.stdout  # MB
    assert seconds < 10 and recorded < 60, done.stdout
