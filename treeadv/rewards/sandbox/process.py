"""One verifier process as its parent sees it: start, judge one task, kill."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import time
from fnmatch import fnmatchcase
from typing import Any

from treeadv.errors import BadInput
from treeadv.forest import Verdict
from treeadv.rewards.judgement import Judgement, Task
from treeadv.rewards.sandbox.child import ending

# What a worker inherits of the environment: credentials are not for code that comes near model text.
PASSED = (
    "PATH", "HOME", "TMPDIR", "TZ", "LANG", "LANGUAGE", "LC_*", "LD_LIBRARY_PATH", "PYTHON*", "SSL_CERT_*", "*_proxy", "*_PROXY",
    "TREEADV_VERIFIER_*",  # for verifier functions of users
)  # fmt: skip
START_LIMIT = 60.0  # seconds for imports, of the process itself or of the verifier that an item is the first to need


class WorkerLost(Exception):
    """The process ended, or never became ready, through no decision of the pool. The text says how."""


class LostUnderItem(WorkerLost):
    """It had passed its proof and taken the item: what the item made it do ended it."""


class WorkerProcess:
    """A started process that has proved itself on a known answer. Holds one task at a time."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None and process.stdout is not None
        self._process, self._to, self._from = process, process.stdin, process.stdout

    @classmethod
    async def start(cls, timeout: float, memory_mb: int) -> WorkerProcess:
        """A fresh interpreter, not a fork: the caller may hold torch, Ray and threads."""
        environment = {
            **{name: value for name, value in os.environ.items() if any(fnmatchcase(name, p) for p in PASSED)},
            "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "PYTHONHASHSEED": "0",
            "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1",
        }  # fmt: skip
        command = [sys.executable, "-m", "treeadv.rewards.sandbox.worker", str(timeout), str(memory_mb), str(os.getpid())]
        pipe = asyncio.subprocess.PIPE
        worker = cls(await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, env=environment))
        try:
            await worker._ready()
        except BaseException:
            await worker.kill()
            raise
        return worker

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.returncode is None

    async def judge(self, task: Task, timeout: float) -> Judgement:
        """The judgement; on an overrun the process is killed. Raises `WorkerLost`, or `BadInput` for an unusable verifier."""
        with contextlib.suppress(ConnectionError):  # a dead process shows in the reply
            self._to.write(json.dumps([task.verifier, task.gold, task.text, task.meta]).encode() + b"\n")
            await self._to.drain()
        reply = await self._ready()
        began = time.monotonic()
        if "took" in reply:
            try:
                reply = await self._reply(timeout)
            except WorkerLost as e:
                raise LostUnderItem(*e.args) from None
            except TimeoutError:
                await self.kill()
                return Judgement(Verdict.TIMEOUT, 0.0, time.monotonic() - began, f"killed after {timeout:g} s")
        if "unusable" in reply:
            raise BadInput(reply["unusable"])
        judgement = Judgement(Verdict(reply["verdict"]), reply["reward"], time.monotonic() - began, reply["detail"])
        if reply["replace"]:
            await self.kill()
        return judgement

    async def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()

    async def _ready(self) -> dict[str, Any]:
        """The next message, after imports."""
        try:
            return await self._reply(START_LIMIT)
        except TimeoutError:
            await self.kill()
            raise WorkerLost(f"not ready after {START_LIMIT:g} s") from None

    async def _reply(self, limit: float) -> dict[str, Any]:
        """The next message. Raises `TimeoutError`, or `WorkerLost` with the way the process ended."""
        async with asyncio.timeout(limit):  # not wait_for: Python 3.11's swallows a cancellation that meets the reply
            line = await self._from.readline()
        if not line.endswith(b"\n"):  # nothing more, or half a message of a process that was killed over it
            raise WorkerLost(ending(await self._process.wait()))
        message = json.loads(line)
        if "fatal" in message:
            raise WorkerLost(message["fatal"])
        return message
