"""A pool of verifier processes. Every answer gets a verdict within its time limit; no answer affects another answer.

One process judges one item at a time. A process that exceeds the time limit is killed, and its item gets the verdict
TIMEOUT. A process that dies for another reason is replaced, and its item is tried once more. A loaded spare process
makes a replacement fast."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

from treeadv.errors import BadInput
from treeadv.forest import Verdict
from treeadv.rewards.judgement import MAX_DETAIL, Answer, Grade, Judgement, Task
from treeadv.rewards.sandbox.process import LostUnderItem, WorkerLost, WorkerProcess
from treeadv.rewards.verifiers.registry import screen

__all__ = ["Answer", "Judge", "Judgement", "PoolBroken", "VerifierPool", "judging"]

STORM = 8  # the pool gives up after this many processes in a row that failed to start or died without an item
BACKOFF = 0.05  # seconds before the second replacement in a row; each further pause doubles up to MAX_BACKOFF
MAX_BACKOFF = 2.0


class PoolBroken(RuntimeError):
    """Too many verifier processes in a row died. The message has the last cause."""


@dataclass(slots=True)
class _Item:
    task: Task
    result: asyncio.Future[Judgement]
    lost: str = ""  # the cause of the first process's death while it judged the item

    def settle(self, result: Judgement | BadInput) -> None:
        if self.result.done():  # the call of `grade` was cancelled
            return
        if isinstance(result, BadInput):
            self.result.set_exception(result)
        else:
            self.result.set_result(result)


def _immediate(grade: Grade) -> Judgement:
    """Return the judgement of an answer that `screen` decided."""
    return Judgement(verdict=grade.verdict, reward=grade.reward, seconds=0.0, detail=grade.detail, parts=grade.parts)


Judge: TypeAlias = Callable[[Sequence[Answer]], list[Judgement]]


@contextmanager
def judging(workers: int, timeout: float, memory_mb: int) -> Iterator[Judge]:
    """Yield a function that judges answers, for a caller without an event loop. All its calls share one pool."""
    pool = VerifierPool(workers, timeout, memory_mb)
    with asyncio.Runner() as runner:
        try:
            yield lambda answers: runner.run(pool.grade(answers))
        finally:
            runner.run(pool.close())


class VerifierPool:
    """A pool of `workers` processes that judge answers.

    An answer has a time limit of `timeout` seconds from the time at which a process takes it. A process has `memory_mb`
    MB of address space. A pool belongs to one event loop. The first answer that needs a process starts the processes.
    """

    def __init__(self, workers: int, timeout: float, memory_mb: int) -> None:
        self.restarts = 0
        self._workers, self._timeout, self._memory_mb = workers, timeout, memory_mb
        self._calls: deque[deque[_Item]] = deque()  # one inner queue for each call of `grade`
        self._open: set[asyncio.Future[Judgement]] = set()
        self._arrived = asyncio.Semaphore(0)
        self._slots: list[asyncio.Task[None]] = []
        self._spare: asyncio.Task[WorkerProcess] | None = None
        self._lost_in_a_row = 0
        self._fault: BaseException | None = None

    @property
    def waiting(self) -> int:
        """Return the number of answers that no process has taken yet."""
        return sum(map(len, self._calls))

    @property
    def fault(self) -> str | None:
        """Return the reason why the pool has given up, or None."""
        return None if self._fault is None else str(self._fault)

    async def grade(self, answers: Sequence[Answer]) -> list[Judgement]:
        """Return the judgements in the order of the answers. Equal tasks of one call are judged once.

        Raises `BadInput` for an unknown or unusable verifier, and `PoolBroken` if too many processes die.
        """
        screened = [screen(a) for a in answers]
        items = {s: _Item(s, asyncio.get_running_loop().create_future()) for s in screened if isinstance(s, Task)}
        if items:
            results = [i.result for i in items.values()]
            self._put(deque(items.values()))
            self._open.update(results)
            try:
                await asyncio.gather(*results)
            finally:
                self._open.difference_update(results)
        return [items[s].result.result() if isinstance(s, Task) else _immediate(s) for s in screened]

    async def close(self) -> None:
        """End all processes. Calls of `grade` in progress fail with `PoolBroken`."""
        self._fail(PoolBroken("the pool is closed"))
        for slot in self._slots:
            slot.cancel()
        await asyncio.gather(*self._slots, return_exceptions=True)
        if self._spare:
            await self._discard(self._spare)

    # ---- the queue of items ------------------------------------------------------------------------------------------

    def _put(self, call: deque[_Item], first: bool = False) -> None:
        if self._fault:
            raise self._fault
        if not self._slots:
            self._slots = [asyncio.create_task(self._slot(), name=f"verifier {i}") for i in range(self._workers)]
            for slot in self._slots:
                slot.add_done_callback(self._slot_ended)
        (self._calls.appendleft if first else self._calls.append)(call)
        for _ in call:
            self._arrived.release()

    async def _take(self) -> _Item:
        """Return the next item. The calls of `grade` take turns, so a large call does not delay a small call."""
        await self._arrived.acquire()
        call = self._calls.popleft()
        item = call.popleft()
        if call:
            self._calls.append(call)
        return item

    # ---- the processes -----------------------------------------------------------------------------------------------

    async def _slot(self) -> None:
        """Run one process of the pool: give it one item after another, and replace the process when it has ended."""
        worker = await self._replacement()
        try:
            while True:
                item = await self._take()
                if item.result.done():  # the call of `grade` was cancelled
                    continue
                if not worker.alive:
                    worker = await self._restart()
                await self._judge(worker, item)
                if not worker.alive:
                    worker = await self._restart()
        finally:
            await worker.kill()

    async def _judge(self, worker: WorkerProcess, item: _Item) -> None:
        try:
            judgement = await worker.judge(item.task, self._timeout)
        except BadInput as e:
            item.settle(e)
        except WorkerLost as e:
            if isinstance(e, LostUnderItem):
                self._lost_in_a_row = 0  # the process had started: a verifier that crashes on answers does not count
            else:
                self._count_loss(e)
            if not item.lost:
                item.lost = str(e)
                self._put(deque([item]), first=True)
            else:
                detail = f"the verifier process died twice: {item.lost}, then {e}"[:MAX_DETAIL]
                item.settle(Judgement(verdict=Verdict.CRASH, reward=0.0, seconds=0.0, detail=detail))
        else:
            self._lost_in_a_row = 0
            item.settle(judgement)

    async def _restart(self) -> WorkerProcess:
        self.restarts += 1
        return await self._replacement()

    async def _replacement(self) -> WorkerProcess:
        """Return a process that is ready: the spare process. After several losses in a row, wait first."""
        while True:
            if self._lost_in_a_row > 1:
                await asyncio.sleep(min(MAX_BACKOFF, BACKOFF * 2 ** (self._lost_in_a_row - 2)))
            ahead, self._spare = self._spare or self._start(), None
            try:
                worker = await ahead
            except WorkerLost as e:
                self._count_loss(e)
                continue
            except asyncio.CancelledError:  # the start may have finished just before the cancellation
                await self._discard(ahead)
                raise
            self._spare = self._spare or self._start()
            if worker.alive:
                return worker

    def _start(self) -> asyncio.Task[WorkerProcess]:
        return asyncio.create_task(WorkerProcess.start(self._timeout, self._memory_mb), name="verifier start")

    @staticmethod
    async def _discard(start: asyncio.Task[WorkerProcess]) -> None:
        start.cancel()
        for worker in await asyncio.gather(start, return_exceptions=True):
            if isinstance(worker, WorkerProcess):
                await worker.kill()

    def _count_loss(self, cause: WorkerLost) -> None:
        self._lost_in_a_row += 1
        if self._lost_in_a_row >= STORM:
            raise PoolBroken(
                f"{self._lost_in_a_row} verifier processes in a row were lost; the last cause: {cause}"
            ) from cause

    # ---- the end -----------------------------------------------------------------------------------------------------

    def _slot_ended(self, slot: asyncio.Task[None]) -> None:
        if not slot.cancelled() and (fault := slot.exception()):
            self._fail(fault)

    def _fail(self, fault: BaseException) -> None:
        """Fail every call of `grade` in progress, and every later call."""
        self._fault = self._fault or fault
        for result in self._open:
            if not result.done():
                result.set_exception(self._fault)
