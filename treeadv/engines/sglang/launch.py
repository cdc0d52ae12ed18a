"""The program that starts a server of SGLang on Linux: `python -m treeadv.engines.sglang.launch ARGS`.

The process becomes the server by exec. It ends when the process that started it ends. A generator that is killed cannot
stop its server, so the kernel stops the server (prctl PR_SET_PDEATHSIG, which survives exec). The children of the
server watch the server in the same way.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h

if __name__ == "__main__":
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() == 1 and os.getpid() != 1:
        sys.exit("the process that started this server has ended")
    os.execv(sys.executable, [sys.executable, "-m", "sglang.launch_server", *sys.argv[1:]])
