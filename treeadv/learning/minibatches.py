"""The optimizer updates of a batch: which forests each one trains on."""

from __future__ import annotations

import random
from collections.abc import Sequence

from treeadv.seeds import derive


def minibatches(forests: int, updates: int, seed: int, version: int) -> list[list[int]]:
    """Deal the forests of a batch, shuffled, to `updates` mini-batches of equal size, or one apart, in increasing
    order of index.

    The result depends on the arguments alone, so that a repeated batch takes the same updates. `version`
    is that of the weights when the batch arrived."""
    order = list(range(forests))
    if updates == 1:
        return [order]
    random.Random(derive(seed, "mini-batches", version)).shuffle(order)
    return [sorted(order[i::updates]) for i in range(min(updates, forests))]


def trained_in(plan: Sequence[Sequence[int]], forest: int) -> int:
    """The number of updates between the arrival of the batch and the one that trains on the forest first."""
    return next(i for i, batch in enumerate(plan) if forest in batch)
