"""What the queue checks and measures of a forest before it stores it."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from treeadv import wire
from treeadv.errors import BadForest
from treeadv.forest import Floats, Forest


def graded_forest(fid: str, batch: pa.RecordBatch) -> Forest:
    """Return the one forest of a batch. Raises `BadForest` if it breaks an invariant, is not graded, or is not `fid`."""
    forests = wire.from_batch(batch)
    if len(forests) != 1:
        raise BadForest(fid, f"its batch holds {len(forests)} forests")
    forest = forests[0].check()
    if forest.forest_id != fid:
        raise BadForest(fid, f"its batch holds forest {forest.forest_id}")
    if not forest.graded:
        raise BadForest(fid, "is not graded")
    return forest


def advantage_mass(reward: Floats) -> float:
    """Return the sum over leaves of |R - mean R|; 0 where all leaves have one reward. `reward` is [L]."""
    return float(np.abs(reward - reward.mean(dtype=np.float64)).sum())
