"""`python -m benchmarks.soak`: runs the tiny model of the tests for a long time and kills roles at random. Memory,
files and processes must not grow, and no forest may be lost. It prints one JSON object."""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from statistics import fmean

import psutil

from tests import tiny
from tests.running import ROLES, Started, hosts, recipe, start, steps
from treeadv.replay.audit import audit
from treeadv.storage.run_folder import RunFolder


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--kill-every", type=float, default=60.0, metavar="SECONDS", help="mean time between kills")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        model = tiny.save(Path(folder) / "tiny")
        process = start(
            "--config",
            recipe(
                Path(folder),
                model,
                run__steps=10**6,
                run__checkpoint_every=5,
                queue__retain="unacknowledged",
                queue__payload_mb=1,
            ),
        )
        run = Path(folder) / "run"
        samples, recoveries = _watch(process, run, args.minutes * 60, args.kill_every, rng)
        process.send_signal(signal.SIGINT)
        code = process.wait(300)
        result = audit(str(run))
        print(
            json.dumps(
                {
                    "minutes": args.minutes,
                    "steps": steps(run),
                    "exit_code": code,
                    "audit_sound": result.sound,
                    "trained": result.rows["trained"]["forests"],
                    "kills": {role: len(seconds) for role, seconds in recoveries.items()},
                    "slowest_recovery_s": {
                        role: round(max(seconds), 1) for role, seconds in recoveries.items() if seconds
                    },
                    **{
                        k: {
                            "second_quarter": _mean(samples, k, 0.25, 0.5),
                            "last_quarter": _mean(samples, k, 0.75, 1.0),
                        }
                        for k in samples[0]
                    },
                }
            )
        )


def _watch(
    process: Started, run: Path, seconds: float, kill_every: float, rng: random.Random
) -> tuple[list[dict[str, float]], dict[str, list[float]]]:
    """Sample every five seconds and kill one role at random times. Returns the samples and the recovery times by
    role."""
    end = time.monotonic() + seconds
    next_kill = time.monotonic() + 60
    samples: list[dict[str, float]] = []
    recoveries: dict[str, list[float]] = {role: [] for role in ("verifier", *ROLES)}
    while time.monotonic() < end:
        if process.poll() is not None:
            raise RuntimeError(f"the run ended by itself: {process.output()[-3000:]}")
        samples.append(_sample(process, run))
        if time.monotonic() >= next_kill and (victims := hosts(process.pid, role := rng.choice(list(recoveries)))):
            members = 1 if role == "verifier" else len(victims)  # a dead spare is replaced only when needed
            recoveries[role].append(_kill(rng.choice(victims), role, members, process, run))
            next_kill = time.monotonic() + rng.expovariate(1 / kill_every)
            print(
                f"{(end - time.monotonic()) / 60:.0f} min left, step "
                f"{steps(run)}: {role} killed, a step of all again after"
                f" {recoveries[role][-1]:.1f} s",
                file=sys.stderr,
                flush=True,
            )
        time.sleep(5)
    return samples, recoveries


def _kill(victim: psutil.Process, role: str, members: int, process: Started, run: Path) -> float:
    """Kill a role. Returns the seconds until the role has as many members as before and another step is recorded."""
    began = time.monotonic()
    victim.kill()
    victim.wait()
    done: int | None = None
    while process.poll() is None and (done is None or _newest(run) <= done):
        if done is None and len(hosts(process.pid, role)) >= members:
            done = _newest(run)
        time.sleep(0.2)
    return time.monotonic() - began


def _newest(run: Path) -> int:
    records = RunFolder(run).records()
    return records[-1]["step"] if records else 0


def _sample(process: Started, run: Path) -> dict[str, float]:
    rss = files = count = 0
    for p in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]:
        try:
            rss, files, count = rss + p.memory_info().rss, files + p.num_fds(), count + 1
        except psutil.Error:
            continue  # the process has ended
    shm = sum(f.stat().st_blocks * 512 for f in os.scandir("/dev/shm") if f.is_file(follow_symlinks=False))
    disk = sum(f.stat().st_size for f in (run / "replay").rglob("*") if f.is_file())
    return {
        "rss_mb": rss / 2**20,
        "open_files": files,
        "processes": count,
        "shared_memory_mb": shm / 2**20,
        "replay_mb": disk / 2**20,
    }


def _mean(samples: list[dict[str, float]], key: str, a: float, b: float) -> float:
    part = samples[int(a * len(samples)) : max(int(b * len(samples)), int(a * len(samples)) + 1)]
    return round(fmean(s[key] for s in part), 1)


if __name__ == "__main__":
    main()
