"""`python -m benchmarks.soak`: a long run on the tests' tiny model under faults of all kinds in random order.

Every kind strikes once before one strikes again. No forest may be lost or trained twice, steps that are taken again
must give the same loss, and what the run holds must stay flat. Prints progress, and one JSON object at its end.
"""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import fmean, median

import psutil

from tests import tiny
from tests.injection import DRAWING, SERVICES, Run
from tests.running import ROLES, end_all, steps, wait_for
from treeadv.command_line import run_command, tool_parser
from treeadv.replay.audit import audit
from treeadv.replay.history import read_history
from treeadv.storage.run_folder import RunFolder

HEARTBEAT, START = 30.0, 150.0  # seconds: run.heartbeat_timeout and run.start_timeout
PATIENCE = 900.0  # seconds after which a run counts as hung
GIB = 1 << 30


class Faults:
    """The kinds of faults. Each kind is a function that returns the seconds from the fault to the next step of the
    recovered run."""

    def __init__(self, run: Run, rng: random.Random, hoard: int) -> None:
        """Create the kinds. `hoard` is the number of bytes at which a process stops filling memory."""
        self._run, self._rng, self._hoard = run, rng, hoard
        self.kinds: dict[str, Callable[[], float]] = {
            **{f"SIGKILL {role}": self._each(self._kill, role) for role in (*ROLES, "verifier")},
            **{f"SIGSTOP {role}": self._each(self._stop, role) for role in (*ROLES, "verifier")},
            "SIGSTOP in a constructor": self._stop_in_constructor,
            "SIGKILL driver, resume": self._kill_driver,
            "SIGSTOP driver, 20 s": lambda: self._pause("driver", 20),
            "memory monitor": self._fill_memory,
            "GCS pause, 20 to 50 s": lambda: self._pause("gcs_server", self._rng.uniform(20, 50)),
            "SIGKILL raylet, resume as printed": self._kill_raylet,
            "damaged checkpoint, resume": self._damage_checkpoint,
            "damaged payload, resume": self._damage_payload,
            "second driver": self._start_second_driver,
        }

    def _each(self, strike: Callable[[str], float], role: str) -> Callable[[], float]:
        return lambda: strike(role)

    def _one(self, role: str) -> psutil.Process:
        found = wait_for(lambda: self._run.hosts(role), self._run.process, PATIENCE)
        if role == "verifier":  # not the spare process, because no answer depends on it
            return max(found, key=lambda p: sum(p.cpu_times()[:2]))
        return self._rng.choice(found)

    def _kill(self, role: str) -> float:
        self._one(role).kill()
        return self._run.recover(role, PATIENCE)

    def _stop(self, role: str) -> float:
        """Suspend a process until it is killed. The pool kills a verifier process; the driver kills any other
        process."""
        began = time.monotonic()
        stopped = self._one(role)
        stopped.suspend()
        self._run.wait_until_dead(stopped, PATIENCE)
        self._run.recover(role, PATIENCE)
        return time.monotonic() - began

    def _stop_in_constructor(self) -> float:
        role = self._rng.choice(ROLES)
        began = time.monotonic()
        stopped = self._run.stop_in_constructor(role)
        self._run.wait_until_dead(stopped, PATIENCE)
        self._run.recover(role, PATIENCE)
        return time.monotonic() - began

    def _pause(self, role: str, seconds: float) -> float:
        """Suspend a process and continue it after `seconds`. The recovery time starts at the end of the pause."""
        self._run.pause(role, seconds)
        return self._run.recover("Generator", PATIENCE)

    def _fill_memory(self) -> float:
        began = time.monotonic()
        self._run.kill_at(DRAWING, "hoards", limit=self._hoard)
        self._run.recover("Generator", PATIENCE)
        return time.monotonic() - began

    def _kill_driver(self) -> float:
        self._run.kill_driver()
        return self._run.recover("driver", PATIENCE)

    def _kill_raylet(self) -> float:
        began = time.monotonic()
        self._run.hosts("raylet")[0].kill()
        self._run.resume_as_printed(PATIENCE)
        self._run.recover("Generator", PATIENCE)
        return time.monotonic() - began

    def _damage_checkpoint(self) -> float:
        """Damage the newest checkpoint when there are at least two, of which the newest is undamaged."""
        folder = RunFolder(self._run.run)

        def two() -> bool:
            found = folder.checkpoints()
            return len(found) > 1 and folder.last_checkpoint() == found[-1]

        wait_for(two, self._run.process, PATIENCE)
        self._run.kill_driver()
        step = self._run.flip_checkpoint()
        seconds = self._run.recover("driver", PATIENCE)
        assert f"step-{step} is ignored" in self._run.output_so_far(), self._run.output_so_far()
        return seconds

    def _damage_payload(self) -> float:
        self._run.kill_driver()
        self._run.flip_payload()
        return self._run.recover("driver", PATIENCE)

    def _start_second_driver(self) -> float:
        began = time.monotonic()
        config = (self._run.run / "config.yaml").read_bytes()
        refused = self._run.second_driver("--resume", self._run.run)
        assert refused.returncode == 2 and "in use by process" in refused.stderr, refused.stderr
        assert (self._run.run / "config.yaml").read_bytes() == config
        self._run.recover("Generator", PATIENCE)
        return time.monotonic() - began


