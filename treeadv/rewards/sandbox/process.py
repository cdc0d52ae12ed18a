"""One verifier process as its parent sees it: start, judge one task, kill."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from fnmatch import fnmatchcase
from typing import Any

from treeadv.errors import BadInput
from treeadv.forest import Verdict
from treeadv.rewards.judgement import Judgement, Task, from_message
from treeadv.rewards.sandbox.child import ending
from treeadv.rewards.sandbox.frames import START_ID, BadFrame, frame, receive_frame

# What a worker inherits of the environment: credentials are not for code that comes near model text.
PASSED = (
    "PATH",
    "HOME",
    "TMPDIR",
    "TZ",
    "LANG",
    "LANGUAGE",
    "LC_*",
    "LD_LIBRARY_PATH",
    "PYTHON*",
    "SSL_CERT_*",
    "*_proxy",
    "*_PROXY",
    "TREEADV_VERIFIER_*",  # for verifiers of users
)
START_LIMIT = 60.0  # seconds for imports, of the process itself or of the verifier that an item is the first to need


class WorkerLost(Exception):
    """The process ended, or never became ready, through no decision of the pool. The text says how."""


class LostUnderItem(WorkerLost):
    """The process was ready and had taken the item: what the item made it do ended it."""


class WorkerProcess:
    """A started process that is ready for tasks, in a session of its own. Holds one task at a time."""

    def __init__(
        self, process: subprocess.Popen[bytes], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._process, self._from, self._to = process, reader, writer
        self._exited: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pidfd = os.pidfd_open(process.pid)
        asyncio.get_running_loop().add_reader(self._pidfd, self._note_exit)

    @classmethod
    async def start(cls, timeout: float, memory_mb: int) -> WorkerProcess:
        """A fresh interpreter, not a fork: the caller may hold torch, Ray and threads."""
        environment: dict[str, str] = {
            **{name: value for name, value in os.environ.items() if any(fnmatchcase(name, p) for p in PASSED)},
            "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
            "PYTHONHASHSEED": "0",
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
        }
        command = [
            sys.executable,
            "-m",
            "treeadv.rewards.sandbox.worker",
            str(timeout),
            str(memory_mb),
            str(os.getpid()),
        ]
        ours, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen(
                command, stdin=theirs.fileno(), stdout=theirs.fileno(), env=environment, start_new_session=True
            )
        ours.setblocking(False)
        try:
            worker = cls(process, *await asyncio.open_connection(sock=ours))
        except BaseException:
            ours.close()
            process.kill()
            process.wait()
            raise
        try:
            await worker._ready(START_ID)
        except BaseException:
            await worker.kill()
            raise
        return worker

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return not self._exited.done()

    async def judge(self, task: Task, timeout: float) -> Judgement:
        """The judgement; on an overrun the process is killed. Raises `WorkerLost`, or `BadInput` for an unusable
        verifier."""
        task_id = secrets.token_hex(8)
        with contextlib.suppress(ConnectionError):  # a dead process shows in the reply
            self._to.write(frame(task_id, [task.verifier, task.gold, task.text, task.meta]))
            await self._to.drain()
        reply = await self._ready(task_id)
        began = time.monotonic()
        if "took" in reply:
            try:
                reply = await self._reply(task_id, timeout)
            except WorkerLost as e:
                raise LostUnderItem(*e.args) from None
            except TimeoutError:
                await self.kill()
                detail = f"killed after {timeout:g} s"
                return Judgement(verdict=Verdict.TIMEOUT, reward=0.0, seconds=time.monotonic() - began, detail=detail)
        if "unusable" in reply:
            raise BadInput(str(reply["unusable"]))
        try:
            outcome = from_message(reply.get("outcome"))
        except ValueError as e:
            await self.kill()
            raise LostUnderItem(f"its reply was refused: {e}") from e
        if reply.get("replace"):
            await self.kill()
        return Judgement(
            verdict=outcome.verdict,
            reward=outcome.reward,
            seconds=time.monotonic() - began,
            detail=outcome.detail,
            parts=outcome.parts,
        )

    async def kill(self) -> None:
        """Kill the process and every process of its session that it left, and wait until it is gone."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)  # before it is reaped, when the number may become another's
        await asyncio.shield(self._exited)
        self._process.wait()
        self._to.close()  # not waited for: a process that left the session may hold the other end open

    def _note_exit(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._exited.set_result(None)

    async def _ready(self, task_id: str) -> dict[str, Any]:
        """The next message, after imports."""
        try:
            return await self._reply(task_id, START_LIMIT)
        except TimeoutError:
            await self.kill()
            raise WorkerLost(f"not ready after {START_LIMIT:g} s") from None

    async def _reply(self, task_id: str, limit: float) -> dict[str, Any]:
        """The next message of the task. Raises `TimeoutError`, or `WorkerLost` with the way the process ended."""
        reading = asyncio.ensure_future(receive_frame(self._from, task_id))
        try:
            # The end of the process is watched beside the stream, which a child that it left may hold open.
            waited: list[asyncio.Future[Any]] = [reading, self._exited]
            await asyncio.wait(waited, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
            if not reading.done() and self._exited.done():
                await asyncio.wait([reading], timeout=0.1)  # its last output
            if not reading.done() and not self._exited.done():
                raise TimeoutError
        finally:
            reading.cancel()
        try:
            message = await reading
        except BadFrame as e:
            await self.kill()
            raise WorkerLost(str(e)) from e
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            if not self._exited.done() and not reading.cancelled():
                await self.kill()  # it closed the stream
            await asyncio.shield(self._exited)
            raise WorkerLost(ending(self._process.wait())) from None
        if "fatal" in message:
            raise WorkerLost(str(message["fatal"]))
        return message
