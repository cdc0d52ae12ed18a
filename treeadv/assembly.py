"""Forests assembled from sequences or segments that other code drew."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from treeadv.forest import Finish, Forest, Ints, Verdict

_FACTS = ("forest_id", "prompt_id", "gold", "verifier", "meta", "tau", "temperature")


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


def merge_rollouts(
    *,
    prompt: npt.ArrayLike,
    sequences: Sequence[Sequence[int]],
    logprobs: Sequence[Sequence[float]],
    entropies: Sequence[Sequence[float]] | None = None,
    finish: Sequence[Finish] | Finish = Finish.STOP,
    versions: Sequence[Sequence[int]] | int = 0,
    **facts: Any,
) -> tuple[Forest, list[int]]:
    """Make an ungraded forest of flat rollouts of one prompt by merging equal prefixes; leaf i is sequence order[i] of
    the returned (forest, order).

    A sequence has at least one token; `logprobs`, `entropies` and `versions` have one entry for each of its tokens; one
    version may hold for all. A merged token keeps the log-probability and entropy of the first sequence that has it,
    and the oldest version. The last token of a sequence is never
    merged, so every sequence ends in a separate segment. `facts` are those of `assemble`, such as `forest_id`. The
    forest is marked as not predictable: its forks depend on the tokens drawn (docs/method.md).

    >>> forest, order = merge_rollouts(prompt=[1], sequences=[[5, 6, 7], [9], [5, 6, 8]], logprobs=[[-1.0] * 3] * 3)
    >>> forest.trees, forest.lengths.tolist(), order
    (2, [2, 1, 1, 1], [0, 2, 1])
    """
    if not sequences or not all(sequences):
        raise ValueError("each rollout needs at least one token, and a forest at least one rollout")
    parent, spans, order, below = _prefix_tree([list(s) for s in sequences])
    ends = [Finish(finish)] * len(sequences) if isinstance(finish, Finish) else finish
    entropies = entropies or [[0.0] * len(s) for s in sequences]
    forest = assemble(
        prompt=prompt,
        parent=parent,
        lengths=[b - a for _, a, b in spans],
        token=[t for i, a, b in spans for t in sequences[i][a:b]],
        logprob=[x for i, a, b in spans for x in logprobs[i][a:b]],
        entropy=[x for i, a, b in spans for x in entropies[i][a:b]],
        finish=[ends[i] for i in order],
        version=versions
        if isinstance(versions, int)
        else [
            min(versions[i][t] for i in members)
            for members, (_, a, b) in zip(below, spans, strict=True)
            for t in range(a, b)
        ],
        **{"rule": "merged", "predictable": False, **facts},
    )
    return forest, order


def merge_prefixes(f: Forest) -> Forest:
    """The graded forest whose tree is that of the equal prefixes of the leaves, in the order of that tree. What was
    shared stays shared."""
    paths = [
        np.concatenate([np.arange(f.start[s], f.start[s + 1]) for s in f.path(int(end))]) for end in f.leaf_segment
    ]
    merged, order = merge_rollouts(
        prompt=f.prompt,
        sequences=[f.token[p].tolist() for p in paths],
        logprobs=[f.logprob[p].tolist() for p in paths],
        entropies=[f.entropy[p].tolist() for p in paths],
        versions=[f.version[p].tolist() for p in paths],
        finish=[Finish(int(x)) for x in f.finish],
        **{name: getattr(f, name) for name in _FACTS},
    )
    detail = [f.detail[i] for i in order] if f.detail else ()
    return merged.with_rewards([float(x) for x in f.reward[order]], [int(x) for x in f.verdict[order]], detail)


def _prefix_tree(
    sequences: list[list[int]],
) -> tuple[list[int], list[tuple[int, int, int]], list[int], list[list[int]]]:
    """(parent [S], spans [S], order [L], members [S]): segment s holds the tokens a to b of sequence i for spans[s] =
    (i, a, b); its members are the sequences that share it."""
    parent: list[int] = []
    spans: list[tuple[int, int, int]] = []
    order: list[int] = []
    below: list[list[int]] = []
    stack = [(-1, 0, group) for group in reversed(_groups(sequences, range(len(sequences)), 0))]
    while stack:
        above, start, members = stack.pop()
        first, end = members[0], start + 1
        if len(members) == 1:
            end = len(sequences[first])
            order.append(first)
        else:
            while len(_groups(sequences, members, end)) == 1:
                end += 1
            stack += [(len(parent), end, group) for group in reversed(_groups(sequences, members, end))]
        parent.append(above)
        spans.append((first, start, end))
        below.append(members)
    return parent, spans, order, below


def _groups(sequences: list[list[int]], members: Iterable[int], at: int) -> list[list[int]]:
    """The members by their token at position `at`; one whose last token that is stands alone."""
    groups: dict[tuple[int, int], list[int]] = {}
    for i in members:
        alone = i if len(sequences[i]) == at + 1 else -1
        groups.setdefault((sequences[i][at], alone), []).append(i)
    return list(groups.values())
