"""The roles of `treeadv bench driver`: an engine without a model, a learner without a model, and actors that measure.

Each actor has the method `used`, which returns the CPU seconds of its process and of parts of its work."""

from __future__ import annotations

import asyncio
import functools
import os
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from ray import ObjectRef

from actors.benchmarks.synthetic import binary_forest
from actors.driver.roles import Roles
from actors.generator import Generator
from actors.learner import Learner
from actors.replay_queue import ReplayQueue
from actors.reward import RewardActor
from actors.weight_bucket import WeightBucket
from treeadv import wire
from treeadv.config import Config
from treeadv.data.tickets import Ticket
from treeadv.engines.base import Draw, EngineStats, Params, Weights
from treeadv.forest import Finish, Forest, Verdict
from treeadv.learning.answers import AnswerFigures
from treeadv.learning.report import StepReport
from treeadv.sampling.grower import Grower

Used = dict[str, float]
_PARTS = {  # method of the store -> part of the cost of a forest
    "reserve_many": "reserve",
    "admit_many": "admit",
    "lease": "lease",
    "ack": "finish",
    "commit": "finish",
    "compaction": "finish",
}


class StubEngine:
    """An engine that draws the same token again and again. A branch has as many tokens as it may have."""

    def __init__(self) -> None:
        self.version, self.longest, self.gone = 0, 1 << 30, ""
        self._drawn = 0

    @classmethod
    def check(cls, config: Config) -> None:
        pass  # there is no option

    @classmethod
    def cuda_option(cls, config: Config) -> str:
        return ""

    @classmethod
    async def create(cls, config: Config, model_dir: Path, index: int) -> StubEngine:
        return cls()

    async def generate(self, prefix: np.ndarray, params: Params, namespace: str, tree: str) -> AsyncIterator[Draw]:
        await asyncio.sleep(0)
        self._drawn += params.max_tokens
        draw = Draw(token=2, logprob=-0.5, entropy=0.5, version=self.version)
        for _ in range(params.max_tokens - 1):
            yield draw
        yield replace(draw, finish=Finish.LENGTH)

    async def release(self, namespace: str) -> None:
        pass  # there is no cache

    async def update_weights(self, version: int, weights: Weights) -> float:
        self.version = version
        return 0.0

    def stats(self) -> EngineStats:
        return EngineStats(decoded_tokens=self._drawn)

    async def close(self) -> None:
        pass  # there is no process


class _Measured:
    """An actor that measures its process and parts of its work."""

    @functools.cached_property
    def seconds(self) -> defaultdict[str, float]:
        return defaultdict(float)

    @ray.method
    def used(self) -> tuple[int, Used]:
        """Return the id of this process, and CPU seconds of it (`all`) and of parts of it."""
        return os.getpid(), {"all": time.process_time(), **self.seconds}

    def _timed(self, component: str, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def timed(*args: Any, **more: Any) -> Any:
            began = time.thread_time()
            try:
                return call(*args, **more)
            finally:
                self.seconds[component] += time.thread_time() - began

        return timed


class MeasuredQueue(ReplayQueue, _Measured):
    """The queue of a run, which measures the work of its store."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        for method, component in _PARTS.items():
            setattr(self._store, method, self._timed(component, getattr(self._store, method)))


class MeasuredGenerator(Generator, _Measured):
    """A generator with a stub engine. The sampler draws every token of a forest."""


class PreparedGenerator(MeasuredGenerator):
    """A generator that delivers copies of one forest instead of a drawn forest."""

    @functools.cached_property
    def _forest(self) -> Forest:
        c = self._config.sampling
        return ungraded(binary_forest(c.leaves, c.max_tokens))

    async def _drawn(self, grower: Grower, ticket: Ticket) -> Forest:
        f, p = self._forest, ticket.problem
        version = np.full(f.tokens, self.engine.version, np.int32)
        return replace(f, forest_id=ticket.forest_id, prompt_id=p.id, gold=p.answer, version=version)


class MeasuredReward(RewardActor, _Measured):
    """A reward actor whose verifier judges every leaf."""


class PreparedReward(MeasuredReward):
    """A reward actor that gives every forest the same grades without a verifier."""

    async def _graded(self, forest: Forest) -> Forest:
        return graded(forest)


class StubLearner(Learner, _Measured):
    """A learner without a model. A step reads every token array once."""

    @ray.method
    def join(self, address: str) -> None:
        """Load nothing."""

    @ray.method
    def step(
        self, batches: list[ObjectRef[pa.RecordBatch]], rows: Sequence[tuple[int, int]], version: int
    ) -> StepReport:
        began = time.thread_time()
        forests = wire.rows(ray.get(batches), rows)
        self.seconds["payload read"] += time.thread_time() - began
        for f in forests:
            for array in (f.token, f.logprob, f.entropy, f.version):
                array.sum()
        return report(forests, version)

    @ray.method
    def publish(self) -> tuple[list[ObjectRef[WeightBucket]], int]:
        return [ray.put(WeightBucket.of({}))], 0

    @ray.method
    def checkpoint(self, step: int, session: str) -> None:
        self.folder.store.write_checkpoint(step, session, lambda folder: None)


PREPARED = Roles(queue=MeasuredQueue, generator=PreparedGenerator, reward=PreparedReward, learner=StubLearner)
DRAWN = Roles(queue=MeasuredQueue, generator=MeasuredGenerator, reward=MeasuredReward, learner=StubLearner)


def graded(forest: Forest) -> Forest:
    """Return the forest with the rewards 0 and 1 in turn."""
    n = forest.leaves
    return forest.with_rewards([float(i % 2) for i in range(n)], [Verdict.VERIFIED] * n, ["same text"] * n)


def ungraded(forest: Forest) -> Forest:
    leaves = forest.leaves
    return replace(
        forest, reward=np.full(leaves, np.nan, np.float32), verdict=np.full(leaves, Verdict.UNGRADED, np.int8)
    )


def report(forests: list[Forest], version: int) -> StepReport:
    """Return the report of a step that changed nothing. Figures that need a model are 0."""
    rewards = np.concatenate([f.reward for f in forests])
    return StepReport(
        version=version + 1, updates=1, idle_updates=0, nonfinite_updates=0, nonfinite_forests=(), nonfinite_batch=None,
        clipped_gradients=0, forests_without_gradient=0, loss=0.0, grad_norm=0.0, lr=0.0, clip_ratio=0.0,
        mask_ratio=0.0, mismatch_kl=0.0, ess=1.0, reference_kl=0.0,
        staleness=[version - f.oldest_version for f in forests], publication_lag=[0] * len(forests),
        tokens=sum(f.tokens for f in forests), expanded_tokens=sum(f.expanded_tokens for f in forests),
        leaves=len(rewards), reward_mean=float(rewards.mean()), verdicts={}, entropy_mean=0.0, zero_variance=0.0,
        answers=AnswerFigures(
            answer_tokens=0.0, answer_tokens_by_verdict={}, truncated=0.0, mixed=1.0, reward_by_family={}
        ),
        seconds={"optimizer": 0.0}, mfu=None,
    )  # fmt: skip
