"""The part of `treeadv bench rollout` that keeps every row of an engine in use, as a generator does in training."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from actors.benchmarks.model_time import ModelTime
from actors.driver.in_flight import ForestsInFlight
from treeadv.config import Config
from treeadv.data.problems import Problem
from treeadv.engines.base import Engine
from treeadv.forest import Forest
from treeadv.sampling.request import GrowRequest
from treeadv.sampling.sampler import grow


@dataclass(frozen=True, slots=True, kw_only=True)
class Saturated:
    """What an engine did while forests ended and others took their rows."""

    forests: Sequence[Forest]  # those that ended in the measured time
    seconds: float
    tokens: int  # drawn in the measured time, also for forests that did not end in it
    model_seconds: float | None  # of the measured time, in the model of an embedded engine
    rows: float  # branches that the engine has taken, the mean over the ends of forests
    in_flight: int  # forests that grow at the end

    def figures(self) -> dict[str, float]:
        leaves = sum(f.leaves for f in self.forests)
        tokens_per_leaf = sum(f.tokens for f in self.forests) / leaves
        model = {} if self.model_seconds is None else {"model": self.model_seconds / self.seconds}
        return {
            "leaves": leaves,
            "tokens_per_leaf": tokens_per_leaf,
            "tokens_per_second": self.tokens / self.seconds,
            "seconds_per_leaf": tokens_per_leaf * self.seconds / self.tokens,
            "rows_in_use": self.rows,
            "forests_in_flight": self.in_flight,
            **model,
        }


class Filling:
    """Grows forests on one engine. The number in flight follows the free rows (`ForestsInFlight`), as in training."""

    def __init__(self, engine: Engine, config: Config, prompts: Sequence[np.ndarray], timer: ModelTime | None) -> None:
        """`timer` measures the model of an embedded engine."""
        self._engine, self._config, self._prompts, self._timer = engine, config, prompts, timer
        self._numbers, self._stamp = itertools.count(), time.monotonic_ns()
        self._ended: asyncio.Queue[tuple[Forest, int]] = asyncio.Queue()  # and the branches that draw at its end

    async def measure(self, warmup: int, counted: int) -> Saturated:
        """Grow forests until `warmup` have ended, and measure from then on until `counted` more have ended."""
        loops: list[asyncio.Task[None]] = []
        async with asyncio.TaskGroup() as group:
            in_flight = ForestsInFlight(
                self._config, lambda in_flight: loops.append(group.create_task(self._grow(in_flight)))
            )
            for _ in range(warmup):
                await self._ended.get()
            started, drawn = time.perf_counter(), self._engine.stats().decoded_tokens
            model = self._timer.seconds if self._timer else 0.0
            ended = [await self._ended.get() for _ in range(counted)]
            found = Saturated(
                forests=[forest for forest, _ in ended],
                seconds=time.perf_counter() - started,
                tokens=self._engine.stats().decoded_tokens - drawn,
                model_seconds=self._timer.seconds - model if self._timer else None,
                rows=fmean(rows for _, rows in ended),
                in_flight=in_flight.loops,
            )
            for loop in loops:
                loop.cancel()
        return found

    async def _grow(self, in_flight: ForestsInFlight) -> None:
        sampling, problem = self._config.sampling, Problem(id="p", problem="", answer="", verifier="exact", meta="")
        free: int | None = None
        while free is None or in_flight.keeps_loop(free):
            i = next(self._numbers)
            prompt = self._prompts[i % len(self._prompts)]
            name = f"{sampling.rule}-{self._stamp}-{i}"
            request = GrowRequest(forest_id=name, problem=problem, prompt=prompt, seed=i)
            forest = await grow(self._engine, request, sampling, sampling.tau, frozenset())
            stats = self._engine.stats()
            self._ended.put_nowait((forest, stats.running))
            free = stats.free
