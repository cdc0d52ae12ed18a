"""Runs a real training under fault injection: signals to any of its processes, damage to its files, a second driver."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from prometheus_client.parser import text_string_to_metric_families

from tests.running import LIMIT, ROLES, Started, finish, hosts, recipe, sound, start, steps, wait_for
from treeadv.replay.audit import audit
from treeadv.replay.history import read_history
from treeadv.storage.run_folder import RunFolder

ROOT = Path(__file__).parents[1]
SERVICES = ("gcs_server", "raylet")  # processes of Ray itself
CONSTRUCTORS = {
    "Generator": "actors.generator:Generator.__init__",
    "RewardActor": "actors.reward:RewardActor.__init__",
    "ReplayQueue": "actors.replay_queue:ReplayQueue.__init__",
    "Learner": "actors.learner:Learner.__init__",
}
DRAWING = "treeadv.engines.embedded:EmbeddedEngine._step"


class Run:
    """A run of `tests.parity`, whose rewards keep their variance, with two generators and small steps."""

    def __init__(
        self,
        tmp_path: Path,
        model: Path,
        environment: dict[str, str] | None = None,
        patience: float = 180,
        **changes: object,
    ) -> None:
        """Start the run and wait for two steps, for at most `patience` seconds."""
        self.run, self._faults = tmp_path / "run", tmp_path / "faults"
        self._faults.mkdir()
        self._environment = environment or {}
        settings = {"run__steps": 10**6, "run__checkpoint_every": 2, "learner__lr": 1e-6, **changes}
        self.process = self._start("--config", recipe(tmp_path, model, **settings))
        self.per_step = 3  # number of forests in a step
        self.interval = 0.05  # seconds between two reads of the records
        self.repeats = Repeats()
        self._wait(lambda: steps(self.run) >= 2, patience)
        # A dead spare process is replaced only when it is needed, so one verifier process is enough
        self._members = {role: len(self.hosts(role)) for role in (*ROLES, "driver", *SERVICES)} | {"verifier": 1}

    def _start(self, *arguments: str | Path) -> Started:
        path = os.pathsep.join([str(ROOT / "tests" / "faults"), str(ROOT)])
        self._last_start = arguments
        return start(*arguments, PYTHONPATH=path, TREEADV_VERIFIER_FAULTS=str(self._faults), **self._environment)

    def _wait(self, what: Callable[[], object], seconds: float) -> None:
        """Wait until `what` is true. Ray gives its processes 30 s to start. If this time is too short on a busy
        machine, the run is started again."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and self.process.poll() is None:
            if what():
                return
            time.sleep(self.interval)
        if self.process.poll() is not None and "Ray does not start" in self.process.output():
            self.process = self._start(*self._last_start)
            return self._wait(what, until - time.monotonic())
        wait_for(what, self.process, 0.1)  # raises an error with the cause

    def hosts(self, role: str) -> list[psutil.Process]:
        """Return the processes of a role, of the driver or of a service of Ray."""
        driver = psutil.Process(self.process.pid)
        if role == "driver":
            return [driver]
        if role in SERVICES:
            return [p for p in driver.children(recursive=True) if p.name() == role]
        return hosts(self.process.pid, role)

    # ---- faults ------------------------------------------------------------------------------------------------------
    def kill_idle(self, role: str) -> None:
        """Kill a process of the role while it has nothing to do. For this, suspend the role for which it waits."""
        waited_for = [p for r in (("Generator",) if role == "Learner" else ("Learner",)) for p in self.hosts(r)]
        for p in waited_for:
            p.suspend()
        time.sleep(1.5)
        self.hosts(role)[0].kill()
        for p in waited_for:
            p.resume()

    def arm(self, **fault: object) -> None:
        """Arm a fault of `tests/faults/sitecustomize.py` at a point of the code."""
        (self._faults / "armed").write_text(json.dumps(fault))
        (self._faults / "armed").rename(self._faults / "armed.json")

    def kill_at(self, point: str, victim: str, **fault: object) -> None:
        self.arm(at=point, victim=victim, **fault)
        self.wait_until_fired()

    def wait_until_fired(self) -> None:
        fired = self._faults / "fired.json"
        self._wait(fired.exists, 180)
        fired.unlink()

    def pause(self, role: str, seconds: float) -> None:
        """Send SIGSTOP to a process of the role, and SIGCONT after `seconds`."""
        (paused, *_) = self.hosts(role)
        paused.suspend()
        time.sleep(seconds)
        paused.resume()

    def stop_in_constructor(self, role: str) -> psutil.Process:
        """Kill an actor of `role` and stop its successor in the constructor. Returns the stopped process."""
        before = self.hosts(role)
        self.arm(at=CONSTRUCTORS[role], victim="stops")
        before[0].kill()
        self.wait_until_fired()

        def stopped() -> list[psutil.Process]:
            return [p for p in self.hosts(role) if p not in before and p.status() == psutil.STATUS_STOPPED]

        return wait_for(stopped, self.process)[0]  # the signal arrives shortly after `fired.json` exists

    def kill_driver(self) -> None:
        self.process.kill()
        self.process.wait(10)

    def flip_checkpoint(self) -> int:
        """Flip a bit in the newest checkpoint and return its step. The newest checkpoint must be undamaged, because a
        second flip would repair it."""
        step = max(RunFolder(self.run).checkpoints())
        assert step == RunFolder(self.run).last_checkpoint()
        files = RunFolder(self.run).checkpoint(step).rglob("*.safetensors")
        flip(max(files, key=lambda f: f.stat().st_size), 1000)
        return step

    def flip_payload(self) -> str:
        """Flip a bit in the payload of a forest that waits for its step, and return the id of the forest. The queue
        must not run, because it may also have the payload in memory."""
        history = read_history(str(self.run))
        messages: dict[tuple[str, int], list[str]] = {}
        for fid, attempt in history.attempts.items():
            if attempt.admitted is not None:
                messages.setdefault((attempt.admitted.payload_file, attempt.admitted.offset), []).append(fid)
        states = history.states()
        waiting = [ids for ids in messages.values() if {states[fid] for fid in ids} <= {"ready", "leased"}]
        (fid, *_) = min(waiting, key=len)  # a forest that shares its message is lost with the others
        admitted = history.attempts[fid].admitted
        assert admitted is not None
        flip(self.run / "replay" / "payloads" / admitted.payload_file, admitted.offset + admitted.length // 2)
        self.repeats.forget(RunFolder(self.run).records())  # a repeated step has another forest in its place
        return fid

    # ---- recovery ----------------------------------------------------------------------------------------------------
    def resume(self) -> None:
        # The actors of the run end one or two seconds after the driver. A starting worker of Ray may end a minute later
        self.process.wait(10)
        self.process = self._start("--resume", self.run)

    def resume_as_printed(self, within: float = LIMIT) -> None:
        """Wait for the end of the run, and run the command in the last line of its output."""
        printed = re.search(r"treeadv train (--resume .+?)\)?$", self.process.output(within).strip())
        assert printed, self.process.output()[-3000:]
        self.process = self._start(*shlex.split(printed[1]))

    def recover(self, role: str, seconds: float = 180) -> float:
        """Return the seconds until the processes of the role are up and the next step is recorded. If the role is the
        driver, start it again first."""
        began = time.monotonic()
        if role == "driver":
            self.resume()
        done = self.newest_step()
        up = self._members[role]
        self._wait(lambda: self.newest_step() > done and len(self.hosts(role)) >= up, seconds)
        return time.monotonic() - began

    def exported(self, name: str, **labels: str) -> float:
        """Return the current value of a metric of the driver."""
        targets = json.loads((self.run / "targets.json").read_text())
        (address,) = (t["targets"][0] for t in targets if t["labels"]["role"] == "driver")
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as page:
            families = text_string_to_metric_families(page.read().decode())
        return next(
            s.value for f in families for s in f.samples if s.name == name and labels.items() <= s.labels.items()
        )

    def newest_step(self) -> int:
        """Return the newest recorded step. A run that returns to a checkpoint records later steps again."""
        records = RunFolder(self.run).records()
        self.repeats.add(records)
        return max((r["step"] for r in records), default=0)

    def wait_until_dead(self, process: psutil.Process, seconds: float = 90) -> None:
        wait_for(lambda: not process.is_running() or process.status() == "zombie", self.process, seconds)

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Suspend every process of the run for the duration of the block."""
        driver = psutil.Process(self.process.pid)
        processes = [driver, *driver.children(recursive=True)]
        for process in processes:
            process.suspend()
        try:
            yield
        finally:
            for process in processes:
                process.resume()

    def second_driver(self, *how: str | Path) -> subprocess.CompletedProcess[str]:
        """Start another driver on the run with another learning rate, and return its result. The run must refuse it."""
        line = [sys.executable, "-m", "actors.cli", "train", *map(str, how), "learner.lr=0.5"]
        return subprocess.run(line, capture_output=True, text=True, timeout=LIMIT)

    # ---- the end -----------------------------------------------------------------------------------------------------
    def output_so_far(self) -> str:
        """Return the current output of the run on one line, because the display breaks long lines."""
        return " ".join(self.process.output().split())

    def output(self) -> str:
        """Return the complete output of the run after its end."""
        return self.process.output(LIMIT)

    def interrupt(self, within: float = LIMIT) -> None:
        self.process.send_signal(signal.SIGINT)
        finish(self.process, within)

    def end(self) -> None:
        """Interrupt the run and check its records: each step has one record, and each trained forest is in one step."""
        self.interrupt()
        done = steps(self.run)
        folder = RunFolder(self.run)
        assert [r["step"] for r in folder.records()] == list(range(1, done + 1)) and folder.last_checkpoint() == done
        drawn = [r["tokens_generated"] for r in folder.records()]
        assert drawn == sorted(drawn)
        sound(self.run)
        assert audit(str(self.run)).rows["trained"]["forests"] == self.per_step * done
        with_gradient = [r["step"] for r in folder.records() if r["grad_norm"] > 0]
        assert len(with_gradient) >= 0.8 * done  # otherwise the run would train almost nothing
        self.repeats.add(folder.records())
        assert self.repeats.different == []


class Repeats:
    """A comparison of repeated steps with their first records. A step is repeated after a loss. The same forests,
    weights and optimizer state must give the same loss and gradient."""

    def __init__(self) -> None:
        self._seen: dict[int, dict] = {}
        self.count = 0  # number of repeated steps
        self.different: list[str] = []
        self._void: set[tuple[int, float]] = set()

    def add(self, records: list[dict]) -> None:
        """Compare new records with earlier ones. The run may have returned to a checkpoint since the last call."""
        for now in records:
            if (now["step"], now["elapsed_s"]) in self._void:
                continue
            before = self._seen.get(now["step"], now)
            self._seen[now["step"]] = now
            if now["elapsed_s"] != before["elapsed_s"]:
                self.count += 1
                values = [(r["loss"], r["grad_norm"], r["reward_mean"]) for r in (before, now)]
                if values[0] != values[1]:
                    self.different.append(f"step {now['step']}: {values[0]} at first, then {values[1]}")

    def forget(self, records: list[dict]) -> None:
        """Ignore all records so far in later comparisons. They stay in the file until the next driver returns to a
        checkpoint."""
        self._seen.clear()
        self._void = {(r["step"], r["elapsed_s"]) for r in records}


def flip(path: Path, at: int) -> None:
    """Flip one bit of a file."""
    with path.open("r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 1]))
