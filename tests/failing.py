"""A verifier that fails after the check at the start, and a correction that makes an update not finite."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field

import numpy as np

from treeadv.learning.advantage import Array
from treeadv.learning.correction import Correction, Factor


def fails_after_the_first_call(response: str, gold: str) -> float:
    with open(os.environ["TREEADV_VERIFIER_CALLS"], "a+") as calls:
        calls.seek(0)
        called = bool(calls.read())
        calls.write("x")
    if called:
        raise RuntimeError("broken")
    return 1.0


@dataclass(frozen=True, kw_only=True)
class NotFinite(Factor):
    """A factor of a correction. It is NaN in the first calls of a process, and 1 in later calls."""

    calls: int
    made: list[None] = field(default_factory=list)

    def __call__(self, log_w: Array) -> Array:
        self.made.append(None)
        return np.full_like(log_w, np.nan if len(self.made) <= self.calls else 1.0)


NEVER_FINITE = Correction(factors=(NotFinite(level="token", outside="truncate", bounds=(0.0, 1.0), calls=sys.maxsize),))
NOT_FINITE_ONCE = Correction(factors=(NotFinite(level="token", outside="truncate", bounds=(0.0, 1.0), calls=1),))
