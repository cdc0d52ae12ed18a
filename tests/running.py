"""Starts a run of the whole pipeline with the tiny model in a separate process, reads its output, and finds its
actors."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import yaml

from treeadv.replay.audit import audit

ROLES = ("RewardActor", "Generator", "ReplayQueue", "Learner")
LIMIT = 150  # seconds after which a run counts as hung


def recipe(tmp_path: Path, model: Path, **changes) -> Path:
    tree = {
        "run": {"root": str(tmp_path), "name": "run", "steps": 6, "checkpoint_every": 2},
        "model": {"path": str(model)},
        "task": {
            "source": "reasoning-gym",
            "verifier": "tests.parity:has_even_sum",
            "families": [
                {"name": "chain_sum", "options": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}}
            ],
        },
        "sampling": {"leaves": 4, "tau": 2.2, "max_tokens": 12, "temperature": 1.0},
        "generator": {"count": 2, "forests": 2, "threads": 1, "cpus": 0.5},
        "learner": {"forests_per_step": 3, "lr": 1e-5, "dtype": "float32", "threads": 1},
    }
    for key, value in changes.items():
        section, _, name = key.partition("__")
        tree[section] = {**tree.get(section, {}), **({name: value} if name else value)}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


class Started(subprocess.Popen):
    """A run in a separate process. Its output goes to a file, because an unread pipe would block a long run."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the process
        super().__init__(command, stdout=self._output, stderr=subprocess.STDOUT, env=environment)

    def output(self, within: float | None = None) -> str:
        """Return the output so far. With `within`, first wait at most that many seconds for the end of the process."""
        if within is not None:
            self.wait(within)
        handle = self._output.fileno()
        return os.pread(handle, os.fstat(handle).st_size, 0).decode()


_started: list[Started] = []


def start(*arguments: str | Path, **environment: str) -> Started:
    command = [sys.executable, "-m", "actors.cli", "train", *map(str, arguments)]
    # Ray lowers the priority of its workers by 15. On a busy machine an actor would then need minutes to start
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0", **environment}
    _started.append(Started(command, environment))
    return _started[-1]


def end_all() -> None:
    """Kill the processes of runs that failed tests have left running."""
    for process in _started:
        process.kill()
        process.wait()
    _started.clear()


def finish(process: Started, within: float = LIMIT) -> str:
    try:
        out = process.output(within)
    except subprocess.TimeoutExpired:
        process.kill()
        raise AssertionError(f"the run hung; its output: {process.output()[-3000:]}") from None
    assert process.returncode == 0, out[-3000:]
    return out


def wait_for(what: Callable[[], Any], process: Started, seconds: float = 90) -> Any:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if got := what():
            return got
        assert process.poll() is None, process.output()[-3000:]
        time.sleep(0.05)
    process.kill()
    raise AssertionError(f"the condition did not hold within {seconds} s: {process.output()[-3000:]}")


def steps(run: Path) -> int:
    path = run / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.is_file() else 0


def driver_of(pid: int) -> int:
    """Return the driver of the run that a process belongs to."""
    return next(p.pid for p in [psutil.Process(pid), *psutil.Process(pid).parents()] if "actors.cli" in p.cmdline())


def hosts(driver: int, role: str) -> list[psutil.Process]:
    """Return the processes of a run that host an actor of `role`. For the role `verifier` these are the verifier
    processes of the reward actors."""
    found = []
    for p in psutil.Process(driver).children(recursive=True):
        try:
            words = p.cmdline()
        except psutil.Error:
            continue  # the process has ended
        # Ray names a process `ray::Role`, and `ray::Role.method` during a call
        if (
            "treeadv.rewards.sandbox.worker" in words
            if role == "verifier"
            else words[:1] and words[0].startswith(f"ray::{role}")
        ):
            found.append(p)
    return found


def sound(run: Path) -> None:
    result = audit(str(run))
    assert result.sound, result.table()
