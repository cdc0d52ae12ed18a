"""The reward actors of `treeadv bench driver`."""

from __future__ import annotations

from actors.benchmarks.stubs.measured import Measured
from actors.reward import RewardActor
from treeadv.forest import Forest, Verdict


class MeasuredReward(RewardActor, Measured):
    """A reward actor whose verifier judges every leaf."""


class PreparedReward(MeasuredReward):
    """A reward actor that gives every forest the same grades without a verifier."""

    async def _graded(self, forest: Forest) -> Forest:
        return graded(forest)


def graded(forest: Forest) -> Forest:
    """Return the forest with the rewards 0 and 1 in turn."""
    n = forest.leaves
    return forest.with_rewards([float(i % 2) for i in range(n)], [Verdict.VERIFIED] * n, ["same text"] * n)
