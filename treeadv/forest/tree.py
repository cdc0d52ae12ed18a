"""The forest: all rollouts of one prompt as flat arrays that hold every token once.

A forest is M trees. A tree is cut into *segments*, the runs of tokens between forks. Segments stand in depth-first
order, a parent before its children. So every subtree is a contiguous range of segments and of leaves, and a sum over a
subtree is the difference of two prefix sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from treeadv.errors import BadForest
from treeadv.forest.construction import Construction
from treeadv.forest.faults import find_fault
from treeadv.forest.flat import FlatRollouts, flatten
from treeadv.forest.labels import UNJUDGED, Finish, Floats, Ints, Verdict
from treeadv.forest.prefixes import prefix_order

_FACTS = ("forest_id", "prompt_id", "gold", "verifier", "meta", "tau", "temperature")


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """One node of a tree; `leaves` and `subtree` are half-open ranges of leaves and segments."""

    index: int
    parent: int  # -1 for a root
    tree: int
    arity: int  # children drawn at its end; 0 for a leaf
    budget: int
    tokens: Ints
    leaves: range
    subtree: range


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Forest(Construction):
    """All rollouts of one prompt. S segments, T tokens, L leaves, P prompt tokens.

    `logprob` is the log-probability under the sampled distribution (with temperature). `entropy` is the entropy of this
    distribution in nats. `version` is the policy version that drew the token. `reward` is NaN and `verdict` is UNGRADED
    before a verifier judges the leaf.

    >>> tree = Forest.assemble(prompt=[1], parent=[-1, 0, 0], lengths=[2, 1, 3], token=[5] * 6, logprob=[-1.0] * 6)
    >>> tree.tokens, tree.expanded_tokens, tree.leaves
    (6, 8, 2)
    """

    forest_id: str
    prompt_id: str
    gold: str
    verifier: str
    meta: str  # JSON for the verifier; "" if the verifier needs no data
    rule: str  # fork rule, as configured
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
        """Generated tokens, each once."""
        return len(self.token)

    @cached_property
    def expanded_tokens(self) -> int:
        """Tokens of the flattened rollouts: the sum over leaves of the length of their path."""
        return int(self.lengths.astype(np.int64) @ self.leaf_count)

    @property
    def sharing(self) -> float:
        """Share of the tokens of the flattened rollouts that the forest saves: 1 - tokens / expanded_tokens."""
        return 1.0 - self.tokens / self.expanded_tokens

    # ---- structure, all O(S) ---------------------------------------------------------------------
    @cached_property
    def lengths(self) -> Ints:
        """[S] tokens of each segment."""
        return np.diff(self.start)

    @cached_property
    def depth(self) -> Ints:
        """[S] forks above each segment; 0 for a root."""
        out = np.zeros(self.segments, np.int32)
        for s, p in enumerate(self.parent):
            if p >= 0:
                out[s] = out[p] + 1
        return out

    @cached_property
    def offset(self) -> Ints:
        """[S] generated tokens on the path above each segment (its position after the prompt)."""
        out = np.zeros(self.segments, np.int32)
        for s, p in enumerate(self.parent):
            if p >= 0:
                out[s] = out[p] + self.lengths[p]
        return out

    @cached_property
    def subtree_end(self) -> Ints:
        """[S] one past the last segment of each subtree; the subtree of s is the range from s to subtree_end[s]."""
        out = np.arange(1, self.segments + 1, dtype=np.int32)
        for s in range(self.segments - 1, -1, -1):
            p = self.parent[s]
            if p >= 0:
                out[p] = max(out[p], out[s])
        return out

    @cached_property
    def leaf_begin(self) -> Ints:
        """[S] first leaf under each segment."""
        return np.searchsorted(self.leaf_segment, np.arange(self.segments)).astype(np.int32)

    @cached_property
    def leaf_count(self) -> Ints:
        """[S] K(s): number of leaves under each segment."""
        return np.searchsorted(self.leaf_segment, self.subtree_end).astype(np.int32) - self.leaf_begin

    @cached_property
    def children(self) -> tuple[tuple[int, ...], ...]:
        """[S] the children of each segment. A segment has fewer children than `arity` if a branch was lost."""
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
        """Segments from the root to `s`, both included."""
        out = [s]
        while (s := int(self.parent[s])) >= 0:
            out.append(s)
        return out[::-1]

    def leaf_tokens(self, leaf: int) -> Ints:
        """The generated tokens of one leaf, from the root to its end."""
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
        """[L] whether a verifier judged each leaf. The reward of any other leaf has no meaning."""
        return ~np.isin(self.verdict, UNJUDGED)

    @cached_property
    def judged_below(self) -> npt.NDArray[np.bool_]:
        """[S] whether a judged leaf lies under each segment."""
        before = np.concatenate([[0], np.cumsum(self.judged)])
        return before[self.leaf_begin + self.leaf_count] > before[self.leaf_begin]

    # ---- grading and checking --------------------------------------------------------------------
    def with_rewards(self, reward: Sequence[float], verdict: Sequence[int], detail: Sequence[str] = ()) -> Forest:
        """Return the graded forest. The three sequences have one entry for each leaf; `detail` may be empty."""
        scored = replace(
            self, reward=np.asarray(reward, np.float32), verdict=np.asarray(verdict, np.int8), detail=tuple(detail)
        )
        return scored.check()

    def judged_part(self) -> Forest:
        """Return the forest without its unjudged leaves and without the segments that have no judged leaf below them.

        The arity does not change, so the flow weights inside a tree do not change. Raises `BadForest` if no leaf was
        judged.
        """
        if self.judged.all():
            return self
        if not self.judged.any():
            raise BadForest(self.forest_id, "no leaf was judged")
        kept, tokens = self.judged_below, np.repeat(self.judged_below, self.lengths)
        index = np.cumsum(kept, dtype=np.int32) - 1
        parent = np.where(self.parent[kept] < 0, -1, index[self.parent[kept]]).astype(np.int32)
        return replace(
            self,
            parent=parent,
            start=np.cumsum([0, *self.lengths[kept]], dtype=np.int32),
            tree=(np.cumsum(parent < 0) - 1).astype(np.int32),
            leaf_segment=index[self.leaf_segment[self.judged]],
            detail=tuple(d for d, judged in zip(self.detail, self.judged, strict=True) if judged)
            if self.detail
            else (),
            **{name: getattr(self, name)[kept] for name in ("arity", "budget")},
            **{name: getattr(self, name)[tokens] for name in ("token", "logprob", "entropy", "version")},
            **{name: getattr(self, name)[self.judged] for name in ("finish", "reward", "verdict")},
        )

    def check(self) -> Forest:
        """Return the forest if every invariant holds, else raise `BadForest` with the first broken invariant."""
        if reason := find_fault(self):
            raise BadForest(self.forest_id, reason)
        return self

    # ---- other forms -----------------------------------------------------------------------------
    def to_flat(self) -> FlatRollouts:
        """Return the rollouts as padded arrays, one row a leaf; see `FlatRollouts`.

        >>> tree = Forest.assemble(prompt=[1], parent=[-1, 0, 0], lengths=[2, 1, 2], token=range(5), logprob=[-1.0] * 5)
        >>> tree.to_flat().tokens(pad=9).tolist()
        [[0, 1, 2, 9], [0, 1, 3, 4]]
        """
        return flatten(self)

    def merge_prefixes(self) -> Forest:
        """Return the graded forest whose tree is that of the equal prefixes of the leaves, in the order of that tree.
        What was shared stays shared."""
        flat = self.to_flat()
        sequences = [self.token[i].tolist() for i in flat.paths]
        merged = Forest.from_rollouts(
            self.prompt,
            sequences,
            [self.logprob[i].tolist() for i in flat.paths],
            entropies=[self.entropy[i].tolist() for i in flat.paths],
            versions=[self.version[i].tolist() for i in flat.paths],
            finish=[Finish(int(x)) for x in self.finish],
            **{name: getattr(self, name) for name in _FACTS},
        )
        order = prefix_order(sequences)
        detail = [self.detail[i] for i in order] if self.detail else ()
        return merged.with_rewards(
            [float(x) for x in self.reward[order]], [int(x) for x in self.verdict[order]], detail
        )

    def __eq__(self, other: object) -> bool:
        """Compare every field, arrays by value; NaN equals NaN."""
        if not isinstance(other, Forest):
            return NotImplemented
        return all(_equal(getattr(self, f.name), getattr(other, f.name)) for f in fields(self))

    def __repr__(self) -> str:
        rewards = f"mean reward {float(self.reward.mean()):.3g}" if self.graded else "not graded"
        return (
            f"<Forest {self.forest_id or 'without id'}: {self.trees} trees, {self.segments} segments,"
            f" {self.leaves} leaves, {self.tokens} tokens, sharing {self.sharing:.0%}, {rewards}>"
        )


def _equal(a: object, b: object) -> bool:
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
    return a == b or (a != a and b != b)
