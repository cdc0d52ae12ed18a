"""Tests which time the recorder counts as waiting."""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console

from actors.driver.recorder import Recorder
from treeadv.report.progress import Progress
from treeadv.storage.run_folder import RunFolder


def test_wait_counts_while_it_lasts_and_only_once(tmp_path: Path) -> None:
    recorder = Recorder(RunFolder(tmp_path), Progress(1, Console(quiet=True)))
    readings = [recorder.waited_seconds]
    for _ in range(2):
        began = time.monotonic()
        with recorder.phase("wait"):
            time.sleep(0.05)
            readings.append(recorder.waited_seconds)
            time.sleep(0.05)
        lasted = time.monotonic() - began
        readings.append(recorder.waited_seconds)
        assert abs(readings[-1] - readings[-3] - lasted) < 0.02
        assert readings[-3] + 0.05 <= readings[-2] < readings[-1]
    assert recorder.waited_seconds == readings[-1]
