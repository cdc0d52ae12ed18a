"""Treats leaves that reached the token limit. They stay graded, are masked, or get a penalty."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np

from treeadv.forest import Finish, Forest, Verdict
from treeadv.learning.advantage import path_sum


def treat_truncated(f: Forest, how: Literal["graded", "masked", "penalty"], limit: int, penalty_tokens: int) -> Forest:
    """Return the forest with the verdicts and rewards for training. `limit` is the token limit of a rollout.

    With `graded` the forest does not change. With `masked` the leaves that were cut at the limit count as not judged.
    With `penalty` DAPO's soft penalty (arXiv 2503.14476, equation 13) is added to each reward. The penalty is 0 up to
    `limit` - `penalty_tokens` tokens and falls to -1 at `limit`."""
    if how == "graded":
        return f
    if how == "masked":
        cut = f.finish == Finish.LENGTH
        return replace(f, verdict=np.where(cut, Verdict.ABORTED, f.verdict).astype(np.int8)) if cut.any() else f
    length = path_sum(f, f.lengths)[f.leaf_segment]
    penalty = np.clip((limit - penalty_tokens - length) / penalty_tokens, -1.0, 0.0)
    return replace(f, reward=(f.reward + penalty).astype(np.float32))
