"""Injects faults into a real run: SIGKILL, SIGSTOP and lack of memory. The run continues; no forest is lost or trained
twice."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.running import LIMIT, Started, finish, hosts, recipe, sound, start, steps, wait_for
from treeadv.replay.audit import audit
from treeadv.storage.run_folder import RunFolder

ROOT = Path(__file__).parents[1]
# Limits on the seconds from a kill to the next step. On two quiet cores it takes up to 10, for a driver 21; with other
# load it takes longer.
WITHIN = 60
DRAWING = "treeadv.engines.embedded:EmbeddedEngine._step"
LOADING = "treeadv.engines.embedded:EmbeddedEngine._load"  # a generator takes new weights
STEPPING = "treeadv.learning.trainer:learning_rate"
LEASING = "treeadv.replay.store:ReplayStore.lease"
# role -> activity of the role at its death -> the point in the code, and the role that the process at this point kills
# ("": itself). A second pair applies before the run has recovered from the first.
STATES: dict[str, dict[str, tuple[str, ...]]] = {
    "Generator": {
        "working": (DRAWING, ""),
        "writing": ("actors.generator:Generator._count", ""),
        "updating weights": (LOADING, ""),
        "failing": (DRAWING, "fails"),  # its engine raises; the process stays alive
    },
    "verifier": {
        "working": ("tests.parity:has_even_sum", ""),
        "writing": ("json:dumps", ""),
        "updating weights": (LOADING, "verifier"),
    },
    "RewardActor": {
        "working": ("treeadv.rewards.grading:grade_forest", ""),
        "writing": ("actors.reward:RewardActor._graded", ""),
        "updating weights": (LOADING, "RewardActor"),
    },
    "ReplayQueue": {
        "working": (LEASING, ""),
        "writing": ("treeadv.storage.local:LocalFile.write", ""),
        "updating weights": (LOADING, "ReplayQueue"),
        "handing over what it read back": (LEASING, "", "actors.learner:Learner.step", "ReplayQueue"),
    },
    "Learner": {
        "working": (STEPPING, ""),
        "writing": ("treeadv.learning.trainer:Trainer.write_files", ""),
        "updating weights": ("actors.learner:Learner.publish", ""),
    },
    "driver": {
        "working": (STEPPING, "driver"),
        "writing": ("treeadv.storage.run_folder:RunFolder.record", ""),
        "sealing a checkpoint": ("treeadv.storage.run_store:LocalRunStore.seal", ""),
        "updating weights": (LOADING, "driver"),
    },
}


class Run:
    """A run under fault injection."""

    def __init__(
        self, tmp_path: Path, model: Path, environment: dict[str, str] | None = None, **changes: object
    ) -> None:
        self.run, self._faults = tmp_path / "run", tmp_path / "faults"
        self._faults.mkdir()
        self._environment = environment or {}
        self._process = self._start(
            "--config", recipe(tmp_path, model, run__steps=10**6, run__checkpoint_every=2, learner__lr=1e-6, **changes)
        )
        wait_for(lambda: steps(self.run) >= 2, self._process)
        # A dead spare process is replaced only when it is needed
        self._members = {role: len(self.hosts(role)) for role in STATES} | {"verifier": 1}

    def _start(self, *arguments: str | Path) -> Started:
        path = os.pathsep.join([str(ROOT / "tests" / "faults"), str(ROOT)])
        return start(*arguments, PYTHONPATH=path, TREEADV_VERIFIER_FAULTS=str(self._faults), **self._environment)

    def hosts(self, role: str) -> list[psutil.Process]:
        return [psutil.Process(self._process.pid)] if role == "driver" else hosts(self._process.pid, role)

    def kill_idle(self, role: str) -> None:
        """Suspend the role for whose work `role` waits, until `role` is idle, then kill `role`."""
        waited_for = [p for r in (("Generator",) if role == "Learner" else ("Learner",)) for p in self.hosts(r)]
        for p in waited_for:
            p.suspend()
        time.sleep(1.5)
        self.hosts(role)[0].kill()
        for p in waited_for:
            p.resume()

    def arm(self, **fault: object) -> None:
        (self._faults / "armed").write_text(json.dumps(fault))
        (self._faults / "armed").rename(self._faults / "armed.json")

    def kill_at(self, point: str, victim: str) -> None:
        self.arm(at=point, victim=victim)
        fired = self._faults / "fired.json"
        _until(fired.exists)
        fired.unlink()

    def recover(self, role: str) -> float:
        """Return the seconds until the role is up and the next step is recorded. A killed driver is started again at
        once."""
        began = time.monotonic()
        if role == "driver":
            # The actors of a dead driver end one or two seconds later; a worker that Ray was starting ends up to a
            # minute later
            self._process.wait(10)
            self._process = self._start("--resume", self.run)
        done = _whole_steps(self.run)
        wait_for(lambda: _whole_steps(self.run) > done and len(self.hosts(role)) >= self._members[role], self._process)
        return time.monotonic() - began

    def wait_until_dead(self, process: psutil.Process) -> None:
        wait_for(lambda: not process.is_running(), self._process)

    def output_so_far(self) -> str:
        return self._process.output()

    def output(self) -> str:
        """Wait for the end of the run and return its whole output."""
        return self._process.output(LIMIT)

    def end(self) -> None:
        """Interrupt the run and check its records: each step is recorded once, and each trained forest belongs to one
        step."""
        self._process.send_signal(signal.SIGINT)
        finish(self._process)
        done = steps(self.run)
        folder = RunFolder(self.run)
        assert [r["step"] for r in folder.records()] == list(range(1, done + 1)) and folder.last_checkpoint() == done
        drawn = [r["tokens_generated"] for r in folder.records()]
        assert drawn == sorted(drawn)
        sound(self.run)
        assert audit(str(self.run)).rows["trained"]["forests"] == 3 * done
        with_gradient = [r["step"] for r in folder.records() if r["grad_norm"] > 0]
        assert len(with_gradient) >= 0.8 * done  # otherwise the faults would have hit a run that trains nothing


def _whole_steps(run: Path) -> int:
    """Return the newest recorded step. A run that returns to an earlier checkpoint takes this step again."""
    return max((r["step"] for r in RunFolder(run).records()), default=0)


def _until(what: Callable[[], object], seconds: float = 60) -> None:
    limit = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < limit
        time.sleep(0.05)


def _roles(quick: tuple[str, ...], roles: Iterable[str]) -> list[Any]:
    """Return the roles as test parameters. Those outside `quick` have the marker slow."""
    return [role if role in quick else pytest.param(role, marks=pytest.mark.slow) for role in roles]


@pytest.mark.parametrize("role", _roles(("Generator", "ReplayQueue"), STATES))
def test_run_survives_a_role_killed_in_any_state(tmp_path: Path, tiny_model: Path, role: str) -> None:
    run = Run(tmp_path, tiny_model)
    seconds = {}
    run.kill_idle(role)
    seconds["idle"] = run.recover(role)
    for state, (*first, point, victim) in STATES[role].items():
        if first:
            run.kill_at(*first)
        run.kill_at(point, victim)
        seconds[state] = run.recover(role)
    run.end()
    assert max(seconds.values()) < WITHIN, seconds
    print(seconds)


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["", "fails"])
def test_role_that_keeps_dying_ends_the_run_with_the_cause(tmp_path: Path, tiny_model: Path, victim: str) -> None:
    run = Run(tmp_path, tiny_model, generator__count=1)
    run.arm(at=DRAWING, victim=victim, always=True)
    out = run.output()
    last = out.strip().splitlines()[-1]
    assert out.count("Traceback") == 0, out
    assert last.startswith("treeadv: error: generator: died 6 times since the last step; the last cause: "), last
    assert ("the engine failed: RuntimeError('injected')" in last) == (victim == "fails")
    assert "--resume" in last
    sound(run.run)


@pytest.mark.parametrize("role", _roles(("Generator",), ("Generator", "RewardActor", "ReplayQueue", "Learner")))
def test_hung_role_is_killed_and_the_run_continues(tmp_path: Path, tiny_model: Path, role: str) -> None:
    run = Run(tmp_path, tiny_model, run__heartbeat_timeout=5.0)
    hung = run.hosts(role)[0]
    hung.suspend()
    run.wait_until_dead(hung)
    seconds = run.recover(role)
    assert "gave no heartbeat for 5 s" in run.output_so_far()
    run.end()
    assert seconds < WITHIN


@pytest.mark.slow
def test_generator_killed_by_the_memory_monitor_is_replaced(tmp_path: Path, tiny_model: Path) -> None:
    """Ray then raises OutOfMemoryError, which is no RayActorError."""
    threshold = psutil.virtual_memory().percent / 100 + 0.12
    if threshold > 0.9:
        pytest.skip("the memory of this machine is in use")
    monitor = {"RAY_memory_usage_threshold": f"{threshold:.2f}", "RAY_memory_monitor_refresh_ms": "100"}
    run = Run(tmp_path, tiny_model, environment=monitor)
    run.kill_at(DRAWING, "hoards")
    run.recover("Generator")
    run.end()
