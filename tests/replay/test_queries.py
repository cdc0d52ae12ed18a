"""Runs the queries of docs/replay.md on a journal for which the answers are known."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import get_args

import pyarrow as pa
import pytest

from tests.replay.helpers import Clock, batch_for, forest_for, open_store, reserve
from treeadv.replay.records import Record, Reserved

duckdb = pytest.importorskip("duckdb", reason="duckdb is not installed")
SQL = re.findall(r"```sql\n(.*?)```", (Path(__file__).parents[2] / "docs/replay.md").read_text(), re.DOTALL)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Reserved]:
    """Make a run in which draws 0 to 3 are admitted after 1 to 4 seconds, with versions 0 0 1 1 and rewards 0 0 1 1.
    Step 1 trains draws 2 and 3 at version 2, at which draws 0 and 1 are stale. Draw 4 fails."""
    clock = Clock()
    store = open_store(tmp_path, max_staleness=1, clock=clock, attempts=1)
    records = [reserve(store) for _ in range(4)]
    for n, record in enumerate(records):
        clock.now += 1
        batch = batch_for(record, version=n // 2, rewards=[n // 2] * 3)
        assert store.admit(record.forest_id, batch) == "admitted"
    lease = store.lease(2, 2)
    assert lease is not None
    store.ack(lease.lease_id, 1)
    for _ in range(2):
        reserve(store)
    given_up = reserve(store)
    store.fail(given_up.forest_id, "out of memory")
    store.close()
    monkeypatch.chdir(tmp_path)
    return records


def test_documented_queries_return_the_known_answers(run: list[Reserved]) -> None:
    con = duckdb.connect()
    view, by_version, stale, slowest, staleness, never = SQL
    con.execute(view)
    assert con.execute(by_version).fetchall() == [(0, 2, 0.0), (1, 2, 1.0)]
    lost = sum(forest_for(r).tokens for r in run[:2])
    assert con.execute(stale).fetchall() == [("staleness 2 > 1", 2, lost)]
    times = [(prompt, round(seconds, 6)) for prompt, _, seconds, _ in con.execute(slowest).fetchall()]
    assert times == [(f"prompt-{n}", n + 1.0) for n in (3, 2, 1, 0)]
    assert con.execute(staleness).fetchall() == [(1, 1, 1)]
    assert con.execute(never).fetchall() == [("prompt-4", 1, "out of memory")]


def test_queries_run_on_a_short_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(tmp_path)
    reserve(store)
    store.close()
    monkeypatch.chdir(tmp_path)
    con = duckdb.connect()
    assert [con.execute(q).fetchall() for q in SQL][1:] == [[]] * 5


def test_view_has_every_field_of_the_records() -> None:
    named = set(re.findall(r"(\w+)\"?: '", SQL[0]))
    assert {f.name for kind in get_args(Record) for f in fields(kind)} - named == {
        "run", "session", "format", "failures", "request", "payload_crc", "deadline", "ledger", "oldest_kept",
    }  # fmt: skip


def test_payload_file_is_readable_as_an_arrow_stream(run: list[Reserved]) -> None:
    with pa.ipc.open_stream(pa.memory_map("replay/payloads/0000000001.arrow")) as stream:
        table = stream.read_all()
    assert table.column("forest_id").to_pylist() == [r.forest_id for r in run]
    con = duckdb.connect()
    con.register("payload", table)
    assert con.execute("SELECT sum(len(token)) FROM payload").fetchall() == [(sum(forest_for(r).tokens for r in run),)]
