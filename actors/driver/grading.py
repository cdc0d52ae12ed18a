"""The distribution of forests to reward actors. Each batch goes to the actor with the fewest pending batches."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import cast

import pyarrow as pa
from ray import ObjectRef
from ray.actor import ActorProxy
from ray.exceptions import RayTaskError

from actors.driver.liveness import ACTOR_LOST
from actors.driver.worker_group import BACKOFF, WorkerGroup
from actors.reward import GradeReport, RewardActor
from treeadv.rewards.sandbox.pool import PoolBroken
from treeadv.rewards.watch import VerifierWatch


class Grading:
    """The sender of forests to a group of reward actors. It replaces the actors that fail."""

    def __init__(self, rewards: WorkerGroup[RewardActor]) -> None:
        self._rewards = rewards
        self._pending: Counter[ActorProxy[RewardActor]] = Counter()  # batches sent and not yet graded
        self._watch = VerifierWatch()

    async def grade(
        self, forests: ObjectRef[pa.RecordBatch], row: int | None = None
    ) -> tuple[ObjectRef[pa.RecordBatch], GradeReport]:
        """Return a reference to the graded forests of a batch, or of its row `row`, and the results of their leaves.

        A reward actor is replaced if it dies or its verifier processes die; another actor then grades the forests.
        Raises `RunFailed` if the verifier keeps failing."""
        while True:
            while not self._rewards.members:
                await asyncio.sleep(BACKOFF)
            member = min(self._rewards.members, key=self._pending.__getitem__)
            self._pending[member] += 1
            try:
                answer = member.grade.remote(forests, row)
                graded, report_ref = cast(tuple[ObjectRef[pa.RecordBatch], ObjectRef[GradeReport]], answer)
                report = await report_ref
                self._watch.add(report.verdicts, report.failure)
                return graded, report
            except ACTOR_LOST as fault:
                self._rewards.replace(member, fault)
            except RayTaskError as fault:
                if not isinstance(fault.cause, PoolBroken):
                    raise
                self._rewards.replace(member, fault.cause)
            finally:
                self._pending[member] -= 1

    async def dismiss_retired(self) -> None:
        """End the retired reward actors that have no pending batch."""
        for member in [m for m in self._rewards.names if m not in self._rewards.members and not self._pending[m]]:
            await self._rewards.dismiss(member)
