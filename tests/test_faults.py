"""SIGKILL of every role in four states of a real run (tests/faults sends it): the run goes on, and nothing is lost or
trained twice."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.running import LIMIT, Started, finish, hosts, recipe, sound, start, steps, wait_for
from treeadv.replay.audit import audit
from treeadv.storage.run_folder import RunFolder

ROOT = Path(__file__).parents[1]
# Seconds from a kill to the next step: up to 10 on two quiet cores, 21 for a driver; more where others work too
WITHIN = 60
DRAWING = "treeadv.engines.embedded:EmbeddedEngine._step"
LOADING = "treeadv.engines.embedded:EmbeddedEngine._load"  # a generator takes new weights
STEPPING = "treeadv.learning.trainer:Trainer._apply"
LEASING = "treeadv.replay.store:ReplayStore.lease"
# role -> what it does when it dies -> the point in the code, and whom the process that comes there kills ("": itself);
# a second pair strikes before the run has recovered from the first
STATES: dict[str, dict[str, tuple[str, ...]]] = {
    "Generator": {
        "working": (DRAWING, ""),
        "writing": ("actors.generator:Generator._count", ""),
        "updating weights": (LOADING, ""),
        "failing": (DRAWING, "fails"),  # its engine raises, the process lives
    },
    "verifier": {
        "working": ("tests.vowel:has_vowel", ""),
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
        "writing": ("treeadv.learning.checkpoint:_publish", ""),
        "updating weights": ("actors.learner:Learner.publish", ""),
    },
    "driver": {
        "working": (STEPPING, "driver"),
        "writing": ("treeadv.storage.run_folder:RunFolder.record", ""),
        "updating weights": (LOADING, "driver"),
    },
}


class Run:
    """A run under fault injection, and how it takes each fault."""

    def __init__(self, tmp_path: Path, model: Path, **changes: object) -> None:
        self.run, self._faults = tmp_path / "run", tmp_path / "faults"
        self._faults.mkdir()
        self._process = self._start(
            "--config", recipe(tmp_path, model, run__steps=10**6, run__checkpoint_every=2, **changes)
        )
        wait_for(lambda: steps(self.run) >= 2, self._process)
        # A dead spare is replaced when it is needed
        self._members = {role: len(self.hosts(role)) for role in STATES} | {"verifier": 1}

    def _start(self, *arguments: str | Path) -> Started:
        path = os.pathsep.join([str(ROOT / "tests" / "faults"), str(ROOT)])
        return start(*arguments, PYTHONPATH=path, TREEADV_VERIFIER_FAULTS=str(self._faults))

    def hosts(self, role: str) -> list[psutil.Process]:
        return [psutil.Process(self._process.pid)] if role == "driver" else hosts(self._process.pid, role)

    def kill_idle(self, role: str) -> None:
        """Stop the role that it waits for until it has nothing to do any more, and kill it then."""
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
        """Seconds until the role is back and the next step on record; a driver is started again at once."""
        began = time.monotonic()
        if role == "driver":
            # Its actors end a second or two later, a worker that Ray was just starting up to a minute later
            self._process.wait(10)
            self._process = self._start("--resume", self.run)
        done = _whole_steps(self.run)
        wait_for(lambda: _whole_steps(self.run) > done and len(self.hosts(role)) >= self._members[role], self._process)
        return time.monotonic() - began

    def said(self) -> str:
        """All that it said, once it has ended by itself."""
        return self._process.said(LIMIT)

    def end(self) -> None:
        """An orderly end: every step once, every trained forest in one of them."""
        self._process.send_signal(signal.SIGINT)
        finish(self._process)
        done = steps(self.run)
        folder = RunFolder(self.run)
        assert [r["step"] for r in folder.records()] == list(range(1, done + 1)) and folder.last_checkpoint() == done
        drawn = [r["tokens_generated"] for r in folder.records()]
        assert drawn == sorted(drawn)
        sound(self.run)
        assert audit(str(self.run)).rows["trained"]["forests"] == 3 * done


def _whole_steps(run: Path) -> int:
    """The newest step on record: a run that goes back to a checkpoint has to pass it again."""
    return max((r["step"] for r in RunFolder(run).records()), default=0)


def _until(what: Callable[[], object], seconds: float = 60) -> None:
    limit = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < limit
        time.sleep(0.05)


@pytest.mark.parametrize("role", STATES)
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


@pytest.mark.parametrize("victim", [pytest.param("", marks=pytest.mark.slow), "fails"])
def test_role_that_keeps_dying_ends_the_run_with_the_cause(
    tmp_path: Path, tiny_model: Path, victim: str
) -> None:
    run = Run(tmp_path, tiny_model, generator__count=1)
    run.arm(at=DRAWING, victim=victim, always=True)
    said = run.said()
    last = said.strip().splitlines()[-1]
    assert said.count("Traceback") == 0, said
    assert last.startswith("treeadv: error: generator: died 6 times since the last step; the last cause: "), last
    assert ("the engine failed: RuntimeError('injected')" in last) == (victim == "fails")
    assert "--resume" in last
    sound(run.run)
