"""Runs work that executes an answer's text in a forked child. The end of the child ends all effects of the text.

Several scorers of reasoning-gym pass the answer to `eval`, or to sympy's parser, which calls `eval`. The child inherits
the worker's loaded modules, so a fork takes milliseconds. The child has no access to the worker's memory, protocol or
files.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import sys
from collections.abc import Callable

LONGEST = 65_536  # largest size of a result in bytes
_RESULT = 3  # the child's only descriptor besides the standard streams, which are /dev/null
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE = 1, 4
_CAPABILITY_VERSION_3 = 0x20080522
_libc = ctypes.CDLL(None, use_errno=True)


class ChildDied(Exception):
    """The child ended without a result. The message is the cause."""


def in_child(work: Callable[[], bytes]) -> bytes:
    """Call `work` in a fork of this process and return its result, one line. The fork is killed in any case."""
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
            result = results.readline(LONGEST)  # one line only: a process of the text may keep the pipe open
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)  # the child and its children
        os.kill(child, signal.SIGKILL)  # needed if the child has not created its process group yet
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if not result.endswith(b"\n"):
        raise ChildDied(ending(code))
    return result


def ending(code: int) -> str:
    """Return a text that says how a process with this exit code ended."""
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:  # most real-time signals have no name
        return f"killed by signal {-code}"


def die_with(parent: int) -> None:
    """Ask the kernel to kill this process at the end of its parent."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # the parent ended before the call above
        sys.exit(0)


def hide() -> None:
    """Hide this process's memory and descriptors from other processes of the same user, such as its children."""
    _libc.prctl(_PR_SET_DUMPABLE, 0)


def _confine(parent: int, write: int) -> None:
    os.setsid()
    # Drop all capabilities, in case the user is root.
    _libc.capset((ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0), (ctypes.c_uint32 * 6)())
    die_with(parent)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))  # no process and no thread; the kernel excepts root
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in range(_RESULT):
        os.dup2(nowhere, stream)
    os.dup2(write, _RESULT)
    os.closerange(_RESULT + 1, os.sysconf("SC_OPEN_MAX"))
