"""What the queue checks and measures of a forest before it stores it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from treeadv import wire
from treeadv.config import QueueConfig
from treeadv.errors import BadForest
from treeadv.forest import Floats, Forest
from treeadv.replay.records import DropReason


def graded_forest(fid: str, batch: pa.RecordBatch) -> Forest:
    """Return the one forest of a batch. Raises `BadForest` if it breaks an invariant, is not graded, or is not
    `fid`."""
    forests = wire.from_batch(batch)
    if len(forests) != 1:
        raise BadForest(fid, f"its batch holds {len(forests)} forests")
    forest = forests[0].check()
    if forest.forest_id != fid:
        raise BadForest(fid, f"its batch holds forest {forest.forest_id}")
    if not forest.graded:
        raise BadForest(fid, "is not graded")
    return forest


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why a valid forest is dropped instead of stored."""

    reason: DropReason
    detail: str


def rejection(forest: Forest, config: QueueConfig) -> Rejection | None:
    """Return why the queue drops a graded forest on admission; None for one that it stores.

    A forest of fewer than two judged leaves gives no advantage. With `queue.mixed_only` neither does one whose judged
    leaves all have one reward (dynamic sampling, DAPO, arXiv:2503.14476).
    """
    judged = int(forest.judged.sum())
    if judged < min(2, forest.leaves):
        return Rejection("too_few_judged", f"{judged} of {forest.leaves} leaves were judged")
    reward = forest.reward[forest.judged]
    if config.mixed_only and reward.min() == reward.max():
        return Rejection("no_variance", f"all {judged} judged leaves have reward {reward[0]:g}")
    return None


def advantage_mass(reward: Floats) -> float:
    """Return the sum over leaves of |R - mean R|; 0 where all leaves have one reward. `reward` is [L]."""
    return float(np.abs(reward - reward.mean(dtype=np.float64)).sum())
