"""A forked child for work that evaluates an answer's text: whatever the text does there ends with the child.

Several scorers of reasoning-gym give the answer to `eval`, or to sympy's parser, which does. The fork has all that the
worker has loaded, so it costs milliseconds, and it cannot reach the worker: not its memory, its protocol or its files.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import sys
from collections.abc import Callable

LONGEST = 65_536  # bytes of a result that are read
_RESULT = 3  # the child's one descriptor besides the standard streams, which lead nowhere
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE = 1, 4
_CAPABILITY_VERSION_3 = 0x20080522
_libc = ctypes.CDLL(None, use_errno=True)


class ChildDied(Exception):
    """The child ended without a result. The text says how."""


def in_child(work: Callable[[], bytes]) -> bytes:
    """The line that `work` returns in a fork of this process, which is killed when this call ends, however it ends."""
    read, write = os.pipe()
    this = os.getpid()
    if not (child := os.fork()):
        try:
            _confine(this, write)
            os.write(_RESULT, work() + b"\n")
        except BaseException:
            os._exit(1)
        os._exit(0)
    os.close(write)
    try:
        with os.fdopen(read, "rb") as results:
            result = results.readline(LONGEST)  # not to its end: a process that the text started may hold it open
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)  # and its children
        os.kill(child, signal.SIGKILL)  # where it had no time yet to lead its group
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if not result.endswith(b"\n"):
        raise ChildDied(ending(code))
    return result


def ending(code: int) -> str:
    """How a process with this exit code ended."""
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:  # most real-time signals have no name
        return f"killed by signal {-code}"


def die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent ends, even in the middle of an item."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the call above
        sys.exit(0)


def hide() -> None:
    """Keep this process's memory and descriptors from others of its user: from its own children above all."""
    _libc.prctl(_PR_SET_DUMPABLE, 0)


def _confine(parent: int, write: int) -> None:
    os.setsid()
    # Root too has no capability left.
    _libc.capset((ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0), (ctypes.c_uint32 * 6)())
    die_with(parent)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))  # no process and no thread; the kernel excepts root
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in range(_RESULT):
        os.dup2(nowhere, stream)
    os.dup2(write, _RESULT)
    os.closerange(_RESULT + 1, os.sysconf("SC_OPEN_MAX"))
