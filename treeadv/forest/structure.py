"""The arrays of a forest, its sizes, and the structure of its trees."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from treeadv.forest.labels import UNJUDGED, Floats, Ints, Verdict

_UNJUDGED = np.array(UNJUDGED, np.int8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """One node of a tree. `leaves` is the half-open range of the leaves below it. `subtree` is the half-open range of
    the segments of its subtree.
    """

    index: int
    parent: int  # -1 for a root
    tree: int
    arity: int  # number of children drawn at its end; 0 for a leaf
    budget: int
    tokens: Ints
    leaves: range
    subtree: range


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ForestArrays:
    """The arrays of `Forest`. S segments, T tokens, L leaves, P prompt tokens."""

    forest_id: str
    prompt_id: str
    gold: str
    verifier: str
    meta: str  # JSON for the verifier; "" if the verifier needs no data
    rule: str  # the fork rule as the configuration names it
    predictable: bool  # whether forking on that rule is unbiased (docs/method.md)
    tau: float  # fork threshold in nats; NaN for a rule without a threshold
    temperature: float
    prompt: Ints  # [P]
    parent: Ints  # [S]
    start: Ints  # [S+1] offsets into the token arrays
    tree: Ints  # [S]
    arity: Ints  # [S] number of children drawn, including lost children
    budget: Ints  # [S] leaf budget of the segment
    token: Ints  # [T]
    logprob: Floats  # [T]
    entropy: Floats  # [T]
    version: Ints  # [T]
    leaf_segment: Ints  # [L]
    finish: npt.NDArray[np.int8]  # [L]
    reward: Floats  # [L]
    verdict: npt.NDArray[np.int8]  # [L]
    detail: tuple[str, ...] = ()  # [L] the verifier's reason or ""; () before grading

    # ---- sizes -----------------------------------------------------------------------------------
    @property
    def segments(self) -> int:
        return len(self.parent)

    @property
    def leaves(self) -> int:
        return len(self.leaf_segment)

    @property
    def trees(self) -> int:
        return int(self.tree[-1]) + 1

    @property
    def tokens(self) -> int:
        """Return the number of generated tokens. Each token counts once."""
        return len(self.token)

    @cached_property
    def expanded_tokens(self) -> int:
        """Return the number of tokens of the flattened rollouts: the sum of the lengths of the leaves' paths."""
        return int(self.lengths.astype(np.int64) @ self.leaf_count)

    @property
    def sharing(self) -> float:
        """Return the share of the tokens of the flattened rollouts that the forest saves: 1 - tokens /
        expanded_tokens.
        """
        return 1.0 - self.tokens / self.expanded_tokens

    # ---- structure, all O(S) ---------------------------------------------------------------------
    @cached_property
    def lengths(self) -> Ints:
        """Return [S]: the number of tokens of each segment."""
        return np.diff(self.start)

    @cached_property
    def depth(self) -> Ints:
        """Return [S]: the number of forks above each segment. A root has 0."""
        out = np.zeros(self.segments, np.int32)
        for s, p in enumerate(self.parent):
            if p >= 0:
                out[s] = out[p] + 1
        return out

    @cached_property
    def offset(self) -> Ints:
        """Return [S]: the number of generated tokens on the path above each segment (its position after the prompt)."""
        out = np.zeros(self.segments, np.int32)
        for s, p in enumerate(self.parent):
            if p >= 0:
                out[s] = out[p] + self.lengths[p]
        return out

    @cached_property
    def subtree_end(self) -> Ints:
        """Return [S]: one past the last segment of each subtree. The subtree of s is the range [s, subtree_end[s])."""
        out = np.arange(1, self.segments + 1, dtype=np.int32)
        for s in range(self.segments - 1, -1, -1):
            p = self.parent[s]
            if p >= 0:
                out[p] = max(out[p], out[s])
        return out

    @cached_property
    def leaf_begin(self) -> Ints:
        """Return [S]: the first leaf under each segment."""
        return np.searchsorted(self.leaf_segment, np.arange(self.segments)).astype(np.int32)

    @cached_property
    def leaf_count(self) -> Ints:
        """Return [S]: K(s), the number of leaves under each segment."""
        return np.searchsorted(self.leaf_segment, self.subtree_end).astype(np.int32) - self.leaf_begin

    @cached_property
    def children(self) -> tuple[tuple[int, ...], ...]:
        """Return [S]: the children of each segment. A segment has fewer children than `arity` if a branch was lost."""
        out: list[list[int]] = [[] for _ in range(self.segments)]
        for s, p in enumerate(self.parent):
            if p >= 0:
                out[p].append(s)
        return tuple(map(tuple, out))

    def segment(self, s: int) -> Segment:
        first = int(self.leaf_begin[s])
        return Segment(
            index=s,
            parent=int(self.parent[s]),
            tree=int(self.tree[s]),
            arity=int(self.arity[s]),
            budget=int(self.budget[s]),
            tokens=self.token[self.start[s] : self.start[s + 1]],
            leaves=range(first, first + int(self.leaf_count[s])),
            subtree=range(s, int(self.subtree_end[s])),
        )

    def path(self, s: int) -> list[int]:
        """Return the segments from the root to `s`, both included."""
        out = [s]
        while (s := int(self.parent[s])) >= 0:
            out.append(s)
        return out[::-1]

    def leaf_tokens(self, leaf: int) -> Ints:
        """Return the generated tokens of one leaf, from the root to its end."""
        path = self.path(int(self.leaf_segment[leaf]))
        return np.concatenate([self.token[self.start[s] : self.start[s + 1]] for s in path])

    @property
    def oldest_version(self) -> int:
        return int(self.version.min())

    @property
    def newest_version(self) -> int:
        return int(self.version.max())

    @property
    def graded(self) -> bool:
        return bool((self.verdict != Verdict.UNGRADED).all())

    @cached_property
    def judged(self) -> npt.NDArray[np.bool_]:
        """Return [L]: whether a verifier judged each leaf. The reward of any other leaf has no meaning."""
        return (self.verdict[:, None] != _UNJUDGED).all(1)  # np.isin takes longer for a few leaves

    @cached_property
    def judged_below(self) -> npt.NDArray[np.bool_]:
        """Return [S]: whether a judged leaf is under each segment."""
        before = np.concatenate([[0], np.cumsum(self.judged)])
        return before[self.leaf_begin + self.leaf_count] > before[self.leaf_begin]
