"""Grades the leaves of a forest."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from treeadv.forest import Finish, Forest, Verdict
from treeadv.rewards.judgement import Answer, Judgement
from treeadv.rewards.sandbox.pool import VerifierPool

_ABORTED = Judgement(verdict=Verdict.ABORTED, reward=0.0, seconds=0.0, detail="the engine lost this branch")


async def grade_forest(
    pool: VerifierPool, f: Forest, decode: Callable[[np.ndarray], str]
) -> tuple[Forest, list[Judgement]]:
    """Return the forest with reward, verdict and detail of every leaf, and the judgements of its answers.

    `decode` converts tokens to text. A leaf whose branch the engine lost gets the verdict ABORTED without a verifier.
    """
    finished = [i for i in range(f.leaves) if f.finish[i] != Finish.ABORT]
    answers = [
        Answer(response=decode(f.leaf_tokens(i)), gold=f.gold, verifier=f.verifier, meta=f.meta) for i in finished
    ]
    judged = await pool.grade(answers)
    of = dict(zip(finished, judged, strict=True))
    leaves = [of.get(i, _ABORTED) for i in range(f.leaves)]
    return f.with_rewards([j.reward for j in leaves], [j.verdict for j in leaves], [j.detail for j in leaves]), judged
