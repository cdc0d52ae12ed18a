"""The reward role: it grades the leaves of forests. The role is a plain class; the driver creates Ray actors from
it."""

from __future__ import annotations

import asyncio
import os
from collections import defaultdict
from dataclasses import dataclass
from statistics import fmean

import numpy as np
import pyarrow as pa
import ray

from actors.heartbeat import Heartbeat
from treeadv import wire
from treeadv.config import Config
from treeadv.data.model_folder import resolve
from treeadv.data.tokenizer_file import open_tokenizer
from treeadv.forest import Forest
from treeadv.metrics import Exporter
from treeadv.rewards.grading import grade_forest
from treeadv.rewards.sandbox.pool import VerifierPool
from treeadv.rewards.watch import failure_of


@dataclass(frozen=True, slots=True, kw_only=True)
class GradeReport:
    """The results of all leaves of a batch. `failure` is the detail of a leaf on which the verifier failed; "" if there
    is no such leaf."""

    verdicts: tuple[int, ...]
    finishes: tuple[int, ...]
    lengths: tuple[int, ...]  # tokens from the root to the end of the leaf
    versions: tuple[int, int]  # oldest and newest policy version of the tokens
    failure: str


class RewardActor(Heartbeat):
    """A Ray actor that decodes leaves, judges them in processes that can be killed, and returns graded forests."""

    def __init__(self, config: Config, index: int, port: int = 0) -> None:
        """Load the tokenizer and start the verifier processes.

        `index` is the number of this actor within its role. The actor serves /metrics and /healthz at `port` (0: any
        free port)."""
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        self.index = index
        folder = resolve(
            config.model.path, config.model.cache, ["tokenizer.json"]
        )  # a download from the hub fetches no weights
        self._tokenizer = open_tokenizer(folder)
        self._pool = VerifierPool(config.reward.workers, config.reward.timeout, config.reward.memory_mb)
        self._exporter = Exporter("reward", health=lambda: self._pool.fault)
        self._address = self._exporter.serve(config.metrics.host, port)
        self._restarts = 0

    @ray.method(num_returns=2)
    async def grade(self, batch: pa.RecordBatch, row: int | None = None) -> tuple[pa.RecordBatch, GradeReport]:
        """Return the forests of a batch, or only of its row `row`, with the reward, verdict and detail of every leaf,
        and a report of the verdicts.

        A leaf that the engine lost gets the verdict ABORTED. Ray makes two objects of the result: the caller waits for
        the report and passes on a reference to the forests."""
        forests = wire.from_batch(batch if row is None else batch.slice(row, 1))
        graded = await asyncio.gather(*map(self._graded, forests))
        failures = [failure for f in graded if (failure := failure_of(f))]
        report = GradeReport(
            verdicts=tuple(v for f in graded for v in f.verdict.tolist()),
            finishes=tuple(v for f in graded for v in f.finish.tolist()),
            lengths=tuple(n for f in graded for n in (f.offset + f.lengths)[f.leaf_segment].tolist()),
            versions=(min(f.oldest_version for f in graded), max(f.newest_version for f in graded)),
            failure=failures[-1] if failures else "",
        )
        return wire.to_batch(graded, checked=True), report  # `with_rewards` checks them

    @ray.method
    async def address(self) -> str:
        """Return host:port of /metrics."""
        return self._address

    @ray.method
    async def close(self) -> None:
        await self._pool.close()
        self._exporter.close()

    async def _graded(self, forest: Forest) -> Forest:
        """Grade a forest and export metrics: verdict and time of every answer, and the queue length and the restarts of
        the pool."""
        grading = asyncio.ensure_future(grade_forest(self._pool, forest, self._decode))
        await asyncio.sleep(0)  # lets the task put its answers into the pool's queue
        self._exporter.set("treeadv_reward_waiting_answers", self._pool.waiting)
        try:
            graded, judged = await grading
        finally:
            self._exporter.set("treeadv_reward_waiting_answers", self._pool.waiting)
            self._exporter.add("treeadv_reward_worker_restarts_total", self._pool.restarts - self._restarts)
            self._restarts = self._pool.restarts
        parts: defaultdict[str, list[float]] = defaultdict(list)
        for j in judged:
            for name, value in j.parts.items():
                parts[name].append(value)
            self._exporter.add("treeadv_rewards_total", verdict=j.verdict.name.lower())
            self._exporter.observe("treeadv_reward_seconds", j.seconds)
        for name, values in parts.items():
            self._exporter.set("treeadv_reward_part_mean", fmean(values), part=name)
        return graded

    def _decode(self, tokens: np.ndarray) -> str:
        return self._tokenizer.decode(tokens.tolist(), skip_special_tokens=True)
