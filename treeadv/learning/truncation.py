"""What a leaf that ran into the token limit counts for."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np

from treeadv.forest import Finish, Forest, Verdict
from treeadv.learning.advantage import path_sum


def treat_truncated(f: Forest, how: Literal["graded", "masked", "penalty"], limit: int, penalty_tokens: int) -> Forest:
    """The forest with the rewards and leaves that are trained on. `limit` is the token limit of a rollout.

    graded: as it is. masked: without the leaves that were cut at the limit, as if they had not been judged. penalty:
    with DAPO's soft penalty (2503.14476, equation 13) added to each reward, which falls from 0 at `limit` -
    `penalty_tokens` tokens to -1 at `limit`."""
    if how == "graded":
        return f
    if how == "masked":
        cut = f.finish == Finish.LENGTH
        return replace(f, verdict=np.where(cut, Verdict.ABORTED, f.verdict).astype(np.int8)) if cut.any() else f
    length = path_sum(f, f.lengths)[f.leaf_segment]
    penalty = np.clip((limit - penalty_tokens - length) / penalty_tokens, -1.0, 0.0)
    return replace(f, reward=(f.reward + penalty).astype(np.float32))
