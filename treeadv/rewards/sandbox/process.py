"""The parent's side of one verifier process. It starts the process, lets it judge one task at a time, and kills it."""

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

from treeadv.errors import BadInput
from treeadv.forest import Verdict
from treeadv.jsonl import JsonObject
from treeadv.rewards.judgement import Judgement, Task, from_message
from treeadv.rewards.sandbox.child import ending
from treeadv.rewards.sandbox.frames import START_ID, BadFrame, frame, receive_frame

# The environment variables that a worker inherits. Credentials are left out, because a worker processes model text.
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
    "TREEADV_VERIFIER_*",  # for users' verifiers
)
START_LIMIT = 60.0  # time limit in seconds for imports at the start of the process or of a verifier's first item


class WorkerLost(Exception):
    """The process ended or never became ready, and the pool did not end it. The message says how."""


class LostUnderItem(WorkerLost):
    """The process ended while it judged an item."""


class WorkerProcess:
    """A started process that is ready for tasks, in its own process session. It judges one task at a time."""

    def __init__(
        self, process: subprocess.Popen[bytes], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._process, self._from, self._to = process, reader, writer
        self._exited: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pidfd = os.pidfd_open(process.pid)
        asyncio.get_running_loop().add_reader(self._pidfd, self._note_exit)

    @classmethod
    async def start(cls, timeout: float, memory_mb: int) -> WorkerProcess:
        """Start a new interpreter. A fork is not safe, because the caller may have loaded torch, Ray and threads."""
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
        """Return the judgement of a task. The process is killed if it exceeds the time limit.

        Raises `WorkerLost`, or `BadInput` for an unusable verifier."""
        task_id = secrets.token_hex(8)
        with contextlib.suppress(ConnectionError):  # reading the reply detects a dead process
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
            grade = from_message(reply.get("grade"))
        except ValueError as e:
            await self.kill()
            raise LostUnderItem(f"the reply was refused: {e}") from e
        if reply.get("replace"):
            await self.kill()
        return Judgement(
            verdict=grade.verdict,
            reward=grade.reward,
            seconds=time.monotonic() - began,
            detail=grade.detail,
            parts=grade.parts,
        )

    async def kill(self) -> None:
        """Kill the process and all other processes of its session, and wait for the end of the process."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)  # before the process is reaped and its id is reused
        await asyncio.shield(self._exited)
        self._process.wait()
        self._to.close()  # without waiting: a process that left the session may keep the other end open

    def _note_exit(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._exited.set_result(None)

    async def _ready(self, task_id: str) -> JsonObject:
        """Return the next message, which follows the imports."""
        try:
            return await self._reply(task_id, START_LIMIT)
        except TimeoutError:
            await self.kill()
            raise WorkerLost(f"not ready after {START_LIMIT:g} s") from None

    async def _reply(self, task_id: str, limit: float) -> JsonObject:
        """Return the next message of the task. Raises `TimeoutError`, or `WorkerLost` with the cause of the end."""
        reading = asyncio.ensure_future(receive_frame(self._from, task_id))
        try:
            # Wait for the end of the process too: a child of the process may keep the stream open.
            waited: list[asyncio.Future[JsonObject] | asyncio.Future[None]] = [reading, self._exited]
            await asyncio.wait(waited, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
            if not reading.done() and self._exited.done():
                await asyncio.wait([reading], timeout=0.1)  # read the last output of the process
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
                await self.kill()  # the process closed the stream
            await asyncio.shield(self._exited)
            raise WorkerLost(ending(self._process.wait())) from None
        if "fatal" in message:
            raise WorkerLost(str(message["fatal"]))
        return message
