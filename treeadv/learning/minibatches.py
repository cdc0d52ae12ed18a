"""Splits the forests of a batch into the mini-batches of its optimizer updates."""

from __future__ import annotations

import random
from collections.abc import Sequence

from treeadv.seeds import derive


def minibatches(forests: int, updates: int, seed: int, version: int) -> list[list[int]]:
    """Split a shuffled batch of `forests` forests into `updates` mini-batches of indices.

    The sizes differ by at most 1. The indices of a mini-batch increase. The result depends only on the arguments, so a
    repeated batch takes the same updates. `version` is the version of the weights when the batch arrived."""
    order = list(range(forests))
    if updates == 1:
        return [order]
    random.Random(derive(seed, "mini-batches", version)).shuffle(order)
    return [sorted(order[i::updates]) for i in range(min(updates, forests))]


def trained_in(plan: Sequence[Sequence[int]], forest: int) -> int:
    """Return the index of the mini-batch that contains the forest.

    The index is the number of updates before the first update that trains on the forest."""
    return next(i for i, batch in enumerate(plan) if forest in batch)
