"""The request for one forest."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from treeadv.data.problems import Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class GrowRequest:
    """A request for one forest. `prompt` [P] int32 is the tokenised prompt of `problem`. `seed` fixes every draw."""

    forest_id: str
    problem: Problem
    prompt: np.ndarray
    seed: int
