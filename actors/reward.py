"""The reward role: grades the leaves of forests. A plain class; whoever builds the run makes a Ray actor of it."""

from __future__ import annotations

import asyncio
import os
from collections import defaultdict
from dataclasses import dataclass
from statistics import fmean

import numpy as np
import pyarrow as pa
import ray
from tokenizers import Tokenizer

from actors.heartbeat import Heartbeat
from treeadv import wire
from treeadv.config import Config
from treeadv.data.model_folder import resolve
from treeadv.forest import Forest
from treeadv.metrics import Exporter
from treeadv.rewards.grading import grade_forest
from treeadv.rewards.sandbox.pool import VerifierPool
from treeadv.rewards.watch import failure_of


@dataclass(frozen=True, slots=True, kw_only=True)
class GradeReport:
    """The results of all leaves of a batch, and the detail of a leaf on which the verifier failed ("" if none)."""

    verdicts: tuple[int, ...]
    finishes: tuple[int, ...]
    lengths: tuple[int, ...]  # tokens from the root to the end of the leaf
    versions: tuple[int, int]  # oldest and newest policy version of the tokens
    failure: str


class RewardActor(Heartbeat):
    """Decodes leaves, has them judged by killable processes, and hands the forests back graded."""

    def __init__(self, config: Config, index: int, port: int = 0) -> None:
        """`index` is this actor's number within its role, `port` where it serves /metrics and /healthz (0: any free
        port)."""
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        self.index = index
        folder = resolve(
            config.model.path, config.model.cache, ["tokenizer.json"]
        )  # of a model of the hub not the weights
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._pool = VerifierPool(config.reward.workers, config.reward.timeout, config.reward.memory_mb)
        self._exporter = Exporter("reward", health=lambda: self._pool.fault)
        self._address = self._exporter.serve(config.metrics.host, port)
        self._restarts = 0

    @ray.method(num_returns=2)
    async def grade(self, batch: pa.RecordBatch) -> tuple[pa.RecordBatch, GradeReport]:
        """The same forests with reward, verdict and detail of every leaf, and what the verifier made of them.

        A leaf that the engine lost is ABORTED. The caller asks Ray for two returns: it waits for the small one and
        passes the other on as a reference."""
        graded = [await self._graded(f) for f in wire.from_batch(batch)]
        failures = [failure for f in graded if (failure := failure_of(f))]
        report = GradeReport(
            verdicts=tuple(int(v) for f in graded for v in f.verdict),
            finishes=tuple(int(v) for f in graded for v in f.finish),
            lengths=tuple(int(n) for f in graded for n in (f.offset + f.lengths)[f.leaf_segment]),
            versions=(min(f.oldest_version for f in graded), max(f.newest_version for f in graded)),
            failure=failures[-1] if failures else "",
        )
        return wire.to_batch(graded), report

    @ray.method
    async def address(self) -> str:
        """host:port of /metrics."""
        return self._address

    @ray.method
    async def close(self) -> None:
        await self._pool.close()
        self._exporter.close()

    async def _graded(self, forest: Forest) -> Forest:
        """Grade, and keep the metrics: of every answer its verdict and time, of the pool its queue and its restarts."""
        grading = asyncio.ensure_future(grade_forest(self._pool, forest, self._decode))
        await asyncio.sleep(0)  # the call has put its answers into the queue
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
