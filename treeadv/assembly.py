"""Forests made from their parts, for whoever does not grow them."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from treeadv.forest import Finish, Forest, Ints, Verdict


def assemble(
    *,
    prompt: npt.ArrayLike,
    parent: npt.ArrayLike,
    lengths: npt.ArrayLike,
    token: npt.ArrayLike,
    logprob: npt.ArrayLike,
    entropy: npt.ArrayLike | None = None,
    version: npt.ArrayLike = 0,
    finish: npt.ArrayLike = Finish.STOP,
    arity: npt.ArrayLike | None = None,
    budget: npt.ArrayLike | None = None,
    forest_id: str = "",
    prompt_id: str = "",
    gold: str = "",
    verifier: str = "math",
    meta: str = "",
    rule: str = "none",
    predictable: bool = True,
    tau: float = math.nan,
    temperature: float = 1.0,
) -> Forest:
    """Make an ungraded forest from its tree: `parent` [S] in depth-first order (-1 for a root) and `lengths` [S] in
    tokens.

    `token`, `logprob`, `entropy` (0 where unknown) and `version` are [T], `finish` is [L]; a scalar holds for all
    entries. `arity` [S] defaults to the children that exist, `budget` [S] to the leaves below. Raises `BadForest` when
    an invariant does not hold.

    >>> tree = assemble(prompt=[1], parent=[-1, 0, 0], lengths=[2, 1, 3], token=[5] * 6, logprob=[-1.0] * 6)
    >>> tree.arity.tolist(), tree.leaf_segment.tolist()
    ([2, 0, 0], [1, 2])
    """
    up = np.asarray(parent, np.int32)
    children = np.bincount(up[up >= 0], minlength=len(up)).astype(np.int32)
    ends = np.flatnonzero(children == 0).astype(np.int32)
    T, L = len(np.asarray(token)), len(ends)
    return Forest(
        forest_id=forest_id,
        prompt_id=prompt_id,
        gold=gold,
        verifier=verifier,
        meta=meta,
        rule=rule,
        predictable=predictable,
        tau=tau,
        temperature=temperature,
        prompt=np.asarray(prompt, np.int32),
        parent=up,
        start=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32),
        tree=(np.cumsum(up == -1) - 1).astype(np.int32),
        arity=children if arity is None else np.asarray(arity, np.int32),
        budget=_leaves_below(up) if budget is None else np.asarray(budget, np.int32),
        token=np.asarray(token, np.int32),
        logprob=np.asarray(logprob, np.float32),
        entropy=np.zeros(T, np.float32) if entropy is None else np.asarray(entropy, np.float32),
        version=np.full(T, version, np.int32),
        leaf_segment=ends,
        finish=np.full(L, finish, np.int8),
        reward=np.full(L, np.nan, np.float32),
        verdict=np.full(L, Verdict.UNGRADED, np.int8),
    ).check()


def _leaves_below(parent: Ints) -> Ints:
    """[S] the number of leaves below each segment; 1 for a leaf."""
    inner = set(parent.tolist())
    out = np.array([int(s not in inner) for s in range(len(parent))], np.int32)
    for s in range(len(parent) - 1, 0, -1):
        if 0 <= parent[s] < s:
            out[parent[s]] += out[s]
    return out