def main(argv: Sequence[str] | None = None) -> None:
    parser = tool_parser("python -m benchmarks.soak", __doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--every", type=float, default=15.0, metavar="SECONDS", help="mean time from a step to a fault")
    parser.add_argument("--memory", type=float, default=0.6, metavar="SHARE", help="of the machine, for Ray's monitor")
    parser.add_argument("--kinds", default="", metavar="TEXT", help="only the kinds of faults whose names contain TEXT")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        ray = {
            "RAY_memory_usage_threshold": f"{args.memory:.2f}",
            "RAY_memory_monitor_refresh_ms": "250",
        }
        run = Run(
            Path(folder),
            tiny.save(Path(folder) / "tiny"),
            environment=ray,
            patience=PATIENCE,
            run__checkpoint_every=5,
            run__heartbeat_timeout=HEARTBEAT,
            run__start_timeout=START,
            reward__timeout=10.0,
            queue__payload_mb=1,
        )
        run.interval = 0.5  # frequent reads of the records would slow the run
        hoard = int(args.memory * psutil.virtual_memory().total) + GIB
        samples: list[dict[str, float]] = []
        recoveries: defaultdict[str, list[float]] = defaultdict(list)
        began, ended_by = time.monotonic(), ""
        try:
            kinds = {name: fault for name, fault in Faults(run, rng, hoard).kinds.items() if args.kinds in name}
            soak(run, kinds, args.minutes * 60, args.every, rng, samples, recoveries)
            run.interrupt(PATIENCE)
        except KeyboardInterrupt:
            run.interrupt(PATIENCE)
        except Exception as fault:  # the figures collected so far are printed, and the exit code is 1
            ended_by = f"{type(fault).__name__} {fault}"[-2000:]
            print(ended_by, file=sys.stderr, flush=True)
        finally:
            end_all()
        minutes = (time.monotonic() - began) / 60
        print(json.dumps(result(run, samples, recoveries) | {"minutes": round(minutes, 1), "ended_by": ended_by}))
        sys.exit(bool(ended_by))


def soak(
    run: Run,
    kinds: dict[str, Callable[[], float]],
    seconds: float,
    every: float,
    rng: random.Random,
    samples: list[dict[str, float]],
    recoveries: defaultdict[str, list[float]],
) -> None:
    """Inject one fault after another. Append a sample before each fault, and the recovery time after it."""
    end, order = time.monotonic() + seconds, shuffled(list(kinds), rng)
    while time.monotonic() < end:
        wait = min(rng.expovariate(1 / every), 4 * every)
        time.sleep(max(0.0, min(wait, end - time.monotonic())))
        assert run.process.poll() is None, f"the run ended by itself: {run.output_so_far()}"
        samples.append(sample(run))
        kind = next(order)
        print(f"step {steps(run.run)}: {kind}", file=sys.stderr, flush=True)
        recovery = kinds[kind]()
        recoveries[kind].append(recovery)
        left = max(0.0, end - time.monotonic()) / 60
        print(
            f"step {steps(run.run)}: recovered after {recovery:.1f} s; {left:.0f} min left,"
            f" {samples[-1]['rss_mb']:.0f} MB, {run.repeats.count} steps taken again",
            file=sys.stderr,
            flush=True,
        )


def shuffled(kinds: list[str], rng: random.Random) -> Iterator[str]:
    """Yield all kinds in a random order, and repeat this without end."""
    while True:
        yield from rng.sample(kinds, len(kinds))


def sample(run: Run) -> dict[str, float]:
    """Return the memory, open files and number of the processes of the run. A shared page counts once for each
    process."""
    rss = files = count = 0
    for p in [psutil.Process(run.process.pid), *psutil.Process(run.process.pid).children(recursive=True)]:
        try:
            rss, files, count = rss + p.memory_info().rss, files + p.num_fds(), count + 1
        except psutil.Error:
            continue  # the process ended in the meantime
    parts = {"driver": "driver", "gcs": SERVICES[0], "queue": "ReplayQueue", "learner": "Learner"}
    shm = sum(f.stat().st_blocks * 512 for f in os.scandir("/dev/shm") if f.is_file(follow_symlinks=False))
    return {
        "rss_mb": rss / 2**20,
        **{f"{name}_mb": sum(p.memory_info().rss for p in run.hosts(of)) / 2**20 for name, of in parts.items()},
        "shared_memory_mb": shm / 2**20,
        "open_files": files,
        "processes": count,
    }


def result(run: Run, samples: list[dict[str, float]], recoveries: dict[str, list[float]]) -> dict[str, object]:
    report, history = audit(str(run.run)), read_history(str(run.run))
    times = Counter(forest for forests in history.steps.values() for forest in forests)
    done, law = steps(run.run), report.rows
    in_a_state = sum(law[row]["forests"] for row in ("ready", "leased", "trained", "dropped"))
    return {
        "steps": done,
        "steps_taken_again": run.repeats.count,
        "taken_again_with_another_result": len(run.repeats.different),
        "forests_trained": law["trained"]["forests"],
        "forests_lost": max(law["admitted"]["forests"] - in_a_state, run.per_step * done - len(times)),
        "forests_doubled": sum(n - 1 for n in times.values()),
        "audit_sound": report.sound,
        "audit_faults": list(report.faults[:5]),
        "dropped": report.dropped,
        "faults": sum(map(len, recoveries.values())),
        "recovery_s": {
            kind: {"faults": len(s), "median": round(median(s), 1), "max": round(max(s), 1)}
            for kind, s in sorted(recoveries.items())
        },
        "by_quarter": {key: [mean(samples, key, quarter) for quarter in range(4)] for key in samples[0]},
    }


def mean(samples: list[dict[str, float]], key: str, quarter: int) -> float:
    n = len(samples)
    in_quarter = samples[quarter * n // 4 : max((quarter + 1) * n // 4, quarter * n // 4 + 1)]
    return round(fmean(s[key] for s in in_quarter), 1) if in_quarter else 0.0


if __name__ == "__main__":
    sys.exit(run_command(main))
