"""User verifiers that misbehave on purpose; worker processes import them as `verifier_functions:NAME`."""

from __future__ import annotations

import json
import mmap
import os
import resource
import signal
import sys
import time
from pathlib import Path

from treeadv.rewards.judgement import Answer, Grade, Task, unparsed, verified, wrong
from treeadv.rewards.verifiers.base import Verifier


def length(response: str, gold: str, meta: str) -> float:
    return len(response) / len(gold)


def parse(response: str, gold: str, meta: str) -> float:
    return float(response)


def detailed(response: str, gold: str, meta: str) -> dict[str, object]:
    print("noise on the standard output", flush=True)
    return {"reward": 1.0, "detail": "fine"}


def sleep(response: str, gold: str, meta: str) -> bool:
    time.sleep(float(response))
    return True


def deaf(response: str, gold: str, meta: str) -> bool:
    """Hang with every signal blocked, as a C library may, so that only the parent can end the process. Writes its pid
    for the test."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
    if meta:
        Path(meta).write_text(str(os.getpid()))
    while True:
        time.sleep(0.05)


def swallow(response: str, gold: str, meta: str) -> bool:
    """Hang in code that catches every exception, including the alarm."""
    while True:
        try:
            time.sleep(60)
        except BaseException:
            continue


def once(response: str, gold: str, meta: str) -> bool:
    """At the first call, write the pid to the file `meta` and wait to be killed. Return at the second call."""
    if Path(meta).exists():
        return True
    Path(meta).write_text(str(os.getpid()))
    time.sleep(30)
    return False


def die(response: str, gold: str, meta: str) -> bool:
    os.kill(os.getpid(), int(response) if response.isdigit() else getattr(signal, response))
    return True


def leave(response: str, gold: str, meta: str) -> bool:
    os._exit(int(response))


def hoard(response: str, gold: str, meta: str) -> bool:
    return len(bytearray(int(response) << 20)) > 0


def keep(response: str, gold: str, meta: str) -> dict[str, object]:
    """Keep memory after the item, as a memory leak does."""
    globals()["_kept"] = mmap.mmap(-1, int(response) << 20)
    return {"reward": True, "detail": str(os.getpid())}


def whoami(response: str, gold: str, meta: str) -> dict[str, object]:
    """Return the pid, and whether the process has imported none of the heavy libraries."""
    heavy = sorted({"torch", "ray", "transformers"} & set(sys.modules))
    return {"reward": True, "detail": json.dumps({"pid": os.getpid(), "heavy": heavy})}


def environment(response: str, gold: str, meta: str) -> dict[str, object]:
    return {"reward": True, "detail": str(os.environ.get(response))}


def fail(response: str, gold: str, meta: str) -> bool:
    raise ValueError("no such unit: furlong")


def append(response: str, gold: str, meta: str) -> bool:
    """Write one line for each call."""
    with open(meta, "a") as f:
        f.write(response + "\n")
    return True


def swallow_memory(response: str, gold: str, meta: str) -> bool:
    """Allocate this share of the remaining memory, free it and return 0, as sympy does when it catches a
    MemoryError."""
    left = (
        resource.getrlimit(resource.RLIMIT_AS)[0] - int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE
    )
    with mmap.mmap(-1, int(float(response) * left)):
        return False


class Parity(Verifier):
    """A verifier that accepts responses of even length. Its screen refuses an empty response."""

    def check_option(self, option: str | None) -> None:
        pass

    def screen(self, answer: Answer) -> Grade | Task:
        return super().screen(answer) if answer.response else unparsed("empty")

    def load(self) -> None:
        self._divisor = 2

    def judge(self, task: Task) -> Grade:
        return wrong() if len(task.text) % self._divisor else verified()


score = 3  # not a function


def raising(response: str, gold: str) -> float:
    return 1 / 0


def needs_a_column(response: str, difficulty: str) -> float:
    return 1.0


def infinite(response: str) -> float:
    return float("inf")


def texts(response: str) -> str:
    return "1"


async def awaited(problem: str, response: str, gold: str, difficulty: int) -> dict[str, object]:
    """Use every kind of argument and return named parts."""
    brevity = 1 / (1 + len(response))
    return {
        "reward": float(response == gold) * difficulty,
        "verdict": "Verified",
        "brevity": brevity,
        "detail": problem,
    }


def everything(**columns: object) -> float:
    return float(len(columns))
