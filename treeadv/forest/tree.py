"""The forest, which holds all rollouts of one prompt in flat arrays. The arrays hold every token once.

A forest consists of M trees. A tree consists of *segments*, the runs of tokens between forks. The segments are in
depth-first order, a parent before its children. Therefore every subtree is a contiguous range of segments and of
leaves, and a sum over a subtree is the difference of two prefix sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from treeadv.errors import BadForest
from treeadv.forest.construction import Construction
from treeadv.forest.faults import find_fault
from treeadv.forest.flat import FlatRollouts, flatten
from treeadv.forest.labels import Finish
from treeadv.forest.notebook import notebook_html
from treeadv.forest.prefixes import prefix_order
from treeadv.forest.structure import ForestArrays

_FACTS = ("forest_id", "prompt_id", "gold", "verifier", "meta", "tau", "temperature")


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Forest(ForestArrays, Construction):
    """All rollouts of one prompt. S segments, T tokens, L leaves, P prompt tokens.

    `logprob` is the log-probability under the sampled distribution (with temperature). `entropy` is the entropy of this
    distribution in nats. `version` is the policy version that drew the token. `reward` is NaN and `verdict` is UNGRADED
    before a verifier judges the leaf.

    >>> tree = Forest.assemble(prompt=[1], parent=[-1, 0, 0], lengths=[2, 1, 3], token=[5] * 6, logprob=[-1.0] * 6)
    >>> tree.tokens, tree.expanded_tokens, tree.leaves
    (6, 8, 2)
    """

    # ---- grading and checking --------------------------------------------------------------------
    def with_rewards(self, reward: Sequence[float], verdict: Sequence[int], detail: Sequence[str] = ()) -> Forest:
        """Return the graded forest. The three sequences have one entry for each leaf, but `detail` may be empty."""
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
        """Return the rollouts as padded arrays with one row for each leaf (`FlatRollouts`).

        >>> tree = Forest.assemble(prompt=[1], parent=[-1, 0, 0], lengths=[2, 1, 2], token=range(5), logprob=[-1.0] * 5)
        >>> tree.to_flat().tokens(pad=9).tolist()
        [[0, 1, 2, 9], [0, 1, 3, 4]]
        """
        return flatten(self)

    def merge_prefixes(self) -> Forest:
        """Return the graded forest that also merges equal prefixes of its leaves.

        The leaves are in the order of the merged tree. Tokens that leaves shared before stay shared."""
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
        """Compare every field. Arrays are compared by value, and NaN equals NaN."""
        if not isinstance(other, Forest):
            return NotImplemented
        return all(_equal(getattr(self, f.name), getattr(other, f.name)) for f in fields(self))

    def __repr__(self) -> str:
        rewards = f"mean reward {float(self.reward.mean()):.3g}" if self.graded else "not graded"
        return (
            f"<Forest {self.forest_id or 'without id'}: {self.trees} trees, {self.segments} segments,"
            f" {self.leaves} leaves, {self.tokens} tokens, sharing {self.sharing:.0%}, {rewards}>"
        )

    def _repr_html_(self) -> str:
        """Return the HTML that a notebook shows (`notebook_html`)."""
        return notebook_html(self)


def _equal(a: object, b: object) -> bool:
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
    return a == b or (a != a and b != b)
