"""The learner of `treeadv bench driver`: it computes no model."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import ray
from ray import ObjectRef

from actors.benchmarks.stubs.measured import Measured
from actors.learner import Learner
from actors.weight_bucket import WeightBucket
from treeadv import wire
from treeadv.forest import Forest
from treeadv.learning.answers import AnswerFigures
from treeadv.learning.report import StepReport


class StubLearner(Learner, Measured):
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
        return [], 0  # a bucket, even an empty one, would make every generator import torch

    @ray.method
    def checkpoint(self, step: int, session: str) -> None:
        self.folder.store.write_checkpoint(step, session, lambda folder: None)


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
