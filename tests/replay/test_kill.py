"""Tests SIGKILL of a writing process at random moments."""

from __future__ import annotations

import json
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.replay.helpers import open_store
from tests.replay.writer import PER_STEP
from treeadv.replay.audit import audit
from treeadv.replay.history import forests_of_step, read_history

ROOT = Path(__file__).parents[2]


def start(folder: Path, fsync: str, steps: int) -> subprocess.Popen:
    command = [sys.executable, "-m", "tests.replay.writer", str(folder), fsync, str(steps)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("fsync", ["always", "interval"])
def test_repeated_kills_train_every_forest_exactly_once(tmp_path: Path, fsync: str) -> None:
    rng = random.Random(fsync)
    for _ in range(3):
        process = start(tmp_path, fsync, 10**6)
        assert process.stdout is not None and process.stdout.readline() == "open\n"
        time.sleep(rng.uniform(0.0, 0.5))
        process.send_signal(signal.SIGKILL)
        told = re.findall(r"acked (\d+)\n", process.stdout.read())
        process.wait()
        history = read_history(str(tmp_path))
        assert not told or max(history.steps) >= int(told[-1]), "an acknowledged step was lost"
        report = audit(str(tmp_path))
        assert report.sound, report.table()
    checkpoint = tmp_path / "checkpoint.json"
    goal = (len(json.loads(checkpoint.read_text())) if checkpoint.exists() else 0) + 5
    last = start(tmp_path, fsync, goal)
    last.communicate(timeout=60)
    assert last.returncode == 0

    model = json.loads(checkpoint.read_text())
    trained = [fid for step in model for fid in step]
    assert len(trained) == len(set(trained)) == goal * PER_STEP
    assert sorted(int(fid.split("-")[1]) for fid in trained) == list(
        range(goal * PER_STEP)
    )  # fifo order leases the first prompts, each once
    for step, fids in enumerate(model, 1):
        assert [f.forest_id for f in forests_of_step(str(tmp_path), step)] == fids
    report = audit(str(tmp_path))
    assert report.sound and report.rows["trained"]["forests"] == len(trained), report.table()


def test_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    process = start(tmp_path, "interval", 10**6)
    assert process.stdout is not None and process.stdout.readline() == "open\n"
    process.kill()
    process.communicate()
    open_store(tmp_path).close()
