"""A verifier process: `python -m treeadv.rewards.sandbox.worker SECONDS MEMORY_MB PARENT_PID`. It imports no torch and
no ray.

It speaks frames (`frames.py`) on the standard streams. To a task it answers {"took": true} once its verifier is loaded
(here the parent's clock starts), then the outcome. It loads the preloaded verifiers before it reports ready, dies with
its parent, and asks to be replaced when its memory has grown."""

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
from typing import Any

from treeadv.forest import Verdict
from treeadv.rewards.judgement import Outcome, Task, crashed, from_message, to_message
from treeadv.rewards.sandbox.child import ChildDied, die_with, hide, in_child
from treeadv.rewards.sandbox.frames import START_ID, read_frame, write_frame
from treeadv.rewards.verifiers import registry
from treeadv.rewards.verifiers.base import Unusable, Verifier

ALARM_SHARE = 0.8  # of the limit: the worker stops itself here, the parent kills at the whole
# Shares of the memory that the limit leaves to a loaded process.
GROWN = 0.5  # a process that ever needed more is replaced after the item
FULL = 0.9  # a negative verdict of a process that ever needed more is not believed
MAX_REASON = 2000  # characters of the reason why a verifier cannot be used
_PACKAGE = str(Path(__file__).parents[2])
Reply = Callable[[dict[str, Any]], None]


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
        write_frame(replies, START_ID, {"fatal": f"the process cannot start: {type(e).__name__}: {e}"})
        raise
    write_frame(replies, START_ID, {"ready": True})
    loaded = _peak_bytes()
    while received := read_frame(tasks):
        task_id, (verifier, gold, text, meta) = received
        task = Task(verifier, gold, text, meta, ALARM_SHARE * limit)
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
            outcome, spent = (_in_child if verifier.isolated else _judged)(verifier, task, memory)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except Alarm:
        outcome, spent = Outcome(Verdict.TIMEOUT, 0.0, f"over {task.seconds:g} s"), memory() > GROWN
    reply({"outcome": to_message(outcome), "replace": spent})


def _judged(verifier: Verifier, task: Task, memory: Callable[[], float]) -> tuple[Outcome, bool]:
    """The outcome, and whether the process is spent (its memory ran out, or has grown)."""
    try:
        outcome = verifier.judge(task)
    except MemoryError:
        return crashed("memory limit reached"), True
    except Exception as e:
        outcome = crashed(f"{type(e).__name__}: {e}{_place(e)}")
    used = memory()
    # sympy's broad handlers swallow a MemoryError
    if used > FULL and outcome.verdict in (Verdict.WRONG, Verdict.UNPARSED):
        outcome = crashed("memory limit reached")
    return outcome, used > GROWN


def _place(error: Exception) -> str:
    """Where code of the user raised the error: " (FILE:LINE)", or "" where only installed packages did."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [
        f
        for f in frames
        if not any(part in f.filename for part in ("site-packages", _PACKAGE, "<frozen", sys.base_prefix + "/lib"))
    ]
    return f" ({own[-1].filename}:{own[-1].lineno})" if own else ""


def _in_child(verifier: Verifier, task: Task, memory: Callable[[], float]) -> tuple[Outcome, bool]:
    """The outcome that a child came to; like the pool, once more where it died. The result is checked, for the text of
    the answer may have written it."""

    def work() -> bytes:
        return json.dumps(to_message(_judged(verifier, task, memory)[0])).encode()

    deaths: list[str] = []
    while len(deaths) < 2:
        try:
            outcome = from_message(json.loads(in_child(work)))
            if abs(outcome.reward) > verifier.largest_reward:
                raise ValueError(f"the reward {outcome.reward:g} is larger than {verifier.largest_reward:g}")
            return outcome, False
        except ChildDied as e:
            deaths.append(str(e))
        except Exception as e:
            return crashed(f"no result: {type(e).__name__}: {e}"), False
    return crashed(f"its process died twice: {deaths[0]}, then {deaths[1]}"), False


def _ring(signum: int, frame: Any) -> None:
    raise Alarm


def _peak_bytes() -> int:
    """The largest size that this process has had of what RLIMIT_AS limits."""
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) << 10 for line in f if line.startswith("VmPeak"))


if __name__ == "__main__":
    main()
