"""Calls of actors that carry the items of several tasks."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Batcher(Generic[T, R]):
    """A function of one item that sends the items of all waiting callers together.

    One call of `send` runs at a time. While it runs, further items wait for the next call. So a single item waits for
    nothing, and under load one call carries many items."""

    def __init__(
        self, send: Callable[[list[T]], Awaitable[Sequence[R]]], start: Callable[[Coroutine[None, None, None]], object]
    ) -> None:
        """`send` returns the results of the first of its items, at least of one. The other items are sent again.

        `start` starts a task that sends."""
        self._send, self._start = send, start
        self._waiting: list[tuple[T, asyncio.Future[R]]] = []
        self._is_sending = False

    async def __call__(self, item: T) -> R:
        """Return the result of `item`. Raises the error of the call that carries it."""
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if not self._is_sending:
            self._is_sending = True
            self._start(self._run())  # the task runs after the tasks that are ready now, so it sends their items too
        return await future

    async def _run(self) -> None:
        try:
            while taken := [(item, future) for item, future in self._waiting if not future.done()]:
                self._waiting = []
                await self._carry(taken)
        finally:
            self._is_sending = False

    async def _carry(self, taken: list[tuple[T, asyncio.Future[R]]]) -> None:
        """Send items and give each of their callers its result."""
        try:
            results = await self._send([item for item, _ in taken])
        except Exception as fault:
            for _, future in taken:
                if not future.done():  # its caller may be cancelled
                    future.set_exception(fault)
            return
        for (_, future), result in zip(taken, results, strict=False):
            if not future.done():
                future.set_result(result)
        self._waiting = taken[len(results) :] + self._waiting
