"""A verifier process: `python -m treeadv.rewards.sandbox.worker SECONDS MEMORY_MB PARENT_PID`. It imports no torch and no ray.

Its protocol is JSON lines on the standard streams. To a task it answers {"took": true} once its verifier is loaded (here the parent's
clock starts), then the outcome. It loads the preloaded verifiers before it reports ready, dies with its parent, and asks to be
replaced when its memory has grown.
"""

from __future__ import annotations

import faulthandler
import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from typing import Any, BinaryIO

from treeadv.forest import Verdict
from treeadv.rewards.judgement import Outcome, Task, share
from treeadv.rewards.sandbox.child import ChildDied, die_with, hide, in_child
from treeadv.rewards.verifiers import registry
from treeadv.rewards.verifiers.base import Unusable

ALARM_SHARE = 0.8  # of the limit: the worker stops itself here, the parent kills at the whole
GROWN = 0.5  # of the memory that the limit leaves to a loaded process: one that ever needed more is replaced after the item
FULL = 0.9  # of the same: a negative verdict is not believed
DETAIL = 300  # characters of a reason that are kept


class Alarm(BaseException):
    """The item's time is over. Not an `Exception`, so that sympy's broad handlers let it pass."""


def main() -> None:
    limit, memory_mb, parent = float(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    die_with(parent)
    hide()
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (memory_mb << 20, memory_mb << 20))
    signal.signal(signal.SIGALRM, _ring)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the driver, which then closes the pool
    tasks, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)  # whatever a verifier prints goes to the log, not into the protocol
    try:
        registry.preload()
    except Exception as e:
        _send(replies, {"fatal": f"the process cannot start: {type(e).__name__}: {e}"})
        raise
    _send(replies, {"ready": True})
    loaded = _peak_bytes()
    for line in tasks:
        _serve(Task(*json.loads(line)), limit, lambda: (_peak_bytes() - loaded) / ((memory_mb << 20) - loaded), replies)


def _serve(task: Task, limit: float, memory: Callable[[], float], replies: BinaryIO) -> None:
    try:
        verifier = registry.load_verifier(task.verifier)
    except Unusable as e:
        _send(replies, {"unusable": str(e)})
        return
    _send(replies, {"took": True})
    try:
        signal.setitimer(signal.ITIMER_REAL, ALARM_SHARE * limit)
        try:
            outcome, spent = (_in_child if verifier.isolated else _judged)(verifier.judge, task, memory)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except Alarm:
        outcome, spent = Outcome(Verdict.TIMEOUT, 0.0, f"over {ALARM_SHARE * limit:g} s"), memory() > GROWN
    reply = {"verdict": int(outcome.verdict), "reward": outcome.reward, "detail": outcome.detail[:DETAIL]}
    _send(replies, reply | {"replace": spent})


def _judged(judge: Callable[[Task], Outcome], task: Task, memory: Callable[[], float]) -> tuple[Outcome, bool]:
    """The outcome, and whether the process is spent (its memory ran out, or has grown)."""
    try:
        outcome = judge(task)
    except MemoryError:
        return Outcome(Verdict.CRASH, 0.0, "memory limit reached"), True
    except Exception as e:
        outcome = Outcome(Verdict.CRASH, 0.0, f"{type(e).__name__}: {e}")
    used = memory()
    if used > FULL and outcome.verdict in (Verdict.WRONG, Verdict.UNPARSED):  # sympy's broad handlers swallow a MemoryError
        outcome = Outcome(Verdict.CRASH, 0.0, "memory limit reached")
    return outcome, used > GROWN


def _in_child(judge: Callable[[Task], Outcome], task: Task, memory: Callable[[], float]) -> tuple[Outcome, bool]:
    """The outcome that a child came to; like the pool, once more where it died. What it says is checked: the text may have said it."""

    def work() -> bytes:
        outcome, _ = _judged(judge, task, memory)
        return json.dumps([outcome.verdict, outcome.reward, outcome.detail[:DETAIL]]).encode()

    deaths: list[str] = []
    while len(deaths) < 2:
        try:
            verdict, reward, detail = json.loads(in_child(work))
            return Outcome(Verdict(verdict), share(reward), str(detail)), False
        except ChildDied as e:
            deaths.append(str(e))
        except Exception as e:
            return Outcome(Verdict.CRASH, 0.0, f"no result: {type(e).__name__}: {e}"), False
    return Outcome(Verdict.CRASH, 0.0, f"its process died twice: {deaths[0]}, then {deaths[1]}"), False


def _ring(signum: int, frame: Any) -> None:
    raise Alarm


def _peak_bytes() -> int:
    """The largest size that this process has had of what RLIMIT_AS limits."""
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) << 10 for line in f if line.startswith("VmPeak"))


def _send(replies: BinaryIO, message: dict[str, Any]) -> None:
    replies.write(json.dumps(message).encode() + b"\n")
    replies.flush()


if __name__ == "__main__":
    main()
