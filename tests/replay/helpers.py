"""Provides forests for given reservations, and stores with a clock that the test sets."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from tests.strategies import build
from treeadv import wire
from treeadv.config import QueueConfig
from treeadv.forest import Forest
from treeadv.replay.journal import Reader
from treeadv.replay.ledger import Ledger
from treeadv.replay.records import Reserved
from treeadv.replay.store import ReplayStore
from treeadv.storage.folder import open_folder

_sessions = (f"{n:06d}-test" for n in itertools.count(1))


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def forest_for(record: Reserved, version: int = 0, rewards: list[float] | None = None, length: int = 3) -> Forest:
    """Return a forest of two trees and three leaves. The draw determines its shape and values."""
    lengths = [1 + record.draw % 4, length, 2, 1]
    f = build([-1, 0, 0, -1], lengths, seed=record.draw, rewards=rewards, version=version, forest_id=record.forest_id)
    return replace(f, prompt_id=record.prompt_id)


def batch_for(
    record: Reserved, version: int = 0, rewards: list[float] | None = None, length: int = 3
) -> pa.RecordBatch:
    return wire.to_batch([forest_for(record, version, rewards, length)])


def open_store(
    run_dir: Path | str, per_step: int = 2, durable_step: int | None = None, clock: Clock | None = None, **queue: Any
) -> ReplayStore:
    """Open a new session that resumes from `durable_step`. With None, the queue of the last session restarts; in an
    object store this restart is also a new session."""
    same = durable_step is None and "://" not in str(run_dir)
    session = last_session(str(run_dir)) if same else next(_sessions)
    return ReplayStore(
        str(run_dir),
        QueueConfig(**queue),
        forests_per_step=per_step,
        seed=0,
        session=session,
        step=durable_step or 0,
        clock=clock or Clock(),
    )


def last_session(run_dir: str) -> str:
    """Return the last session of the journal, or a new one if there is no journal."""
    ledger = Ledger()
    for line in Reader(open_folder(run_dir).child("replay").child("journal")):
        ledger.apply(line.record)
    return ledger.session or next(_sessions)


def reserve(store: ReplayStore, worker: str = "w") -> Reserved:
    record = store.reserve(worker, "", lambda draw: f"prompt-{draw}")
    assert record is not None
    return record


def fill(store: ReplayStore, n: int, version: int = 0) -> list[str]:
    """Reserve and admit `n` forests and return their ids."""
    out = []
    for _ in range(n):
        record = reserve(store)
        assert store.admit(record.forest_id, batch_for(record, version)) == "admitted"
        out.append(record.forest_id)
    return out


def train(store: ReplayStore, n: int, step: int) -> tuple[str, ...]:
    """Lease `n` forests at version step - 1 and acknowledge the lease as `step`."""
    lease = store.lease(n, step - 1)
    assert lease is not None
    store.ack(lease.lease_id, step)
    return lease.forest_ids
