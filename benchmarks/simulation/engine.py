"""A simulated engine: branches that run side by side and share the engine's steps."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import simpy

from benchmarks.simulation.service import Service


@dataclass(slots=True)
class _Group:
    """Branches that were requested together. `done` succeeds with True after the last branch, and with False if the
    engine ends first."""

    left: int
    done: simpy.Event
    started: Callable[[], None]


class Engine:
    """Every running branch gets one token per step, and a step takes `Service.step_seconds(running)`.

    So the branches advance at one common rate. `_steps` counts the steps since the start, and a branch of n tokens ends
    n steps after it got a row. Branches beyond `rows` wait in order."""

    def __init__(self, env: simpy.Environment, service: Service, rows: int) -> None:
        self._env, self._service, self._rows = env, service, rows
        self._steps, self._changed = 0.0, env.now
        self._running: list[tuple[float, int, _Group]] = []  # a heap of (step of the end, number, group)
        self._waiting: deque[tuple[int, _Group]] = deque()
        self._branches = self._turn = self._pauses = 0
        self.busy = self.row_seconds = self.tokens = 0.0
        self.ended = False

    @property
    def free(self) -> int:
        """Return the number of free rows; a negative number counts waiting branches (`EngineStats.free`)."""
        return self._rows - len(self._running) - len(self._waiting)

    def draw(self, lengths: Sequence[int], started: Callable[[], None]) -> simpy.Event:
        """Draw branches of these lengths. `started` is called for each branch when it gets a row."""
        group = _Group(len(lengths), self._env.event(), started)
        if self.ended:
            return group.done.succeed(False)
        self.advance()
        self._waiting.extend((n, group) for n in lengths)
        self._fill()
        return group.done

    def pause(self, seconds: float) -> None:
        """Draw no token for `seconds`, as during an update of the weights."""
        if seconds <= 0 or self.ended:
            return
        self.advance()
        self._pauses += 1
        self._turn += 1
        self._env.timeout(seconds).callbacks.append(self._resume)

    def end(self) -> None:
        """End the engine. All its branches are lost."""
        self.advance()
        self.ended = True
        self._turn += 1
        groups = {id(g): g for _, _, g in self._running} | {id(g): g for _, g in self._waiting}
        self._running, self._waiting = [], deque()
        for group in groups.values():
            group.done.succeed(False)

    def advance(self) -> None:
        """Bring the counters to the present."""
        seconds, running = self._env.now - self._changed, len(self._running)
        self._changed = self._env.now
        if running and not self._pauses:
            steps = seconds / self._service.step_seconds(running)
            self._steps += steps
            self.busy += seconds
            self.row_seconds += running * seconds
            self.tokens += steps * running

    def _resume(self, _: simpy.Event) -> None:
        if not self.ended:
            self.advance()
            self._pauses -= 1
            self._fill()

    def _fill(self) -> None:
        """Start waiting branches in the free rows, and wait for the next end of a branch."""
        while self._waiting and len(self._running) < self._rows:
            length, group = self._waiting.popleft()
            self._branches += 1
            group.started()
            heapq.heappush(self._running, (self._steps + length, self._branches, group))
        self._turn += 1
        if self._running and not self._pauses:
            left = max(0.0, self._running[0][0] - self._steps)
            timer = self._env.timeout(left * self._service.step_seconds(len(self._running)), self._turn)
            timer.callbacks.append(self._finish)

    def _finish(self, timer: simpy.Event) -> None:
        if timer.value != self._turn:  # the branches have changed since, and a later timer counts
            return
        self.advance()
        self._steps = max(self._steps, self._running[0][0])
        while self._running and self._running[0][0] <= self._steps:
            group = heapq.heappop(self._running)[2]
            group.left -= 1
            if not group.left:
                group.done.succeed(True)
        self._fill()
