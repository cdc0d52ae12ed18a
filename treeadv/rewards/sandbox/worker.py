"""A verifier process: `python -m treeadv.rewards.sandbox.worker SECONDS MEMORY_MB PARENT_PID`, without torch and ray.

The process reads and writes frames (`frames.py`) on the standard streams. For a task it sends {"took": true} after
loading the verifier, and then the grade. The time limit of the parent starts with {"took": true}. The process loads
the preloaded verifiers before it reports ready. It ends with its parent. It asks for a replacement when its memory has
grown."""

from __future__ import annotations

import faulthandler
import json
import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType

from treeadv.forest import Verdict
from treeadv.jsonl import JsonObject
from treeadv.rewards.judgement import Grade, Task, crashed, from_message, to_message
from treeadv.rewards.sandbox.child import ChildDied, die_with, hide, in_child
from treeadv.rewards.sandbox.frames import START_ID, read_frame, write_frame
from treeadv.rewards.verifiers import registry
from treeadv.rewards.verifiers.base import Unusable, Verifier

ALARM_SHARE = 0.8  # the worker interrupts the verifier at this share of the time limit; the parent kills at the limit
# Shares of the memory between the size of a loaded process and the memory limit
GROWN = 0.5  # a process whose peak exceeds this share is replaced after the item
FULL = 0.9  # a negative verdict of a process whose peak exceeds this share counts as a crash
MAX_REASON = 2000  # longest reason in characters why a verifier cannot be used
_PACKAGE = str(Path(__file__).parents[2])
Reply = Callable[[JsonObject], None]


class Alarm(BaseException):
    """The time limit of the item has passed. This is no `Exception`, because sympy catches every `Exception`."""


def main() -> None:
    limit, memory_mb, parent = float(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    die_with(parent)
    hide()
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (memory_mb << 20, memory_mb << 20))
    signal.signal(signal.SIGALRM, _ring)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver handles Ctrl-C and closes the pool
    tasks, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)  # the output of a verifier goes to the log and not into the protocol
    try:
        registry.preload()
    except Exception as e:
        write_frame(replies, START_ID, {"fatal": f"the process cannot start: {type(e).__name__}: {e}"})
        raise
    write_frame(replies, START_ID, {"ready": True})
    loaded = _peak_bytes()
    while received := read_frame(tasks):
        task_id, (verifier, gold, text, meta) = received
        task = Task(verifier=verifier, gold=gold, text=text, meta=meta, seconds=ALARM_SHARE * limit)
        _serve(
            task,
            partial(write_frame, replies, task_id),
            lambda: (_peak_bytes() - loaded) / ((memory_mb << 20) - loaded),
        )


def _serve(task: Task, reply: Reply, memory: Callable[[], float]) -> None:
    try:
        verifier = registry.load_verifier(task.verifier)
    except Unusable as e:
        reply({"unusable": str(e)[:MAX_REASON].encode("utf-8", "replace").decode()})
        return
    reply({"took": True})
    try:
        signal.setitimer(signal.ITIMER_REAL, task.seconds)
        try:
            grade, spent = (_in_child if verifier.isolated else _judged)(verifier, task, memory)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except Alarm:
        grade = Grade(verdict=Verdict.TIMEOUT, reward=0.0, detail=f"over {task.seconds:g} s")
        spent = memory() > GROWN
    reply({"grade": to_message(grade), "replace": spent})


def _judged(verifier: Verifier, task: Task, memory: Callable[[], float]) -> tuple[Grade, bool]:
    """Return the grade, and whether the process must be replaced because its memory ran out or has grown."""
    try:
        grade = verifier.judge(task)
    except MemoryError:
        return crashed("memory limit reached"), True
    except Exception as e:
        grade = crashed(f"{type(e).__name__}: {e}{_place(e)}")
    used = memory()
    # sympy catches a MemoryError and may return a wrong verdict
    if used > FULL and grade.verdict in (Verdict.WRONG, Verdict.UNPARSED):
        grade = crashed("memory limit reached")
    return grade, used > GROWN


def _place(error: Exception) -> str:
    """Return " (FILE:LINE)" of the user's code that raised the error, or "" if only installed packages raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [
        f
        for f in frames
        if not any(
            fragment in f.filename for fragment in ("site-packages", _PACKAGE, "<frozen", sys.base_prefix + "/lib")
        )
    ]
    return f" ({own[-1].filename}:{own[-1].lineno})" if own else ""


def _in_child(verifier: Verifier, task: Task, memory: Callable[[], float]) -> tuple[Grade, bool]:
    """Return the grade of a forked child, and whether this process must be replaced.

    A child that dies is tried once more, as in the pool. The result is checked, because the answer's text may have
    written it."""

    def work() -> bytes:
        return json.dumps(to_message(_judged(verifier, task, memory)[0])).encode()

    deaths: list[str] = []
    while len(deaths) < 2:
        try:
            grade = from_message(json.loads(in_child(work)))
            if abs(grade.reward) > verifier.largest_reward:
                raise ValueError(f"the reward {grade.reward:g} is larger than {verifier.largest_reward:g}")
            return grade, False
        except ChildDied as e:
            deaths.append(str(e))
        except Exception as e:
            return crashed(f"no result: {type(e).__name__}: {e}"), False
    return crashed(f"the verifier process died twice: {deaths[0]}, then {deaths[1]}"), False


def _ring(signum: int, frame: FrameType | None) -> None:
    raise Alarm


def _peak_bytes() -> int:
    """Return the peak size of this process's address space, which RLIMIT_AS limits."""
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) << 10 for line in f if line.startswith("VmPeak"))


if __name__ == "__main__":
    main()
