"""Which ready forests a lease takes, and how much a forest has to teach."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from treeadv.forest import Floats
from treeadv.replay.ledger import Entry

Policy = Literal["fifo", "freshest", "priority"]


def advantage_mass(reward: Floats) -> float:
    """sum over leaves |R - mean R|: zero where all leaves are rewarded alike and the forest teaches nothing. `reward` is [L]."""
    return float(np.abs(reward - reward.mean(dtype=np.float64)).sum())


def choose(ready: Sequence[Entry], n: int, policy: Policy, seed: tuple[int, int]) -> list[Entry]:
    """`n` of the ready forests (fewer if there are not as many), in the order to train them.

    Forests leased before a resume go first, as they went then. `fifo` follows admission, `freshest` the newest oldest token,
    `priority` draws without replacement in proportion to advantage mass: the n largest u^(1/w) with u uniform (Efraimidis and
    Spirakis 2006).
    """
    first = sorted((e for e in ready if e.turn is not None), key=lambda e: e.turn or 0)
    rest = sorted((e for e in ready if e.turn is None), key=lambda e: e.order)
    if policy == "freshest":
        rest.sort(key=lambda e: -e.payload.oldest_version)
    elif policy == "priority":
        u = np.random.default_rng(seed).random(len(rest))
        keys = [math.log(1.0 - x) / e.payload.mass if e.payload.mass > 0 else -math.inf for x, e in zip(u, rest, strict=True)]
        rest = [rest[i] for i in sorted(range(len(rest)), key=lambda i: -keys[i])]
    return (first + rest)[:n]
