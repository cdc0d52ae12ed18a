"""What the recorder tells the controller."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from rich.console import Console

from actors.driver.recorder import Recorder
from treeadv.report.progress import Progress
from treeadv.storage.run_folder import RunFolder


def test_a_wait_counts_while_it_lasts_and_no_second_of_it_twice(tmp_path: Path) -> None:
    recorder = Recorder(RunFolder(tmp_path), Progress(1, Console(quiet=True)), asyncio.Event())
    began = time.monotonic()
    with recorder.phase("wait"):
        parts = []
        for _ in range(3):
            time.sleep(0.05)
            parts.append(recorder.waited())
        time.sleep(0.05)
    whole = time.monotonic() - began
    parts.append(recorder.waited())
    assert min(parts) >= 0.05
    assert abs(sum(parts) - whole) < 0.02
    assert recorder.waited() == 0
